"""A double of a model: what reads or runs the double leaves no trace on the model.

A forward() that is traced stores what it stores: proxies in lists, symbolic sizes in attributes, constants on the
root. And torch.fx patches ``nn.Module`` for the whole process while it traces. A double has modules, containers and
plain objects of its own and shares the tensors of the model; calls of its modules can be intercepted without a patch.
"""

from __future__ import annotations

import enum
import functools
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxlrp.capture.recurrent import take_padded

MOST_OBJECTS = 50_000
"""How many objects beside modules are doubled. What a model holds beyond that, such as a data set, is shared."""

LARGEST_TENSOR = 10_000_000
"""Elements of the largest tensor beside parameters and buffers that is copied; a larger one is shared."""

WEAK = (weakref.ReferenceType, *weakref.ProxyTypes)
"""The classes of references that do not keep what they refer to."""

_HEAP_TYPE = 1 << 9
"""The flag of a class that is written in Python."""
_FOREIGN = ("torch", "threading", "logging", "weakref", "multiprocessing", "concurrent", "asyncio", "enum")
"""Packages whose objects are handles, identities or large: they are shared."""


class Doubles:
    """Doubles objects, each once: what is shared, or refers to itself, stays so."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}
        self._left = MOST_OBJECTS

    def of_model(self, model: nn.Module) -> nn.Module:
        """The double of a whole model, with the model's own parameters and buffers, wherever they are met."""
        for tensor in model.buffers():
            self._note(tensor, tensor)
        double: nn.Module = self.of(model)
        for module in self.modules():
            attributes = vars(module)
            for name, value in list(attributes.items()):
                if type(value) is types.FunctionType:  # such as another forward
                    attributes[name] = _on_doubles(value, self)
                elif type(value) is types.MethodType:
                    attributes[name] = types.MethodType(_on_doubles(value.__func__, self), value.__self__)
        return double

    def known(self, value: Any) -> Any:
        """The double of a value where there is one already; else the value itself."""
        return self._made.get(id(value), (value, value))[1]

    def of(self, value: Any, counted: bool = True) -> Any:
        """The double of a value; the value itself where nothing can be written to it.

        Args:
            value: anything.
            counted: whether it counts against :data:`MOST_OBJECTS`.
        """
        if type(value) in WEAK:  # a proxy passes for what it stands for, be that gone
            return self._weak(value)
        if isinstance(value, nn.Parameter | str | int | float | type | types.FunctionType) or value is None:
            return value
        known = self._made.get(id(value))
        if known is not None:
            return known[1]
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if is_module(value):
            return self._object(value, object.__new__(type(value)))
        if counted:
            if self._left <= 0:
                return value
            self._left -= 1
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self.of(value.__self__))
        if isinstance(value, functools.partial):
            return functools.partial(self.of(value.func), *map(self.of, value.args), **self._items(value.keywords))
        if isinstance(value, tuple):
            return self._tuple(value)
        if is_container(value):
            return self._container(value, _empty_like(value))
        if is_plain(value):
            double = _bare(type(value))
            return value if double is None else self._object(value, double)
        return value

    def modules(self) -> Iterator[nn.Module]:
        """The doubles that are modules."""
        return (double for _, double in list(self._made.values()) if is_module(double))

    def _weak(self, value: Any) -> Any:
        """A weak reference or proxy to the double of what it refers to; itself where that has none.

        A proxy of what is gone becomes ``None``, because whoever asks for its class gets an error.
        """
        refers = type(value) is weakref.ReferenceType
        try:
            meant = value() if refers else value.__init__.__self__
        except ReferenceError:
            return None
        except AttributeError:  # it stands for something without a constructor in Python
            return value
        double = self.known(meant)
        return value if double is meant else weakref.ref(double) if refers else weakref.proxy(double)

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor that is neither parameter nor buffer: forward() may write to it while it is read."""
        if type(value) is not torch.Tensor or value.numel() > LARGEST_TENSOR or value.is_inference():
            return value
        copied: torch.Tensor = self._note(value, value.detach().clone().requires_grad_(value.requires_grad))
        return copied

    def _note(self, value: Any, double: Any) -> Any:
        self._made[id(value)] = value, double
        return double

    def _object(self, value: Any, double: Any) -> Any:
        self._note(value, double)
        owned = is_module(value)  # the tables of a module are always its double's own
        for name, item in vars(value).items():
            tensors = owned and name in ("_parameters", "_buffers")
            vars(double)[name] = dict(item) if tensors else self.of(item, not owned)
        if "_orig_mod" in vars(double).get("_modules", ()):  # what torch.compile made: the compiled code is not entered
            vars(double)["forward"] = double._orig_mod.__call__
        return double

    def _items(self, items: dict[Any, Any]) -> dict[Any, Any]:
        return {key: self.of(item) for key, item in items.items()}

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        items = [self.of(item) for item in value]
        if all(item is old for item, old in zip(items, value, strict=True)) or type(value) not in (tuple,):
            return value
        return self._note(value, tuple(items))

    def _container(self, value: Any, double: Any) -> Any:
        self._note(value, double)
        if isinstance(value, OrderedDict):
            OrderedDict.update(double, self._items(value))
        elif isinstance(value, dict):
            dict.update(double, self._items(value))
        elif isinstance(value, set):
            set.update(double, value)  # what is hashed is hardly written to
        else:
            base: Any = list if isinstance(value, list) else deque
            base.extend(double, map(self.of, value))
        if getattr(value, "__dict__", None):
            vars(double).update(self._items(vars(value)))
        return double


def is_module(value: Any) -> bool:
    """Whether a value is a module whose calls can be followed, and not one that only passes for a module.

    Proxies and mocks answer ``isinstance`` as what they stand for.
    """
    return issubclass(type(value), nn.Module) and not issubclass(type(value), torch.jit.ScriptModule)


def is_container(value: Any) -> bool:
    """Whether a value is a container that can be written to, be it of a class of its own."""
    return isinstance(value, dict | list | deque | set)


def is_plain(value: Any) -> bool:
    """Whether an object is no more than its ``__dict__``: a configuration, a namespace, a state."""
    kind = type(value)
    if kind is types.SimpleNamespace:
        return True
    if not getattr(value, "__dict__", None) or isinstance(value, enum.Enum):
        return False  # without a state it is an identity
    if any(vars(base).get("__slots__") or not base.__flags__ & _HEAP_TYPE for base in kind.__mro__[:-1]):
        return False  # it is more than its __dict__
    return not is_foreign(value)


def is_foreign(value: Any) -> bool:
    """Whether an object is a handle, an identity or large: it is shared, and nobody looks into it."""
    return type(value).__module__.partition(".")[0] in _FOREIGN


def _bare(kind: type[Any]) -> Any:
    """An object of a class without any state; ``None`` where only the class itself can make one."""
    if kind is types.SimpleNamespace:
        return types.SimpleNamespace()
    try:
        return object.__new__(kind)
    except TypeError:
        return None


def _empty_like(value: Any) -> Any:
    """An empty container of the same class, whatever its constructor takes."""
    if isinstance(value, deque):
        empty = type(value).__new__(type(value))
        deque.__init__(empty, (), value.maxlen)
        return empty
    if type(value) is defaultdict:
        return defaultdict(value.default_factory)
    kind: Any = type(value)
    return kind.__new__(kind)


class _Tensors(dict[str, Any]):
    """The parameters or buffers of a module, as ``nn.Module`` looks them up; what is looked up is replaced."""

    def __init__(self, tensors: dict[str, Any], seen: Callable[[Any], Any]) -> None:
        super().__init__(tensors)
        self._seen = seen

    def __getitem__(self, name: str) -> Any:
        return self._seen(super().__getitem__(name))


def intercept(double: nn.Module, called: Callable[..., Any], seen: Callable[[Any], Any]) -> None:
    """Let calls of a double go to ``called``, and its tensors be what ``seen`` makes of them.

    ``nn.Module`` itself has a place for another call, meant for ``nn.Module.compile``; hooks are not run there.

    Args:
        double: a module of which nobody else knows.
        called: ``(*args, **kwargs)`` to what the call returns.
        seen: a parameter or buffer to what ``double.weight`` is.
    """
    attributes = vars(double)
    attributes["_compiled_call_impl"] = called
    for name in ("_parameters", "_buffers"):
        attributes[name] = _Tensors(attributes[name], seen)


def without_hooks(model: nn.Module) -> nn.Module:
    """A double to read, whose hooks do not run, but for those that compute a weight."""
    double, doubles = _to_read(model)
    for module in doubles.modules():
        attributes = vars(module)
        attributes["_forward_hooks"] = OrderedDict()
        attributes["_forward_pre_hooks"] = OrderedDict(enumerate(weight_hooks(module)))
        for flags in ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"):
            attributes[flags] = OrderedDict()
    return double


def with_hooks(model: nn.Module) -> nn.Module:
    """A double to read, whose hooks run on what the double has: for a forward() that reads what a hook kept."""
    double, doubles = _to_read(model)
    for module in doubles.modules():
        _keep_on_doubles(module, doubles)
    return double


def _to_read(model: nn.Module) -> tuple[nn.Module, Doubles]:
    """A double with the model's own buffers, whose recurrent layers take padded sequences, and all doubles."""
    doubles = Doubles()
    double = doubles.of_model(model)
    take_padded(doubles.modules())
    for module in doubles.modules():
        vars(module)["_compiled_call_impl"] = None
    return double, doubles


def _keep_on_doubles(module: nn.Module, doubles: Doubles) -> None:
    """Let what the hooks of a double keep on the model be kept on its double."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for number, hook in hooks.items():
            hooks[number] = _on_doubles(hook, doubles)


def _on_doubles(function: Any, doubles: Doubles, within: tuple[Any, ...] = ()) -> Any:
    """A function for which parts of the model that it knows from around it are those of the double.

    Args:
        function: any function.
        doubles: those of the model.
        within: the functions that know this one.
    """
    if not isinstance(function, types.FunctionType) or function.__closure__ is None or function in within:
        return function
    try:
        around = [cell.cell_contents for cell in function.__closure__]
    except ValueError:  # a variable that has no value yet
        return function
    known = [_known_around(value, doubles, (*within, function)) for value in around]
    if all(double is value for double, value in zip(known, around, strict=True)):
        return function
    cells = tuple(map(types.CellType, known))
    code, names, defaults = function.__code__, function.__globals__, function.__defaults__
    double = types.FunctionType(code, names, function.__name__, defaults, cells)
    double.__kwdefaults__ = function.__kwdefaults__
    return double


def _known_around(value: Any, doubles: Doubles, within: tuple[Any, ...]) -> Any:
    """What stands for a value that functions know from around them."""
    if isinstance(value, types.MethodType):
        owner = doubles.known(value.__self__)
        return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
    return _on_doubles(doubles.known(value), doubles, within)


COMPUTING = (BasePruningMethod, SpectralNorm, WeightNorm)
"""Hooks by which torch itself computes a weight before a call."""


def weight_hooks(module: nn.Module) -> list[Any]:
    """The hooks by which torch itself computes a weight before a call: pruning, and the old norms of weights."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, COMPUTING)]


def to_run(model: nn.Module) -> nn.Module:
    """A double to run: with hooks, as the model runs, and with buffers of its own, to which it may write."""
    doubles = Doubles()
    double = doubles.of_model(model)
    copied: dict[int, torch.Tensor] = {}
    for module in doubles.modules():
        buffers = vars(module)["_buffers"]
        for name, buffer in buffers.items():
            if buffer is not None:
                buffers[name] = copied.setdefault(id(buffer), buffer.detach().clone())
        vars(module)["_compiled_call_impl"] = None
        _keep_on_doubles(module, doubles)
    return double
