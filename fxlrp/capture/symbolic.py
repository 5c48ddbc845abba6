"""The first way to read a model: symbolic tracing, which leaves batch and resolution free."""

from __future__ import annotations

import copy
import inspect
import itertools
import operator
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxlrp.capture.captured import Captured, attribute, flat_outputs, has_attribute, tensor_proxy
from fxlrp.capture.double import Doubles, intercept, weight_hooks
from fxlrp.capture.followed import CAPTURING, functions_followed
from fxlrp.capture.recurrent import returned
from fxlrp.common.errors import CaptureError
from fxlrp.vocabulary import VOCABULARY

_TORCH = os.path.dirname(torch.__file__) + os.sep
NOT_THE_MODEL = (_TORCH, os.path.dirname(os.path.dirname(__file__)) + os.sep)
"""Where code is that no line of a model is in: torch's folder and ours."""


_TAKEN = frozenset({"torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"})
"""Names that the code of a torch.fx graph module uses."""
_TRACED = (torch.Tensor, torch.Size, int, float, torch.dtype, torch.device)
"""What a proxy may stand for."""
_RESULTS = ("solution",)
"""Names under which functions of torch return several values, beside those that tensors have as well."""


class UntraceableError(CaptureError):
    """Symbolic tracing cannot follow the model; another way of capture may."""


class InPlaceProxy(fx.Proxy):
    """A proxy that tells ``x += y`` from ``x = x + y``; to fx both are an add.

    It has the attributes that tensors, sizes and numbers have, and no others: code asks by ``hasattr`` what it got.
    """

    tracer: Tracer

    def __getattr__(self, name: str) -> Any:
        if name not in _RESULTS and not any(hasattr(kind, name) for kind in _TRACED):
            raise AttributeError(f"a tensor has no attribute {name!r}")
        return super().__getattr__(name)

    def _number(self) -> Any:
        """The number in a buffer of one element: forward() makes a Python number of it, so it is one of the graph's."""
        tensor = self.tracer.buffers.get(str(self.node.target)) if self.node.op == "get_attr" else None
        if tensor is None or tensor.numel() != 1:
            raise fx.proxy.TraceError(f"forward() makes a number of {self.node}, which depends on the input")
        self.tracer.numbers[str(self.node.target)] = number = tensor.item()
        return number

    def item(self) -> Any:
        return self._number() if self.node.op == "get_attr" else super().__getattr__("item")()

    def __float__(self) -> float:
        return float(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __bool__(self) -> bool:
        return bool(self._number()) if self.node.op == "get_attr" else super().__bool__()

    def __copy__(self) -> InPlaceProxy:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self.clone()

    def _in_place(self, function: Callable[..., Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)

    def __ipow__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.ipow, other)


class Tracer(fx.Tracer):
    """Symbolic tracing that opens torch's own modules too, down to functions.

    A module that cannot be opened stays a call of the module; the vocabulary says what it means. Unlike the tracer
    of torch.fx it reads a double of the model, patches neither ``nn.Module`` nor anything else that other threads
    would notice, and calls the model as a user does: a ``forward`` that was set on an instance and a ``__call__`` of
    the class's own are followed. Hooks are not run, but for those by which torch computes a weight.

    Attributes:
        returns: the structure of what the model returns.
        constants: tensors that forward() made, by the name under which the graph reads them.
        numbers: the buffers of which forward() made Python numbers, and those.
    """

    returns: pytree.TreeSpec

    def __init__(self, output: Any = None) -> None:
        super().__init__(param_shapes_constant=True)
        self.output = output
        self.constants: dict[str, torch.Tensor] = {}
        self.numbers: dict[str, float] = {}
        self._proxies: dict[str, Any] = {}

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.stack_trace = self._line()
        return node

    def _line(self) -> str | None:
        """The innermost line of the model that runs, as a trace tells it; torch's traces take 100 times as long."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code is not Tracer.read.__code__:
            if not frame.f_code.co_filename.startswith(NOT_THE_MODEL):
                return f'File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_name}'
            frame = frame.f_back
        return None

    def read(self, model: nn.Module) -> fx.Graph:
        """The graph of ``model``, which is not touched."""
        doubles = Doubles()
        self.root = root = doubles.of_model(model)
        # fx searches all parameters at each access; a table keeps that linear in depth.
        self.names = {id(t): n for n, t in [*model.named_buffers(), *model.named_parameters()]}
        self.buffers = dict(model.named_buffers())
        self.submodule_paths = {module: name for name, module in root.named_modules()}
        self.tensor_attrs = dict(_plain_tensors(root))
        self.graph = fx.Graph()
        for module in doubles.modules():
            called = partial(self._root_called, module) if module is root else partial(self._called, module)
            intercept(module, called, self._seen)
        args, kwargs = self._inputs(root)
        with functions_followed(model, numbers=True):
            outputs, self.returns = flat_outputs(root(*args, **kwargs), self.output)
        if _counts_axes(self.graph):
            raise UntraceableError("axes are counted from the number of axes of a value, which the first call tells")
        self.create_node("output", "output", (self.create_arg(outputs),), {})
        for name in {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}:
            if not has_attribute(model, name):  # forward() made it
                self.constants[name] = attribute(root, name).detach()
        return self.graph

    def _inputs(self, root: nn.Module) -> tuple[list[fx.Proxy], dict[str, fx.Proxy]]:
        """A placeholder for each parameter that ``forward`` needs.

        Optional ones keep their defaults: a default such as ``mask=None`` decides control flow. Where all are
        optional the first is an input.
        """
        parameters = list(inspect.signature(root.forward).parameters.values())
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):
            raise UntraceableError("how many inputs forward() takes is known at the first call")
        named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        wanted = [p for p in named if p.default is p.empty] or named[:1]
        for p in wanted:
            if p.name in _TAKEN:
                raise CaptureError(f"forward() has an input named {p.name!r}, which generated code needs: rename it")
        proxies = {p: self.create_proxy("placeholder", p.name, (), {}) for p in wanted}
        return (
            [proxy for p, proxy in proxies.items() if p.kind is not p.KEYWORD_ONLY],
            {p.name: proxy for p, proxy in proxies.items() if p.kind is p.KEYWORD_ONLY},
        )

    def _root_called(self, root: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self._computed(root, args)(*args, **kwargs)

    def _called(self, m: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if m not in (self.submodule_paths or {}):  # in a list, where nn.Module does not see it
            return self._computed(m, args)(*args, **kwargs)
        return returned(m, self.call_module(m, m.forward, args, kwargs))

    def _computed(self, m: nn.Module, args: Any) -> Callable[..., Any]:
        """The forward of a module, once its weights are computed."""
        for hook in weight_hooks(m):
            hook(m, args)
        return m.forward

    def _seen(self, tensor: Any) -> Any:
        """What ``module.weight`` is to the forward that is read: the node of the parameter or buffer."""
        name = self.names.get(id(tensor)) if isinstance(tensor, torch.Tensor) else None
        if name is None:
            return tensor
        if name not in self._proxies:
            self._proxies[name] = self.create_proxy(
                "get_attr", name, (), {},
                proxy_factory_fn=lambda node: (
                    tensor_proxy(self, node, name, tensor) if isinstance(tensor, nn.Parameter) else self.proxy(node)
                ),
            )
        return self._proxies[name]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)

    def _filter_traceback_frames(self, user_stack_summary: traceback.StackSummary) -> traceback.StackSummary:
        """The frames from the first ``forward`` on, without torch's own.

        The method of torch leaves out the same frames, but imports Inductor to learn their files: half a second.
        """
        frames = itertools.dropwhile(lambda frame: frame.name != "forward", user_stack_summary)
        return traceback.StackSummary.from_list([f for f in frames if not f.filename.startswith(_TORCH)])

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return VOCABULARY.module(type(m)) is not None and not _is_altered(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        def opened(*a: Any, **k: Any) -> Any:
            return self._computed(m, a)(*a, **k)

        inspect.signature(m.forward).bind(*args, **kwargs)  # a TypeError that the model may expect
        torchs = super().is_leaf_module(m, self.path_of_module(m))
        last, stack, calls = next(iter(reversed(self.graph.nodes)), None), dict(self.module_stack), dict(self.num_calls)
        scope = copy.copy(self.scope)
        try:
            return super().call_module(m, opened, args, kwargs)
        except BaseException as error:  # the model may catch it: nothing of the attempt is left
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
            self._proxies = {name: proxy for name, proxy in self._proxies.items() if not proxy.node._erased}
            self.module_stack.clear()
            self.module_stack.update(stack)
            self.num_calls.clear()
            self.num_calls.update(calls)
            self.scope = scope
            if isinstance(error, Exception) and torchs and not _is_altered(m):
                return self._call_closed(m, args, kwargs)  # whatever its forward does with a proxy: keep the call whole
            raise

    def _call_closed(self, m: nn.Module, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        self.module_stack[path] = (path, type(m))
        try:
            return self.create_proxy("call_module", path, args, kwargs)
        finally:
            self.module_stack.popitem(last=True)

    def create_arg(self, a: Any) -> Any:
        if type(a).__module__ == "numpy" and hasattr(a, "item") and getattr(a, "ndim", 1) == 0:
            a = a.item()  # a number of NumPy, which generated code does not know
        name = self.names.get(id(a)) if isinstance(a, torch.Tensor) else None
        return super().create_arg(a) if name is None else self.create_node("get_attr", name, (), {})


def _counts_axes(graph: fx.Graph) -> bool:
    """Whether the number of axes of a value decides what is computed: it is more than compared with another one."""
    numbers: set[fx.Node] = set()
    for node in graph.nodes:
        attribute = node.target is getattr and str(node.args[1]) == "ndim"
        if attribute or (node.op == "call_method" and node.target in ("dim", "ndimension")):
            numbers.add(node)
        elif not numbers.isdisjoint(node.all_input_nodes):
            if node.target in _ARITHMETIC:
                numbers.add(node)
            elif node.target not in _COMPARISONS:
                return True
    return False


_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.mod, operator.floordiv, operator.neg)
_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, torch._assert)


def _is_altered(m: nn.Module) -> bool:
    """Whether a module no longer does what its class says: its forward was set, or a weight in it is computed."""
    return "forward" in vars(m) or any(map(weight_hooks, m.modules()))


def _plain_tensors(root: nn.Module) -> Iterator[tuple[torch.Tensor, str]]:
    """The tensors that are attributes of modules, but neither parameters nor buffers: what a graph calls them."""
    for path, module in root.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield value, f"{path}.{name}" if path else name


def trace(model: nn.Module, output: Any = None) -> Captured:
    """Trace ``model`` symbolically.

    Args:
        model: the model, checked.
        output: which of its outputs to explain.

    Raises:
        CaptureError: symbolic tracing cannot follow the model, or ``output`` names nothing.
    """
    tracer = Tracer(output)
    try:
        with CAPTURING:
            graph = tracer.read(model)
    except CaptureError:
        raise
    except Exception as error:
        raise UntraceableError(f"{type(model).__name__} cannot be traced symbolically: {error}") from error
    return Captured(graph, model, tracer.returns, tracer.constants, numbers=tracer.numbers)
