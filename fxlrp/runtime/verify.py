"""Whether what is explained is the model: its own output beside that of the graph that was captured from it."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode

from fxlrp.capture import Snapshot, attribute
from fxlrp.capture.captured import flat_outputs
from fxlrp.capture.double import to_run, without_hooks
from fxlrp.common.compiling import is_compiling
from fxlrp.common.errors import CaptureError, FxlrpError
from fxlrp.common.tensors import plain_name
from fxlrp.passes.facts import facts
from fxlrp.runtime.inputs import forward_shapes
from fxlrp.runtime.plan import Plan
from fxlrp.runtime.weights import Weights

MODES = ("first", "always", "never")
"""When the model itself is run beside its explanation: at the first call of each kind, at every call, never."""
MOST_KINDS = 256
"""How many kinds of calls are remembered as verified."""
SEEDS = (1, 2)


class DifferentFunctionError(CaptureError):
    """What was captured computes something else than the model."""


class Verifier:
    """Compares the model with what was captured from it.

    Args:
        model: the model.
        weights: the tensors of the explainer, which may be converted.
        output: which output of the model is explained, as ``compile(output=…)`` takes it.
        mode: as ``compile(verify=…)`` takes it.
    """

    def __init__(self, model: nn.Module, weights: Weights, output: Any, mode: str) -> None:
        self._model = model
        self._weights = weights
        self._output = output
        self._mode = mode
        self._coarsest = 0.0
        self._verified: OrderedDict[Hashable, None] = OrderedDict()

    def check(self, plan: Plan, inputs: Sequence[Tensor], autocast: bool) -> Tensor | None:
        """Raise where the graph of ``plan`` is not the model for calls like this one.

        Runs the model and the graph once each, and with several items also the model on the first and the last
        one alone. Does nothing where such a call was verified before.

        Returns:
            The explained output of the model, where it was run.

        Raises:
            DifferentFunctionError: it computes something else, and a capture of another kind may do better.
            CaptureError: the model is random, keeps a state, has hooks that change what it computes, or mixes the
                items of a batch.
        """
        if self._mode == "never" or is_compiling():
            return None
        key = self._key(plan, inputs, autocast)
        if self._mode == "first" and key in self._verified:
            self._verified.move_to_end(key)
            return None
        with torch.no_grad(), _randomness_kept():
            explained = self._compare(plan, list(inputs))
        self._verified[key] = None
        while len(self._verified) > MOST_KINDS:
            self._verified.popitem(last=False)
        return explained

    def _key(self, plan: Plan, inputs: Sequence[Tensor], autocast: bool) -> Hashable:
        forms = tuple((x.shape[1:], x.dtype, x.device) for x in inputs)
        batch = inputs[0].shape[0]
        kind = batch if plan.captured.asks_batch else batch == 1
        return plan.serial, forms, kind, autocast, self._weights.dtype, self._weights.device

    def _compare(self, plan: Plan, inputs: list[Tensor]) -> Tensor:
        before, double = _random_state(), to_run(self._model)
        snapshot, versions = Snapshot(double), _versions(double)
        self._coarsest = self._coarsest_type(inputs)
        try:
            with _Guarded(self._model.parameters()):
                model = self._run(plan, inputs, double)
        except (FxlrpError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            forward_shapes(plan.forward, inputs)  # says which layer cannot take it
            raise CaptureError(f"the model itself cannot run this input: {error}") from error
        drawn = _random_state() != before
        if drawn and not self._same_for_seeds(plan, inputs):
            raise _random(self._model)
        explained = model[0]
        batch = inputs[0].shape[0]
        if explained.dim() == 0 or explained.shape[0] != batch:
            raise CaptureError(
                f"the output has shape {tuple(explained.shape)} for a batch of {batch}: its first axis must be the "
                "batch, one value or more per item; a scalar, such as a loss, is explained for no item"
            )
        touched = snapshot.touched() or _versions(double) != versions
        if touched and self._remembers(plan, inputs, double):
            raise _stateful(self._model)
        try:
            graph = self._graph(plan, inputs)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # not of the model, which took the same input
            raise self._reason(plan, inputs, error) from error
        for ours, theirs in zip(graph, model, strict=False):
            if isinstance(theirs, Tensor) and isinstance(ours, Tensor) and not self._agree(plan, inputs, ours, theirs):
                raise self._reason(plan, inputs)
        if batch > 1:
            self._check_items(plan, inputs, explained)
        return explained

    # What is run ----------------------------------------------------------------------------------

    def _run(self, plan: Plan, inputs: Sequence[Tensor], double: nn.Module | None = None) -> list[Any]:
        """The explained output of the model, and all that it returns, flattened."""
        double = to_run(self._model) if double is None else double
        args, kwargs = plan.arguments([x.clone() for x in inputs])  # it may write to them
        if self._weights.dtype is not None or self._weights.device is not None:
            tensors = {
                name: tensor.to(device=self._weights.device, dtype=self._dtype(tensor))
                for name, tensor in [*double.named_parameters(), *double.named_buffers()]
            }
            returned = torch.func.functional_call(double, tensors, args, kwargs)
        else:
            returned = double(*args, **kwargs)
        outputs, _ = flat_outputs(returned, self._output)
        return outputs

    def _dtype(self, tensor: Tensor) -> torch.dtype:
        return self._weights.dtype if self._weights.dtype and tensor.is_floating_point() else tensor.dtype

    def _graph(self, plan: Plan, inputs: Sequence[Tensor], seen: dict[str, Any] | None = None) -> list[Any]:
        """The same of the captured graph; ``seen`` collects what the modules in it give."""
        outputs: list[Any] = _Interpreter(plan, self._weights, seen).run(*inputs)
        return outputs

    # Comparisons ----------------------------------------------------------------------------------

    def _agree(self, plan: Plan, inputs: list[Tensor], ours: Tensor, theirs: Tensor) -> bool:
        """Whether two outputs of the same inputs differ by no more than the kernels that computed them do."""
        if ours.shape != theirs.shape:
            return False
        difference = distance(ours, theirs)
        last_digit = max(_precision(theirs), self._coarsest)
        few, many = (64, 32) if last_digit < 1e-4 else (2, 4)  # half precision: one more digit would hide anything
        if difference <= few * last_digit:
            return True
        if not difference <= last_digit**0.5:
            return False
        # A deep network enlarges what rounding does: as much as it enlarges a last digit of its input?
        generator = torch.Generator().manual_seed(0)
        signs = [torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1 for x in inputs]
        moved = [
            x * (1 + sign * max(_precision(x), last_digit)) if x.is_floating_point() else x
            for x, sign in zip(inputs, signs, strict=True)
        ]
        before, after = self._run(plan, inputs)[0], self._run(plan, moved)[0]
        return difference <= many * distance(before, after)

    def _coarsest_type(self, inputs: list[Tensor]) -> float:
        """The last digit of the coarsest type that is computed in."""
        device = inputs[0].device.type
        kinds = {x.dtype for x in inputs}
        if self._weights.dtype is not None:
            kinds.add(self._weights.dtype)
        else:
            kinds |= {tensor.dtype for tensor in [*self._model.parameters(), *self._model.buffers()]}
        if torch.is_autocast_enabled(device):
            kinds.add(torch.get_autocast_dtype(device))
        return max((torch.finfo(kind).eps for kind in kinds if kind.is_floating_point), default=0.0)

    def _differ(self, a: Tensor, b: Tensor) -> bool:
        """Whether two outputs of one function for one input are more than a few last digits apart."""
        return a.shape != b.shape or distance(a, b) > 4 * max(_precision(b), self._coarsest)

    def _check_items(self, plan: Plan, inputs: list[Tensor], explained: Tensor) -> None:
        batch = inputs[0].shape[0]
        for item in (0, batch - 1):
            try:
                alone = self._run(plan, [x[item : item + 1] for x in inputs])[0]
                within = explained[item : item + 1]
            except Exception:  # it is written for one batch size: do the items answer alike at other places?
                alone = self._run(plan, [x.roll(-item - 1, 0) for x in inputs])[0]
                within = explained.roll(-item - 1, 0)
            same = alone.numel() == within.numel() and self._agree(plan, inputs, alone.reshape(within.shape), within)
            if not same:
                raise CaptureError(
                    f"{type(self._model).__name__} mixes the items of a batch: item {item} alone has another output "
                    f"than in the batch of {batch}, and its explanation would depend on the others. Give one item at "
                    "a time if the model is meant for it; if the first axis of its input is not the batch (a "
                    "transformer or LSTM without batch_first), let forward() move it"
                )

    def _remembers(self, plan: Plan, inputs: list[Tensor], warm: nn.Module) -> bool:
        """Whether a double that was called before answers otherwise than a new one."""
        others = [x * 0.75 if x.is_floating_point() else x.roll(1, 0) for x in inputs]
        return self._differ(self._run(plan, others, warm)[0], self._run(plan, others)[0])

    def _same_for_seeds(self, plan: Plan, inputs: list[Tensor]) -> bool:
        outputs = []
        for seed in SEEDS:
            _seed(seed)
            outputs.append(self._run(plan, inputs)[0])
        return not self._differ(*outputs)

    # Reasons --------------------------------------------------------------------------------------

    def _reason(self, plan: Plan, inputs: list[Tensor], failure: Exception | None = None) -> CaptureError:
        """Why model and graph differ, or why the graph failed, as far as a few more runs can tell."""
        if not self._same_for_seeds(plan, inputs):
            return _random(self._model)
        way = _WAYS[plan.captured.way]
        if failure is not None:
            return DifferentFunctionError(
                f"what was captured of {type(self._model).__name__} by {way} fails where the model runs: {failure}"
            )
        ours = self._graph(plan, inputs)[0]
        hooked = hooked_modules(self._model)
        if hooked:
            bare = self._run(plan, inputs, without_hooks(self._model))[0]
            if bare.shape == ours.shape and self._agree(plan, inputs, ours, bare):
                return CaptureError(
                    f"the forward hook of {hooked[0]} changes what the model computes, and hooks are not part of an "
                    "explanation: remove the hook, or write what it does into forward()"
                )
        if plan.captured.example_batch and self._is_of_batch(plan, inputs):
            return CaptureError(
                f"{type(self._model).__name__} computes something else for a batch of {inputs[0].shape[0]} than for "
                f"one of {plan.captured.example_batch}, with which it was captured: its forward() branches on the "
                "size of the batch, and its items would not be explained as if alone"
            )
        return DifferentFunctionError(
            f"what was captured of {type(self._model).__name__} by {way} computes something else "
            f"than the model; the first difference is in {self._first_difference(plan, inputs)}. Likely causes: "
            "forward() asks for the type of a value (type(x) is Tensor, x.dtype is …, an except TypeError that "
            "swallows), for torch.compiler.is_compiling(), or for something outside the model"
        )

    def _is_of_batch(self, plan: Plan, inputs: list[Tensor]) -> bool:
        """Whether model and graph agree on as many items as the model was captured with."""
        index = torch.arange(plan.captured.example_batch) % inputs[0].shape[0]
        many = [x[index.to(x.device)] for x in inputs]
        ours, theirs = self._graph(plan, many)[0], self._run(plan, many)[0]
        return self._agree(plan, many, ours, theirs)

    def _first_difference(self, plan: Plan, inputs: list[Tensor]) -> str:
        """The first module whose output differs, for a message."""
        theirs: dict[str, Tensor] = {}
        double = to_run(self._model)
        for path, module in double.named_modules():

            def record(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
                if isinstance(output, Tensor):
                    theirs.setdefault(path, output)

            if path:
                vars(module)["_forward_hooks"] = OrderedDict({**module._forward_hooks, -1: record})
        ours: dict[str, Any] = {}
        self._run(plan, inputs, double)
        self._graph(plan, inputs, ours)
        for path, value in theirs.items():
            mine = ours.get(path)
            if not isinstance(mine, Tensor) or mine.shape != value.shape:
                continue
            if self._differ(mine, value):
                while path and type(attribute(self._model, path)).__module__.startswith("torch."):
                    path = path.rpartition(".")[0]  # torch's own modules are read right: what it was given differs
                return f"{path!r} ({type(attribute(self._model, path)).__name__})" if path else _ITSELF
        return _ITSELF


class _Guarded(TorchDispatchMode):  # type: ignore[no-untyped-call]
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


_ITSELF = "the forward() of the model itself"
_WAYS = {"symbolic": "symbolic tracing", "export": "torch.export"}


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


def hooked_modules(model: nn.Module) -> list[str]:
    """The modules whose hooks run with their forward(), for a message; also where hooks are of all modules."""
    names = [
        f"{name!r} ({type(module).__name__})" if name else type(module).__name__
        for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks
    ]  # fmt: skip
    everywhere = nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks
    return [*names, "all modules"] if everywhere else names


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value of ``b``; 0 where both are equal, NaN for NaN included."""
    if torch.equal(a, b) or a.numel() == 0:
        return 0.0
    a, b = a.double() if not a.is_complex() else a, b.double() if not b.is_complex() else b
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    finite = b[b.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    worst = float((a - b).abs()[~same].max())
    return worst / scale if scale else float("inf") if worst != worst or worst > 0 else 0.0


def _precision(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() or tensor.is_complex() else 0.0


def _versions(model: nn.Module) -> list[Any]:
    """Torch's counters of writes to the buffers of a model."""
    return [buffer._version for buffer in model.buffers() if not buffer.is_inference()]


def _stateful(model: nn.Module) -> CaptureError:
    return CaptureError(
        f"{type(model).__name__} keeps a state: what it computes depends on earlier calls. An explanation is of one "
        "function; take counters and caches of earlier inputs out of forward(), and compile the model again"
    )


def _random(model: nn.Module) -> CaptureError:
    return CaptureError(
        f"{type(model).__name__} is random in eval mode: called twice with the same input it gives two outputs. An "
        "explanation is of one function; look for dropout with training=True, torch.rand, bernoulli, gumbel_softmax "
        "or Python's random in forward()"
    )


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(seed)


def _random_state() -> tuple[Any, ...]:
    """The states of the generators that forward() might draw from."""
    state: list[Any] = [torch.get_rng_state().numpy().tobytes(), random.getstate()]
    if "numpy.random" in sys.modules:
        kind, keys, *rest = sys.modules["numpy.random"].get_state()
        state += [kind, keys.tobytes(), *rest]
    return tuple(state)


@contextmanager
def _randomness_kept() -> Iterator[None]:
    """Draw within what one likes: afterwards all generators are where they were."""
    python, numpy = random.getstate(), sys.modules.get("numpy.random")
    kept = numpy.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(kept)
