"""What is kept of weights: it follows every change of them, and the processor's own layout of them changes nothing."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from nets import RandomNet
from optimize_nets import (
    NAMES,
    SMALL,
    Calls,
    assert_same,
    calls,
    explained,
    seeded_weights,
    signed,
    tour,
    weight_shapes,
)
from torch import nn

import fxlrp
from fxlrp.common import tensors
from fxlrp.passes.optimize import DEFAULT, PACK_WEIGHTS, derived, packed
from fxlrp.passes.optimize.derived import Derived
from fxlrp.rules import ZPlus

DOUBLE = torch.float64
FOLDED = ("single_branch", "constant_denominators", "transposes_as_convolutions", "fold_weights")


class Network(nn.Module):
    """A first layer, a layer that is called twice and both of their norms."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.twice, self.behind = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.behind(self.twice(F.silu(self.twice(x))))
        return self.head(F.relu(x).mean((2, 3)))


def network(dtype=DOUBLE):
    """The network, and images for it."""
    torch.manual_seed(0)
    return seeded_weights(Network()).to(dtype), torch.randn(3, 3, 16, 16, dtype=dtype)


class Kept:
    """Counts how often what is kept of weights is made."""

    def __init__(self, monkeypatch):
        self.count = 0
        right = Derived._made

        def made(derived, inputs):
            self.count += 1
            return right(derived, inputs)

        monkeypatch.setattr(Derived, "_made", made)

    def during(self, function, *arguments, **options):
        before = self.count
        function(*arguments, **options)
        return self.count - before


@pytest.fixture
def kept(monkeypatch):
    return Kept(monkeypatch)


def assert_follows(explainer, model, *inputs, preset="conserving", limit=1e-12, **options):
    """The explainer explains the model as it is now: as one that is compiled afresh."""
    afresh = explained(copy.deepcopy(model), *inputs, optimize=False, preset=preset, **options)
    assert_same(explainer(*inputs, **options), afresh, limit)


# Kept until it changes ------------------------------------------------------------------------------


def test_no_weight_is_clamped_at_the_second_call():
    model, x = tour()
    shapes = weight_shapes(model)
    changes = ("clamp", "clamp_min", "clamp_max", "relu", "flip", "maximum")
    plain, folded = fxlrp.compile(model, optimize=False), fxlrp.compile(model)
    assert calls(plain, x).of(*changes, shapes=shapes)
    assert calls(plain, x).of(*changes, shapes=shapes)
    assert calls(folded, x).of(*changes, shapes=shapes)
    assert not calls(folded, x).of(*changes, shapes=shapes)


@pytest.mark.parametrize("preset", ["conserving", "epsilon_plus", "epsilon_gamma_box"])
def test_what_depends_on_weights_is_made_once(kept, preset):
    model, x = network()
    explainer = fxlrp.compile(model, preset)
    assert kept.during(explainer, x) == 1
    assert kept.during(explainer, x) == 0
    assert kept.during(explainer, 2 * x) == 0
    assert kept.during(explainer, x[:1]) == 0  # nothing of it depends on the batch
    assert kept.during(explainer, x, target=[0, 1]) == 1  # the program of rows is another one
    assert kept.during(explainer, x, target=[0, 1, 2]) == 0


def test_the_form_of_the_input_counts(kept):
    model, _ = network(torch.float32)
    explainer = fxlrp.compile(model, optimize=FOLDED)
    images = [torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 24), torch.randn(1, 3, 24, 16)]
    images += [image.to(memory_format=torch.channels_last) for image in images]
    for image in images:
        assert kept.during(explainer, image) == 1
        assert kept.during(explainer, image) == 0


def test_nothing_is_kept_while_gradients_are_recorded(kept):
    model, x = signed()
    explainer = fxlrp.compile(model, differentiable=True)
    assert [kept.during(explainer, x) for _ in range(2)] == [1, 1]
    with torch.no_grad():
        assert [kept.during(explainer, x) for _ in range(2)] == [1, 0]
    assert kept.during(explainer, x) == 1
    assert explainer(x).relevance.grad_fn is not None


def test_what_is_kept_can_be_forgotten(kept):
    model, x = signed()
    explainer = fxlrp.compile(model)
    explainer(x)
    explainer.graph_module.derived.forget()
    assert kept.during(explainer, x) == 1


def test_two_explainers_of_one_model():
    model, x = network()
    first, second = fxlrp.compile(model), fxlrp.compile(model, "epsilon_plus")
    for _ in range(2):
        assert_follows(first, model, x)
        assert_follows(second, model, x, preset="epsilon_plus")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-0.9)


def test_sizes_and_batches_in_turn():
    model, _ = network()
    explainer = fxlrp.compile(model)
    shapes = [(1, 3, 16, 16), (3, 3, 24, 16), (2, 3, 16, 16)]
    images = [torch.randn(shape, dtype=DOUBLE) for shape in shapes]
    for image in (*images, *reversed(images), images[0].to(memory_format=torch.channels_last), images[1]):
        assert_follows(explainer, model, image)


def test_single_calls_after_rows_and_heatmaps():
    model, x = network()
    explainer, plain = fxlrp.compile(model), fxlrp.compile(model, optimize=False)
    for _ in range(2):
        assert_same(explainer(x, target=[0, 2]), plain(x, target=[0, 2]))
        assert_same(explainer(x), plain(x))
        assert_close(explainer.heatmap(x), plain.heatmap(x), 1e-12)
        with torch.no_grad():
            model.stem.weight.mul_(-1)


# Every way to change a weight -----------------------------------------------------------------------


def in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7).add_(0.01)


def one_element(model):
    with torch.no_grad():
        model.twice.weight[0, 0, 0, 0] += 3


def through_a_view(model):
    with torch.no_grad():
        model.twice.weight.view(-1)[5] += 3


def through_detach(model):
    model.twice.weight.detach()[1] += 3


def data_in_place(model):
    for parameter in model.parameters():
        parameter.data.mul_(-0.7)


def data_copied(model):
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn_like(parameter))


def data_replaced(model):
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)


def data_filled(model):
    for parameter in model.parameters():
        parameter.data.fill_(0.1)


def by_numpy(model):
    for parameter in model.parameters():
        parameter.detach().numpy()[...] *= -0.7


def initialised(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)


def loaded(model):
    model.load_state_dict({name: _other(value) for name, value in model.state_dict().items()})


def assigned(model):
    model.load_state_dict({name: _other(value) for name, value in model.state_dict().items()}, assign=True)


def _other(value):
    return torch.rand_like(value) + 0.1 if value.is_floating_point() else value


def replaced(model):
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.randn_like(parameter)))


def from_a_vector(model):
    count = sum(parameter.numel() for parameter in model.parameters())
    nn.utils.vector_to_parameters(torch.randn(count, dtype=DOUBLE), model.parameters())


def swapped(model):
    for parameter in model.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(torch.randn_like(parameter)))


def statistics(model):
    with torch.no_grad():
        model.norm.running_var.mul_(3)
        model.behind.running_mean.add_(1)


def statistics_measured(model):
    model.train()
    with torch.no_grad():
        model(torch.randn(4, 3, 16, 16, dtype=DOUBLE) + 1)
    model.eval()


def statistics_replaced(model):
    model.norm.running_var = model.norm.running_var + 2


def shared_memory(model):
    model.share_memory()
    in_place(model)


def step_of(optimizer, **options):
    def step(model):
        by = optimizer(model.parameters(), lr=0.1, **options)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        by.step()
        by.zero_grad()

    return step


CHANGES = {
    function.__name__: function
    for function in (
        in_place, one_element, through_a_view, through_detach, data_in_place, data_copied, data_replaced, data_filled,
        by_numpy, initialised, loaded, assigned, replaced, from_a_vector, swapped, statistics, statistics_measured,
        statistics_replaced, shared_memory,
    )
} | {
    "SGD": step_of(torch.optim.SGD, momentum=0.9), "SGD of lists": step_of(torch.optim.SGD, foreach=True),
    "Adam": step_of(torch.optim.Adam, foreach=False), "fused Adam": step_of(torch.optim.Adam, fused=True),
    "fused SGD": step_of(torch.optim.SGD, fused=True),
}  # fmt: skip


NORMS_FOLDED = ("in_place", "data_in_place", "assigned", "statistics", "statistics_measured", "statistics_replaced")


@pytest.mark.parametrize(("name", "preset"), [
    *((name, "conserving") for name in CHANGES if not name.startswith("statistics")),
    *((name, "epsilon_plus") for name in NORMS_FOLDED),
])  # fmt: skip
def test_what_is_kept_follows(name, preset):
    model, x = network()
    explainer = fxlrp.compile(model, preset)
    before = explainer(x).relevance
    for _ in range(2):
        CHANGES[name](model)
        # Weights at random may leave an ε rule next to nothing to divide by.
        assert_follows(explainer, model, x, preset=preset, limit=1e-12 if preset == "conserving" else 1e-8)
    assert not torch.allclose(explainer(x).relevance, before)


@pytest.mark.parametrize("layout", [torch.t, lambda weight: weight.repeat(1, 2)[:, ::2]], ids=["turned", "with gaps"])
def test_what_is_kept_of_weights_in_any_layout_follows(layout):
    # An initialisation may leave a weight that is the view of another tensor.
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    model[0].weight = nn.Parameter(layout(torch.randn(6, 6, dtype=DOUBLE)))
    x, explainer = torch.randn(2, 6, dtype=DOUBLE), fxlrp.compile(model)
    explainer(x)
    for change in (in_place, data_in_place, data_copied):
        change(model[:1])  # that layer alone
        assert_follows(explainer, model, x)
        model[0].weight.data.mul_(-0.7)
        assert_follows(explainer, model, x)


@pytest.mark.parametrize("form", [torch.channels_last, torch.channels_last_3d])
def test_what_is_kept_of_weights_in_channels_last_follows(form):
    dims = 2 if form is torch.channels_last else 3
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    model = nn.Sequential(convolution(3, 4, 3), nn.ReLU(), convolution(4, 4, 2), nn.Flatten(2)).double()
    model.append(_Mean(4)).double().eval().to(memory_format=form)
    x, explainer = torch.randn(2, 3, *[6] * dims, dtype=DOUBLE), fxlrp.compile(model)
    explainer(x)
    for change in (data_in_place, in_place, data_copied, data_replaced):
        change(model)
        assert_follows(explainer, model, x)


class _Mean(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(x.mean(2))


@pytest.mark.parametrize("change", [in_place, data_in_place, loaded, assigned, replaced])
def test_heatmaps_rows_and_packed_programs_follow(change):
    model, x = network()
    explainer = fxlrp.compile(model)
    explainer.heatmap(x)
    explainer(x, target=[0, 1])
    change(model)
    plain = fxlrp.compile(copy.deepcopy(model), optimize=False)
    assert_close(explainer.heatmap(x), plain.heatmap(x), 1e-12)
    assert_same(explainer(x, target=[0, 1]), plain(x, target=[0, 1]))


def test_the_precision_of_the_model_is_followed():
    model, x = network()
    explainer = fxlrp.compile(model)
    for dtype, limit in ((DOUBLE, 1e-12), (torch.float32, 1e-5), (DOUBLE, 1e-12)):
        model.to(dtype)
        for _ in range(2):
            assert_follows(explainer, model, x.to(dtype), limit=limit)


@pytest.mark.parametrize("name", ["in_place", "data_in_place", "loaded", "assigned", "replaced", "statistics", "SGD"])
def test_converted_copies_follow(name):
    model, x = network()
    explainer = fxlrp.compile(model, "epsilon_plus").to(torch.float32)
    for _ in range(2):
        afresh = explained(copy.deepcopy(model).float(), x.float(), optimize=False, preset="epsilon_plus")
        for _ in range(2):
            assert_close(explainer(x.float()).relevance, afresh.relevance, 1e-3)  # steep, in single precision
        CHANGES[name](model)


def test_an_explainer_goes_to_another_precision_and_back():
    model, x = network()
    explainer = fxlrp.compile(model)
    for dtype, limit in ((torch.float32, 1e-5), (DOUBLE, 1e-12), (torch.float32, 1e-5)):
        explainer.to(dtype)
        in_place(model)
        afresh = explained(copy.deepcopy(model).to(dtype), x.to(dtype), optimize=False)
        for _ in range(2):
            assert_same(explainer(x.to(dtype)), afresh, limit)


def test_copies_of_an_explainer_follow_a_model_of_their_own():
    model, x = network()
    explainer = fxlrp.compile(model)
    explainer(x)
    twin = copy.deepcopy(explainer)
    expected = explainer(x).relevance
    in_place(model)
    assert_close(twin(x).relevance, expected, 1e-12)
    assert_follows(explainer, model, x)


def test_a_copy_of_the_program_has_weights_of_its_own():
    model, x = signed()
    explainer = fxlrp.compile(model)
    expected = explainer(x).relevance
    program = copy.deepcopy(explainer.graph_module)
    in_place(model)
    with torch.no_grad():
        (relevance,) = program(x, None)["relevance"]
        assert_close(relevance, expected, 1e-12)
        program.stem.weight.mul_(-1)
    assert_follows(explainer, model, x)


# Inference mode -------------------------------------------------------------------------------------


def test_weights_that_were_made_in_inference_mode():
    with torch.inference_mode():
        model, x = network()
    x = x.clone()
    explainer = fxlrp.compile(model)
    for _ in range(2):
        assert_follows(explainer, model, x)
        with torch.inference_mode():
            model.twice.weight.mul_(-1)
            model.stem.weight[0] += 1


def test_explanations_in_and_out_of_inference_mode():
    model, x = network()
    explainer, plain = fxlrp.compile(model), explained(model, x, optimize=False)
    with torch.inference_mode():
        assert_same(explainer(x), plain)
    assert_same(explainer(x), plain)
    in_place(model)
    plain = explained(model, x, optimize=False)
    with torch.inference_mode():
        assert_same(explainer(x), plain)
    assert_same(explainer(x), plain)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("converted", [False, True])
def test_gradients_after_inference_mode(converted, optimize):
    # The weights are not trained, so what is kept of them serves gradients by the input as well.
    model, x = signed()
    model.requires_grad_(False)
    options = {"rules": {"stem": ZPlus()}, "differentiable": True}  # which asks nothing of the form of the input
    expected = _gradient(fxlrp.compile(model, optimize=False, **options), x)
    explainer = fxlrp.compile(model.float() if converted else model, optimize=optimize, **options)
    if converted:
        explainer.double()
        expected = _gradient(fxlrp.compile(copy.deepcopy(model).double(), optimize=False, **options), x)
        with torch.no_grad():
            model.stem.weight.mul_(1)  # written to, so that the copies are made anew
    with torch.inference_mode():
        explainer(x)
    assert_close(_gradient(explainer, x), expected, 1e-9)


def _gradient(explainer, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(explainer(x, target=0).relevance.square().sum(), x)[0]


# Several threads ------------------------------------------------------------------------------------


def test_what_is_kept_for_another_call_meanwhile_is_not_taken(monkeypatch):
    # Between a look at whether something changed and its use, another thread may ask for another size.
    model, _ = network()
    explainer = fxlrp.compile(model)
    x, other = torch.randn(2, 3, 16, 16, dtype=DOUBLE), torch.randn(1, 3, 16, 24, dtype=DOUBLE)
    plain = explained(model, x, optimize=False)
    explainer(x)
    right, waiting = tensors.Watch.unchanged, [lambda: explainer(other)]

    def unchanged(watch, weights):
        known = right(watch, weights)
        while waiting:
            waiting.pop()()
        return known

    monkeypatch.setattr(derived.Watch, "unchanged", unchanged)
    assert_same(explainer(x), plain)


def test_several_threads_may_share_an_explainer():
    model, _ = network()
    explainer = fxlrp.compile(model)
    images = [torch.randn(1, 3, *size, dtype=DOUBLE) for size in ((16, 16), (16, 24), (24, 16))]
    plain = [explained(model, image, optimize=False) for image in images]
    wrong = []

    def work(image, expected):
        try:
            for _ in range(15):
                assert_same(explainer(image), expected)
        except Exception as error:  # whatever it is
            wrong.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(images, plain, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Packed for the processor ---------------------------------------------------------------------------

needs_packing = pytest.mark.skipif(
    not packed.can_pack([torch.zeros(1, 2, 2, 2).to(memory_format=torch.channels_last)]), reason="torch without oneDNN"
)


class Wide(nn.Module):
    """Convolutions with weights that are worth packing: plain, in groups, at a stride, of one place, dilated."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 128, 3, padding=1)
        self.conv, self.norm = nn.Conv2d(128, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.grouped, self.down = nn.Conv2d(64, 256, 3, padding=1, groups=4), nn.Conv2d(256, 128, 1, 2)
        self.dilated, self.head = nn.Conv2d(128, 32, (3, 3), padding=(2, 4), dilation=(2, 2)), nn.Linear(32, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(F.relu(self.stem(x)))))
        x = self.down(F.relu(self.grouped(x)))
        return self.head(F.relu(self.dilated(F.relu(x))).mean((2, 3)))


def wide():
    torch.manual_seed(0)
    return seeded_weights(Wide())


def image(batch=1, height=10, width=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator).to(memory_format=torch.channels_last)


PACKING = ("mkldnn_reorder_conv2d_weight", "_reorder_convolution_weight")
ON_PACKED = ("_convolution_pointwise",)


def packs(explainer, x, **options):
    """How many weights a call packs, and how many convolutions run on packed ones."""
    seen = calls(explainer, x, **options)
    return len(seen.of(*PACKING)), len(seen.of(*ON_PACKED))


def assert_explains_as_unpacked(explainer, model, x, **options):
    explanation = explainer(x, **options)
    assert torch.equal(explanation.output, model(x))
    unpacked = tuple(name for name in DEFAULT if name != PACK_WEIGHTS)
    assert_same(explanation, explained(model, x, optimize=unpacked), 1e-5)
    assert_same(explanation, explained(model, x, optimize=False), 1e-5)


@needs_packing
def test_weights_are_packed_at_the_second_call_with_a_shape():
    model, x = wide(), image()
    explainer = fxlrp.compile(model)
    assert packs(explainer, x) == (0, 0)
    packed_now, run = packs(explainer, x)
    assert packed_now == run > 6  # each way, forward and back
    assert packs(explainer, x) == (0, run)
    assert packs(explainer, image(batch=2)) == (0, 0)
    assert packs(explainer, image(batch=2)) == (run, run)


@needs_packing
def test_explanations_by_packed_weights():
    model, x = wide(), image(batch=2)
    for preset in ("conserving", "epsilon_plus"):
        explainer, plain = fxlrp.compile(model, preset), explained(model, x, optimize=False, preset=preset)
        for _ in range(3):
            explanation = explainer(x)
            assert torch.equal(explanation.output, model(x))
            assert_same(explanation, plain, 1e-5 if preset == "conserving" else 1e-4)


@needs_packing
@pytest.mark.parametrize("optimize", [(PACK_WEIGHTS,), (PACK_WEIGHTS, "fold_weights"), DEFAULT, NAMES], ids=len)
def test_weights_are_packed_whatever_else_is_done(optimize):
    model, x = wide(), image()
    explainer, plain = fxlrp.compile(model, optimize=optimize), explained(model, x, optimize=False)
    for _ in range(3):
        assert_same(explainer(x), plain, 1e-5)
    assert (packs(explainer, x)[1] > 0) == ("fold_weights" in optimize)  # nothing else keeps them from call to call


@needs_packing
def test_shapes_may_change_between_calls():
    model = wide()
    explainer = fxlrp.compile(model)
    shapes = [(1, 10, 10)] * 3 + [(2, 10, 10)] * 3 + [(1, 9, 12), (1, 10, 10), (1, 9, 12), (1, 9, 12), (2, 10, 10)]
    plain = {shape: explained(model, image(*shape), optimize=False) for shape in set(shapes)}
    for shape in shapes:
        explanation = explainer(image(*shape))
        assert torch.equal(explanation.output, model(image(*shape)))
        assert_same(explanation, plain[shape], 1e-5)


@needs_packing
@pytest.mark.parametrize("change", [in_place, data_in_place, loaded, assigned])
def test_packed_weights_follow(change):
    model, x = wide(), image()
    explainer = fxlrp.compile(model)
    for _ in range(2):
        for _ in range(3):
            explanation = explainer(x)
        assert torch.equal(explanation.output, model(x))
        assert_same(explanation, explained(model, x, optimize=False), 1e-5)
        change(model)
    assert_explains_as_unpacked(explainer, model, x)


@needs_packing
def test_packed_weights_with_checkpoints_and_heatmaps():
    model, x = wide(), image(batch=2)
    options = {"checkpoints": ("grouped", "dilated", "head")}
    explainer, plain = fxlrp.compile(model, **options), fxlrp.compile(model, optimize=False, **options)
    for _ in range(3):
        assert_same(explainer(x), plain(x), 1e-5)
        assert_close(explainer.heatmap(x), plain.heatmap(x), 1e-5)
    assert packs(explainer, x)[1]
    with Calls() as seen:
        explainer.heatmap(x)
    assert seen.of(*ON_PACKED)


@needs_packing
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_models_of_either_layout(memory):
    model, x = wide().to(memory_format=memory), image()
    explainer = fxlrp.compile(model)
    for _ in range(3):
        assert_explains_as_unpacked(explainer, model, x)


@needs_packing
@pytest.mark.parametrize("options", [{"target": [0, 1]}, {"conditions": [{"conv": [1]}, {"conv": [2]}]}])
def test_rows_run_on_packed_weights(options):
    model, x = wide(), image()
    explainer, plain = fxlrp.compile(model), fxlrp.compile(model, optimize=False)
    expected = plain(x, **options).relevance
    for _ in range(3):
        assert_close(explainer(x, **options).relevance, expected, 1e-5)
    assert packs(explainer, x, **options)[1]


@needs_packing
def test_what_runs_without_packed_weights():
    model, x = wide(), image()
    explainer = fxlrp.compile(model)
    for _ in range(3):
        explainer(x)
    assert packs(explainer, x)[1]
    for other in (x.contiguous(), x.clone().contiguous().requires_grad_()):
        assert [packs(explainer, other) for _ in range(3)] == [(0, 0)] * 3
    for _ in range(3):
        seen = calls(explainer.ledger, x)
        assert not seen.of(*PACKING, *ON_PACKED)
    with torch.autocast("cpu", torch.bfloat16):
        assert [packs(explainer, x) for _ in range(3)] == [(0, 0)] * 3
    double = fxlrp.compile(copy.deepcopy(model).double())
    assert [packs(double, x.double()) for _ in range(3)] == [(0, 0)] * 3
    left_out = fxlrp.compile(model, optimize=tuple(name for name in DEFAULT if name != PACK_WEIGHTS))
    assert [packs(left_out, x) for _ in range(3)] == [(0, 0)] * 3
    assert [packs(fxlrp.compile(model, optimize=False), x) for _ in range(3)] == [(0, 0)] * 3


@needs_packing
def test_conditions_of_an_image_in_channels_last():
    model, x = wide(), image()
    explainer, plain = fxlrp.compile(model), fxlrp.compile(model, optimize=False)
    for _ in range(3):
        for options in ({"target": [0, 1]}, {"conditions": {"conv": list(range(20))}}, {}):
            assert_same(explainer(x, **options), plain(x, **options), 1e-5)


@needs_packing
def test_gradients_of_an_image_in_channels_last():
    model, x = wide(), image()
    explainer = fxlrp.compile(model, differentiable=True)
    for _ in range(3):
        explanation = explainer(x)
        assert explanation.relevance.grad_fn is not None
        assert packs(explainer, x) == (0, 0)
    with torch.no_grad():
        for _ in range(3):
            assert not explainer(x).relevance.requires_grad
        assert packs(explainer, x)[1]  # nothing is recorded, so it may
    gradient = torch.autograd.grad(explainer(x).relevance.square().sum(), model.conv.weight)[0]
    plain = fxlrp.compile(model, differentiable=True, optimize=False)
    expected = torch.autograd.grad(plain(x).relevance.square().sum(), model.conv.weight)[0]
    assert_close(gradient, expected, 1e-4)


@needs_packing
def test_packing_with_inference_tensors():
    with torch.inference_mode():
        model = wide()
    x = image()
    explainer = fxlrp.compile(model)
    for _ in range(3):
        assert_same(explainer(x), explained(model, x, optimize=False), 1e-5)
        with torch.inference_mode():
            model.conv.weight.mul_(-1)
            assert_same(explainer(x), explained(model, x, optimize=False), 1e-5)


@needs_packing
def test_small_weights_are_not_packed():
    model, x = RandomNet(SMALL).eval(), torch.randn(2, 3, 12, 12).to(memory_format=torch.channels_last)
    explainer = fxlrp.compile(model)
    assert [packs(explainer, x) for _ in range(3)] == [(0, 0)] * 3


CASES = [
    ((64, 64, 3, 3), 1, 1, 1, 1), ((64, 64, 3, 3), 2, 1, 1, 1), ((256, 16, 3, 3), 1, 1, 1, 4),
    ((256, 1, 7, 7), 1, 3, 1, 256), ((256, 256, 1, 1), 1, 0, 1, 1), ((128, 256, 1, 1), 2, 0, 1, 1),
    ((32, 64, 5, 5), 1, 4, 2, 1), ((512, 128, 1, 1), 1, 0, 1, 2), ((64, 64, 1, 9), 1, 0, 1, 1),
]  # fmt: skip


@needs_packing
@pytest.mark.parametrize(("shape", "stride", "padding", "dilation", "groups"), CASES)
@pytest.mark.parametrize("ours", [True, False])
def test_a_convolution_by_packed_weights(shape, stride, padding, dilation, groups, ours):
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    how = [stride] * 2, [padding] * 2, [dilation] * 2, groups
    held = packed.Packed(weight.clone(), ours)
    for size in [(1, 12), (1, 12), (1, 12), (2, 12), (1, 12), (1, 15), (1, 15), (2, 15), (2, 15), (1, 12)]:
        x = torch.randn(size[0], shape[1] * groups, size[1], size[1] + 1).to(memory_format=torch.channels_last)
        for b in (bias, None):
            expected = F.conv2d(x, weight, b, *how)
            assert_close(held.convolve(x, b, how), expected, 1e-5)
        assert_close(held.convolve(x.contiguous(), bias, how), F.conv2d(x, weight, bias, *how), 1e-5)


@needs_packing
def test_weights_that_are_ours_are_kept_once():
    # Packed for one shape they are not kept in two forms, and they come back to the bit.
    weight = torch.randn(64, 64, 3, 3)
    how = [1, 1], [1, 1], [1, 1], 1
    held = packed.Packed(weight.clone(), ours=True)
    for size in (8, 8, 11, 11, 8, 8, 8):
        x = torch.randn(1, 64, size, size).to(memory_format=torch.channels_last)
        held.convolve(x, None, how)
    dense, laid_out, _ = held._state
    assert dense is None
    assert torch.equal(laid_out.to_dense(), weight)


# The tests can fail ---------------------------------------------------------------------------------


def test_weights_that_nobody_watches_go_red(monkeypatch):
    monkeypatch.setattr(tensors.Watch, "unchanged", lambda watch, weights: True)
    for name in ("in_place", "data_in_place", "replaced"):
        with pytest.raises(AssertionError):
            test_what_is_kept_follows(name, "conserving")


def test_an_input_of_another_form_that_is_not_seen_goes_red(monkeypatch):
    model, x = signed()
    explainer = fxlrp.compile(model)
    values = explainer.graph_module.derived(x)
    monkeypatch.setattr(Derived, "forward", lambda kept, *inputs: values)
    with pytest.raises((AssertionError, RuntimeError)):
        assert_follows(explainer, model, torch.randn(3, 3, 9, 7, dtype=DOUBLE))
