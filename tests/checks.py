"""What must hold of every explanation; the tests state it of many models."""

from __future__ import annotations

import copy

import torch
from torch.utils import _pytree as pytree

import fxlrp
from fxlrp.steps.batch_axis import item_sum


def tolerance(dtype: torch.dtype) -> float:
    """What rounding may cost in a deep network, relative to the start."""
    return {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]


def assert_conserves(explainer, *inputs, absorbs=(), target=None):
    """Every node hands on what it receives, and the inputs get what entered; only ``absorbs`` keeps anything."""
    explanation, ledger = explainer(*inputs, target=target), explainer.ledger(*inputs, target=target)
    several = explanation.by_input.values()
    limit = tolerance(next(relevance.dtype for relevance in several))
    scale = ledger.start.abs()
    assert all(torch.isfinite(relevance).all() for relevance in several)
    for row in ledger:
        assert (row.error.abs() <= limit * scale).all(), f"{row.node} ({row.rule}) loses {row.error / scale}"
    assert (ledger.error.abs() <= limit * scale).all(), f"total {ledger.error / scale}"
    for reason, amount in ledger.absorbed.items():
        if reason not in absorbs:
            assert (amount == 0).all(), f"absorbed by {reason}: {amount / scale}"
    arrived = sum(item_sum(relevance) for relevance in several)
    kept = sum(ledger.absorbed.values())
    assert ((arrived + kept - explanation.start.double()).abs() <= limit * scale).all()
    return ledger


def assert_items_independent(explainer, *inputs):
    """A batch of N gives what N single calls give."""
    together = explainer(*inputs).by_input
    alone = [explainer(*(x[i : i + 1] for x in inputs)).by_input for i in range(len(inputs[0]))]
    for name, relevance in together.items():
        assert_close(relevance, torch.cat([single[name] for single in alone]))


def assert_explains(model, *inputs, absorbs=(), **options):
    """All that must hold of an explanation by a preset that conserves; returns the explainer and its ledger."""
    before = snapshot(model, *inputs)
    explainer = fxlrp.compile(model, **{"preset": "conserving", **options})
    explanation = explainer(*inputs)
    for output, expected in zip(_leaves(explanation.output), _leaves(before["output"]), strict=True):
        assert_close(output, expected)
    ledger = assert_conserves(explainer, *inputs, absorbs=absorbs)
    assert_items_independent(explainer, *inputs)
    assert_unchanged(before, snapshot(model, *inputs))
    return explainer, ledger


def _leaves(output):
    return [leaf for leaf in pytree.tree_leaves(output) if leaf is not None]


def assert_close(a, b, limit=None):
    """Largest difference over largest value."""
    limit = limit or 10 * tolerance(a.dtype)
    scale = b.abs().max()
    assert a.shape == b.shape
    assert (a - b).abs().max() <= limit * scale, f"{((a - b).abs().max() / scale).item():.2e} > {limit}"


def snapshot(model, *inputs):
    """All that compiling and explaining must leave as it is."""
    with torch.no_grad():
        output = model(*(x.clone() for x in inputs))
    return {
        "state": {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()},
        "hooks": [
            (list(m._forward_hooks.items()), list(m._forward_pre_hooks.items()), list(m._backward_hooks.items()))
            for m in model.modules()
        ],
        "modes": [(name, m.training) for name, m in model.named_modules()],
        "attributes": {name: sorted(vars(m)) for name, m in model.named_modules()},
        "output": output,
        "grads": {name: copy.copy(p.grad) for name, p in model.named_parameters()},
    }


def assert_unchanged(before, after):
    for name, (identity, value) in before["state"].items():
        assert after["state"][name][0] == identity
        assert torch.equal(after["state"][name][1], value)
    for key in ("hooks", "modes", "attributes", "grads"):
        assert before[key] == after[key]
    for output, expected in zip(_leaves(after["output"]), _leaves(before["output"]), strict=True):
        assert torch.equal(output, expected)
