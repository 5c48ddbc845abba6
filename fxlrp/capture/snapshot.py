"""What a model looks like beside the values of its weights: to learn before a call whether it is still the same.

Modules, settings, hooks, and all else that forward() may read from ``self`` and from its class are compared by identity
first, which takes a fraction of a millisecond for hundreds of modules.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as nn_module

from fxlrp.capture.double import WEAK, is_container, is_foreign, is_module
from fxlrp.capture.live import Cells, Forward, FunctionParts, Slots, slot_names
from fxlrp.capture.memory import Memory, is_memory

MOST_OBJECTS = 20_000
"""How many containers and objects beside modules are looked into."""

_OWN = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))
"""The tables that nn.Module itself keeps: parameters, buffers, modules, hooks."""
_GLOBAL_HOOKS = tuple(
    table for name in ("_global_forward_hooks", "_global_forward_pre_hooks")
    if (table := getattr(nn_module, name, None)) is not None
)  # fmt: skip
_END = object()
"""Behind all values."""
_UNCHANGED = ("torch", "builtins", "typing", "abc", "collections", "enum")
"""Packages whose classes nobody changes."""
_LIBRARIES = sys.stdlib_module_names | {
    "accelerate", "diffusers", "fxlrp", "huggingface_hub", "lightning", "lightning_fabric", "numpy", "omegaconf",
    "peft", "pytorch_lightning", "safetensors", "scipy", "timm", "tokenizers", "torch", "torchaudio", "torchmetrics",
    "torchvision", "transformers",
}  # fmt: skip
"""Packages in whose classes nobody edits a table; another value in place of one is seen in the classes of modules."""
_ATOMS = frozenset({bool, int, float, complex, str, bytes, types.NoneType, torch.dtype, torch.device, torch.Size})
"""Classes of values in which nothing can be edited."""
_CONTAINERS = frozenset({dict, list, set, tuple, frozenset, OrderedDict, defaultdict, deque})
"""Classes whose objects are no more than what they contain: an ordered dict has room for attributes, and no use."""
_BOUND = (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)
"""Classes of functions that belong to an object."""


class _Table(NamedTuple):
    """A container of which a model consists.

    Attributes:
        content: the container itself.
        name: what messages call it.
        followed: whether a tensor in it is looked up by name at each call, so that another one may take its place.
        keyed: whether its keys, and their order, may decide what forward() does.
        closed: whether what is inside of its entries does not matter: the class of a library, or hooks, which are not
            read.
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

    def entries(self) -> list[tuple[Any, Any]]:
        """What to look into: names and values."""
        if not isinstance(self.content, dict | types.MappingProxyType):
            return list(enumerate(self.content))
        return [(key, value) for key, value in self.content.items() if not _is_about(key, value)]

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
        self._memories: list[Memory] = []
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
            package, name = kind.__module__.partition(".")[0], f"the class {kind.__name__}"
            if package not in _UNCHANGED:
                self._add(vars(kind), name, closed=package in _LIBRARIES, kept=kind)
            elif "forward" in vars(kind):
                self._add(Forward(kind), name, closed=True, kept=kind)

    def _look_at_class(self, kind: type) -> None:
        """See what the class of an object holds, and its bases."""
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] not in _LIBRARIES:
                self._add(vars(base), f"the class {base.__name__}", kept=base)

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
            if not table.closed:
                for key, value in table.entries():
                    self._look_at_value(value, _joined(table.name, key))

    def _look_at_value(self, value: Any, name: str) -> None:
        if type(value) in _ATOMS or type(value) in WEAK:  # a proxy passes for what it refers to, be that gone
            return
        if is_module(value):
            if id(vars(value)) not in self._seen:  # in a list, where nn.Module does not see it
                self._look_at(value, name, registered=False)
        elif isinstance(value, torch.Tensor):
            registered = isinstance(value, nn.Parameter) or id(value) in self._buffers
            if not registered and type(value) is torch.Tensor and not value.is_inference():
                self._plain.append((value, value._version))
        elif isinstance(value, type):
            self._look_at_class(value)
        elif isinstance(value, _BOUND):
            self._look_at_value(getattr(value, "__func__", None), name)
            self._look_at_value(value.__self__, name)
        elif isinstance(value, types.FunctionType):
            self._look_at_function(value, name)
        elif not isinstance(value, types.ModuleType):
            self._look_at_object(value, name)

    def _look_at_function(self, function: types.FunctionType, name: str) -> None:
        """See what a function has beside its arguments: defaults, attributes, and what was around it."""
        self._add(FunctionParts(function), name, kept=function)
        self._add(vars(function), name, keyed=True)
        if function.__closure__:
            self._add(Cells(function.__closure__), name, kept=function.__closure__)

    def _look_at_object(self, value: Any, name: str) -> None:
        if type(value) in _CONTAINERS:
            self._add(value, name, keyed=isinstance(value, dict))
            return
        self._look_at_class(type(value))
        if is_container(value) or isinstance(value, tuple | frozenset | types.MappingProxyType):
            self._add(value, name, keyed=isinstance(value, dict | types.MappingProxyType))
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self._look_at_value(part, name)
        elif isinstance(value, staticmethod | classmethod):
            self._look_at_value(value.__func__, name)
        elif isinstance(value, property):
            for function in (value.fget, value.fset, value.fdel):
                self._look_at_value(function, name)
        elif is_memory(value):
            self._look_at_memory(value, name)
        if isinstance(value, enum.Enum) or is_foreign(value):
            return
        if isinstance(attributes := getattr(value, "__dict__", None), dict):
            self._add(attributes, name)
        if any(map(slot_names, type(value).__mro__)):
            self._add(Slots(value), name, kept=value)

    def _look_at_memory(self, value: Any, name: str) -> None:
        if id(value) not in self._seen:
            self._seen.add(id(value))
            self._memories.append(Memory(value))
            if isinstance(value, np.ndarray) and value.dtype.hasobject:
                self._add(value.ravel().tolist(), name)

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
        for memory in self._memories:
            if memory.changed():
                return str(memory)
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
        if any(memory.changed() for memory in self._memories):
            return True
        return not self._is_same()


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


def _is_about(key: Any, value: Any) -> bool:
    """Whether an entry of a class tells about it, such as its annotations, and is nothing that code reads."""
    special = isinstance(key, str) and key.startswith("__") and key.endswith("__")
    return special and not isinstance(value, types.FunctionType)


def _joined(name: str, key: Any) -> str:
    return f"{name}.{key}" if isinstance(key, str) else f"{name}[{key!r}]"


def _at(table: _Table, position: int) -> str:
    """The name of an entry of a table, for a message."""
    if not isinstance(table.content, dict):
        return table.name if not isinstance(table.content, list) else f"{table.name}[{position}]"
    keys = list(table.content)
    return _joined(table.name, keys[position % len(keys)])
