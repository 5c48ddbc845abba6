"""Half precision: relevance in float32 whatever the model computes in."""

import pytest
import torch
from checks import assert_close
from nets import BlockPlan, NetPlan, RandomNet
from token_nets import WIDTH, Attention, Block, Fused, Gated, SpelledRMSNorm, Tokens, swiglu
from torch import nn

import fxlrp
from fxlrp.errors import InputError

HALVES = [torch.bfloat16, torch.float16]


class Words(nn.Module):
    """Tokens, looked up."""

    def __init__(self):
        super().__init__()
        self.words, self.rest = nn.Embedding(11, WIDTH), Tokens(Block(Fused()))

    def forward(self, ids):
        return self.rest(self.words(ids))


MODELS = {
    "residual": (
        lambda: RandomNet(NetPlan([BlockPlan(), BlockPlan(skip="projection", stride=2, squeeze=True)])), (3, 3, 12, 12)
    ),
    "attention, one function": (lambda: Tokens(Block(Fused(is_causal=True)), Block(Fused())), (3, 6, WIDTH)),
    "attention, spelled out": (lambda: Tokens(Block(Attention(), norm=SpelledRMSNorm)), (3, 6, WIDTH)),
    "gates": (lambda: Tokens(Block(Fused(), feed=Gated(swiglu))), (3, 6, WIDTH)),
    "tokens": (Words, None),
}  # fmt: skip


def made(name, dtype=torch.float32):
    build, shape = MODELS[name]
    x = torch.randint(0, 11, (3, 6)) if shape is None else torch.randn(shape, dtype=dtype)
    return build().eval().to(dtype), x


def assert_conserves_in_full_precision(explainer, x):
    explanation, ledger = explainer(x), explainer.ledger(x)
    assert explanation.relevance.dtype == torch.float32
    assert torch.isfinite(explanation.relevance).all()
    scale = ledger.start.abs()
    for row in ledger:
        assert (row.error.abs() <= 1e-5 * scale).all(), f"{row.node} loses {row.error / scale}"
    assert ((explanation.relevance.double().flatten(1).sum(1) - ledger.start).abs() <= 1e-5 * scale).all()
    assert all((amount == 0).all() for amount in ledger.absorbed.values())
    return explanation


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_half_precision_is_explained_in_full(name, dtype):
    model, x = made(name, dtype)
    explanation = assert_conserves_in_full_precision(fxlrp.compile(model, "conserving"), x)
    with torch.no_grad():
        assert torch.equal(explanation.output, model(x))
    assert explanation.output.dtype == dtype


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp", "otsuki2024"])
def test_every_preset_returns_full_precision(preset, dtype):
    name = "residual" if preset == "otsuki2024" else "attention, one function"
    model, x = made(name, dtype)
    relevance = fxlrp.compile(model, preset)(x).relevance
    assert relevance.dtype == torch.float32
    assert torch.isfinite(relevance).all()


def test_a_model_of_half_precision_is_nearly_that_of_full_precision():
    model, x = made("residual")
    expected = fxlrp.compile(model, "conserving")(x).relevance
    explainer = fxlrp.compile(model.to(torch.bfloat16), "conserving")
    assert_close(explainer(x.to(torch.bfloat16)).relevance, expected, 0.1)


def test_a_captured_model_of_half_precision_is_explained_in_full():
    class Guarded(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            assert isinstance(x, torch.Tensor)
            return self.model(x)

    model, x = made("attention, spelled out", torch.bfloat16)
    explainer = fxlrp.compile(Guarded(model).eval(), "conserving")
    explanation = assert_conserves_in_full_precision(explainer, x)
    assert explainer.capture == "export"
    with torch.no_grad():
        assert torch.equal(explanation.output, model(x))


def test_the_dtype_of_the_input_is_still_checked():
    model, x = made("residual", torch.bfloat16)
    with pytest.raises(InputError, match="input x is float32 and the model is bfloat16"):
        fxlrp.compile(model, "conserving")(x.float())


# Autocast ------------------------------------------------------------------------------------


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("name", MODELS)
def test_under_autocast_the_output_is_the_models_and_relevance_is_full(name):
    model, x = made(name)
    explainer = fxlrp.compile(model, "conserving")
    with autocast():
        with torch.no_grad():
            expected = model(x)
        explanation = assert_conserves_in_full_precision(explainer, x)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(explanation.output, expected)
    assert explanation.output.dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


def test_one_explainer_serves_with_autocast_and_without():
    model, x = made("attention, one function")
    explainer = fxlrp.compile(model, "conserving")
    before = explainer(x)
    with autocast():
        mixed = explainer(x).relevance
    after = explainer(x)
    assert torch.equal(after.relevance, before.relevance)
    assert torch.equal(after.output, before.output)
    assert not torch.equal(mixed, before.relevance)
    assert_close(mixed, before.relevance, 0.1)


def test_checking_a_target_leaves_nothing_in_autocasts_cache():
    model, x = made("residual")
    explainer = fxlrp.compile(model, "conserving")
    with autocast():
        explanation = explainer(x, target=1)
        assert type(explanation.relevance) is torch.Tensor
        assert torch.isfinite(explanation.relevance).all()


def test_an_error_leaves_autocast_as_it_was():
    def fails(output, target):
        raise KeyError("no relevance today")

    model, x = made("residual")
    explainer = fxlrp.compile(model, "conserving", start=fails)
    with autocast():
        with pytest.raises(KeyError, match="today"):
            explainer(x)
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
