"""compile(): from a model to its explainer, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import fx, nn

from fxlrp.capture import capture
from fxlrp.errors import CaptureError, RuleError, StartError
from fxlrp.explainer import Explainer
from fxlrp.inputs import input_specs
from fxlrp.passes.annotate import Annotate
from fxlrp.passes.assign import Assign
from fxlrp.passes.canonicalize import canonicalize
from fxlrp.passes.emit import emit
from fxlrp.passes.facts import facts
from fxlrp.passes.joins import FindJoins
from fxlrp.presets import Preset, preset_named
from fxlrp.rules.join import SPLITS, SplitRule
from fxlrp.rules.rule import Rule
from fxlrp.rules.start import STARTS, CustomStart, Start
from fxlrp.vocabulary import Kind


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
    differentiable: bool = False,
) -> Explainer:
    """Compile the explainer of ``model``.

    Args:
        model: any module in eval mode that torch.fx can trace. It is not changed.
        preset: the rules, by name (``fxlrp.presets.PRESETS``) or as a :class:`Preset`.
        rules: exceptions from it, by module name or pattern (``"layer4.*"``), module type
            (``nn.Linear``) or operation (``torch.nn.functional.linear``); the most specific wins.
        split: how a join shares relevance: ``"ratio"``, ``"symmetric"``, ``"signed"``, or a
            split rule; ``None``: as the preset has it.
        identity_skips: ``False``: an identity skip receives nothing, its residual branch all.
        start: the relevance that enters at the output: ``"probability"`` (softmax of a
            (batch, classes) output), ``"logit"``, ``"one"``, or a callable
            ``(output, target) -> relevance`` in the shape of the output.
        output: which output of a model with several: a key, an index, or a callable that
            picks it from what the model returns.
        checkpoints: names of modules at whose input relevance is wanted.
        differentiable: whether an explanation keeps its autograd graph.

    Raises:
        TrainingModeError: the model is in training mode.
        CaptureError: the model cannot be traced, or uses unknown operations.
        RuleError, PatternError: a preset, rule, split or name does not fit.
    """
    chosen = preset_named(preset)
    splitting = _split_named(split)
    beginning = _start_named(start)
    captured = capture(model)
    forward = canonicalize(captured)
    for step in (
        Annotate(),
        FindJoins(),
        Assign(chosen, rules, split=splitting, identity_skips=identity_skips),
    ):
        forward = step(forward)
    explained = _output_node(forward, output)

    def program(*, ledger: bool = False) -> Any:
        return emit(forward, explained, beginning, tuple(checkpoints), ledger=ledger)

    return Explainer(
        model, program(), forward, explained,
        inputs=input_specs(forward),
        joins=[facts(node).join for node in forward.graph.nodes if facts(node).kind is Kind.JOIN],
        ledger_program=lambda: program(ledger=True),
        differentiable=differentiable,
        recompile=partial(
            compile, preset=preset, rules=rules, split=split, identity_skips=identity_skips, start=start,
            output=output, checkpoints=checkpoints, differentiable=differentiable,
        ),
    )  # fmt: skip


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


def _output_node(forward: fx.GraphModule, output: Any) -> fx.Node:
    """The node that the caller wants explained."""
    structure: Any = next(node for node in forward.graph.nodes if node.op == "output").args[0]
    if isinstance(output, Callable):  # type: ignore[arg-type]
        structure = output(structure)
    elif output is not None:
        try:
            structure = structure[output]
        except (KeyError, IndexError, TypeError) as error:
            returned = _described(structure)
            raise CaptureError(f"output={output!r} is not in what the model returns: {returned}") from error
    if not isinstance(structure, fx.Node):
        raise CaptureError(f"the model returns {_described(structure)}: say with output= which one to explain")
    if not facts(structure).signal:
        raise CaptureError("the output does not depend on the input")
    return structure


def _described(structure: Any) -> str:
    if isinstance(structure, dict):
        return f"a dict with the keys {', '.join(map(repr, structure))}"
    if isinstance(structure, list | tuple):
        return f"a {type(structure).__name__} of {len(structure)}"
    return "one tensor"
