"""What a model looks like beside the values of its weights: to learn before a call whether it is still the same.

Modules, settings, hooks, and all else that forward() may read from ``self`` are compared by identity first, which takes
a fraction of a millisecond for hundreds of modules.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as nn_module

from fxlrp.capture.double import WEAK, is_container, is_module, is_plain

MOST_OBJECTS = 20_000
"""How many containers and objects beside modules are looked into."""
LARGEST_ARRAY = 16_384
"""Elements of the largest array of NumPy whose values are compared."""

_OWN = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))
"""The tables that nn.Module itself keeps: parameters, buffers, modules, hooks."""
_GLOBAL_HOOKS = tuple(
    table for name in ("_global_forward_hooks", "_global_forward_pre_hooks")
    if (table := getattr(nn_module, name, None)) is not None
)  # fmt: skip
_END = object()
"""Behind all values."""
_LIBRARIES = ("torch", "builtins", "typing", "abc", "collections", "enum")
"""Packages whose classes nobody changes."""


class _Slots:
    """What the slots of an object hold."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._names = [name for base in type(value).__mro__ for name in _slot_names(base)]

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self._value, name, None) for name in self._names)


class _Cells:
    """What the function of a closure has from where it was defined."""

    def __init__(self, cells: tuple[Any, ...]) -> None:
        self._cells = cells

    def __len__(self) -> int:
        return len(self._cells)

    def __iter__(self) -> Iterator[Any]:
        for cell in self._cells:
            try:
                yield cell.cell_contents
            except ValueError:  # it has none yet
                yield None


class _Table(NamedTuple):
    """A container of which a model consists.

    Attributes:
        content: the container itself.
        name: what messages call it.
        followed: whether a tensor in it is looked up by name at each call, so that another one may take its place.
        keyed: whether its keys, and their order, may decide what forward() does.
        closed: whether what is inside of its entries does not matter: a class, or hooks, which are not read.
    """

    content: Any
    name: str
    followed: bool
    keyed: bool
    closed: bool

    def views(self) -> list[Iterable[Any]]:
        """What is in it, now and later."""
        if not isinstance(self.content, dict | types.MappingProxyType):
            return [self.content]
        return [self.content, self.content.values()] if self.keyed else [self.content.values()]

    def values(self) -> Iterable[Any]:
        return chain.from_iterable(self.views())


class Snapshot:
    """A model as it is now.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tables: list[_Table] = []
        self._modules: list[tuple[nn.Module, type[nn.Module]]] = []
        self._arrays: list[tuple[Any, Any]] = []
        self._plain: list[tuple[torch.Tensor, int]] = []
        self._seen: set[int] = set()
        self._model = model
        for path, module in model.named_modules():
            self._look_at(module, path or "the model")
        for table in _GLOBAL_HOOKS:
            self._add(table, "the hooks of all modules", closed=True)
        self._look_inside()
        # The values of a dict are a view, which follows it.
        self._views = [view for table in self._tables for view in table.views()] + [[_END]]
        self._values = list(map(list, (table.values() for table in self._tables)))
        self._flat = list(chain.from_iterable(self._views))
        self._ties = _ties(model)

    def _look_at(self, module: nn.Module, name: str, *, registered: bool = True) -> None:
        attributes = vars(module)
        self._modules.append((module, type(module)))
        self._add(attributes, name, followed=registered)
        for key in _OWN & attributes.keys():
            tensors = key in ("_parameters", "_buffers")
            self._add(attributes[key], name, followed=registered and tensors, closed="hooks" in key)
        for kind in type(module).__mro__:
            if kind.__module__.partition(".")[0] not in _LIBRARIES:
                self._add(vars(kind), f"the class {kind.__name__}", closed=True, kept=kind)
            elif "forward" in vars(kind):
                self._add(_Forward(kind), f"the class {kind.__name__}", closed=True, kept=kind)

    def _add(
        self, content: Any, name: str, *, followed: bool = False, keyed: bool = False, closed: bool = False,
        kept: Any = None,
    ) -> None:  # fmt: skip
        identity = id(content if kept is None else kept)
        if identity not in self._seen:
            self._seen.add(identity)
            self._tables.append(_Table(content, name, followed, keyed, closed))

    def _look_inside(self) -> None:
        """Find the containers, objects and modules in what was found."""
        most = len(self._tables) + MOST_OBJECTS
        for table in self._tables:  # which grows meanwhile
            if len(self._tables) >= most:
                break
            items = table.content.items() if isinstance(table.content, dict) else enumerate(table.content)
            if not table.closed:
                for key, value in list(items):
                    self._look_at_value(value, _joined(table.name, key))

    def _look_at_value(self, value: Any, name: str) -> None:
        if type(value) in WEAK:  # it passes for what it refers to, be that gone
            return
        if is_module(value):
            if id(vars(value)) not in self._seen:  # in a list, where nn.Module does not see it
                self._look_at(value, name, registered=False)
        elif isinstance(value, torch.Tensor):
            registered = isinstance(value, nn.Parameter) or id(value) in self._buffers
            if not registered and type(value) is torch.Tensor and not value.is_inference():
                self._plain.append((value, value._version))
        elif is_container(value) or isinstance(value, tuple):
            self._add(value, name, keyed=isinstance(value, dict))
        elif isinstance(value, types.FunctionType | types.MethodType):
            function = getattr(value, "__func__", value)
            closure = getattr(function, "__closure__", None)  # a method may be bound to a partial
            if closure:
                self._add(_Cells(closure), name, kept=function)
        elif isinstance(value, functools.partial):
            self._add(value.keywords, name, keyed=True)
            self._add(value.args, name)
        elif type(value).__module__ == "numpy" and getattr(value, "size", LARGEST_ARRAY + 1) <= LARGEST_ARRAY:
            self._arrays.append((value, value.copy()))
        elif is_plain(value):
            self._add(vars(value), name)
        elif any(map(_slot_names, type(value).__mro__)) and not type(value).__module__.startswith("torch"):
            self._add(_Slots(value), name, kept=value)

    @functools.cached_property
    def _buffers(self) -> set[int]:
        return {id(buffer) for buffer in self._model.buffers()}

    def change(self) -> str:
        """What of the model is not as it was, for a message; ``""``: nothing that its code could notice.

        A tensor that was replaced by one of the same kind and shape is no change where it is followed anyhow.
        """
        for module, kind in self._modules:
            if type(module) is not kind:
                return f"the class {kind.__name__}"
        for value, version in self._plain:
            if value._version != version:
                return "a tensor that is neither a parameter nor a buffer"
        for array, copied in self._arrays:
            if array.tobytes() != copied.tobytes():
                return "an array of NumPy"
        if self._is_same():
            return ""
        found = list(map(list, (table.values() for table in self._tables)))
        for table, before, after in zip(self._tables, self._values, found, strict=True):
            if len(before) != len(after):
                return table.name
            for position, (old, new) in enumerate(zip(before, after, strict=True)):
                if old is not new and not _alike(old, new, table.followed):
                    return _at(table, position)
        if _ties(self._model) != self._ties:
            return "which weights are tied"
        self._values, self._flat = found, list(chain.from_iterable(self._views))
        return ""

    def _is_same(self) -> bool:
        """Whether every value is the same object; where there are more or fewer, the last one meets another."""
        return all(map(is_, chain.from_iterable(self._views), self._flat))

    def touched(self) -> bool:
        """Whether anything at all is not the same object with the same contents, buffers included."""
        if any(value._version != version for value, version in self._plain):
            return True
        if any(array.tobytes() != copied.tobytes() for array, copied in self._arrays):
            return True
        return not self._is_same()


class _Forward:
    """The forward() of a class of torch, which somebody may replace."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield vars(self._kind).get("forward")


def _slot_names(kind: type) -> tuple[str, ...]:
    names = vars(kind).get("__slots__", ())
    return (names,) if isinstance(names, str) else tuple(names)


def _alike(old: Any, new: Any, followed: bool) -> bool:
    """Whether code that reads a value does the same for another one."""
    if type(old) in WEAK or type(new) in WEAK:
        return False
    if isinstance(old, torch.Tensor) or isinstance(new, torch.Tensor):
        both = isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor)
        return followed and both and (type(old), old.shape, old.dtype) == (type(new), new.shape, new.dtype)
    if type(old) is not type(new):
        return False
    if isinstance(old, tuple):
        return len(old) == len(new) and all(a is b or _alike(a, b, False) for a, b in zip(old, new, strict=True))
    plain = str | int | float | complex | bytes | torch.dtype | torch.device
    return isinstance(old, plain) and bool(old == new)


def _ties(model: nn.Module) -> list[int]:
    """Which of all the tensors of a model are the same."""
    first: dict[int, int] = {}
    tensors: Iterator[Any] = chain.from_iterable(
        chain(module._parameters.values(), module._buffers.values()) for module in model.modules()
    )
    return [first.setdefault(id(tensor), len(first)) for tensor in tensors if tensor is not None]


def _joined(name: str, key: Any) -> str:
    return f"{name}.{key}" if isinstance(key, str) else f"{name}[{key!r}]"


def _at(table: _Table, position: int) -> str:
    """The name of an entry of a table, for a message."""
    if not isinstance(table.content, dict):
        return table.name if not isinstance(table.content, list) else f"{table.name}[{position}]"
    keys = list(table.content)
    return _joined(table.name, keys[position % len(keys)])
