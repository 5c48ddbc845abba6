"""Properties of random residual graphs and random networks of tokens."""

import copy
from dataclasses import replace

import torch
from checks import (
    assert_close,
    assert_conserves,
    assert_explains,
    assert_items_independent,
    assert_unchanged,
    snapshot,
)
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis_profiles import by_profile, examples
from nets import BlockPlan, NetPlan, RandomNet
from strategies import net_plans, token_net_plans
from token_nets import WIDTH, RandomTokens, TokenBlockPlan, TokenNetPlan

import fxlrp
from fxlrp.rules import Epsilon, SignedSplit, Winner


def build(plan, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return RandomNet(plan).to(dtype).eval(), torch.randn(2, 3, 12, 12, dtype=dtype)


DTYPES = st.sampled_from(by_profile(fast=[torch.float64], slow=[torch.float64, torch.float32]))
SEEDS = by_profile(fast=st.just(0), slow=st.integers(0, 5))


@examples(fast=12, slow=600)
@given(net_plans(), st.sampled_from(["ratio", "symmetric"]), st.booleans(), DTYPES, SEEDS)
def test_every_node_conserves(plan, split, identity_skips, dtype, seed):
    model, x = build(plan, dtype, seed)
    explainer = fxlrp.compile(model, "conserving", split=split, identity_skips=identity_skips)
    x = torch.cat([x, torch.zeros_like(x[:1]), torch.ones_like(x[:1])])
    # The symmetric split sends relevance into a padded skip, and the ledger says so.
    assert_conserves(explainer, x, absorbs=("padding",) if split == "symmetric" else ())


@examples(fast=12, slow=200)
@given(net_plans())
def test_every_node_conserves_under_gamma(plan):
    model, x = build(plan)
    x = torch.cat([x, torch.zeros_like(x[:1])])  # where nothing contributes, relevance vanishes
    ledger = assert_conserves(fxlrp.compile(model, "conserving_gamma"), x, absorbs=("stabilizer",))
    for row in ledger:  # ε's stabilizer keeps something, γ's convolutions nothing
        assert row.rule.startswith("Epsilon") or (row.absorbed == 0).all(), row.node


@examples(fast=12, slow=200)
@given(net_plans())
def test_a_known_sign_of_relevance_changes_nothing(plan):
    model, x = build(plan)
    known = fxlrp.compile(model, "conserving", start="one")
    unknown = fxlrp.compile(
        model, "conserving", start=lambda output, target: torch.zeros_like(output).scatter(1, target[:, None], 1)
    )
    assert_close(known(x).relevance, unknown(x).relevance, 1e-12)


@examples(fast=12, slow=200)
@given(net_plans())
def test_items_of_a_batch_are_explained_independently(plan):
    model, x = build(plan)
    assert_items_independent(fxlrp.compile(model, "conserving"), x)


@examples(fast=12, slow=200)
@given(net_plans())
def test_explaining_leaves_the_model_unchanged(plan):
    model, x = build(plan)
    before = snapshot(model, x)
    explainer = fxlrp.compile(model, "conserving")
    explanation = explainer(x)
    explainer.ledger(x)
    assert_unchanged(before, snapshot(model, x))
    assert torch.equal(explanation.output, before["output"])
    assert torch.equal(explainer(x).relevance, explanation.relevance)


@examples(fast=12, slow=200)
@given(net_plans())
def test_a_module_called_twice_is_explained_like_two_modules(plan):
    plan.blocks[0] = replace(plan.blocks[0], shared=True)
    shared, x = build(plan)
    twin = unshared(shared)
    assert torch.equal(shared(x), twin(x))
    once, twice = (fxlrp.compile(each, "conserving")(x).relevance for each in (twin, shared))
    assert_close(twice, once, 1e-14)


def unshared(model):
    """The same network with a module of its own at each of two calls."""
    twin = copy.deepcopy(model)
    for block in [m for m in twin.modules() if type(m).__name__ == "Block" and m.plan.shared]:
        block.conv2 = TwoModules(block.conv2, copy.deepcopy(block.conv2))
        block.act1 = TwoModules(block.act1, copy.deepcopy(block.act1))
    return twin.eval()


class TwoModules(torch.nn.Module):
    """Uses its modules in turn."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)
        self.calls = 0

    def forward(self, x):
        part = self.parts[self.calls % len(self.parts)]
        self.calls += 1
        return part(x)


@examples(fast=12, slow=200)
@given(net_plans())
def test_epsilon_on_a_bias_free_relu_network_is_gradient_times_input(plan):
    blocks = [plain(block) for block in plan.blocks]
    model, x = build(NetPlan(blocks, stem_bias=False, pool=plan.pool, head_bias=False))
    preset = fxlrp.Preset("lrp-0", linear=Epsilon(1e-14), selection=Winner(), split=SignedSplit(1e-14))
    relevance = fxlrp.compile(model, preset, start="logit")(x, target=1).relevance
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert_close(relevance, (gradient * x).detach(), 1e-8)


def plain(block: BlockPlan) -> BlockPlan:
    nested = plain(block.nested) if block.nested else None
    return replace(
        block, bias=False, norm=False, squeeze=False, activation="relu", inplace=False, nested=nested
    )


# Networks of tokens --------------------------------------------------------------------------


def build_tokens(plan, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return RandomTokens(plan).to(dtype).eval(), torch.randn(3, RandomTokens.LENGTH, WIDTH, dtype=dtype)


def absorbing(plan):
    return ("constant",) if plan.tokens else ()


@examples(fast=10, slow=600)
@given(token_net_plans(), st.sampled_from(["probability", "logit"]), DTYPES, SEEDS)
def test_every_node_of_a_network_of_tokens_conserves(plan, start, dtype, seed):
    model, x = build_tokens(plan, dtype, seed)
    x[1], x[2] = 0, 1  # items of their own kind, whose relevance must not meet that of others
    explainer = fxlrp.compile(model, "conserving", start=start)
    assert_conserves(explainer, x, absorbs=absorbing(plan))
    assert_items_independent(explainer, x)


@example(TokenNetPlan([TokenBlockPlan("by weights", "response"), TokenBlockPlan("module", "glu", windows=2)]))
@examples(fast=10, slow=100)
@given(token_net_plans())
def test_a_network_of_tokens_is_explained_item_by_item_and_stays_as_it_is(plan):
    model, x = build_tokens(plan)
    explainer, _ = assert_explains(model, x, absorbs=absorbing(plan))
    assert explainer.capture == "symbolic"


@examples(fast=10, slow=100)
@given(token_net_plans(), st.sampled_from(["attnlrp", "cp_lrp"]))
def test_presets_for_attention_account_for_all_relevance(plan, preset):
    model, x = build_tokens(plan)
    explainer = fxlrp.compile(model, preset)
    ledger = explainer.ledger(x)
    assert torch.isfinite(explainer(x).relevance).all()
    largest = torch.stack([row.received.abs() for row in ledger]).amax(0)
    for row in ledger:
        kept = sum(amount.abs() for amount in row.by_reason.values())
        assert (row.error.abs() <= 1e-9 * (largest + kept)).all(), row.node
