"""``torch.no_grad`` and ``torch.enable_grad`` in ``forward()``: no part of what a model computes.

``torch.export`` keeps what is computed in another mode than the one around it as a function of its own, which would be
opaque.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx
from torch._higher_order_ops.wrap import wrap_with_set_grad_enabled


def open_grad_modes(module: fx.GraphModule) -> None:
    """Put what is computed in another mode in the place where it is computed."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target is wrap_with_set_grad_enabled:
            _open(module, node)


def _open(module: fx.GraphModule, node: fx.Node) -> None:
    _, held, *operands = node.args
    inner: fx.GraphModule = getattr(module, held.target)  # type: ignore[union-attr,arg-type]
    open_grad_modes(inner)
    given = dict(zip((each for each in inner.graph.nodes if each.op == "placeholder"), operands, strict=True))
    with module.graph.inserting_before(node):
        values: Any = module.graph.graph_copy(inner.graph, given)
    for taken in list(node.users):
        assert taken.target is operator.getitem
        value = values[taken.args[1]]
        name = taken.name
        taken.replace_all_uses_with(value)
        module.graph.erase_node(taken)
        if value not in operands:  # what the program says of its outputs goes by their names
            value._rename(name)
    module.graph.erase_node(node)
    if not held.users:  # type: ignore[union-attr]
        module.graph.erase_node(held)  # type: ignore[arg-type]
    module.recompile()
