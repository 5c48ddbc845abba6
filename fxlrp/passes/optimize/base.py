"""What the optimiser's passes share: an emitted graph, and how they read and write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from fxlrp.passes.base import Pass, check
from fxlrp.passes.facts import KEY, Emitted


class OptimizerPass(Pass):
    """Base of the passes over an emitted program: what it returns stays the same but for rounding."""

    def requires(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            check(node.op == "output" or KEY in node.meta, f"{node} does not say what it belongs to")

    def ensures(self, module: fx.GraphModule) -> None:
        self.requires(module)

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        result = super().__call__(module)
        result.recompile()
        return result


def emitted(node: fx.Node) -> bool:
    """Whether ``node`` belongs to the propagation of relevance, not to the model."""
    return isinstance(node.meta.get(KEY), Emitted)


def arguments(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of a call by name, ``None`` for those that are left out."""
    given = dict(zip(names, node.args, strict=False))
    return {**dict.fromkeys(names), **given, **node.kwargs}


def inserted(node: fx.Node, target: Callable[..., Any], *args: Any, name: str | None = None) -> fx.Node:
    """A new call right before ``node``, of the same origin."""
    with node.graph.inserting_before(node):
        new = node.graph.create_node("call_function", target, args, {}, name)
    known = node.meta[KEY]
    new.meta[KEY] = Emitted(known.node, known.rule, "step") if isinstance(known, Emitted) else known
    return new


def replaced(node: fx.Node, new: fx.Node) -> None:
    """Let ``new`` stand for ``node``, with its name and what is known of it."""
    name = node.name
    node.replace_all_uses_with(new)
    new.meta[KEY] = node.meta[KEY]
    node.graph.erase_node(node)
    new._rename(name)


def without_dead_code(graph: fx.Graph) -> None:
    """Erase what nothing reads."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
