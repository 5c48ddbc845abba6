"""How many axes values have, as far as the graph tells, and where a constant puts axes in front of a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import fx

from fxlrp.common.tensors import tensor_at
from fxlrp.passes.facts import facts
from fxlrp.vocabulary import VOCABULARY


class Rank(NamedTuple):
    """The least and the largest number of axes that a value can have."""

    least: int
    most: int

    def __add__(self, more: object) -> Rank:
        assert isinstance(more, int)
        return Rank(max(self.least + more, 0), min(self.most + more, MANY))


MANY = 64
"""More axes than a tensor of torch can have."""
UNKNOWN = Rank(0, MANY)


class Ranks:
    """Finds ranks in a forward graph, and keeps them."""

    def __init__(self) -> None:
        self._found: dict[fx.Node, Rank] = {}

    def of(self, node: fx.Node) -> Rank:
        """The rank of a value."""
        waiting = [node]  # no recursion: models may be a thousand layers deep
        while waiting:
            value = waiting[-1]
            missing = [source for source in value.all_input_nodes if source not in self._found]
            if value in self._found or not missing:
                waiting.pop()
                self._found.setdefault(value, self._rank(value))
            else:
                waiting += missing
        return self._found[node]

    def may_widen(self, node: fx.Node) -> bool:
        """Whether a constant, or sizes, may put axes in front of the first operand of ``node``.

        A constant whose first axis is one long is taken to have it in the place of the batch, as people write it.
        """
        name, arguments = _name(node), _arguments(node)
        operand = facts(node).operands[0][1]
        least = self.of(operand).least
        if name == "matmul":  # by a matrix, no axis is added
            least = max(least, 2)
        if name in ("expand", "repeat"):
            sizes = arguments.get("size", arguments.get("repeats"))
            return not isinstance(sizes, list | tuple) or (len(sizes) > least and sizes[:1] not in ([-1], (-1,)))
        if name == "expand_as":
            return self.of(arguments["other"]).most > least
        if name not in _BROADCAST:
            return False
        constants = [arg for arg in arguments.values() if isinstance(arg, fx.Node) and not facts(arg).signal]
        return any(self.of(constant).most > least and not _is_one_long(constant) for constant in constants)

    def may_be_longer(self, node: fx.Node) -> bool:
        """Whether another operand that carries signal may have more axes than the first one of ``node``."""
        (_, first), *others = facts(node).operands
        return any(self.of(other).most > self.of(first).least for _, other in others) and _name(node) != "matmul"

    def _rank(self, node: fx.Node) -> Rank:
        if node.op == "get_attr":
            dims = _tensor(node).dim()
            return Rank(dims, dims)
        if node.op == "placeholder":
            shape = facts(node).shape
            return Rank(1, MANY) if shape is None else Rank(len(shape), len(shape))
        sources = [self._found[source] for source in node.all_input_nodes]
        if not sources:
            sizes = _arguments(node).get("size")
            return Rank(len(sizes), len(sizes)) if isinstance(sizes, list | tuple) else UNKNOWN
        name, arguments = _name(node), _arguments(node)
        if node.target is getitem and _makes_several(node.all_input_nodes[0]):
            return sources[0]
        if name in _BROADCAST:
            tensors = [self._found[arg] for arg in arguments.values() if isinstance(arg, fx.Node)]
            found = Rank(max(each.least for each in tensors), max(each.most for each in tensors))
            vector = name == "matmul" and any(each.least < 2 for each in tensors)
            return Rank(max(found.least - 1, 0), found.most) if vector else found
        if (axes := _CONVOLVED.get(name)) is not None:
            return Rank(axes + 1, axes + 2)
        if name in _NUMBERS:
            return Rank(0, 0)
        rule = _RANKS.get(name)
        first = next((arg for arg in arguments.values() if isinstance(arg, fx.Node)), node.all_input_nodes[0])
        if name == "embedding":  # the table is the first argument of ATen's, the second of Python's
            first = node.args[isinstance(node.target, torch._ops.OpOverload)]  # type: ignore[assignment]
        return UNKNOWN if rule is None else rule(self._found[first], arguments)


def _makes_several(node: fx.Node) -> bool:
    """Whether a node makes a list of values, whose rank is that of each."""
    operation = VOCABULARY.called_by(node)
    return operation is not None and operation.outputs_many


def is_broadcast(node: fx.Node) -> bool:
    """Whether the operands of an operation are broadcast against each other."""
    return _name(node) in _BROADCAST


def _tensor(node: fx.Node) -> torch.Tensor:
    module = node.graph.owning_module
    assert module is not None
    found: torch.Tensor = tensor_at(module, str(node.target))
    return found


def _name(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).split(".")[1]
    return str(getattr(node.target, "__name__", node.target))


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments by name, as ATen names them; of what it does not know, by number."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        name = _name(node)
        if name in _SIZES and node.op == "call_method" and all(isinstance(arg, int | fx.Node) for arg in node.args[1:]):
            return {"self": node.args[0], _SIZES[name]: list(node.args[1:]), **node.kwargs}
        target = getattr(getattr(torch.ops.aten, name, None), "default", None)
    if not isinstance(target, torch._ops.OpOverload):
        return {**{str(number): arg for number, arg in enumerate(node.args)}, **node.kwargs}
    names = [argument.name for argument in target._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


_SIZES = {"view": "size", "reshape": "shape", "expand": "size", "repeat": "repeats", "permute": "dims"}
"""Methods that take sizes or axes one by one as well."""


def _is_one_long(constant: fx.Node) -> bool:
    """Whether the first axis of a constant is known to be one long."""
    name, arguments = _name(constant), _arguments(constant)
    if constant.op == "get_attr":
        return _tensor(constant).shape[:1] == (1,)
    if name in ("view", "reshape", "expand"):
        sizes = arguments.get("shape", arguments.get("size"))
        return isinstance(sizes, list | tuple) and bool(sizes) and sizes[0] == 1
    if name == "unsqueeze" and arguments.get("dim") == 0:
        return True
    if name == "getitem" and isinstance(arguments.get("1"), tuple):
        return next(iter(arguments["1"]), 0) is None
    behind = name in ("unsqueeze", "slice", "select") and isinstance(arguments.get("dim"), int) and arguments["dim"] > 0
    return (behind or name in ("to", "_to_copy", "clone", "alias", "neg")) and _is_one_long(constant.all_input_nodes[0])


def _same(rank: Rank, arguments: Mapping[str, Any]) -> Rank:
    return rank


def _more(count: int) -> Callable[[Rank, Mapping[str, Any]], Rank]:
    return lambda rank, arguments: rank + count


def _listed(*names: str) -> Callable[[Rank, Mapping[str, Any]], Rank]:
    """As many as there are sizes in an argument."""

    def found(rank: Rank, arguments: Mapping[str, Any]) -> Rank:
        sizes = next((arguments[name] for name in names if name in arguments), None)
        return Rank(len(sizes), len(sizes)) if isinstance(sizes, list | tuple) else UNKNOWN

    return found


def _reduced(rank: Rank, arguments: Mapping[str, Any]) -> Rank:
    dims = arguments.get("dim")
    if arguments.get("keepdim"):
        return rank
    if dims is None or dims == []:
        return Rank(0, 0)
    return rank + -(len(dims) if isinstance(dims, list | tuple) else 1)


def _indexed(rank: Rank, arguments: Mapping[str, Any]) -> Rank:
    """After an index of Python: of a list an entry, of a tensor axes that are gone, and new ones."""
    index = arguments.get("1")
    entries = index if isinstance(index, tuple) else (index,)
    gone = sum(isinstance(entry, int | fx.Node) for entry in entries)
    new = entries.count(None)
    return Rank(max(rank.least - gone, 0) + new, min(rank.most + new, MANY))


def _flat(rank: Rank, arguments: Mapping[str, Any]) -> Rank:
    start, end = arguments.get("start_dim", 0), arguments.get("end_dim", -1)
    if start >= 0 and end == -1:
        return Rank(start + 1, start + 1)
    return rank + (start - end) if start * end > 0 else Rank(1, rank.most)


def _unflat(rank: Rank, arguments: Mapping[str, Any]) -> Rank:
    sizes = arguments.get("sizes", ())
    return rank + (len(sizes) - 1)


def _layered(rank: Rank, arguments: Mapping[str, Any]) -> Rank:
    """After a layer whose input has a batch and features at least."""
    return Rank(max(rank.least, 2), max(rank.most, 2))


def _squeezed(rank: Rank, arguments: Mapping[str, Any]) -> Rank:
    dims = arguments.get("dim")
    count = rank.most if dims is None else len(dims) if isinstance(dims, list | tuple) else 1
    return Rank(max(rank.least - count, 0), rank.most)


def _einsum(rank: Rank, arguments: Mapping[str, Any]) -> Rank:
    term = str(arguments.get("equation", "...")).replace(" ", "").partition("->")[2]
    return UNKNOWN if not term or "." in term else Rank(len(term), len(term))


_BROADCAST = frozenset({
    "add", "sub", "mul", "div", "pow", "maximum", "minimum", "where", "masked_fill", "atan2", "hypot", "fmod",
    "remainder", "xlogy", "matmul",
})  # fmt: skip
"""Operations whose operands are broadcast against each other."""

_NUMBERS = ("sym_size", "size", "numel", "item", "dim", "ndimension", "sym_numel", "sym_stride")
"""What gives numbers, or lists of them, in place of values with axes."""

_SAME = """
    zeros_like ones_like full_like empty_like truediv floordiv mod relu relu6 hardtanh clamp clamp_min clamp_max
    threshold leaky_relu prelu elu selu celu gelu silu mish hardswish softplus sigmoid hardsigmoid tanh softmax
    log_softmax neg abs square sqrt rsqrt reciprocal exp log log1p sin cos erf to _to_copy float double half
    bfloat16 type_as long int bool detach dropout feature_dropout alias clone contiguous instance_norm
    group_norm scaled_dot_product_attention cumsum cumprod mT flip roll pixel_shuffle pixel_unshuffle
    channel_shuffle cat constant_pad_nd gather transpose slice narrow chunk split split_with_sizes
    repeat_interleave index_select topk sort slice_scatter select_scatter scatter scatter_add index_add lstm gru
    rnn_tanh rnn_relu triu tril upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
"""
"""Operations that keep the rank of their first tensor, beside pools."""

_CONVOLVED = {f"conv{kind}{axes}d": axes for kind in ("", "_transpose") for axes in (1, 2, 3)}
"""Over how many axes layers convolve, batch and channels not counted."""

_POOLS = [f"{kind}_pool{dims}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for dims in (1, 2, 3)]

_RANKS: dict[str, Callable[[Rank, Mapping[str, Any]], Rank]] = {
    **dict.fromkeys([*_SAME.split(), *_POOLS], _same),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp", "prod",
                     "linalg_vector_norm"), _reduced),
    **dict.fromkeys(("select", "unbind", "diagonal"), _more(-1)),
    **dict.fromkeys(("unsqueeze", "stack", "embedding", "one_hot", "diag_embed", "unfold"), _more(1)),
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _listed("shape", "size")),
    **dict.fromkeys(("arange", "linspace"), lambda rank, arguments: Rank(1, 1)),
    "permute": _listed("dims"), "expand": _listed("size"), "repeat": _listed("repeats"),
    **dict.fromkeys(("linear", "layer_norm", "rms_norm", "batch_norm"), _layered),
    "getattr": lambda rank, arguments: rank if arguments.get("1") in ("T", "mT", "real", "data") else Rank(0, 0),
    "getitem": _indexed, "flatten": _flat, "unflatten": _unflat, "squeeze": _squeezed, "einsum": _einsum,
}  # fmt: skip
"""By operation, from the rank of its first tensor to its own."""
