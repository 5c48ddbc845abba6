"""Half precision: relevance in float32 whatever the model computes in."""

import pytest
import torch
from checks import assert_close
from nets import BlockPlan, NetPlan, RandomNet
from token_nets import WIDTH, Attention, Block, Fused, Gated, SpelledRMSNorm, Tokens, swiglu
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxlrp
from fxlrp.errors import InputError, RuleError

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


# Products in bfloat16 -----------------------------------------------------------------------------


def cosine(a, b):
    return torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0)


@pytest.mark.parametrize("preset", ["evidence", "attnlrp", "conserving"])
@pytest.mark.parametrize("name", MODELS)
def test_products_in_bfloat16_change_relevance_by_their_rounding(name, preset):
    torch.manual_seed(1)
    model, x = made(name, torch.bfloat16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    full = fxlrp.compile(model, preset)(x, target=0)
    explainer = fxlrp.compile(model, preset, precision="model")
    explanation = explainer(x, target=0)
    assert explanation.relevance.dtype == torch.float32
    assert torch.equal(explanation.output, full.output)
    assert torch.equal(explanation.start, full.start)
    assert cosine(explanation.relevance, full.relevance) > 0.99
    singles = torch.cat([explainer(one[None], target=0).relevance for one in x])
    assert cosine(explanation.relevance, singles) > 0.999
    both = explainer(x, target=torch.tensor([[0, 1]] * len(x))).relevance
    assert cosine(both[:, 0], explanation.relevance) > 0.999
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_products_in_bfloat16_are_those_of_the_layers_as_they_are_stored():
    """One layer under ε: what is rounded is the quotient, the product and the model's own output."""
    torch.manual_seed(0)
    layer = nn.Linear(7, 3, bias=False).to(torch.bfloat16).eval()
    x = torch.randn(2, 7).to(torch.bfloat16)
    explanation = fxlrp.compile(layer, "epsilon", start="one", precision="model")(x, target=1)
    z = layer(x)[:, 1].float()
    s = (1 / (z + 1e-6 * z.sign())).to(torch.bfloat16)
    expected = x.float() * (s[:, None] * layer.weight[1]).float()
    assert_close(explanation.relevance, expected, 1e-6)


def test_sums_hold_where_products_in_bfloat16_are_rescaled():
    model, x = made("residual", torch.bfloat16)
    explainer = fxlrp.compile(model, "conserving", precision="model")
    explanation = explainer(x)
    total = explanation.relevance.double().flatten(1).sum(1)
    assert ((total - explanation.start).abs() <= 1e-5 * explanation.start.abs()).all()
    assert explainer.ledger(x).relevance.shape == (len(x),)


class Casts(TorchDispatchMode):
    """Notes the shapes of what is cast."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("precision", "cast"), [("full", True), ("model", False)])
def test_products_in_bfloat16_cast_no_weights(precision, cast):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval().to(torch.bfloat16)
    x = torch.randn(2, 4).to(torch.bfloat16)
    explainer = fxlrp.compile(model, "epsilon", precision=precision)
    explainer(x)
    with Casts() as casts:
        explainer(x)
    assert ((5, 4) in casts.shapes) is cast


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_other_models_are_explained_as_before(dtype):
    model, x = made("residual", dtype)
    plain, other = (fxlrp.compile(model, precision=precision)(x).relevance for precision in ("full", "model"))
    assert torch.equal(plain, other)


def test_a_precision_that_is_not_known_is_an_error():
    with pytest.raises(RuleError, match="precision='half': choose one of 'full', 'model'"):
        fxlrp.compile(nn.Linear(2, 2).eval(), precision="half")
