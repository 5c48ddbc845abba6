"""Inputs that are objects which hold tensors, such as dataclasses: opened into their attributes, and made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

_OF_PYTHON_CODE = 1 << 9
"""The flag of types that a class statement made."""


@dataclass(frozen=True)
class _Form:
    """What an object is made again from, beside the values of its attributes."""

    kind: type
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Opened:
    """An object's attributes: as far as pytree knows a container, which is put together as the object."""

    form: _Form
    values: list[Any]


def _attributes(opened: _Opened) -> tuple[list[Any], _Form]:
    return opened.values, opened.form


def _named(opened: _Opened) -> tuple[list[tuple[Any, Any]], _Form]:
    keys = map(pytree.GetAttrKey, opened.form.names)
    return list(zip(keys, opened.values, strict=True)), opened.form


def _made(values: Any, form: _Form) -> Any:
    """An object of this form; its ``__init__`` is not called, for it may check or compute what it is given."""
    kind: Any = form.kind
    made = _root(kind).__new__(kind)
    for name, value in zip(form.names, values, strict=True):
        object.__setattr__(made, name, value)
    return made


pytree.register_pytree_node(_Opened, _attributes, _made, flatten_with_keys_fn=_named)


def opened(values: Any) -> Any:
    """Arguments of a call with the objects among them opened where they hold tensors.

    Those are dataclasses, classes of attrs and other objects of Python with attributes. What pytree knows, mappings,
    modules and torch's own objects stay as they are. Flattened and put together again, the others are objects anew.
    """
    return pytree.tree_map(_opened, values)


def _opened(leaf: Any) -> Any:
    names = _names(leaf)
    values = [opened(getattr(leaf, name)) for name in names]
    held = any(isinstance(each, Tensor) for each in pytree.tree_leaves(values))
    return _Opened(_Form(type(leaf), names), values) if held else leaf


def _root(kind: type) -> Any:
    """The type of Python that a class is made of: ``object``, unless it holds more than attributes."""
    return next(base for base in kind.__mro__ if not base.__flags__ & _OF_PYTHON_CODE)


def _names(leaf: Any) -> tuple[str, ...]:
    """The attributes that an object may be opened into."""
    kind = type(leaf)
    if isinstance(leaf, Tensor | nn.Module | Mapping) or kind.__module__.split(".")[0] == "torch":
        return ()
    if _root(kind) not in (object, SimpleNamespace):
        return ()
    declared = [field.name for field in fields(leaf)] if is_dataclass(leaf) else []
    declared += [attribute.name for attribute in getattr(kind, "__attrs_attrs__", ())]
    return tuple(dict.fromkeys(name for name in [*declared, *getattr(leaf, "__dict__", {})] if hasattr(leaf, name)))
