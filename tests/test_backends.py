"""Backends: an explanation is the same whatever runs it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves, assert_unchanged, snapshot
from nets import calibrated
from torch import nn

import fxlrp
from fxlrp.common.tensors import Watch
from fxlrp.errors import BackendError, InputError


class Small(nn.Module):
    """A stem, a residual block with a strided projection, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.conv, self.bn = nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 1, 2, bias=False)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.bn(self.conv(x)) + self.down(x))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(x):
    torch.manual_seed(0)
    return calibrated(Small(), x)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def assert_agree(explanation, expected, limit=1e-5):
    assert_close(explanation.relevance, expected.relevance, limit)
    assert_close(explanation.output, expected.output, limit)
    assert torch.equal(explanation.target, expected.target)


# Inductor -------------------------------------------------------------------------------------------


def test_inductor_gives_what_torch_gives_and_follows_the_model(model, x):
    before = snapshot(model, x)
    explainer, eager = fxlrp.compile(model, "conserving", backend="inductor"), fxlrp.compile(model, "conserving")
    assert explainer.backend == "inductor"
    assert_agree(explainer(x), eager(x))
    assert_agree(explainer(x, target=2), eager(x, target=2))
    assert_unchanged(before, snapshot(model, x))
    with torch.no_grad():
        model.conv.weight.mul_(-1)
        model.fc.weight.data.add_(0.5)  # a write that torch does not count
    assert_agree(explainer(x), eager(x))
    assert_conserves(explainer, x)  # the ledger runs eagerly


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["otsuki2024", "epsilon_plus", "epsilon_gamma_box", "attnlrp"])
def test_inductor_runs_every_kind_of_rule(model, x, preset):
    expected = fxlrp.compile(model, preset)(x)
    assert_agree(fxlrp.compile(model, preset, backend="inductor")(x), expected, 1e-4)


@pytest.mark.slow
def test_inductor_takes_other_batches_heatmaps_rows_and_gradients(model, x):
    explainer, eager = fxlrp.compile(model, "conserving", backend="inductor"), fxlrp.compile(model, "conserving")
    for batch in (3, 1, 5, 2):
        images = torch.randn(batch, 3, 8, 8)
        assert_agree(explainer(images), eager(images))
    assert_close(explainer.heatmap(x), eager.heatmap(x), 1e-5)
    assert_close(explainer(x, target=[0, 1]).relevance, eager(x, target=[0, 1]).relevance, 1e-5)
    gradients = []
    for backend in ("inductor", "eager"):
        images = x.clone().requires_grad_()
        explainer = fxlrp.compile(model, "conserving", backend=backend, differentiable=True)
        explainer(images).relevance.square().sum().backward()
        gradients.append(images.grad)
    assert_close(*gradients, 1e-4)


@pytest.mark.slow
def test_inductor_runs_a_copy_and_converted_weights(model, x):
    explainer = copy.deepcopy(fxlrp.compile(model, "conserving", backend="inductor"))
    assert explainer.backend == "inductor"
    converted = explainer.double()
    assert_close(converted(x.double()).relevance, fxlrp.compile(model, "conserving")(x).relevance.double(), 1e-5)


# torch.compile by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["conserving", "otsuki2024", "epsilon_plus", "epsilon_gamma_box"])
def test_an_explainer_is_compiled_whole_without_a_graph_break(model, x, preset):
    explainer = fxlrp.compile(model, preset)
    compiled = torch.compile(explainer, fullgraph=True, backend="eager")
    assert_agree(compiled(x), explainer(x))
    assert_agree(compiled(x, target=torch.tensor([0, 1, 2])), explainer(x, target=torch.tensor([0, 1, 2])))
    with torch.no_grad():
        model.conv.weight.mul_(-1)
    assert_agree(compiled(x), explainer(x))


# What cannot be is told -----------------------------------------------------------------------------


def test_an_unknown_backend_is_an_error_that_lists_the_choices(model):
    with pytest.raises(BackendError, match="choose one of 'eager', 'inductor', 'cudagraphs'"):
        fxlrp.compile(model, "conserving", backend="tensorrt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_graphs_need_a_cuda_device(model):
    with pytest.raises(BackendError, match="needs a CUDA device"):
        fxlrp.compile(model, "conserving", backend="cudagraphs")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_graphs_give_what_torch_gives(model, x):
    model, x = model.cuda(), x.cuda()
    explainer = fxlrp.compile(model, "conserving", backend="cudagraphs")
    first = explainer(x)
    explainer(x.flip(0))
    assert_agree(first, fxlrp.compile(model, "conserving")(x), 1e-4)  # not overwritten by the call after it


def test_autocast_is_refused_by_compiled_backends(model, x):
    explainer = fxlrp.compile(model, "conserving", backend="inductor")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(BackendError, match="autocast"):
        explainer(x)


def test_bad_input_is_told_before_anything_is_compiled(model, x):
    explainer = fxlrp.compile(model, "conserving", backend="inductor")
    with pytest.raises(InputError, match="channels"):
        explainer(x[:, :2])


# Watching tensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    lambda t: t.mul_(2), lambda t: t.data.mul_(2), lambda t: t.data.zero_(), lambda t: t.set_(torch.ones(5, 4)),
])  # fmt: skip
def test_writes_are_seen(change):
    tensor = torch.randn(5, 4)
    watch = Watch([tensor])
    assert watch.unchanged([tensor])
    change(tensor)
    assert not watch.unchanged([tensor])


def test_another_tensor_of_the_same_values_is_another():
    tensor = torch.randn(5)
    assert not Watch([tensor]).unchanged([tensor.clone()])
