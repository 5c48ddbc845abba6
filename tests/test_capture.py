"""Reading models: every spelling of an operation becomes the same graph, and means what the model means."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves
from torch import nn

import fxlrp
from fxlrp.capture import trace
from fxlrp.errors import CaptureError, NotCapturedError, TrainingModeError, UnknownOperationError
from fxlrp.passes.canonicalize import canonicalize


def graph_of(model):
    return canonicalize(trace(model.eval()))


def targets(model):
    return [str(n.target) for n in graph_of(model).graph.nodes if n.op == "call_function"]


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.drop = nn.Dropout2d()

    def forward(self, x):
        return self.function(self, x)


SPELLINGS = {
    "relu": [
        lambda m, x: F.relu(x),
        lambda m, x: F.relu(x, inplace=True),
        lambda m, x: F.relu(x, True),
        lambda m, x: F.relu_(x),
        lambda m, x: torch.relu(x),
        lambda m, x: torch.relu_(x),
        lambda m, x: x.relu(),
        lambda m, x: x.relu_(),
        lambda m, x: F.relu(input=x),
        lambda m, x: torch.ops.aten.relu.default(x),
    ],
    "add": [
        lambda m, x: x + m.conv(x),
        lambda m, x: torch.add(x, m.conv(x)),
        lambda m, x: x.add(m.conv(x)),
        lambda m, x: x.clone().add_(m.conv(x)),
        lambda m, x: add_to(x, m.conv(x)),
    ],
    "hardtanh": [
        lambda m, x: F.hardtanh(x, 0.0, 6.0),
        lambda m, x: F.hardtanh(x, min_val=0.0, max_val=6.0, inplace=True),
        lambda m, x: F.hardtanh_(x, 0.0, 6.0),
    ],
    "flatten": [lambda m, x: torch.flatten(x, 1), lambda m, x: x.flatten(1), lambda m, x: x.flatten(start_dim=1)],
    "mean": [lambda m, x: x.mean((2, 3)), lambda m, x: torch.mean(x, dim=[2, 3]), lambda m, x: x.mean(dim=(2, 3))],
}


def add_to(x, y):
    x += y
    return x


@pytest.mark.parametrize("name", SPELLINGS)
def test_all_spellings_are_one(name):
    x = torch.randn(2, 3, 4, 4)
    graphs = []
    for spelling in SPELLINGS[name]:
        model = Function(spelling)
        graphs.append(targets(model))
        with torch.no_grad():
            assert torch.equal(graph_of(model)(x.clone())[0], model(x.clone()))
    assert all(graph == graphs[0] for graph in graphs)


def test_the_canonical_graph_is_functional_aten():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten(1))
    assert targets(model) == [
        "aten.conv2d.default", "aten.batch_norm.default", "aten.relu.default", "aten.flatten.using_ints",
    ]  # fmt: skip


NO_OPERATIONS = {
    "dropout": lambda m, x: F.dropout(x, training=m.training),
    "dropout2d": lambda m, x: m.drop(x),
    "clone": lambda m, x: x.clone(),
    "contiguous": lambda m, x: x.contiguous(),
    "assertion": lambda m, x: (torch._assert(x.shape[1] == 3, "three channels"), x)[1],
    "dead code": lambda m, x: (m.conv(x), x)[1],
}


@pytest.mark.parametrize("name", NO_OPERATIONS)
def test_what_does_nothing_is_gone(name):
    assert targets(Function(lambda m, x: m.conv(NO_OPERATIONS[name](m, x)))) == ["aten.conv2d.default"]


# In place --------------------------------------------------------------------------------------


def overwritten_then_read(m, x):
    h = m.bn(m.conv(x))
    y = F.relu(h, inplace=True)
    return y + h  # h holds relu(h) by now


def overwritten_by_a_sum(m, x):
    h = m.conv(x)
    s = h
    h += x
    return torch.cat([h, s], 1)  # s is h


def preactivation(m, x):
    h = F.relu(x, inplace=True)
    return m.conv(h) + x  # the skip starts behind the activation


def through_a_no_op(m, x):
    h = m.conv(x)
    d = F.dropout(h, training=False)
    d.relu_()
    return h


def dropout_in_place_beside_a_view(m, x):
    h = m.conv(x)
    part = h[:, :1]
    return F.dropout(h, training=False, inplace=True) + part  # nothing is overwritten


IN_PLACE = [overwritten_then_read, overwritten_by_a_sum, preactivation, through_a_no_op, dropout_in_place_beside_a_view]


@pytest.mark.parametrize("function", IN_PLACE)
def test_later_readers_see_what_was_overwritten(function):
    model, x = Function(function).double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x.clone())
    relevance = torch.rand_like(expected)
    explainer = fxlrp.compile(model, "conserving", start=lambda output, target: relevance)
    before = x.clone()
    assert torch.equal(explainer(x).output, expected)
    assert torch.equal(x, before)
    assert_conserves(explainer, x)


def test_a_view_that_is_read_after_its_memory_was_overwritten_is_reported():
    def function(m, x):
        h = m.conv(x)
        part = h[:, :1]
        h.relu_()
        return part

    with pytest.raises(UnknownOperationError, match="in-place operation on memory of which a view is read"):
        graph_of(Function(function))


# Modules ---------------------------------------------------------------------------------------


class PaddedConv(nn.Conv2d):
    """A subclass that pads in forward, as ports of TensorFlow models do."""

    def forward(self, x):
        height, width = x.shape[-2:]
        return F.conv2d(F.pad(x, (0, width % 2, 1, height % 2)), self.weight, self.bias, self.stride, 0)


class ScaledBatchNorm(nn.BatchNorm2d):
    """A subclass with a forward of its own is not taken for its parent."""

    def forward(self, x):
        return F.relu(
            F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        )


class StandardizedConv(nn.Conv2d):
    """A weight computed in the graph."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, self.stride, self.padding)


MODULES = {
    "padding subclass": lambda: PaddedConv(3, 4, 2, stride=2),
    "batch norm subclass": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), ScaledBatchNorm(4)),
    "weight standardisation": lambda: StandardizedConv(3, 4, 3, padding=1),
    "parametrization": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "batch norm without affine": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
    "batch norm without momentum": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)),
    "sync batch norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)),
    "norms": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm([4, 6, 6])
    ),
    "activations": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1, inplace=True), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU("tanh"), nn.SiLU(),
        nn.Mish(), nn.Hardswish(), nn.Softplus(), nn.PReLU(), nn.Tanh(), nn.Hardtanh(), nn.ReLU6(), nn.Hardsigmoid(),
        nn.LogSigmoid(), nn.Softshrink(0.1), nn.Threshold(-1.0, 0.0), nn.Sigmoid(), nn.Softmax(dim=1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_all_sorts(name):
    torch.manual_seed(0)
    model = MODULES[name]().double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
    relevance = torch.rand_like(expected)
    explainer = fxlrp.compile(model, "conserving", start=lambda output, target: relevance)
    assert torch.equal(explainer(x).output, expected)
    assert_conserves(explainer, x)


def test_optional_inputs_keep_their_defaults():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x, mask=None, *, scale: float = 2.0):
            return self.fc(x if mask is None else x * mask) * scale

    model, x = Optional().eval(), torch.randn(2, 3)
    assert torch.equal(fxlrp.compile(model, "conserving")(x).output, model(x))


def test_batch_and_resolution_stay_free():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    explainer = fxlrp.compile(model.double().eval(), "conserving")
    for shape in [(1, 3, 8, 8), (4, 3, 9, 13), (2, 3, 31, 7)]:
        x = torch.randn(shape, dtype=torch.float64)
        assert explainer(x).relevance.shape == shape
        assert_conserves(explainer, x)


def test_channels_last_is_the_same_explanation():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).double().eval()
    explainer, x = fxlrp.compile(model, "conserving"), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert_close(explainer(x.contiguous(memory_format=torch.channels_last)).relevance, explainer(x).relevance)


def test_stochastic_depth_is_nothing_in_eval_mode():
    from torchvision.ops import StochasticDepth

    model = nn.Sequential(nn.Conv2d(3, 4, 3), StochasticDepth(0.5, "row"))
    assert targets(model) == ["aten.conv2d.default"]


# What cannot be read -----------------------------------------------------------------------------


def test_every_unknown_operation_is_named_with_its_module_and_line():
    class Inner(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm = Inner(), nn.CrossMapLRN2d(3)

        def forward(self, x):
            x = self.inner(x).erfinv()
            return self.norm(x)

    with pytest.raises(UnknownOperationError) as caught:
        fxlrp.compile(Outer().eval(), "conserving")
    message = str(caught.value)
    for part in ("bessel_j0", "'inner'", "Tensor.erfinv", "module CrossMapLRN2d", "'norm'", "test_capture.py:"):
        assert part in message


def test_a_registered_operation_is_known():
    from fxlrp.vocabulary import VOCABULARY, Kind, Operation, register

    model = nn.Sequential(nn.Linear(3, 3), nn.Flatten())
    unknown = Function(lambda m, x: torch.erfinv(x))
    with pytest.raises(UnknownOperationError):
        graph_of(unknown)
    entry = Operation(torch.ops.aten.erfinv.default, Kind.POINTWISE, functions=(torch.erfinv,), methods=("erfinv",))
    register(entry)
    try:
        assert targets(unknown) == ["aten.erfinv.default"]
    finally:
        for table in (VOCABULARY._by_target, VOCABULARY._by_function, VOCABULARY._by_method):
            for key in [key for key, value in table.items() if value is entry]:
                del table[key]
    assert targets(model)


def test_control_flow_on_values_is_refused():
    model = Function(lambda m, x: x if x.sum() > 0 else -x).eval()
    with pytest.raises(CaptureError, match=r"(?s)test_capture.py:\d+.*Control flow.*cannot be traced symbolically"):
        fxlrp.compile(model, "conserving", example_inputs=torch.randn(2, 3))
    explainer = fxlrp.compile(model, "conserving")
    with pytest.raises(NotCapturedError, match=r"joins is known once the model was captured.*example_inputs"):
        explainer.joins  # noqa: B018
    with pytest.raises(CaptureError, match="control flow"):
        explainer(torch.randn(2, 3))


@pytest.mark.parametrize("function", [lambda m, x: F.dropout(x, 0.5), lambda m, x: F.dropout(x, 0.5, True)])
def test_dropout_that_stays_active_is_refused(function):
    with pytest.raises(UnknownOperationError, match="stays active in eval mode"):
        graph_of(Function(function))


def test_batch_statistics_are_refused():
    with pytest.raises(UnknownOperationError, match="batch statistics"):
        graph_of(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))


@pytest.mark.parametrize("part", [lambda m: m, lambda m: m[1]])
def test_training_mode_is_refused(part):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    part(model).training = True
    with pytest.raises(TrainingModeError, match=r"call model\.eval\(\)"):
        fxlrp.compile(model, "conserving")


def test_what_is_no_module_is_refused():
    with pytest.raises(CaptureError, match=r"torch\.nn\.Module, not function"):
        fxlrp.compile(lambda x: x, "conserving")


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_a_hook_of_torch_computes_is_followed(wrap):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(wrap(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.randn(3, 4)
    with torch.no_grad():
        expected = model(x)
    plain = copy.deepcopy(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), model[2])).eval()
    plain[0].weight.data, plain[0].bias.data = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    explanation = fxlrp.compile(model, "conserving")(x, target=1)
    assert_close(explanation.output, expected)
    assert_close(explanation.relevance, fxlrp.compile(plain, "conserving")(x, target=1).relevance)


def test_a_number_that_forward_makes_of_a_buffer_is_followed():
    class WarmUp(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("steps", torch.tensor(50))

        def forward(self, x):
            return self.layer(x) * min(1.0, self.steps.item() / 100)

    model, x = WarmUp().eval(), torch.randn(2, 4)
    explainer = fxlrp.compile(model, "conserving", start="logit")
    assert_close(explainer(x).output, model(x))
    model.steps.fill_(80)
    assert_close(explainer(x).output, model(x))


@pytest.mark.parametrize("form", ["program", "module"])
def test_an_exported_program_is_explained_as_its_module_is(form):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(2, 3, 4, 4)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    explanation = fxlrp.compile(program if form == "program" else program.module(), "conserving")(x, target=1)
    assert_close(explanation.relevance, fxlrp.compile(model, "conserving")(x, target=1).relevance)


def test_a_quantised_model_is_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)).eval(), {nn.Linear})
    with pytest.raises(CaptureError, match=r"'0' is quantised.*model that it was made of"):
        fxlrp.compile(model, "conserving")


def test_a_batch_that_forward_makes_a_number_of_is_read_for_each_size():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            parts = x.view(x.shape[0], 2, 2, 4).reshape(-1, 2, 4).relu()
            items = int(parts.shape[0] / (4 / 2))
            return self.layer(parts.view(items, 4, 4).mean(1))

    model = Windows().eval()
    explainer = fxlrp.compile(model, "conserving", start="logit")
    for size in (3, 2):
        x = torch.randn(size, 4, 4)
        assert_close(explainer(x).output, model(x))


def test_forward_hooks_are_mentioned_and_run_by_verification_alone():
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    calls = []
    model[0].register_forward_hook(lambda *args: calls.append(1))
    with pytest.warns(UserWarning, match="hooks of 0"):
        explainer = fxlrp.compile(model, "conserving")
    explainer(torch.randn(1, 3))
    assert calls
    seen = len(calls)
    explainer(torch.randn(1, 3))
    assert len(calls) == seen
    assert len(model[0]._forward_hooks) == 1


KNOWN = []


class Named(nn.Module):
    """Whose subclasses say by a keyword what they are called."""

    def __init_subclass__(cls, name, **further):
        super().__init_subclass__(**further)
        KNOWN.append(name)


class Dense(Named, name="dense"):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x)


def test_a_shared_module_may_be_of_a_class_that_is_made_with_keywords():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = Dense()

        def forward(self, x):
            if x.shape[1] < 1:
                raise ValueError
            return self.second(self.first(x))

    model, x = Shared().eval(), torch.randn(3, 4)
    assert_close(fxlrp.compile(model, "conserving")(x).output, model(x))
    assert KNOWN == ["dense"]
    type("Other", (Dense,), {}, name="other")
    assert KNOWN.pop() == "other"


def test_tracing_leaves_nothing_on_the_model():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.seen = nn.Linear(3, 3), None

        def forward(self, x):
            self.seen = x
            return self.fc(x) * torch.arange(1.0, 4.0)

    model = Keeps().eval()
    before = dict(vars(model))
    explainer = fxlrp.compile(model, "conserving")
    assert vars(model) == before
    x = torch.randn(2, 3)
    assert torch.equal(explainer(x).output, model(x))


COUNTED = {
    "narrow": lambda h: h.narrow(h.dim() - 1, 0, 6),
    "sum": lambda h: h.unsqueeze(2).sum(h.ndim),
    "select": lambda h: h.unsqueeze(2).select(h.dim(), 0),
    "transpose": lambda h: h.unsqueeze(2).transpose(h.dim(), h.dim() - 1).flatten(1),
    "squeeze": lambda h: h.unsqueeze(1).squeeze(1 % h.dim()),
}


@pytest.mark.parametrize("name", COUNTED)
def test_axes_may_be_counted_from_the_number_of_axes(name):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(COUNTED[name](self.first(x).relu()))

    explainer = fxlrp.compile(Counting().eval(), "conserving")
    ledger = explainer.ledger(torch.randn(3, 5), target=1)
    assert ledger.error.abs().max() < 1e-5 * ledger.start.abs().max()


class InOtherModes(nn.Module):
    """What is computed with gradients and without, one in the other."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, *given):  # which only torch.export follows
        with torch.enable_grad():
            hidden = self.first(given[0])
            with torch.no_grad():
                gate = hidden.sigmoid()
                hidden = hidden * gate
            hidden[:, 0] = 0.5
            return self.last(hidden), [gate, hidden]


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("output", [0, lambda returned: returned[1][1]])
def test_an_export_goes_through_modes_of_autograd(output, exported):
    model, x = InOtherModes().eval(), torch.randn(3, 4)
    given = torch.export.export(model, (x,), dynamic_shapes=(({0: torch.export.Dim("batch")},),)) if exported else model
    explainer = fxlrp.compile(given, "conserving", output=output, start="one")
    found, wanted = explainer(x).output, model(x)
    assert_close(found[0], wanted[0])
    assert_close(found[1][1], wanted[1][1])
    ledger = explainer.ledger(x)
    assert ledger.error.abs().max() < 1e-5 * ledger.start.abs().max()


class Seeded(nn.Module):
    def forward(self, *given):  # which only torch.export follows
        return given[0] * torch.rand(3, generator=torch.Generator().manual_seed(0))


def test_an_object_that_no_graph_holds_is_told():
    with pytest.raises(CaptureError, match=r"torch\.Generator: make what comes of it.*a buffer"):
        fxlrp.compile(Seeded().eval())(torch.randn(2, 3))
