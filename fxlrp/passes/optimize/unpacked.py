"""Weights that are kept in fewer bits: unpacked where they are read, one layer at a time."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxlrp.common.tensors import is_packed, tensor_at
from fxlrp.passes.optimize.base import OptimizerPass, emitted, without_dead_code

_FLOAT8 = [dtype for name, dtype in vars(torch).items() if name.startswith("float8_")]
_FEW_BITS = frozenset({torch.int8, torch.uint8, torch.int32, *_FLOAT8})
"""The types in which weights of few bits are kept; four of a weight lie in one number of int32."""


class UnpackWeights(OptimizerPass):
    """Makes the numbers of such weights anew where a rule reads them, in place of keeping those of the forward pass.

    Before::

        weight = mul(to(packed), scale)
        y = linear(x, weight)
        ...                               # all layers' weights are held until relevance comes back
        share = matmul(s, weight)

    After::

        weight = mul(to(packed), scale)
        y = linear(x, weight)
        ...
        weight_1 = mul(to(packed), scale)
        share = matmul(s, weight_1)
    """

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        made = _made_of_few_bits(module)
        for node in list(module.graph.nodes) if made else ():
            if emitted(node) and node not in made:
                copies: dict[fx.Node, fx.Node] = {}
                for source in [source for source in node.all_input_nodes if source in made]:
                    node.replace_input_with(source, _copied(source, node, made, copies))
        without_dead_code(module.graph)
        return module


def _made_of_few_bits(module: fx.GraphModule) -> set[fx.Node]:
    """The steps that depend on weights alone, at least one of which is kept in fewer bits."""
    weights: set[fx.Node] = set()
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr":
            weights.add(node)
        elif node.op in ("call_function", "call_method") and sources and all(source in weights for source in sources):
            weights.add(node)
            if any(source in found or _is_kept_in_few_bits(source, module) for source in sources):
                found.add(node)
    return found


def _is_kept_in_few_bits(node: fx.Node, module: fx.GraphModule) -> bool:
    if node.op != "get_attr":
        return False
    tensor = tensor_at(module, str(node.target))
    return isinstance(tensor, Tensor) and tensor.dim() > 1 and (is_packed(tensor) or tensor.dtype in _FEW_BITS)


def _copied(node: fx.Node, reader: fx.Node, made: set[fx.Node], copies: dict[fx.Node, fx.Node]) -> fx.Node:
    """The steps that make ``node``, once more, right before a step of a rule that reads it."""
    if node not in made:
        return node
    if node not in copies:
        sources = {source: _copied(source, reader, made, copies) for source in node.all_input_nodes}
        with reader.graph.inserting_before(reader):
            # What is known of it stays: it is a step of the model, which is not kept between calls.
            copies[node] = reader.graph.node_copy(node, lambda source: sources[source])
    return copies[node]
