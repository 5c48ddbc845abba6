"""The ledger: rows, reasons and totals."""

import pytest
import torch
from nets import BlockPlan, NetPlan, RandomNet
from torch import nn

import fxlrp
from fxlrp.errors import NonFiniteError
from fxlrp.rules import Epsilon


@pytest.fixture
def model():
    return RandomNet(NetPlan([BlockPlan(bias=True), BlockPlan(skip="projection", stride=2)])).double().eval()


@pytest.fixture
def x():
    return torch.randn(3, 3, 12, 12, dtype=torch.float64)


def test_rows_account_for_every_node(model, x):
    explainer = fxlrp.compile(model, "conserving")
    ledger, explanation = explainer.ledger(x), explainer(x)
    assert [row.node for row in ledger][:2] == ["head", "mean"]
    assert ledger.rows[-1].node == "stem"
    assert len({row.node for row in ledger}) == len(ledger)
    first, last = ledger.rows[0], ledger.rows[-1]
    assert (first.path, first.kind, first.rule) == ("head", "linear", repr(fxlrp.rules.ZPlus()))
    assert torch.allclose(first.received, explanation.start)
    assert torch.allclose(last.handed_on, explanation.relevance.sum((1, 2, 3)))
    assert torch.allclose(ledger.start, explanation.start)
    assert torch.allclose(ledger.relevance, explanation.relevance.sum((1, 2, 3)))
    for row in ledger:
        for amount in (row.received, row.handed_on, row.absorbed, row.rescaled, row.error):
            assert amount.shape == (3,)


def test_the_nodes_of_a_join_share_what_it_received(model, x):
    rows = {row.node: row for row in fxlrp.compile(model, "conserving").ledger(x)}
    join, main, skip = rows["blocks_1_add"], rows["blocks_1_norm2"], rows["blocks_1_projection_1"]
    assert torch.allclose(main.received + skip.received, join.received)


def test_absorption_is_told_by_reason_and_adds_up(model, x):
    explainer = fxlrp.compile(model, "conserving", rules={nn.Conv2d: Epsilon(0.1, bias="absorb")})
    ledger = explainer.ledger(x)
    assert set(ledger.absorbed) == {"stabilizer", "bias", "constant", "padding"}
    for reason in ("stabilizer", "bias"):
        rows = [row for row in ledger if reason in row.by_reason]
        assert torch.allclose(sum(row.by_reason[reason] for row in rows), ledger.absorbed[reason])
        assert ledger.absorbed[reason].abs().min() > 0
    (row,) = [row for row in ledger if row.node == "blocks_0_conv1"]
    assert row.reason == "bias, stabilizer"
    assert torch.allclose(row.absorbed, row.by_reason["bias"] + row.by_reason["stabilizer"])
    assert (ledger.error.abs() < 1e-10 * max(1, ledger.absorbed["bias"].abs().max())).all()


def test_rescaled_relevance_is_told():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).double().eval()
    model[1].weight.data[:] = torch.tensor([[1.0, 0.0], [-1.0, -1.0]])
    relevance = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    ledger = fxlrp.compile(model, fxlrp.Preset("plain"), start=lambda output, target: relevance).ledger(
        torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    )
    row = ledger.rows[0]
    assert (row.received.item(), row.handed_on.item(), row.rescaled.item(), row.absorbed.item()) == (5, 5, 3, 0)


def test_it_shows_where_relevance_is_no_number():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -1.0]]))
        model[1].bias.zero_()
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    preset = fxlrp.Preset("plain", linear=Epsilon(1e-6))
    explainer = fxlrp.compile(model, preset, start=lambda output, target: torch.full_like(output, 1e38))
    with pytest.raises(NonFiniteError, match="ledger"):
        explainer(torch.ones(1, 2))
    received = {row.node: bool(row.received.isfinite()) for row in explainer.ledger(torch.ones(1, 2))}
    assert received == {"_1": True, "_0": False}


def test_it_prints_as_a_table(model, x):
    text = str(fxlrp.compile(model, "otsuki2024").ledger(x))
    lines = text.splitlines()
    assert lines[0].split() == ["node", "kind", "rule", "received", "handed", "on", "absorbed", "reason", "rescaled"]
    (line,) = [line for line in lines if line.startswith("blocks_0_conv1 ")]
    assert "stabilizer" in line
    assert "absorbed: padding" in text
    assert lines[-1].startswith("at the input")


def test_an_explanation_pays_nothing_for_the_ledger(model, x):
    explainer = fxlrp.compile(model, "conserving")
    nodes = len(explainer.graph_module.graph.nodes)
    explainer.ledger(x)
    assert len(explainer.graph_module.graph.nodes) == nodes
    assert "item_sum" not in explainer.code.replace("total", "")


@pytest.mark.parametrize("signs", [(1, 1), (-1, -1), (1, -1)])
def test_all_of_what_entered_is_all_of_it_whatever_its_sign(signs):
    """Evidence against a class enters below zero; of items of both signs the shares do not cancel."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    explainer = fxlrp.compile(nn.Sequential(model).eval(), rules={"0": Epsilon(0)})
    ledger = explainer.ledger(torch.tensor(signs).float()[:, None])
    assert ledger.start.tolist() == [2 * sign for sign in signs]
    assert repr(ledger) == "<Ledger of 1 nodes, 2 items: 100.00 % arrived, nothing was absorbed>"
    assert "100.0000 %" in str(ledger)
    assert "-100.0000 %" not in str(ledger)
