"""Fold: which batch norms become a part of the linear operation next to them."""

from __future__ import annotations

from torch import fx

from fxlrp.passes.base import Pass, check
from fxlrp.passes.facts import facts
from fxlrp.rules.linear import LinearRule
from fxlrp.rules.normalisation import Fold
from fxlrp.vocabulary import Kind


class FoldNorms(Pass):
    """Ties each batch norm that has the rule ``Fold`` to a linear operation, if one is next to it.

    Requires assigned rules; ensures that no norm is tied twice on the same side. Which norm an
    operation is to be seen with stands in ``facts(node).norm_behind`` and ``norm_before``.
    """

    def requires(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            node_facts = facts(node)
            assigned = node_facts.kind is not Kind.LINEAR or node_facts.rule is not None
            check(assigned, f"{node} has no rule: assign first")

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in module.graph.nodes:
            node_facts = facts(node)
            if isinstance(node_facts.rule, Fold):
                into = ", ".join(self._tie(node))
                node_facts.reason += f", into {into}" if into else ": passes, because no linear layer is next to it"
        return module

    def ensures(self, module: fx.GraphModule) -> None:
        norms = [facts(node).norm_behind for node in module.graph.nodes if facts(node).norm_behind is not None]
        check(len(norms) == len(set(norms)), "a norm is folded into two operations before it")

    def _tie(self, norm: fx.Node) -> list[str]:
        """Tie a norm to the operation before it, or else to those behind it; return their names."""
        ((_, before),) = facts(norm).operands
        if _folds(before) and _readers(before) == [norm]:
            facts(before).norm_behind = norm
            return [before.name]
        behind = [reader for reader in _readers(norm) if reader.op != "output" and _folds(reader)]
        for reader in behind:
            facts(reader).norm_before = norm
        return [reader.name for reader in behind]


def _folds(node: fx.Node) -> bool:
    """Whether a node is a convolution or a linear layer with a linear rule."""
    node_facts = facts(node)
    linear = node_facts.kind is Kind.LINEAR and isinstance(node_facts.rule, LinearRule)
    if node_facts.operation is None or not linear:
        return False
    return node_facts.operation.name.startswith("conv") or node_facts.operation.name == "linear"


def _readers(node: fx.Node) -> list[fx.Node]:
    """Those that hand ``node`` relevance; the output is one where the node is what is explained."""
    return [
        user for user in node.users
        if (user.args[0][0] is node if user.op == "output" else facts(user).signal)  # type: ignore[index]
    ]  # fmt: skip
