"""The explain function for Quantus: alone, and inside its metrics."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from checks import assert_unchanged, snapshot
from torch import nn

import fxlrp
from fxlrp import compiler
from fxlrp.errors import InputError, TargetError, TrainingModeError
from fxlrp.interop import quantus as module


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(96, 4),
    ).eval()  # fmt: skip


@pytest.fixture
def model():
    return net()


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def compiled(monkeypatch):
    """What was compiled, in order."""
    made, original = [], compiler.compile

    def counting(model, *arguments, **options):
        made.append(options)
        return original(model, *arguments, **options)

    monkeypatch.setattr(compiler, "compile", counting)
    return made


TARGETS = np.array([1, 0, 3])


def expected(model, x, **options):
    return fxlrp.compile(model, **options)(torch.tensor(x), target=torch.tensor(TARGETS)).relevance


def test_arrays_go_in_and_come_out(model, x):
    relevance = fxlrp.quantus_explain(model, x, TARGETS)
    assert isinstance(relevance, np.ndarray)
    assert relevance.dtype == np.float32
    assert np.array_equal(relevance, expected(model, x).sum(1, keepdim=True).numpy())
    full = fxlrp.quantus_explain(model, x, TARGETS, sum_channels=False)
    assert np.array_equal(full, expected(model, x).numpy())


def test_arrays_of_any_kind_are_accepted(model, x):
    usual = fxlrp.quantus_explain(model, x, TARGETS)
    read_only = x.copy()
    read_only.flags.writeable = False
    backwards = np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    for same in (x.astype(np.float64), read_only, backwards, torch.tensor(x), x.tolist()):
        assert np.array_equal(fxlrp.quantus_explain(model, same, list(TARGETS)), usual)
    assert np.array_equal(fxlrp.quantus_explain(model, x, 1)[0], usual[0])


def test_options_are_those_of_compile(model, x):
    options = {"preset": "cp_lrp", "rules": {"7": fxlrp.rules.ZPlus()}, "start": "logit"}
    found = fxlrp.quantus_explain(model, x, TARGETS, sum_channels=False, **options)
    assert np.array_equal(found, expected(model, x, **options).numpy())
    found = fxlrp.quantus_explain(model, x, TARGETS, sum_channels=False, identity_skips=False)
    assert np.array_equal(found, expected(model, x).numpy())


def test_features_have_no_channels_to_sum(x):
    rows = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    assert fxlrp.quantus_explain(rows, x[:, 0].reshape(3, 64), TARGETS).shape == (3, 64)


def test_the_model_is_left_as_it_is(model, x):
    before = snapshot(model, torch.tensor(x))
    fxlrp.quantus_explain(model, x, TARGETS)
    assert_unchanged(before, snapshot(model, torch.tensor(x)))


def test_a_model_is_compiled_once_for_each_way_to_explain_it(model, x, compiled):
    for _ in range(2):
        for preset in ("conserving", "cp_lrp"):
            fxlrp.quantus_explain(model, x, TARGETS, preset=preset, rules={nn.Linear: fxlrp.rules.Epsilon(1e-3)})
    assert [options["preset"] for options in compiled] == ["conserving", "cp_lrp"]
    other = net()
    fxlrp.quantus_explain(other, x, TARGETS)
    assert len(compiled) == 3


def test_at_most_eight_explainers_are_kept_per_model(model, x):
    for _ in range(12):
        fxlrp.quantus_explain(model, x, TARGETS, start=lambda output, target: output)
    assert len(module._KEPT[model].explainers) == 8


def test_changed_weights_change_the_relevance(model, x, compiled):
    def check():
        assert np.array_equal(fxlrp.quantus_explain(model, x, TARGETS), expected(model, x).sum(1, True).numpy())

    check()
    model[0].reset_parameters()
    check()
    model.load_state_dict({name: value * 1.5 for name, value in net().state_dict().items()})
    check()
    model.load_state_dict({name: value * 0.7 for name, value in net().state_dict().items()}, assign=True)
    check()
    model[7].weight = nn.Parameter(torch.randn(4, 96))
    model[1].running_mean = torch.randn(6)
    check()
    assert len(compiled) == 1


def test_a_model_with_a_new_module_is_compiled_again(model, x, compiled):
    fxlrp.quantus_explain(model, x, TARGETS)
    model[3] = nn.AvgPool2d(2).eval()
    assert np.array_equal(fxlrp.quantus_explain(model, x, TARGETS), expected(model, x).sum(1, True).numpy())
    assert len(compiled) == 2


def test_a_copy_is_another_model(model, x):
    first = fxlrp.quantus_explain(model, x, TARGETS)
    other = copy.deepcopy(model)
    assert np.array_equal(fxlrp.quantus_explain(other, x, TARGETS), first)
    other[0].reset_parameters()
    assert not np.array_equal(fxlrp.quantus_explain(other, x, TARGETS), first)
    assert np.array_equal(fxlrp.quantus_explain(model, x, TARGETS), first)


def test_a_model_can_be_freed_after_use(model, x):
    other = net()
    weight, module_ref = weakref.ref(other[0].weight), weakref.ref(other)
    fxlrp.quantus_explain(other, x, TARGETS)
    assert other in module._KEPT
    del other
    gc.collect()
    assert module_ref() is None
    assert weight() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device beside the CPU")
def test_another_device_is_computed_on_without_moving_the_model(model, x, compiled):
    usual = fxlrp.quantus_explain(model, x, TARGETS)
    for _ in range(2):
        assert np.allclose(fxlrp.quantus_explain(model, x, TARGETS, device="cuda"), usual, atol=1e-5)
        assert np.array_equal(fxlrp.quantus_explain(model, x, TARGETS, device="cpu"), usual)
    assert model[0].weight.device.type == "cpu"
    assert len(compiled) == 2
    moved = fxlrp.quantus_explain(model.cuda(), x, TARGETS)
    assert np.allclose(moved, usual, atol=1e-5)


def test_inputs_and_targets_that_do_not_fit_are_errors(model, x):
    with pytest.raises(TargetError, match="class 4 is out of range"):
        fxlrp.quantus_explain(model, x, [0, 1, 4])
    with pytest.raises(InputError, match="3 channels, not 8"):
        fxlrp.quantus_explain(model, x.transpose(0, 2, 3, 1), TARGETS)
    fxlrp.quantus_explain(model, x, TARGETS)
    with pytest.raises(TrainingModeError):
        fxlrp.quantus_explain(model.train(), x, TARGETS)


# Inside Quantus -------------------------------------------------------------------------------------


@pytest.fixture
def quantus():
    return pytest.importorskip("quantus")


def scores(metric, model, x, **options):
    return metric(
        model=model, x_batch=x, y_batch=TARGETS, a_batch=None, channel_first=True, device="cpu",
        explain_func=fxlrp.quantus_explain, explain_func_kwargs=options,
    )  # fmt: skip


QUIET = {"disable_warnings": True, "display_progressbar": False}


@pytest.mark.parametrize("sum_channels", [True, False])
def test_sparseness_is_that_of_the_relevance(quantus, model, x, sum_channels):
    found = scores(quantus.Sparseness(abs=True, normalise=False, **QUIET), model, x, sum_channels=sum_channels)
    relevance = expected(model, x).sum(1) if sum_channels else expected(model, x)
    for score, values in zip(found, relevance.flatten(1).abs().double(), strict=True):
        ordered, count = values.sort().values, values.numel()
        gini = ((2 * torch.arange(1, count + 1) - count - 1) * ordered).sum() / (count * ordered.sum())
        assert score == pytest.approx(float(gini), abs=1e-4)


def test_values_are_flipped_in_the_order_of_relevance(quantus, model, x):
    metric = quantus.PixelFlipping(features_in_step=16, perturb_baseline=0.0, abs=False, normalise=False, **QUIET)
    (curve, *_) = scores(metric, model, x, preset="cp_lrp", start="logit", sum_channels=False)
    order = expected(model, x, preset="cp_lrp", start="logit")[0].flatten().argsort(descending=True)
    values = torch.tensor(x[:1]).flatten(1)
    for step, value in enumerate(curve):
        values[:, order[16 * step : 16 * (step + 1)]] = 0
        with torch.no_grad():
            probabilities = model(values.view(1, 3, 8, 8)).softmax(1)
        assert value == pytest.approx(float(probabilities[0, 1]), abs=1e-4)


def test_randomised_weights_are_explained_as_they_are_then(quantus, model, x, compiled):
    metric = quantus.MPRT(
        similarity_func=lambda a, b, batched: np.abs(a - b).max(1), layer_order="top_down", skip_layers=False,
        return_average_correlation=False, abs=False, normalise=False, **QUIET,
    )  # fmt: skip
    before = expected(model, x)
    found = scores(metric, model, x, sum_channels=False)
    other = copy.deepcopy(model)
    layers = {name: layer for name, layer in other.named_modules() if hasattr(layer, "reset_parameters")}
    assert [name for name in found if name in layers] == [*layers][::-1]
    for name, layer in [*layers.items()][::-1]:
        torch.manual_seed(43)
        layer.reset_parameters()
        changed = (before - expected(other, x)).abs().flatten(1).amax(1)
        assert (changed > 0).any() or name == "1"  # resetting a norm of ones and zeros changes nothing
        assert np.allclose(found[name], changed, atol=1e-6)
    assert torch.equal(expected(model, x), before)
    assert len(compiled) == 2  # the model, and the one copy of it whose layers were randomised
