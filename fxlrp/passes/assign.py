"""Assign: one rule for every node that relevance passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import fx, nn

from fxlrp.common.errors import PatternError, RuleError
from fxlrp.passes.base import Pass, check
from fxlrp.passes.facts import Facts, facts, operation_of
from fxlrp.passes.joins import IDENTITY, JoinKind
from fxlrp.passes.layers import channels
from fxlrp.presets import Preset
from fxlrp.rules.gate import GateRule
from fxlrp.rules.gradient import Gradient, ReLUDeconvNet, ReLUGuidedBackprop
from fxlrp.rules.linear import LinearRule
from fxlrp.rules.normalisation import Fold, NormEpsilon
from fxlrp.rules.product import ProductRule, SoftmaxTaylor
from fxlrp.rules.recurrent import Recurrent
from fxlrp.rules.rule import Pass as PassRule
from fxlrp.rules.rule import Rule
from fxlrp.rules.selection import SelectionRule
from fxlrp.rules.split import ResidualOnly, SplitRule
from fxlrp.vocabulary import VOCABULARY, Kind

ACCEPTED: dict[Kind, tuple[type[Rule], ...]] = {
    Kind.LINEAR: (LinearRule,),
    Kind.SELECTION: (SelectionRule,),
    Kind.JOIN: (SplitRule,),
    Kind.GATE: (GateRule,),
    Kind.PRODUCT: (ProductRule,),
    Kind.RECURRENT: (Recurrent,),
    Kind.POINTWISE: (PassRule,),
    Kind.NORMALISATION: (PassRule, NormEpsilon),
}
"""The families of rules that each kind of operation takes; every one also takes ``Gradient``."""

OWN: dict[str, tuple[type[Rule], ...]] = {
    "softmax": (SoftmaxTaylor,),
    "relu": (ReLUGuidedBackprop, ReLUDeconvNet),
    "batch_norm": (Fold,),
}
"""Rules for one operation, by its name."""


def accepted(known: Facts) -> tuple[type[Rule], ...]:
    """The families of rules that a node takes."""
    return (*ACCEPTED[known.kind], *OWN.get(name_of(known), ()), Gradient)


def name_of(known: Facts) -> str:
    """The name of a node's operation."""
    return "" if known.operation is None else known.operation.name


@dataclass
class Override:
    """A rule for what a name pattern, a module type, an operation or a kind of join matches.

    Attributes:
        key: as the caller gave it.
        rule: the rule.
        rank: the more specific the larger; of equal ranks the later one wins.
        matches: whether a node is meant.
    """

    key: Any
    rule: Rule
    rank: tuple[int, int]
    matches: Callable[[fx.Node], bool]


class Assign(Pass):
    """Chooses the rule of every node: the caller's override, the preset's, or the preset's default.

    Requires joins to be known; ensures that every node that carries signal has a rule
    that its kind takes.
    """

    def __init__(
        self, preset: Preset, rules: Mapping[Any, Rule] | None = None, *,
        split: SplitRule | None = None, identity_skips: bool = True,
    ) -> None:
        self.preset = preset
        self.split = split or preset.split
        self.identity_skips = identity_skips
        self.asked = [override(key, rule) for key, rule in (rules or {}).items()]
        self.preset_rules = [override(key, rule) for key, rule in preset.rules.items()]

    def requires(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            check(facts(node).kind is not Kind.JOIN or facts(node).join is not None, f"{node}: find joins first")

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        nodes = [n for n in module.graph.nodes if n.op == "call_function" and facts(n).kind in ACCEPTED]
        check_overrides(self.asked, nodes)
        for node in nodes:
            known = facts(node)
            known.rule, known.reason = self._choose(node, known)
            size = channels(node, module)
            if isinstance(known.rule, LinearRule) and size is not None:
                known.rule.check_channels(size)
        return module

    def ensures(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            known = facts(node)
            if node.op == "call_function" and known.kind in ACCEPTED:
                check(isinstance(known.rule, accepted(known)), f"{node} has no rule of its kind")

    def _choose(self, node: fx.Node, known: Facts) -> tuple[Rule, str]:
        for overrides, reason in ((self.asked, "rules"), (self.preset_rules, f"preset {self.preset.name}")):
            fitting = [o for o in overrides if isinstance(o.rule, accepted(known)) and o.matches(node)]
            if fitting:
                best = max(reversed(fitting), key=lambda o: o.rank)
                return best.rule, f"{reason}: {_spelled(best.key)}"
        return self._default(known)

    def _default(self, known: Facts) -> tuple[Rule, str]:
        reason = f"preset {self.preset.name}"
        if known.kind is Kind.JOIN:
            if known.join.kind == IDENTITY and not self.identity_skips:
                return ResidualOnly(), "identity_skips=False"
            return self.split, reason if self.split is self.preset.split else "split"
        if known.kind is Kind.LINEAR:
            return self._linear(known, reason)
        if known.kind is Kind.SELECTION:
            return self.preset.selection, reason
        if known.kind is Kind.GATE:
            return self.preset.gate, reason
        if known.kind is Kind.PRODUCT:
            return self.preset.product, reason
        if known.kind is Kind.RECURRENT:
            return self.preset.recurrent, reason
        if known.kind is Kind.NORMALISATION:
            return self.preset.batch_norm if name_of(known) == "batch_norm" else self.preset.norm, reason
        return self.preset.softmax if name_of(known) == "softmax" else self.preset.pointwise, reason

    def _linear(self, known: Facts, reason: str) -> tuple[Rule, str]:
        preset, late = self.preset, self.preset.late
        convolution = name_of(known).startswith("conv")
        if known.first and convolution and preset.first_convolution is not None:
            return preset.first_convolution, f"{reason}: first layer"
        if known.first and preset.first is not None:
            return preset.first, f"{reason}: first layer"
        if late is not None and known.after_joins >= late[0]:
            return late[1], f"{reason}: after join {late[0]}"
        if convolution and preset.convolution is not None:
            return preset.convolution, f"{reason}: convolution"
        if not operation_of(known).parametric and preset.pooling is not None:
            return preset.pooling, f"{reason}: pooling"
        return preset.linear, reason


def override(key: Any, rule: Rule) -> Override:
    """Understand one entry of ``rules``.

    Raises:
        RuleError: the rule is none.
        PatternError: the key is no name, module type, known operation or kind of join.
    """
    if not isinstance(rule, Rule):
        raise RuleError(f"rules[{key!r}] must be a rule of fxlrp.rules, not {rule!r}")
    if isinstance(key, JoinKind):
        return Override(key, rule, (2, 0), lambda n: facts(n).join is not None and facts(n).join.kind == key.value)
    if isinstance(key, str):
        wild = any(c in key for c in "*?[")
        literal = len(key) - sum(key.count(c) for c in "*?[]")
        return Override(key, rule, (3 if wild else 4, literal), lambda n: matches_name(n, key, wild=wild))
    if isinstance(key, type) and issubclass(key, nn.Module):
        derived = len(key.__mro__)  # a type is more specific than those that it is derived from
        return Override(key, rule, (1, derived), lambda n: any(issubclass(t, key) for _, t in facts(n).origin.modules))
    operation = VOCABULARY.function(key)
    if operation is None:
        raise PatternError(
            f"rules[{key!r}]: a key is a module name or pattern, a module type, a known operation, or a kind of join"
        )
    return Override(key, rule, (2, 0), lambda n: facts(n).operation is operation)


def matches_name(node: fx.Node, pattern: str, *, wild: bool) -> bool:
    """Whether the node, or a module around it, has this name."""
    names = [node.name, *(path for path, _ in facts(node).origin.modules)]
    return any(fnmatchcase(name, pattern) if wild else name == pattern for name in names)


FIELDS: dict[str, tuple[type[Rule], ...]] = {
    **dict.fromkeys(("linear", "convolution", "pooling", "first", "first_convolution"), ACCEPTED[Kind.LINEAR]),
    "selection": ACCEPTED[Kind.SELECTION],
    "split": ACCEPTED[Kind.JOIN],
    "gate": ACCEPTED[Kind.GATE],
    "product": ACCEPTED[Kind.PRODUCT],
    "recurrent": ACCEPTED[Kind.RECURRENT],
    "norm": ACCEPTED[Kind.NORMALISATION],
    "batch_norm": (*ACCEPTED[Kind.NORMALISATION], *OWN["batch_norm"]),
    "softmax": (*ACCEPTED[Kind.POINTWISE], *OWN["softmax"]),
    "pointwise": ACCEPTED[Kind.POINTWISE],
}
"""The families of rules that each field of a preset takes; every one also takes ``Gradient``."""


def check_preset(preset: Preset) -> None:
    """Raise where a preset has a rule that what it is for cannot take.

    Raises:
        RuleError: a rule is of another family.
        PatternError: a key of its own rules means nothing.
    """
    asked = {name: getattr(preset, name) for name in FIELDS}
    if preset.late is not None:
        asked["late"] = preset.late[1]
    for name, rule in asked.items():
        families = FIELDS.get(name, FIELDS["linear"])
        optional = name in ("convolution", "pooling", "first", "first_convolution")
        if not (isinstance(rule, (*families, Gradient)) or (optional and rule is None)):
            takes = " or a ".join(family.__name__ for family in families)
            raise RuleError(f"preset {preset.name}: {name}={rule!r}, and {name} takes a {takes}")
    for key, rule in preset.rules.items():
        override(key, rule)


def _spelled(key: Any) -> str:
    """A key for reading: a type or function by its name, not its address."""
    name = getattr(key, "__name__", None)
    return name if isinstance(name, str) else repr(key)


def check_overrides(overrides: list[Override], nodes: list[fx.Node]) -> None:
    """Raise where an override matches nothing, or nothing that takes its rule."""
    for wanted in overrides:
        matched = [node for node in nodes if wanted.matches(node)]
        if not matched:
            raise PatternError(f"rules[{_spelled(wanted.key)}] matches nothing in the model; {_known_names(nodes)}")
        if not any(isinstance(wanted.rule, accepted(facts(node))) for node in matched):
            kinds = ", ".join(sorted({str(facts(node).kind) for node in matched}))
            raise RuleError(
                f"rules[{_spelled(wanted.key)}] = {wanted.rule!r} cannot be taken by what it matches ({kinds}): "
                + "; ".join(f"{kind} takes a {rules[0].__name__}" for kind, rules in ACCEPTED.items())
            )


def _known_names(nodes: list[fx.Node]) -> str:
    names = list(dict.fromkeys(path for node in nodes for path, _ in facts(node).origin.modules[:1]))
    shown = ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")
    return f"its modules are {shown}" if names else "it has no named modules"
