"""compile(): from a model to its explainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from fxlrp.common.errors import RuleError, StartError
from fxlrp.explainer import Explainer
from fxlrp.passes.optimize import chosen
from fxlrp.presets import Preset, preset_named
from fxlrp.rules.rule import Rule
from fxlrp.rules.split import SPLITS, SplitRule
from fxlrp.rules.starts import STARTS, CustomStart, Start
from fxlrp.runtime.backends import check_backend
from fxlrp.runtime.plan import Recipe


def compile(
    model: nn.Module,
    preset: str | Preset = "conserving",
    *,
    rules: Mapping[Any, Rule] | None = None,
    split: str | SplitRule | None = None,
    identity_skips: bool = True,
    start: str | Start = "probability",
    output: Any = None,
    checkpoints: Sequence[str] = (),
    example_inputs: Any = None,
    backend: str | None = None,
    differentiable: bool = False,
    optimize: bool | Sequence[str] = True,
) -> Explainer:
    """Compile the explainer of ``model``.

    It is read by symbolic tracing where that can follow it, and else by ``torch.export``
    from example inputs: those given here, or those of the explainer's first call.

    Args:
        model: any module in eval mode. It is not changed.
        preset: the rules, by name (``fxlrp.presets.PRESETS``) or as a :class:`Preset`.
        rules: exceptions from it, by module name or pattern (``"layer4.*"``), module type
            (``nn.Linear``), operation (``torch.nn.functional.linear``) or kind of join
            (``fxlrp.JoinKind.IDENTITY``); the most specific wins.
        split: how a join shares relevance: ``"ratio"``, ``"symmetric"``, ``"signed"``,
            ``"residual"``, ``"skip"``, or a split rule; ``None``: as the preset has it.
        identity_skips: ``False``: an identity skip receives nothing, its residual branch all.
        start: the relevance that enters at the output: ``"probability"`` (softmax of a
            (batch, classes) output), ``"logit"``, ``"one"``, ``"contrastive"`` (CLRP),
            ``"softmax_gradient"`` (SGLRP), ``fxlrp.starts.against(other)`` (this class rather than
            that one), ``"output"`` (the output itself, for a regression or a similarity), or a
            callable ``(output, target) -> relevance`` in the shape of the output.
        output: which output of a model with several: a key, an index, or a callable that
            picks it from what the model returns.
        checkpoints: names of modules at whose input relevance is wanted.
        example_inputs: what the model takes: a tensor, a tuple of positional or a dict of
            keyword arguments; needed at once only where the graph is to be looked at before
            the first call.
        backend: what runs it: ``"eager"`` (also ``None``), ``"inductor"`` (compiled by
            ``torch.compile`` at the first call, which takes a minute or so) or ``"cudagraphs"``
            (the same, captured as CUDA graphs). Ledgers, and explanations of several rows, run eagerly.
        differentiable: whether an explanation keeps its autograd graph.
        optimize: ``True``: every optimisation that leaves the model's output as it is, to the bit;
            ``False``: none, for reading; or the names of some (``fxlrp.passes.optimize.NAMES``).

    Raises:
        TrainingModeError: the model is in training mode.
        CaptureError: the model cannot be captured, or uses unknown operations.
        RuleError, PatternError: a preset, rule, split or name does not fit.
        OptimizeError: an optimisation that is asked for is not known.
        BackendError: a backend that is asked for is not known, or cannot run here.
    """
    recipe = Recipe(
        preset=preset_named(preset),
        rules=rules,
        split=_split_named(split),
        identity_skips=identity_skips,
        start=_start_named(start),
        output=output,
        checkpoints=tuple(checkpoints),
        optimize=chosen(optimize),
    )
    explainer = Explainer(
        model,
        recipe,
        backend=check_backend(backend),
        differentiable=differentiable,
        recompile=partial(
            compile, preset=preset, rules=rules, split=split, identity_skips=identity_skips, start=start,
            output=output, checkpoints=checkpoints, backend=backend,
            differentiable=differentiable, optimize=optimize,
        ),
    )  # fmt: skip
    explainer._capture(example_inputs)
    return explainer


def _split_named(split: str | SplitRule | None) -> SplitRule | None:
    if split is None or isinstance(split, SplitRule):
        return split
    if split not in SPLITS:
        raise RuleError(f"split={split!r}: choose one of {', '.join(map(repr, SPLITS))}, or give a split rule")
    return SPLITS[split]


def _start_named(start: str | Start) -> Start | nn.Module:
    if isinstance(start, str):
        if start not in STARTS:
            raise StartError(f"start={start!r}: choose one of {', '.join(map(repr, STARTS))}, or give a callable")
        return STARTS[start]
    if not callable(start):
        raise StartError(f"start= must be a name or a callable (output, target) -> relevance, not {start!r}")
    return CustomStart(start)
