"""Relevance in pictures: arrows carry what the ledger says, splits tell their shares, what absorbs is marked."""

import re
from collections import defaultdict

import pytest
import torch
from checks import assert_close, tolerance
from hypothesis import given
from nets import BlockPlan, NetPlan, RandomNet
from strategies import net_plans
from torchvision import models

import fxlrp
from fxlrp.draw import dot_source
from fxlrp.errors import DrawError, PatternError, TargetError
from fxlrp.rules import Epsilon
from fxlrp.views.draw.flow import Flow, mark, weigh
from fxlrp.views.draw.picture import RELEVANCE, Role, Way, collapse
from fxlrp.views.draw.reading import picture_of


def residual():
    plan = NetPlan([BlockPlan(bias=True), BlockPlan(skip="projection", stride=2)])
    return RandomNet(plan).double().eval()


@pytest.fixture
def x():
    return torch.randn(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def weighed(explainer, ledger, depth=None, **parts):
    picture = picture_of(explainer.emitted, **parts)
    flow = Flow(ledger, {node.name for node in explainer.emitted.nodes})
    mark(picture, flow)
    if depth is not None:
        picture = collapse(picture, depth)
    weigh(picture, flow)
    return picture, flow


def into_and_out_of(picture):
    into, out = defaultdict(float), defaultdict(float)
    for arrow, share in picture.shares.items():
        into[arrow.target] += share
        out[arrow.source] += share
    return into, out


# The ledger -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["conserving", "epsilon_plus"])
def test_a_row_tells_what_each_operand_gets(preset, x):
    explainer = fxlrp.compile(residual(), preset)
    ledger = explainer.ledger(x)
    operands = {node.name: {source.name for source in node.all_input_nodes} for node in explainer.emitted.nodes}
    for row in ledger:
        assert set(row.to) <= operands[row.node]
        assert_close(sum(row.to.values(), torch.zeros(3)), row.handed_on)
    for join in explainer.joins:
        row = next(row for row in ledger if row.node == join.name)
        assert set(row.to) == {join.skip, join.residual}
        assert_close(row.to[join.skip] + row.to[join.residual] + row.absorbed, row.received)


def test_what_a_value_gets_is_what_its_readers_hand_it(x):
    explainer = fxlrp.compile(residual(), "conserving")
    ledger = explainer.ledger(x)
    for row in ledger.rows[1:]:
        handed = sum(other.to[row.node] for other in ledger if row.node in other.to)
        assert_close(handed, row.received)


def test_a_value_added_to_itself_gets_both_shares():
    class Doubled(torch.nn.Module):
        def forward(self, x):
            return (x + x).flatten(1)

    x = torch.rand(2, 3, dtype=torch.float64) + 0.1
    row = fxlrp.compile(Doubled().eval(), "conserving", start="output").ledger(x).rows[-1]
    assert list(row.to) == ["x"]
    assert_close(row.to["x"], 2 * x.sum(1))


# Relevance of a node ----------------------------------------------------------------------------


def test_relevance_of_a_node_is_that_of_the_checkpoint_there(x):
    explainer = fxlrp.compile(residual(), "conserving", checkpoints=["blocks.1"])
    value = explainer.joins[0].name
    explanation = explainer(x)
    found = explainer.relevance_of(x, nodes=[value, "stem", "x"])
    assert list(found) == [value, "stem", "x"]
    assert_close(found["x"], explanation.relevance)
    assert_close(found[value], explanation.checkpoints["blocks.1"])
    assert found["stem"].shape == explainer.shapes["stem"]
    rows = {row.node: row for row in explainer.ledger(x)}
    for name in (value, "stem"):
        assert_close(found[name].flatten(1).sum(1), rows[name].received)


def test_a_target_is_the_one_that_is_asked_for(x):
    explainer = fxlrp.compile(residual(), "conserving")
    found = explainer.relevance_of(x, nodes=["stem"], target=1)["stem"]
    assert_close(found.flatten(1).sum(1), explainer(x, target=1).start)


def test_several_targets_an_item_are_an_error(x):
    with pytest.raises(TargetError, match="relevance of nodes is of one target per item"):
        fxlrp.compile(residual(), "conserving").relevance_of(x, nodes=["stem"], target=[0, 1])


def test_a_node_that_no_relevance_reaches_is_an_error(x):
    explainer = fxlrp.compile(residual(), "conserving")
    with pytest.raises(PatternError, match="node 'layer9': no relevance reaches"):
        explainer.relevance_of(x, nodes=["layer9"])


# Arrows -----------------------------------------------------------------------------------------


@given(plan=net_plans())
def test_arrows_carry_what_each_thing_receives_and_hands_on(plan):
    torch.manual_seed(0)
    explainer = fxlrp.compile(RandomNet(plan).double().eval(), "conserving")
    ledger = explainer.ledger(torch.randn(2, 3, 12, 12, dtype=torch.float64))
    picture, flow = weighed(explainer, ledger)
    into, out = into_and_out_of(picture)
    limit = 10 * tolerance(torch.float64)
    rules = [t for t in picture.things.values() if t.role in (Role.RULE, Role.SPLIT, Role.MOVE) and flow.row(t.node)]
    assert rules
    for thing in rules:
        row = flow.row(thing.node)
        assert abs(into[thing.name] - flow.share(row.received)) < limit, thing.name
        assert abs(out[thing.name] - flow.share(row.handed_on)) < limit, thing.name
    for thing in picture.things.values():
        if thing.role is Role.SUM:
            assert abs(into[thing.name] - out[thing.name]) < limit, thing.name
        if thing.role is Role.RESULT:
            assert abs(into[thing.name] - flow.share(ledger.relevance)) < limit


@pytest.fixture(scope="module")
def chain():
    """A network of modules in a chain, explained, and its ledger."""
    torch.manual_seed(0)
    explainer = fxlrp.compile(models.resnet18(num_classes=5).eval(), "conserving")
    return explainer, explainer.ledger(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize("view", [{"relevance": False}, {"forward": False}, {}], ids=["forward", "relevance", "both"])
@pytest.mark.parametrize("depth", [1, 2, None])
def test_all_relevance_passes_the_layers_of_a_chain_of_modules(chain, view, depth):
    explainer, ledger = chain
    picture, _ = weighed(explainer, ledger, depth, **view)
    into, out = into_and_out_of(picture)
    forward = not view.get("relevance", True)
    name = "the output" if forward else "the start"
    assert (into if forward else out)[name] == pytest.approx(1, abs=1e-5)
    if depth == 1:  # layer after layer, closed: all flows through each
        boxes = [t.name for t in picture.things.values() if t.role in (Role.MODULE, Role.RULES)]
        assert boxes
        shown = [box for box in boxes if (picture.things[box].role in RELEVANCE) != forward]
        for box in shown:
            assert into[box] == pytest.approx(1, abs=1e-5), box
            assert out[box] == pytest.approx(1, abs=1e-5), box


def test_thickness_follows_the_share(x):
    explainer = fxlrp.compile(residual(), "conserving")
    ledger = explainer.ledger(x)
    text = dot_source(explainer, "relevance", ledger=ledger)
    widths = {}
    for share, width in re.findall(r'penwidth="([\d.]+)", tooltip="([\d.-]+) %"', text):
        widths[float(width)] = float(share)
    ordered = [widths[share] for share in sorted(widths)]
    assert len(ordered) > 2
    assert ordered == sorted(ordered)
    assert widths[100.0] == max(ordered)
    assert "penwidth" not in dot_source(explainer, "forward").replace('penwidth="2"', "")


def test_without_a_ledger_nothing_is_said_of_amounts(x):
    explainer = fxlrp.compile(residual(), "conserving")
    before = explainer.dot
    explainer.ledger(x)
    assert " %" not in before
    assert " %" not in explainer.dot


# Splits and what absorbs ------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["relevance", "forward", "both"])
def test_splits_tell_the_shares_of_skip_and_residual(view, x):
    explainer = fxlrp.compile(residual(), "conserving")
    ledger = explainer.ledger(x)
    text = dot_source(explainer, view, ledger=ledger)
    for join in explainer.joins:
        row = next(row for row in ledger if row.node == join.name)
        skip = float(row.to[join.skip].mean() / row.received.mean())
        assert f"skip {skip:.0%}, residual {1 - skip:.0%}" in text


def test_without_identity_skips_the_residual_gets_all(x):
    explainer = fxlrp.compile(residual(), "conserving", identity_skips=False)
    ledger = explainer.ledger(x)
    picture, _ = weighed(explainer, ledger, relevance=False)
    join = next(join for join in explainer.joins if join.kind == "identity")
    assert "skip 0%, residual 100%" in picture.things[join.name].shares


def test_what_absorbs_is_marked_and_what_does_not_is_not(x):
    model = residual()
    explainer = fxlrp.compile(model, "conserving", rules={"head": Epsilon(0.5)})
    ledger = explainer.ledger(x)
    kept = float(ledger.absorbed["stabilizer"].mean() / ledger.start.abs().mean())
    assert abs(kept) > 0.001
    picture, _ = weighed(explainer, ledger)
    marked = [thing for thing in picture.things.values() if abs(thing.absorbed) > 1e-9]
    assert [thing.node for thing in marked] == ["head"]
    assert marked[0].absorbed == pytest.approx(kept)
    text = dot_source(explainer, ledger=ledger)
    assert text.count(f"absorbs {100 * kept:.2f} %") == 1
    assert "stabilizer" in text
    explainer = fxlrp.compile(model, "conserving")
    assert "absorbs" not in dot_source(explainer, ledger=explainer.ledger(x))


def test_a_closed_module_keeps_what_is_absorbed_inside(x):
    explainer = fxlrp.compile(residual(), "conserving", rules={"blocks.0.*": Epsilon(0.5)})
    ledger = explainer.ledger(x)
    kept = float(ledger.absorbed["stabilizer"].mean() / ledger.start.abs().mean())
    picture, _ = weighed(explainer, ledger, depth=1)
    boxes = [thing for thing in picture.things.values() if thing.absorbed and thing.role is Role.RULES]
    assert sum(box.absorbed for box in boxes) == pytest.approx(kept)


def test_tooltips_tell_shapes_once_they_are_known(x):
    explainer = fxlrp.compile(residual(), "conserving")
    assert "shape:" not in explainer.dot
    explainer(x)
    assert "shape: 3 × " in explainer.dot


def test_a_condition_is_no_node_of_the_picture(x):
    explainer = fxlrp.compile(residual(), "conserving")
    value = "blocks_0_act2"  # a skip and a branch read it
    ledger = explainer.ledger(x, conditions={"blocks.0": [1]})
    assert any(row.kind == "condition" and row.node == value for row in ledger)
    picture, flow = weighed(explainer, ledger)
    into, out = into_and_out_of(picture)
    handed = sum(row.to[value] for row in ledger if value in row.to and row.kind != "condition")
    name = f"sum of {value}"
    assert into[name] == pytest.approx(flow.share(handed))
    assert out[name] == pytest.approx(flow.share(handed))


# What cannot be drawn ---------------------------------------------------------------------------


def test_a_ledger_of_another_model_is_refused(x):
    other = fxlrp.compile(models.resnet18(num_classes=5).eval(), "conserving").ledger(torch.rand(1, 3, 32, 32))
    with pytest.raises(DrawError, match="of another model"):
        dot_source(fxlrp.compile(residual(), "conserving"), ledger=other)


def test_no_relevance_at_all_is_refused(x):
    explainer = fxlrp.compile(residual(), "conserving", start=lambda output, target: output * 0)
    with pytest.raises(DrawError, match="no relevance entered"):
        dot_source(explainer, ledger=explainer.ledger(x))


def test_ways_that_are_not_drawn_have_no_share(x):
    explainer = fxlrp.compile(residual(), "conserving")
    picture, _ = weighed(explainer, explainer.ledger(x))
    assert {arrow.way for arrow in picture.shares} <= {Way.RELEVANCE, Way.RELEVANCE_SKIP}
