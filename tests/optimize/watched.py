"""Runs a program and watches that no step reads what another one has overwritten."""

from __future__ import annotations

import torch
from torch import fx


class Watched(fx.Interpreter):
    """Runs a program and fails where a step reads a value that was written to since it was made."""

    def __init__(self, module):
        super().__init__(module)
        self.made = {}

    def run_node(self, node):
        for read in node.all_input_nodes:
            assert _equal(self.env[read], self.made[read]), f"{node} reads {read}, which was overwritten"
        result = super().run_node(node)
        self.made[node] = _copied(result)
        return result


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    return [_copied(entry) for entry in value] if isinstance(value, list | tuple) else None


def _equal(value, known):
    if isinstance(value, torch.Tensor):
        return torch.equal(value.nan_to_num(), known.nan_to_num())
    return not isinstance(value, list | tuple) or all(map(_equal, value, known))


def assert_reads_what_was_made(explainer, *inputs):
    """No step of the program reads a value that another one has overwritten."""
    with torch.no_grad():
        for _ in range(2):
            Watched(explainer.graph_module).run(*inputs, None)
