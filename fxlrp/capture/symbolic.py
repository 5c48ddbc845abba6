"""The first way to read a model: symbolic tracing, which leaves batch and resolution free."""

from __future__ import annotations

import inspect
import itertools
import operator
import os
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxlrp.capture.captured import Captured, Tensors, flat_outputs, tensor_proxy
from fxlrp.common.errors import CaptureError
from fxlrp.vocabulary import VOCABULARY

_TORCH = os.path.dirname(torch.__file__) + os.sep


class UntraceableError(CaptureError):
    """Symbolic tracing cannot follow the model; another way of capture may."""


class InPlaceProxy(fx.Proxy):
    """A proxy that tells ``x += y`` from ``x = x + y``; to fx both are an add."""

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

    A module that cannot be opened stays a call of the module; the vocabulary says what
    it means. Forward hooks are not run.
    """

    proxy_buffer_attributes = True
    record_stack_traces = True

    returns: pytree.TreeSpec

    def __init__(self, output: Any = None) -> None:
        super().__init__(param_shapes_constant=True)
        self.output = output

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        # fx searches all parameters at each access; a table keeps that linear in depth.
        self.names = {id(t): n for n, t in [*root.named_buffers(), *root.named_parameters()]}
        return super().trace(root, concrete_args)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        fn, args = super().create_args_for_root(with_required_inputs(root_fn), is_module, concrete_args)

        def flat(*a: Any) -> list[Any]:
            outputs, self.returns = flat_outputs(fn(*a), self.output)
            return outputs

        return flat, args

    def _filter_traceback_frames(self, user_stack_summary: traceback.StackSummary) -> traceback.StackSummary:
        """The frames from the first ``forward`` on, without torch's own.

        The method of torch leaves out the same frames, but imports Inductor to learn their files: half a second.
        """
        frames = itertools.dropwhile(lambda frame: frame.name != "forward", user_stack_summary)
        return traceback.StackSummary.from_list([f for f in frames if not f.filename.startswith(_TORCH)])

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return VOCABULARY.module(type(m)) is not None

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        def without_hooks(*a: Any, **k: Any) -> Any:
            return m.forward(*a, **k)

        if not super().is_leaf_module(m, self.path_of_module(m)) or self.is_leaf_module(m, ""):
            return super().call_module(m, without_hooks, args, kwargs)
        last, stack, calls = next(iter(reversed(self.graph.nodes)), None), dict(self.module_stack), dict(self.num_calls)
        try:
            return super().call_module(m, without_hooks, args, kwargs)
        except Exception:  # whatever its forward does with a proxy: keep the call whole
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
            self.module_stack.clear()
            self.module_stack.update(stack)
            self.num_calls.clear()
            self.num_calls.update(calls)
            return self._call_closed(m, args, kwargs)

    def _call_closed(self, m: nn.Module, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        self.module_stack[path] = (path, type(m))
        try:
            return self.create_proxy("call_module", path, args, kwargs)
        finally:
            self.module_stack.popitem(last=True)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        name = self.names.get(id(attr_val)) if isinstance(attr_val, torch.Tensor) else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy(
                "get_attr", name, (), {},
                proxy_factory_fn=lambda node: tensor_proxy(self, node, name, attr_val),
            )
        return parameter_proxy_cache[name]

    def create_arg(self, a: Any) -> Any:
        name = self.names.get(id(a)) if isinstance(a, torch.Tensor) else None
        return super().create_arg(a) if name is None else self.create_node("get_attr", name, (), {})


def with_required_inputs(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` without its optional parameters, which keep their defaults.

    fx would make inputs of them, and a default such as ``mask=None`` decides control flow.
    """
    parameters = list(inspect.signature(forward).parameters.values())
    kinds = {parameter.kind for parameter in parameters}
    optional = [parameter for parameter in parameters[1:] if parameter.default is not parameter.empty]
    if not optional or inspect.Parameter.VAR_POSITIONAL in kinds:
        return forward
    required = [p.name for p in parameters[1:] if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    names = ", ".join(["self", *(required or [optional[0].name])])
    space: dict[str, Any] = {"forward": forward}
    exec(f"def wrapped({names}): return forward({names})", space)  # fx reads the signature off the code
    wrapped: Callable[..., Any] = space["wrapped"]
    return wrapped


def trace(model: nn.Module, output: Any = None) -> Captured:
    """Trace ``model`` symbolically.

    Args:
        model: the model, checked.
        output: which of its outputs to explain.

    Raises:
        CaptureError: symbolic tracing cannot follow the model, or ``output`` names nothing.
    """
    before = {module: dict(vars(module)) for module in model.modules()}
    try:
        tracer = Tracer(output)
        try:
            graph = tracer.trace(model)
        finally:
            constants = _take_back(model, before)
    except CaptureError:
        raise
    except Exception as error:
        raise UntraceableError(f"{type(model).__name__} cannot be traced symbolically: {error}") from error
    return Captured(graph, model, tracer.returns, constants)


def _take_back(model: nn.Module, before: dict[nn.Module, dict[str, Any]]) -> Tensors:
    """Undo what tracing stored on the model: fx keeps tensor constants there, forward() may keep proxies."""
    constants: Tensors = {}
    for module, attributes in before.items():
        for name, value in vars(module).items():
            if name not in attributes and module is model and isinstance(value, torch.Tensor):
                constants[name] = value.detach()
        vars(module).clear()
        vars(module).update(attributes)
    return constants
