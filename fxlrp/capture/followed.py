"""Functions that a capture follows: ``math.sqrt(x.shape[-1])``, ``len(x)``, and those marked by ``torch.fx.wrap``.

Such a function cannot take a proxy, and ``len`` makes a number of the batch. While a model is captured a stand-in lies
in its place, which hands all other arguments on to it: to other threads it is the function itself, and it would be if
one were left behind.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace
from torch.fx.experimental import proxy_tensor
from torch.utils import _pytree as pytree

from fxlrp.capture.flexible import flexible_functions, unwatched_functions
from fxlrp.capture.recurrent import of_thread, packing_functions
from fxlrp.capture.written_out import written_out

CAPTURING = threading.RLock()
"""One model of the process is read at a time: torch.export is not made for several."""

_FUNCTIONS = {id(function) for name, function in vars(math).items() if callable(function) and not name.startswith("_")}
_ORIGINAL = "_fxlrp_original"


def _no_hint(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Whether a caller says that a mask is the causal one; to find out would ask for the values of the mask."""
    return bool(is_causal)


setattr(_no_hint, _ORIGINAL, torch.nn.modules.transformer._detect_is_causal_mask)

_ANSWERED = [(vars(torch.nn.modules.transformer), "_detect_is_causal_mask", _no_hint)]
"""Functions of torch that look at values for a hint, and what stands in their place: the answer changes no result."""


class _Unchecked:
    """``Distribution._validate_args`` while a model is captured: the thread that captures does not look at values."""

    def __init__(self, before: bool) -> None:
        self.before, self.thread = before, threading.get_ident()

    def __get__(self, instance: Any, owner: Any) -> bool:
        return self.before and threading.get_ident() != self.thread


def _left_in_order(call_module: Callable[..., Any]) -> Callable[..., Any]:
    """``Tracer.call_module`` that leaves the stack of modules as it was where a call raises, as a model may expect."""

    @functools.wraps(call_module)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = list(self.module_stack.items())
        try:
            return call_module(self, *args, **kwargs)
        except BaseException:
            self.module_stack.clear()
            self.module_stack.update(before)
            raise

    setattr(called, _ORIGINAL, call_module)
    return called


def _stand_in(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def followed(*args: Any, **kwargs: Any) -> Any:
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, fx.Proxy):
                proxy = value.tracer.create_proxy("call_function", function, args, kwargs)
                proxy.node.meta["is_wrapped"] = True
                return proxy
        return function(*args, **kwargs)

    setattr(followed, _ORIGINAL, function)
    return followed


def _length(value: Any) -> Any:
    """``len`` of a tensor as its first size, which a capture leaves free."""
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", len, (value,), {})
    return value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else len(value)


def _counted(bincount: Callable[..., Any], input: Any, weights: Any = None, minlength: Any = 0) -> Any:
    """``torch.bincount`` of numbers below ``minlength``, or of as many as there are: an export knows how long it is."""
    if not isinstance(input, torch.Tensor) or weights is not None:
        return bincount(input, weights, minlength)
    if isinstance(minlength, int) and minlength <= 0:
        minlength = int(input.max()) + 1  # an answer, as others are for which a graph holds
    zeros = torch.zeros(minlength, dtype=torch.int64, device=input.device)
    return zeros.index_add(0, input, torch.ones_like(input, dtype=torch.int64))


def _counting() -> dict[Callable[..., Any], Callable[..., Any]]:
    counted = functools.partial(_counted, torch.bincount)  # not a name of this module, whose names are looked up too
    return {torch.bincount: of_thread(torch.bincount, counted, threading.get_ident())}


def _tables(model: nn.Module) -> list[dict[str, Any]]:
    """The globals of the code of a model."""
    tables: dict[int, dict[str, Any]] = {}
    for module in model.modules():
        code = getattr(inspect.unwrap(module.forward), "__globals__", None)
        if code is not None and not str(code.get("__name__", "")).startswith("torch."):
            tables[id(code)] = code
    return list(tables.values())


def _found(
    tables: list[dict[str, Any]], functions: dict[Callable[..., Any], Callable[..., Any]]
) -> Iterator[tuple[dict[str, Any], str, Callable[..., Any]]]:
    """Where code finds functions of torch, under whatever name, and what stands in their place."""
    stand_ins = {id(function): (function, ours) for function, ours in functions.items()}
    for function, ours in stand_ins.values():
        setattr(ours, _ORIGINAL, function)
    for table, names in [*((table, _names_of(table, stand_ins)) for table in tables), *_holders(stand_ins)]:
        yield from ((table, name, stand_ins[id(table[name])][1]) for name in names if id(table.get(name)) in stand_ins)


_HOLDERS: dict[frozenset[int], dict[str, tuple[int, int, list[str]]]] = {}
"""By the functions that are sought, and by path of a module: which table it had, of what length, and which names."""


def _holders(sought: dict[int, Any]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The tables of modules that hold such functions; one that has neither grown nor shrunk is not read again."""
    seen = _HOLDERS.setdefault(frozenset(sought), {}) if sought else {}
    for path, module in list(sys.modules.items()) if sought else ():
        if not isinstance(module, types.ModuleType):
            continue
        table = vars(module)
        known, length, names = seen.get(path, (0, 0, []))
        if (known, length) != (id(table), len(table)):
            names = _names_of(table, sought)
            seen[path] = id(table), len(table), names
        if names:
            yield table, names


def _names_of(table: dict[str, Any], sought: dict[int, Any]) -> list[str]:
    """The names of such functions, and of what stands in their place by now."""

    def function(value: Any) -> Any:  # by type, because isinstance asks lazy objects for their class
        return vars(value).get(_ORIGINAL, value) if type(value) is types.FunctionType else value

    return [name for name, value in list(table.items()) if id(function(value)) in sought]


def _places(tables: list[dict[str, Any]], numbers: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """The tables, and the names in them, under which the code of a model finds functions to follow."""
    yield from ((table, "len") for table in tables if "len" not in table)
    if not numbers:
        return
    for table in [vars(math), *tables]:
        yield from ((table, name) for name, value in list(table.items()) if id(value) in _FUNCTIONS)
    for (_, name), table in list(getattr(_symbolic_trace, "_wrapped_fns_to_patch", {}).items()):
        if name in table:
            yield table, name


class _OfProxies:
    """``__init_subclass__`` of the classes that torch.export makes for modules that are shared.

    They are subclasses of those of the modules, which may ask for keywords, or enter their subclasses in a list.
    """

    def __get__(self, instance: Any, owner: Any) -> Any:
        return lambda **keywords: None


@contextmanager
def functions_followed(model: nn.Module, *, numbers: bool) -> Iterator[None]:
    """Within, such functions take proxies, and the tensors of an export; :data:`CAPTURING` is held.

    Args:
        model: whose code is followed.
        numbers: whether functions of numbers are; an export follows them by itself, and packs sequences.
    """
    undo: list[tuple[dict[str, Any], str, Any]] = []
    distribution: Any = torch.distributions.Distribution
    tracer: Any = fx.Tracer
    call_module = getattr(tracer.call_module, _ORIGINAL, tracer.call_module)
    checked = vars(distribution)["_validate_args"]
    proxies: Any = getattr(proxy_tensor, "_AttrProxy", None)
    try:
        if proxies is not None:
            proxies.__init_subclass__ = _OfProxies()
        distribution._validate_args = _Unchecked(bool(getattr(checked, "before", checked)))
        tracer.call_module = _left_in_order(call_module)
        tables = _tables(model)
        opened = {} if numbers else {**packing_functions(), **flexible_functions(), **_counting(), **written_out()}
        for table, name, answer in [*_ANSWERED, *_found(tables, opened)]:
            undo.append((table, name, getattr(table[name], _ORIGINAL, table[name])))
            table[name] = answer
        for table, name in list(_places(tables, numbers)):
            function = table.get(name)
            undo.append((table, name, getattr(function, _ORIGINAL, function)))
            table[name] = _length if function is None else _stand_in(undo[-1][2])
        yield
    finally:
        _put_back(undo)
        distribution._validate_args = getattr(checked, "before", checked)
        tracer.call_module = call_module
        if "__init_subclass__" in getattr(proxies, "__dict__", {}):
            del proxies.__init_subclass__


@contextmanager
def run_unwatched(model: nn.Module) -> Iterator[None]:
    """Within, what torch would not run under a mode runs outside of it."""
    undo: list[tuple[dict[str, Any], str, Any]] = []
    with CAPTURING if unwatched_functions() else nullcontext():
        try:
            for table, name, ours in _found(_tables(model), unwatched_functions()):
                undo.append((table, name, getattr(table[name], _ORIGINAL, table[name])))
                table[name] = ours
            yield
        finally:
            _put_back(undo)


def _put_back(undo: list[tuple[dict[str, Any], str, Any]]) -> None:
    try:
        for table, name, function in reversed(undo):
            if function is None:
                table.pop(name, None)
            else:
                table[name] = function
    except BaseException:  # an interrupt, even here
        _put_back(undo)
        raise
