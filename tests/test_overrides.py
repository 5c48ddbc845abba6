"""Exceptions from a preset: what they match, which one wins, and who is said to have chosen; splits of joins."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves, assert_unchanged, snapshot
from nets import BlockPlan, NetPlan, RandomNet
from torch import nn

import fxlrp
from fxlrp import JoinKind
from fxlrp.errors import PatternError, RuleError
from fxlrp.rules import (
    Epsilon,
    FixedSplit,
    Gamma,
    GammaSplit,
    RatioSplit,
    ResidualOnly,
    SignedSplit,
    SkipOnly,
    SymmetricSplit,
)
from fxlrp.rules.rule import REASONS

PLAN = NetPlan([BlockPlan(), BlockPlan(skip="projection", stride=2), BlockPlan(), BlockPlan(skip="dense")])


@pytest.fixture
def model():
    return RandomNet(PLAN).double().eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 12, 12, dtype=torch.float64)


def called(key):
    """What a key is called in a reason."""
    return getattr(key, "__name__", repr(key))


def rows(model, **options):
    """What the summary says, by node."""
    return {row.node: row for row in fxlrp.compile(model, **{"preset": "conserving", **options}).summary()}


# Which node, which rule, and why -----------------------------------------------------------------


KEYS = {
    "exact name": ("blocks.1.conv1", {"blocks_1_conv1"}),
    "name of a block": ("blocks.1", {"blocks_1_conv1", "blocks_1_conv2", "blocks_1_projection_0"}),
    "name in the graph": ("blocks_1_conv2", {"blocks_1_conv2"}),
    "pattern": ("blocks.*.conv2", {f"blocks_{i}_conv2" for i in range(4)}),
    "pattern of one character": ("blocks.[02].conv1", {"blocks_0_conv1", "blocks_2_conv1"}),
    "module type": (nn.Linear, {"head"}),
    "type of a block": (type(RandomNet(PLAN).blocks[0]), {
        "blocks_1_projection_0", *(f"blocks_{i}_conv{j}" for i in range(4) for j in (1, 2)),
    }),
    "function": (F.linear, {"head"}),
    "operation of torch": (torch.conv2d, {
        "stem", "blocks_1_projection_0", *(f"blocks_{i}_conv{j}" for i in range(4) for j in (1, 2)),
    }),
    "ATen": (torch.ops.aten.linear.default, {"head"}),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_a_key_means(model, name):
    key, expected = KEYS[name]
    rule = Epsilon(0.125)
    chosen = {node: row for node, row in rows(model, rules={key: rule}).items() if row.rule == repr(rule)}
    assert chosen.keys() == expected
    assert {row.reason for row in chosen.values()} == {f"rules: {called(key)}"}


ORDER = [nn.Module, nn.Conv2d, torch.conv2d, "blocks.*", "blocks.1.*", "blocks.1.conv1"]
"""From the least specific to the most."""


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("count", range(1, len(ORDER) + 1))
def test_the_most_specific_key_wins_in_whatever_order_they_are_given(model, count, turned):
    rules = [(key, Epsilon(2.0**-rank)) for rank, key in enumerate(ORDER[:count])]
    key, rule = rules[-1]
    found = rows(model, rules=dict(rules[::-1] if turned else rules))
    assert (found["blocks_1_conv1"].rule, found["blocks_1_conv1"].reason) == (repr(rule), f"rules: {called(key)}")


@pytest.mark.parametrize("keys", [["blocks.?.conv1", "blocks.1.conv*"], ["blocks.1.conv*", "blocks.?.conv1"]])
def test_of_two_keys_that_are_as_specific_the_later_one_wins(model, keys):
    found = rows(model, rules=dict(zip(keys, (Epsilon(0.25), Epsilon(0.5)), strict=True)))
    assert found["blocks_1_conv1"].rule == repr(Epsilon(0.5))
    assert found["blocks_1_conv1"].reason == f"rules: {keys[1]!r}"


def test_the_callers_rule_wins_over_the_presets_own_exceptions(model):
    preset = fxlrp.Preset("mine", rules={"head": Epsilon(0.1), "blocks.0.conv1": Epsilon(0.2)})
    found = rows(model, preset=preset, rules={nn.Module: Gamma(0.5)})
    assert (found["head"].rule, found["head"].reason) == (repr(Gamma(0.5)), "rules: Module")
    found = rows(model, preset=preset)
    assert (found["head"].rule, found["head"].reason) == (repr(Epsilon(0.1)), "preset mine: 'head'")
    assert found["stem"].reason == "preset mine"


def test_a_presets_exception_that_matches_nothing_is_none(model):
    preset = fxlrp.Preset("mine", rules={"elsewhere.*": Epsilon(0.1)})
    assert rows(model, preset=preset)["head"].reason == "preset mine"
    with pytest.raises(PatternError, match="matches nothing"):
        fxlrp.compile(model, "conserving", rules={"elsewhere.*": Epsilon(0.1)})


def test_the_summary_says_who_chose_each_rule(model):
    preset = fxlrp.presets.epsilon_gamma_box(-3.0, 3.0)
    found = rows(model, preset=preset, split="symmetric", rules={"blocks.2": FixedSplit(0.3)})
    reasons = {node: row.reason for node, row in found.items() if row.rule}
    assert reasons["stem"] == "preset epsilon_gamma_box: first layer"
    assert reasons["blocks_0_conv1"] == "preset epsilon_gamma_box: convolution"
    assert reasons["blocks_0_norm1"] == "preset epsilon_gamma_box, into blocks_0_conv1"
    assert reasons["mean"] == "preset epsilon_gamma_box: pooling"
    assert reasons["head"] == "preset epsilon_gamma_box"
    assert reasons["blocks_0_add"] == "split"
    assert reasons["blocks_2_add"] == "rules: 'blocks.2'"
    text = str(fxlrp.compile(model, preset=preset).summary())
    assert "first layer" in text
    assert "ZBox(" in text


def test_only_identity_skips_are_left_out_and_the_summary_says_why(model):
    found = rows(model, identity_skips=False)
    joins = {node: (row.kind, row.rule, row.reason) for node, row in found.items() if row.kind.startswith("join")}
    assert joins == {
        "blocks_0_add": ("join: identity", repr(ResidualOnly()), "identity_skips=False"),
        "blocks_1_add": ("join: projection", repr(RatioSplit()), "preset conserving"),
        "blocks_2_add": ("join: identity", repr(ResidualOnly()), "identity_skips=False"),
    }


# Joins -------------------------------------------------------------------------------------------


class EveryKind(nn.Module):
    """An identity, a projection and a merge."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(4, 4) for _ in range(5))

    def forward(self, x):
        x = x + self.a(x)
        x = self.b(x) + self.d(F.relu(self.c(x)))
        return self.e(x).relu() + self.a(x).tanh()


def test_a_key_may_be_a_kind_of_join():
    model = EveryKind().double().eval()
    wanted = {
        JoinKind.IDENTITY: FixedSplit(0.3), JoinKind.PROJECTION: SkipOnly(), JoinKind.MERGE: SymmetricSplit(),
    }  # fmt: skip
    found = [row for row in fxlrp.compile(model, "conserving", rules=wanted).summary() if row.kind.startswith("join")]
    assert [(row.kind, row.rule, row.reason) for row in found] == [
        (f"join: {kind.value}", repr(rule), f"rules: {kind!r}") for kind, rule in wanted.items()
    ]


def test_a_name_says_more_than_a_kind_of_join(model):
    found = rows(model, rules={"blocks.2": SkipOnly(), JoinKind.IDENTITY: FixedSplit(0.3), torch.add: RatioSplit()})
    assert found["blocks_2_add"].rule == repr(SkipOnly())
    assert found["blocks_0_add"].reason.startswith("rules: ")
    assert found["blocks_1_add"].rule == repr(RatioSplit())


def test_a_kind_of_join_that_the_model_does_not_have_is_refused(model):
    with pytest.raises(PatternError, match=r"JoinKind\.MERGE\] matches nothing"):
        fxlrp.compile(model, "conserving", rules={JoinKind.MERGE: SkipOnly()})
    with pytest.raises(RuleError, match="join takes a SplitRule"):
        fxlrp.compile(model, "conserving", rules={JoinKind.IDENTITY: Epsilon()})


SPLITS = {
    "ratio": RatioSplit(), "symmetric": SymmetricSplit(), "signed": SignedSplit(), "residual": ResidualOnly(),
    "skip": SkipOnly(), "gamma": GammaSplit(),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_splits_by_name(model, x, name):
    by_name = fxlrp.compile(model, "conserving", split=name)
    by_rule = fxlrp.compile(model, "conserving", split=SPLITS[name])
    assert {row.rule for row in by_name.summary() if row.kind.startswith("join")} == {repr(SPLITS[name])}
    assert torch.equal(by_name(x).relevance, by_rule(x).relevance)
    assert_conserves(by_name, x, absorbs=["stabilizer"] if name == "signed" else [])


@pytest.mark.parametrize("skip", [0, 0.3, 0.5, 1])
def test_a_fixed_proportion_goes_to_the_skip(model, x, skip):
    before = snapshot(model, x)
    explainer = fxlrp.compile(model, "conserving", split=FixedSplit(skip))
    assert_conserves(explainer, x)
    relevance = explainer(x).relevance
    edges = {0: "residual", 0.5: "symmetric", 1: "skip"}
    if skip in edges:
        assert_close(relevance, fxlrp.compile(model, "conserving", split=edges[skip])(x).relevance)
    assert_unchanged(before, snapshot(model, x))


@pytest.mark.parametrize("flipped", [False, True])
def test_the_skip_is_the_skip_on_either_side_of_the_sum(flipped):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) + x if flipped else x + self.fc(x)

    model, x = Block().double().eval(), torch.rand(2, 4, dtype=torch.float64)
    relevance = torch.rand(2, 4, dtype=torch.float64)

    def explained(split):
        return fxlrp.compile(model, "conserving", split=split, start=lambda output, target: relevance)(x).relevance

    assert torch.equal(explained("skip"), relevance)
    assert_close(explained(FixedSplit(0.3)), 0.3 * explained("skip") + 0.7 * explained("residual"))


@pytest.mark.parametrize("skip", [-0.1, 1.1, float("nan")])
def test_a_proportion_lies_between_none_and_all(skip):
    with pytest.raises(RuleError, match="between 0 and 1"):
        FixedSplit(skip)


# What one explainer is asked for is no other's ----------------------------------------------------


def test_overrides_stay_with_their_explainer(model, x):
    before = snapshot(model, x)
    plain = fxlrp.compile(model, "conserving")
    expected = plain(x).relevance
    preset, rules = fxlrp.PRESETS["epsilon_plus"], {"blocks.1": Epsilon(0.1), JoinKind.IDENTITY: FixedSplit(0.3)}
    asked = fxlrp.compile(model, preset, rules=rules, split="skip")
    assert_conserves(asked, x, absorbs=REASONS)
    assert not torch.allclose(asked(x).relevance, expected)
    rules.clear()
    assert asked.summary()[len(asked.summary()) - 1].rule == fxlrp.compile(model, preset).summary()[-1].rule
    assert {row.rule for row in asked.summary() if row.kind == "join: identity"} == {repr(FixedSplit(0.3))}
    assert torch.equal(plain(x).relevance, expected)
    assert torch.equal(fxlrp.compile(model, "conserving")(x).relevance, expected)
    assert not preset.rules
    assert_unchanged(before, snapshot(model, x))
