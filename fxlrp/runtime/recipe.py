"""What ``compile`` is asked for: its parameters, written once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from fxlrp.capture import check_model
from fxlrp.common.errors import BackendError, PatternError, RuleError, StartError
from fxlrp.common.items import Items
from fxlrp.common.suggestions import did_you_mean
from fxlrp.passes.assign import check_preset, override
from fxlrp.passes.optimize import chosen
from fxlrp.presets import Preset, preset_named
from fxlrp.rules.rule import Rule
from fxlrp.rules.split import SPLITS, SplitRule
from fxlrp.rules.starts import AUTO, STARTS, CustomStart, Start
from fxlrp.runtime.backends import Backend, backend_named

MODES = ("first", "always", "never")
"""When the model is run beside its explanation: at the first call of each kind, at all calls, at none."""
MODEL = "model"
"""The word for ``precision``: layers multiply in bfloat16 where the model does."""
PRECISIONS = ("full", MODEL)
LOW = "low"
"""The word for ``memory``: little is held of the forward pass, at the price of a second one."""


@dataclass(frozen=True)
class Recipe:
    """What :func:`fxlrp.compile` is asked for; it reads its parameters from here.

    Args:
        preset: the rules, by name (``fxlrp.presets.PRESETS``) or as a :class:`Preset`.
        rules: exceptions from it, by module name or pattern (``"layer4.*"``), module type
            (``nn.Linear``), operation (``torch.nn.functional.linear``) or kind of join
            (``fxlrp.JoinKind.IDENTITY``); the most specific wins.
        split: how a join shares relevance: ``"ratio"``, ``"symmetric"``, ``"signed"``,
            ``"gamma"``, ``"residual"``, ``"skip"``, or a split rule; ``None``: as the preset has it.
        identity_skips: ``False``: an identity skip receives nothing, its residual branch all.
        start: the relevance that enters at the output: ``"auto"`` (what fits the end of the model: of two or more
            classes their log-odds or their softmax, as the preset has it, a probability that the model itself gives,
            or the value of a single output), ``"probability"`` (softmax of a (batch, classes) output), ``"logit"``,
            ``"one"``, ``"contrastive"`` (CLRP), ``"softmax_gradient"`` (SGLRP), ``"log_odds"`` (against the other
            classes by their probabilities),
            ``"centred"`` (against their mean), ``fxlrp.starts.against(other)`` (this class rather than
            that one), ``"output"`` (the output itself, for a regression or a similarity), or a
            callable ``(output, target) -> relevance`` in the shape of the output.
        output: which output of a model with several: a key, an index, or a callable that
            picks it from what the model returns.
        checkpoints: names of modules at whose input relevance is wanted.
        example_inputs: what the model takes: a tensor, a tuple of positional or a dict of
            keyword arguments; needed at once only where the graph is to be looked at before
            the first call. They are not kept.
        backend: what runs it: ``"eager"`` (also ``None``), ``"inductor"`` (compiled by
            ``torch.compile`` at the first call, which takes a minute or so) or ``"cudagraphs"``
            (the same, captured as CUDA graphs). Ledgers, and explanations of several targets, run eagerly.
        differentiable: whether an explanation keeps its autograd graph.
        optimize: ``True``: every optimisation that leaves the model's output as it is, to the bit;
            ``False``: none, for reading; or the names of some (``fxlrp.passes.optimize.NAMES``).
        verify: when the model itself is run beside its explanation, to see that both are one function and that no
            item of a batch depends on another: ``"first"``, at the first call of each kind (shapes, types, a batch
            of one or of several), which costs about two forward passes; ``"always"``; or ``"never"``.
        batch: which axis of the inputs tells items apart: 0; 1 for sequence-first inputs; a dict of axes by the name
            of the input, 0 for others; or ``None``: all inputs together are one item, as the nodes and edges of a
            graph are. Then a start enters at each row of the output.
        memory: ``None``: forward values are held until relevance has passed them. ``"low"``: those between two joins
            of skip and residual branch are computed again when relevance comes there, which costs a second forward
            pass; for long texts and large images, run eagerly.
        precision: of a model in bfloat16: ``"full"``: its relevance is computed in float32; ``"model"``: layers
            multiply in bfloat16 as the model does, which is faster, and relevance is kept in float32 between them:
            sums then hold to about a percent. Without effect on other models.

    Raises:
        RuleError, PatternError: a preset, rule, split or name does not fit, or a word is none that is known.
        StartError: a start is neither a name nor a callable.
        InputError: ``batch`` is no axis.
        OptimizeError: an optimisation that is asked for is not known.
        BackendError: a backend that is asked for is not known, or cannot run here.
    """

    preset: str | Preset = "evidence"
    _: KW_ONLY
    rules: Mapping[Any, Rule] | None = None
    split: str | SplitRule | None = None
    identity_skips: bool = True
    start: str | Start = AUTO
    output: Any = None
    checkpoints: Sequence[str] = ()
    example_inputs: InitVar[Any] = None
    backend: str | None = None
    differentiable: bool = False
    optimize: bool | Sequence[str] = True
    verify: str = "first"
    batch: int | Mapping[str, int] | None = 0
    memory: str | None = None
    precision: str = "full"

    def __post_init__(self, example_inputs: Any) -> None:
        check_preset(self.chosen_preset)
        if not isinstance(self.rules, Mapping | None):
            raise RuleError(f"rules={self.rules!r}: give a dict, from names, types or conditions to rules")
        if isinstance(self.checkpoints, str | Tensor) or not isinstance(self.checkpoints, Collection):
            raise PatternError(f"checkpoints={self.checkpoints!r}: give the names of modules, such as ['layer3']")
        for key, rule in (self.rules or {}).items():
            override(key, rule)
        # What a name stands for is found once, and so are errors in it.
        _ = self.chosen_split, self.chosen_start, self.optimizations, self.items
        backend_named(self.backend)
        if not isinstance(self.verify, str) or self.verify not in MODES:
            raise RuleError(f"verify={self.verify!r}: choose one of {', '.join(map(repr, MODES))}")
        if not isinstance(self.precision, str) or self.precision not in PRECISIONS:
            raise RuleError(f"precision={self.precision!r}: choose one of {', '.join(map(repr, PRECISIONS))}")
        if self.memory is not None and not (isinstance(self.memory, str) and self.memory == LOW):
            raise RuleError(f"memory={self.memory!r}: give 'low', or leave it out")
        if self.memory == LOW and self.backend not in (None, "eager"):
            raise BackendError(f"memory='low' is for backend='eager': {self.backend!r} decides itself what it holds")

    def __getstate__(self) -> dict[str, Any]:
        # What was found from names is found again.
        return {name: vars(self)[name] for name in self.__dataclass_fields__ if name in vars(self)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Recipe:
        return self  # it cannot change

    @cached_property
    def chosen_preset(self) -> Preset:
        """The preset that ``preset`` names."""
        return preset_named(self.preset)

    @cached_property
    def chosen_split(self) -> SplitRule | None:
        """The split that ``split`` names; ``None``: the preset's."""
        if self.split is None or isinstance(self.split, SplitRule):
            return self.split
        if not isinstance(self.split, str) or self.split not in SPLITS:
            raise RuleError(f"split={self.split!r}: choose one of {', '.join(map(repr, SPLITS))}, or give a split rule")
        return SPLITS[self.split]

    @cached_property
    def chosen_start(self) -> Start | nn.Module | None:
        """The start that ``start`` names; a caller's own is checked each time it is used; ``None``: what fits."""
        if isinstance(self.start, str):
            if self.start == AUTO:
                return None
            if self.start not in STARTS:
                names = ", ".join(map(repr, [AUTO, *STARTS]))
                raise StartError(f"start={self.start!r}: choose one of {names}, or give a callable")
            return STARTS[self.start]
        if not callable(self.start):
            raise StartError(f"start= must be a name or a callable (output, target) -> relevance, not {self.start!r}")
        return CustomStart(self.start)

    @cached_property
    def optimizations(self) -> tuple[str, ...]:
        """The names of the optimisations that ``optimize`` means."""
        return chosen(self.optimize)

    @cached_property
    def items(self) -> Items:
        """What ``batch`` means."""
        return Items.of(self.batch)

    def new_backend(self) -> Backend:
        """A backend that has compiled nothing yet."""
        return backend_named(self.backend)

    def check(self, model: nn.Module) -> None:
        """Raise where this cannot be asked of ``model``, whatever its graph turns out to be.

        Raises:
            CaptureError, TrainingModeError: the model cannot be captured as it is.
            PatternError: a checkpoint is no module of it.
        """
        check_model(model)
        modules = dict(model.named_modules())
        for name in self.checkpoints:
            if not isinstance(name, str) or name not in modules:
                hint = did_you_mean(str(name), modules, cutoff=0.7)
                raise PatternError(f"checkpoint {name!r} is no module of this model{hint}")
