"""A captured graph as plain data, and back: what is written of one to a file.

Nothing of it is code: calls are named operations of torch, arguments are numbers, texts and types, and the modules of
a model are told by their paths. Of values the type and the number of axes are kept; of what the model returns the sizes
too, so that another output can be chosen of it, and of what is made of weights alone.
"""

from __future__ import annotations

import math
import operator
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from fxlrp.capture.captured import Captured, Shape, Tensors, has_attribute
from fxlrp.common.errors import ExportError
from fxlrp.common.items import Items

Data = dict[str, Any]

_OPERATION = re.compile(r"(aten|prims|fxlrp|torchvision)\.[A-Za-z_]\w*\.[A-Za-z_]\w*")
_WORDS = re.compile(r"\w+(\.\w+)*", re.ASCII)
_READS_FILES = frozenset({"from_file"})
_NUMBERS = {
    f"{name}.{function}": getattr(module, function)
    for name, module, functions in (
        ("operator", operator, (
            "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge",
            "getitem", "and_", "or_", "not_", "pos", "lshift", "rshift",
        )),
        ("math", math, ("ceil", "floor", "trunc", "sqrt", "log", "exp", "isqrt")),
        ("torch", torch, ("sym_max", "sym_min", "sym_float", "sym_int", "sym_not", "sym_sum", "sym_ite")),
    )
    for function in functions if hasattr(module, function)
}  # fmt: skip
"""Functions of sizes, by name."""
_NAMES: dict[Any, str] = {function: name for name, function in _NUMBERS.items()}

_SPELLED: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "dtype": (torch.dtype, lambda value: str(value).removeprefix("torch."), lambda text: _of_torch(text, torch.dtype)),
    "layout": (
        torch.layout, lambda value: str(value).removeprefix("torch."), lambda text: _of_torch(text, torch.layout)
    ),
    "memory_format": (
        torch.memory_format, lambda value: str(value).removeprefix("torch."),
        lambda text: _of_torch(text, torch.memory_format),
    ),
    "device": (torch.device, str, torch.device),
    "complex": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "slice": (slice, lambda value: [value.start, value.stop, value.step], lambda parts: slice(*parts)),
    "tuple": (tuple, list, tuple),
}  # fmt: skip
"""What JSON has no word for: its type, how it is written and how it is read; what it is made of is written too."""


def _of_torch(text: str, kind: type) -> Any:
    value = getattr(torch, text, None)
    if not isinstance(value, kind):
        raise ValueError(f"{text!r} is no {kind.__name__} of torch")
    return value


def written(captured: Captured) -> Data:
    """A capture by ``torch.export`` as data for JSON, all but its constants.

    Raises:
        ExportError: it holds what has no such form.
    """
    traces: dict[Any, int] = {}
    stacks: dict[Any, int] = {}
    inputs = [node for node in captured.graph.nodes if node.op == "placeholder"]
    axes = {
        str(size): axis for node in inputs
        for size, axis in zip(node.meta["val"].shape, captured.shapes[str(node.target)], strict=True)
    }  # fmt: skip
    returned = next(node for node in reversed(captured.graph.nodes) if node.op == "output").all_input_nodes
    nodes: list[Data] = []
    computed = set(inputs)  # of an input; what is made of weights alone has one size, which rules may ask for
    for node in captured.graph.nodes:
        if not computed.isdisjoint(node.all_input_nodes):
            computed.add(node)
        told = node in returned or node in inputs or node not in computed
        stack = tuple((key, path) for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items())
        value = _value(node.meta.get("val"), axes if told else None)
        nodes.append({
            "name": node.name, "op": node.op, "target": _target(node), "args": _spelled(list(node.args)),
            "kwargs": _spelled(dict(node.kwargs)), "value": value,
            "trace": traces.setdefault(node.meta.get("stack_trace"), len(traces)),
            "stack": stacks.setdefault(stack, len(stacks)),
        })  # fmt: skip
    try:
        returns = pytree.treespec_dumps(captured.returns)
    except Exception as error:
        raise ExportError(f"what the model returns cannot be written to a file: {error}") from error
    smallest, largest = captured.batches
    return {
        "nodes": nodes, "traces": list(traces), "stacks": list(stacks), "returns": returns,
        "integers": sorted(captured.integers), "shapes": {name: list(shape) for name, shape in captured.shapes.items()},
        "batches": [smallest, None if largest == math.inf else largest], "example_batch": captured.example_batch,
        "asks_batch": captured.asks_batch, "items": written_items(captured.items),
    }  # fmt: skip


def read(data: Data, model: nn.Module, constants: Tensors) -> Captured:
    """The capture that :func:`written` wrote.

    Args:
        data: what it gave.
        model: the model that it is of.
        constants: its constants.

    Raises:
        ExportError: a node refers to what is not there, or calls what is no operation.
        KeyError, TypeError, ValueError: the data are not of this form.
    """
    if "__enum__" in data["returns"]:  # of which torch would import the module
        raise ExportError("what the model returns holds a value of a class of its own")
    types = {path: type(part) for path, part in model.named_modules()}
    stacks = [OrderedDict((key, (path, types[path])) for key, path in stack) for stack in data["stacks"]]
    shapes: dict[str, Shape] = {name: tuple(shape) for name, shape in data["shapes"].items()}
    sizes = _sizes({size for shape in shapes.values() for size in shape if isinstance(size, str)})
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for each in data["nodes"]:
        target = _called(each["op"], each["target"])
        if each["op"] == "get_attr" and not (target in constants or has_attribute(model, target)):
            raise ExportError(f"there is no tensor {target!r}")
        args, kwargs = _unspelled(each["args"], nodes), _unspelled(each["kwargs"], nodes)
        if not all(map(_WORDS.fullmatch, kwargs)):
            raise ExportError(f"{list(kwargs)} are no names of arguments")
        new = graph.create_node(each["op"], target, tuple(args), kwargs, each["name"])
        new.meta = {
            "val": sizes(each["value"]), "stack_trace": data["traces"][each["trace"]],
            "nn_module_stack": stacks[each["stack"]],
        }  # fmt: skip
        nodes[each["name"]] = new
    graph.lint()
    smallest, largest = data["batches"]
    return Captured(
        graph, model, pytree.treespec_loads(data["returns"]), constants, "export", frozenset(data["integers"]), shapes,
        (smallest, math.inf if largest is None else largest), data["example_batch"], data["asks_batch"],
        items=read_items(data["items"]),
    )  # fmt: skip


def written_items(items: Items) -> list[Any]:
    """Which axes are the batch, for JSON."""
    return [items.axis, [list(pair) for pair in items.named]]


def read_items(data: list[Any]) -> Items:
    """What :func:`written_items` wrote."""
    axis, named = data
    return Items(axis, tuple((str(name), int(of)) for name, of in named))


def _target(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    name = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else _NAMES.get(node.target, "")
    if not name or not (name in _NUMBERS or _OPERATION.fullmatch(name)):
        raise ExportError(f"a call of {node.target} cannot be written to a file")
    return name


def _called(op: str, name: str) -> Any:
    if op not in ("placeholder", "get_attr", "call_function", "output"):
        raise ExportError(f"{op!r} is no kind of node that fxlrp writes")
    if op != "call_function":
        if not _WORDS.fullmatch(name) or (op == "placeholder" and not name.isidentifier()):
            raise ExportError(f"{name!r} is no name")  # which would be written into code
        return name
    if name in _NUMBERS:
        return _NUMBERS[name]
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if not _OPERATION.fullmatch(name) or packet in _READS_FILES:
        raise ExportError(f"{name!r} is no operation that fxlrp writes")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except AttributeError as error:
        raise ExportError(f"this torch has no operation {name!r}") from error


def _spelled(value: Any) -> Any:
    """An argument as JSON knows it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Mapping):
        return {"dict": [[key, _spelled(item)] for key, item in value.items()]}
    if value is Ellipsis:
        return {"ellipsis": None}
    if isinstance(value, list):
        return [_spelled(item) for item in value]
    for name, (kind, write, _) in _SPELLED.items():
        if isinstance(value, kind):
            return {name: _spelled(write(value))}
    raise ExportError(f"{value!r}, an argument of a {type(value).__name__}, cannot be written to a file")


def _unspelled(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_unspelled(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, inner),) = value.items()
    if name == "node":
        return nodes[inner]
    if name == "float":
        return float(inner)
    if name == "ellipsis":
        return Ellipsis
    if name == "dict":
        return {key: _unspelled(item, nodes) for key, item in inner}
    return _SPELLED[name][2](_unspelled(inner, nodes))


def _value(value: Any, axes: Mapping[str, int | str] | None) -> Any:
    """What is kept of the value of a node: of a tensor its type, and its sizes where those are inputs' or fixed."""
    if isinstance(value, list | tuple):
        return [_value(item, axes) for item in value]
    if not isinstance(value, Tensor):
        return None if value is None else "number"
    sizes = [int(size) if str(size).isdigit() else (axes or {}).get(str(size)) for size in value.shape]
    known = axes is not None and None not in sizes
    kept = {"dtype": _spelled(value.dtype), "device": str(value.device), "rank": value.dim()}
    return {**kept, "sizes": sizes if known else None}


def _sizes(axes: set[str]) -> Callable[[Any], Any]:
    """From what was kept of a value to one that stands for it, with sizes that are free under the same names."""
    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False)
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    free = {
        axis: fake.from_tensor(torch.empty(number), symbolic_context=context).shape[0]
        for axis, number in zip(sorted(axes), _primes(), strict=False)
    }

    def stand_in(kept: Any) -> Any:
        if isinstance(kept, list):
            return [stand_in(item) for item in kept]
        if kept is None or kept == "number":
            return 0 if kept else None
        dtype = _unspelled(kept["dtype"], {})
        if kept["sizes"] is None:
            return torch.empty([0] * kept.get("rank", 1), dtype=dtype, device="meta")
        with fake:
            return torch.empty([free.get(size, size) for size in kept["sizes"]], dtype=dtype, device=kept["device"])

    return stand_in


def _primes() -> Iterator[int]:
    """Sizes for examples, each of its own."""
    return (number for number in range(11, 10_000) if all(number % smaller for smaller in range(2, number)))
