"""What a model looks like beside the values of its tensors: to learn before a call whether it is still the same.

Modules, settings, hooks, numbers and tensors in lists and dicts, and all that forward() may read from ``self``, are
compared by identity first, which takes a fraction of a millisecond for a thousand modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as nn_module

from fxlrp.capture.double import is_container, is_plain

MOST_OBJECTS = 20_000
"""How many containers and plain objects beside modules are looked into."""

_OWN = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))
"""The tables that nn.Module itself keeps: parameters, buffers, modules, hooks."""
_GLOBAL_HOOKS = tuple(
    table for name in ("_global_forward_hooks", "_global_forward_pre_hooks")
    if (table := getattr(nn_module, name, None)) is not None
)  # fmt: skip


class _Table(NamedTuple):
    """A container of which a model consists.

    Attributes:
        content: the container itself.
        name: what messages call it.
        followed: whether a tensor in it is looked up by name at each call, so that another one may take its place.
        size: how much it held.
    """

    content: Any
    name: str
    followed: bool
    size: int

    def values(self) -> Iterable[Any]:
        return self.content.values() if isinstance(self.content, dict) else self.content

    def items(self) -> Iterable[tuple[Any, Any]]:
        return self.content.items() if isinstance(self.content, dict) else enumerate(self.content)


class Snapshot:
    """A model as it is now.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tables: list[_Table] = []
        self._kinds: list[tuple[nn.Module, type[nn.Module], Any]] = []
        self._seen: set[int] = set()
        for path, module in model.named_modules():
            name, attributes = path or "the model", vars(module)
            self._kinds.append((module, type(module), type(module).forward))
            self._look(attributes, name, followed=True)
            for key in _OWN & attributes.keys():
                self._look(attributes[key], name, followed=key in ("_parameters", "_buffers"))
        for table in _GLOBAL_HOOKS:
            self._look(table, "the hooks of all modules")
        self._look_inside()
        self._values = self._now()
        self._ties = _ties(model)
        self._model = model

    def _look(self, content: Any, name: str, followed: bool = False) -> None:
        if id(content) not in self._seen:
            self._seen.add(id(content))
            self._tables.append(_Table(content, name, followed, len(content)))

    def _look_inside(self) -> None:
        """Find the containers and plain objects in what was found."""
        most = len(self._tables) + MOST_OBJECTS
        for table in self._tables:  # which grows meanwhile
            if len(self._tables) >= most:
                break
            for key, value in table.items():
                if is_container(value):
                    self._look(value, _joined(table.name, key))
                elif not isinstance(value, nn.Module) and is_plain(value):
                    self._look(vars(value), _joined(table.name, key))

    def _now(self) -> list[Any]:
        return list(chain.from_iterable(table.values() for table in self._tables))

    def change(self) -> str:
        """What of the model is not as it was, for a message; ``""``: nothing that its code could notice.

        A tensor that was replaced by one of the same kind and shape is no change: it is followed anyhow.
        """
        for module, kind, forward in self._kinds:
            if type(module) is not kind or kind.forward is not forward:
                return f"the class {type(module).__name__}, or its forward()"
        now = self._now()
        if len(now) == len(self._values) and all(map(is_, now, self._values)):
            return ""
        position = 0
        for table in self._tables:
            before, position = self._values[position : position + table.size], position + table.size
            if len(table.content) != table.size:
                return table.name
            for (key, new), old in zip(table.items(), before, strict=True):
                if old is not new and not _alike(old, new, table.followed):
                    return _joined(table.name, key)
        if _ties(self._model) != self._ties:
            return "which weights are tied"
        self._values = now
        return ""


def _alike(old: Any, new: Any, followed: bool) -> bool:
    """Whether code that reads a value does the same for another one."""
    if isinstance(old, torch.Tensor):
        kind = (type(old), old.shape, old.dtype) if isinstance(new, torch.Tensor) else None
        return followed and kind == (type(new), new.shape, new.dtype)
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
