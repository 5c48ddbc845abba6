"""Reading a model as a graph, without touching the model."""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxlrp.errors import CaptureError, TrainingModeError
from fxlrp.vocabulary import VOCABULARY

Tensors = dict[str, torch.Tensor]


class Captured:
    """A graph as traced, and the tensors that it refers to.

    Attributes:
        graph: the graph, in the spellings that the model uses.
        model: the model that it was read from.
        constants: tensors that the model made while it was traced, by name.
    """

    def __init__(self, graph: fx.Graph, model: nn.Module, constants: Tensors) -> None:
        self.graph = graph
        self.model = model
        self.constants = constants

    def tensor(self, name: str) -> torch.Tensor:
        """The parameter, buffer or constant of this name, as it is now."""
        return self.constants[name] if name in self.constants else attribute(self.model, name)


def attribute(model: nn.Module, name: str) -> Any:
    """``model.a.b.c`` for ``"a.b.c"``."""
    value: Any = model
    for part in name.split("."):
        value = getattr(value, part)
    return value


def tensor_proxy(tracer: Any, node: fx.Node, name: str, tensor: torch.Tensor) -> fx.Proxy:
    """A proxy for a parameter or buffer; a parameter's shape is a constant, not a node."""
    if isinstance(tensor, nn.Parameter):
        return fx.proxy.ParameterProxy(tracer, node, name, tensor)
    return fx.Proxy(node, tracer)


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

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=True)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        # fx searches all parameters at each access; a table keeps that linear in depth.
        self.names = {id(t): n for n, t in [*root.named_buffers(), *root.named_parameters()]}
        return super().trace(root, concrete_args)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        return super().create_args_for_root(with_required_inputs(root_fn), is_module, concrete_args)

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


def capture(model: nn.Module) -> Captured:
    """Trace ``model`` symbolically.

    Raises:
        TrainingModeError: the model or a part of it is in training mode.
        CaptureError: symbolic tracing cannot follow the model.
    """
    check_model(model)
    before = {module: dict(vars(module)) for module in model.modules()}
    try:
        tracer = Tracer()
        try:
            graph = tracer.trace(model)
        finally:
            constants = _take_back(model, before)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be traced symbolically: {error}\n"
            "Control flow on tensor values or shapes in forward() is the usual reason; "
            "move it out of forward(), or mark the function that holds it with torch.fx.wrap and register it."
        ) from error
    return Captured(graph, model, constants)


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


def check_model(model: nn.Module) -> None:
    """Raise where a model cannot be explained as it is: not a module, in training mode, hooked weights."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"fxlrp compiles a torch.nn.Module, not {type(model).__name__}")
    training = [name or "the model itself" for name, module in model.named_modules() if module.training]
    if training:
        more = f" and {len(training) - 3} more" if len(training) > 3 else ""
        raise TrainingModeError(
            f"{', '.join(training[:3])}{more} in training mode; call model.eval() before fxlrp.compile(model)"
        )
    hooked = []
    for name, module in model.named_modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        for hook in hooks:
            if isinstance(hook, WeightNorm | SpectralNorm):
                raise CaptureError(
                    f"{name} computes its weight in a hook ({type(hook).__name__}); use "
                    "torch.nn.utils.parametrizations instead, or remove the hook"
                )
        if hooks:
            hooked.append(name or type(module).__name__)
    if hooked:
        warnings.warn(f"the forward hooks of {', '.join(hooked[:3])} are not part of the explanation", stacklevel=3)
