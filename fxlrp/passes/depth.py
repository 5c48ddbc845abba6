"""Depth: how far each node is from the input, in space, and which layers are the classifier."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxlrp.passes.base import Pass, check
from fxlrp.passes.facts import facts
from fxlrp.vocabulary import Kind
from fxlrp.vocabulary.operation import per_axis


class FindDepth(Pass):
    """Finds by how much space is reduced at each node, and the layers that read the classes off the features.

    The classifier is what lies behind the last place where positions or branches meet: the linear layers after the
    last pooling, mean, choice of a token, join or product. Where that is none (a convolution whose map is averaged),
    it is the last layer.

    Requires joins to be known.
    """

    def requires(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            check(facts(node).kind is not Kind.JOIN or facts(node).join is not None, f"{node}: find joins first")

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in module.graph.nodes:
            if node.op != "output" and facts(node).signal:
                before = max((facts(operand).stride for _, operand in facts(node).operands), default=1)
                facts(node).stride = before * _stride(node)
        outputs: Any = next(node for node in module.graph.nodes if node.op == "output").args[0]
        if isinstance(outputs[0], fx.Node) and facts(outputs[0]).signal:
            _mark_classifier(outputs[0])
        return module


def _stride(node: fx.Node) -> int:
    """The stride of a convolution or of a pool with windows."""
    operation = facts(node).operation
    if operation is None or "transpose" in operation.name:
        return 1
    arguments = operation.arguments(node.args, node.kwargs)
    if not (operation.is_convolution or "kernel_size" in arguments):
        return 1
    steps = arguments.get("stride") or arguments.get("kernel_size") or 1
    plain = [step for step in per_axis(steps, 1) if isinstance(step, int)]
    return max(plain, default=1)


def _mark_classifier(output: fx.Node) -> None:
    node, last = output, None
    while True:
        node_facts = facts(node)
        operation = node_facts.operation
        if node_facts.kind is Kind.LINEAR and operation is not None and operation.parametric:
            last = node if last is None else last
            if operation.is_convolution:
                break
            node_facts.classifier = True
        passes = node_facts.kind in (Kind.POINTWISE, Kind.NORMALISATION, Kind.LINEAR, Kind.ROUTING)
        mixes = node_facts.kind is Kind.LINEAR and operation is not None and not operation.parametric
        cuts = operation is not None and operation.cuts
        if len(node_facts.operands) != 1 or not passes or ((mixes or cuts) and last is not None):
            break
        node = node_facts.operands[0][1]
    if last is not None and not any(facts(n).classifier for n in output.graph.nodes if n.op == "call_function"):
        facts(last).classifier = True
