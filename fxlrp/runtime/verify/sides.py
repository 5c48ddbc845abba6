"""The two sides of a comparison: the model, and the graph that was captured from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxlrp.capture.captured import flat_outputs
from fxlrp.capture.double import to_run
from fxlrp.common.errors import CaptureError
from fxlrp.common.tensors import plain_name
from fxlrp.passes.facts import facts
from fxlrp.runtime.plan import Plan
from fxlrp.runtime.weights import Weights


class Sides:
    """Runs a model and its graph with the same tensors.

    Args:
        model: the model; a double of it is run.
        weights: the tensors of the explainer, which may be converted.
        output: which output of the model is explained, as ``compile(output=…)`` takes it.
        plan: the graph.
    """

    def __init__(self, model: nn.Module, weights: Weights, output: Any, plan: Plan) -> None:
        self.of = model
        self.weights = weights
        self.plan = plan
        self._output = output

    def model(self, inputs: Sequence[Tensor], double: nn.Module | None = None) -> list[Any]:
        """The explained output of the model, and all that it returns, flattened."""
        double = to_run(self.of) if double is None else double
        args, kwargs = self.plan.arguments([x.clone() for x in inputs])  # it may write to them
        if self.weights.dtype is not None or self.weights.device is not None:
            tensors = {
                name: tensor.to(device=self.weights.device, dtype=self._dtype(tensor))
                for name, tensor in [*double.named_parameters(), *double.named_buffers()]
            }
            returned = torch.func.functional_call(double, tensors, args, kwargs)
        else:
            returned = double(*args, **kwargs)
        outputs, _ = flat_outputs(returned, self._output)
        return outputs

    def precise(self, inputs: Sequence[Tensor]) -> Tensor:
        """The explained output of the model in float64, which rounds away what kernels of float32 differ by."""
        args, kwargs = self.plan.arguments([x.double() if x.is_floating_point() else x.clone() for x in inputs])
        double = to_run(self.of)
        tensors = {
            name: tensor.to(self.weights.device, torch.float64) if tensor.is_floating_point() else tensor
            for name, tensor in [*double.named_parameters(), *double.named_buffers()]
        }
        returned = torch.func.functional_call(double, tensors, args, kwargs)
        output: Tensor = flat_outputs(returned, self._output)[0][0]
        return output

    def graph(self, inputs: Sequence[Tensor], seen: dict[str, Any] | None = None) -> list[Any]:
        """The same of the captured graph; ``seen`` collects what the modules in it give."""
        outputs: list[Any] = _Interpreter(self.plan, self.weights, seen).run(*inputs)
        return outputs

    def _dtype(self, tensor: Tensor) -> torch.dtype:
        return self.weights.dtype if self.weights.dtype and tensor.is_floating_point() else tensor.dtype


class Guarded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, a write to one of some tensors is an error before it is done."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            for value, argument in zip(args, func._schema.arguments, strict=False):
                writes = argument.alias_info is not None and argument.alias_info.is_write
                if writes and isinstance(value, Tensor) and value.untyped_storage()._cdata in self._memory:
                    raise CaptureError(
                        f"forward() writes to a parameter of the model, by {func}: an explanation is of one function; "
                        "keep what changes in a buffer"
                    )
        return func(*args, **(kwargs or {}))


class _Interpreter(fx.Interpreter):
    """Runs a forward graph with the tensors of the model as they are now."""

    def __init__(self, plan: Plan, weights: Weights, seen: dict[str, Any] | None) -> None:
        super().__init__(plan.forward)
        self.extra_traceback = False
        self._plan = plan
        self._weights = weights
        self._seen = seen

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._weights.as_computed(self._plan.captured.tensor(plain_name(str(target))))

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self._seen is not None and n.op == "call_function":
            for path, _ in facts(n).origin.modules:
                self._seen[path] = value
        return value
