"""What must hold of every explanation; the tests state it of many models."""

from __future__ import annotations

import copy

import torch


def tolerance(dtype: torch.dtype) -> float:
    """What rounding may cost in a deep network, relative to the start."""
    return {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]


def assert_conserves(explainer, x, *, absorbs=(), target=None):
    """Every node hands on what it receives, and the input gets what entered; only ``absorbs`` keeps anything."""
    explanation, ledger = explainer(x, target=target), explainer.ledger(x, target=target)
    limit = tolerance(x.dtype)
    scale = ledger.start.abs()
    assert torch.isfinite(explanation.relevance).all()
    for row in ledger:
        assert (row.error.abs() <= limit * scale).all(), f"{row.node} ({row.rule}) loses {row.error / scale}"
    assert (ledger.error.abs() <= limit * scale).all(), f"total {ledger.error / scale}"
    for reason, amount in ledger.absorbed.items():
        if reason not in absorbs:
            assert (amount == 0).all(), f"absorbed by {reason}: {amount / scale}"
    arrived = explanation.relevance.double().flatten(1).sum(1)
    kept = sum(ledger.absorbed.values())
    assert ((arrived + kept - explanation.start.double()).abs() <= limit * scale).all()
    return ledger


def assert_items_independent(explainer, x):
    """A batch of N gives what N single calls give."""
    together = explainer(x).relevance
    alone = torch.cat([explainer(x[i : i + 1]).relevance for i in range(len(x))])
    assert_close(together, alone)


def assert_close(a, b, limit=None):
    """Largest difference over largest value."""
    limit = limit or 10 * tolerance(a.dtype)
    scale = b.abs().max()
    assert (a - b).abs().max() <= limit * scale, f"{((a - b).abs().max() / scale).item():.2e} > {limit}"


def snapshot(model, x):
    """All that compiling and explaining must leave as it is."""
    with torch.no_grad():
        output = model(x.clone())
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
    assert torch.equal(before["output"], after["output"])
