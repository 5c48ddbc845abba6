"""Assign: one rule for every node that relevance passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import fx, nn

from fxlrp.common.errors import PatternError, RuleError
from fxlrp.common.suggestions import did_you_mean
from fxlrp.passes.base import Pass, check
from fxlrp.passes.facts import Facts, facts, operation_of
from fxlrp.passes.joins import IDENTITY, JoinKind
from fxlrp.passes.layers import channels
from fxlrp.passes.windows import overlaps
from fxlrp.presets import Preset
from fxlrp.presets.preset import SERVED, SPACELESS, Served
from fxlrp.rules.rule import Rule, families
from fxlrp.rules.split import ResidualOnly, SplitRule
from fxlrp.rules.starts import OF_CLASSES
from fxlrp.vocabulary import VOCABULARY, Kind

RULED = frozenset(served.kind for served in SERVED.values())
"""The kinds of operation that have a rule: those that a preset has one for."""


def name_of(node_facts: Facts) -> str:
    """The name of a node's operation."""
    return "" if node_facts.operation is None else node_facts.operation.name


def fits(rule: Any, node_facts: Facts) -> bool:
    """Whether ``rule`` is one for a node."""
    return isinstance(rule, Rule) and rule.fits(node_facts.kind, name_of(node_facts))


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
        nodes = [n for n in module.graph.nodes if n.op == "call_function" and facts(n).kind in RULED]
        if any(facts(node).kind is Kind.PRODUCT for node in nodes):
            self._take_over(self.preset.attention)
            if any(facts(node).source is not None for node in module.graph.nodes if node.op == "call_function"):
                self._take_over(self.preset.tokens)
        if not any(operation_of(facts(node)).sees_pictures for node in nodes if facts(node).operation is not None):
            self._take_over(self.preset.without_pictures)
        check_overrides(self.asked, nodes)
        for node in nodes:
            node_facts = facts(node)
            node_facts.overlaps = overlaps(node, module)
            node_facts.rule, node_facts.reason = self._choose(node, node_facts)
            size = channels(node, module)
            if size is not None:
                node_facts.rule.check_channels(size)
        return module

    def ensures(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            node_facts = facts(node)
            if node.op == "call_function" and node_facts.kind in RULED:
                check(fits(node_facts.rule, node_facts), f"{node} has no rule of its kind")

    def _take_over(self, preset: Preset | None) -> None:
        """Let ``preset`` take the place of the present one, whose split the caller may have replaced."""
        if preset is None:
            return
        if self.split is self.preset.split:
            self.split = preset.split
        self.preset = preset
        self.preset_rules = [override(key, rule) for key, rule in preset.rules.items()]

    def _choose(self, node: fx.Node, node_facts: Facts) -> tuple[Rule, str]:
        for overrides, reason in ((self.asked, "rules"), (self.preset_rules, f"preset {self.preset.name}")):
            fitting = [o for o in overrides if fits(o.rule, node_facts) and o.matches(node)]
            if fitting:
                best = max(reversed(fitting), key=lambda o: o.rank)
                return best.rule, f"{reason}: {_spelled(best.key)}"
        return self._default(node_facts)

    def _default(self, node_facts: Facts) -> tuple[Rule, str]:
        reason = f"preset {self.preset.name}"
        if node_facts.kind is Kind.JOIN:
            if node_facts.join.kind == IDENTITY and not self.identity_skips:
                return ResidualOnly(), "identity_skips=False"
            return self.split, reason if self.split is self.preset.split else "split"
        if node_facts.kind is Kind.LINEAR:
            return self._linear(node_facts, reason)
        return self.preset.rule_of(node_facts.kind, name_of(node_facts)), reason

    def _linear(self, node_facts: Facts, reason: str) -> tuple[Rule, str]:
        preset, late = self.preset, self.preset.late
        convolution = operation_of(node_facts).is_convolution
        if node_facts.first and convolution and preset.first_convolution is not None:
            return preset.first_convolution, f"{reason}: first layer"
        if node_facts.classifier and preset.classifier is not None:
            return preset.classifier, f"{reason}: classifier"
        if node_facts.first and preset.first is not None:
            return preset.first, f"{reason}: first layer"
        if late is not None and node_facts.after_joins >= late[0]:
            return late[1], f"{reason}: after join {late[0]}"
        if preset.coarse is not None and node_facts.stride >= preset.coarse[0]:
            where = "without space" if preset.coarse[0] == SPACELESS else f"from stride {preset.coarse[0]} on"
            return preset.coarse[1], f"{reason}: {where}"
        if node_facts.overlaps and preset.overlapping is not None:
            return preset.overlapping, f"{reason}: overlapping windows"
        if node_facts.activated and preset.activated is not None:
            return preset.activated, f"{reason}: activated"
        if convolution and preset.convolution is not None:
            return preset.convolution, f"{reason}: convolution"
        if not node_facts.parametric and preset.pooling is not None:
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


def check_preset(preset: Preset) -> None:
    """Raise where a preset has a rule that what it is for cannot take.

    Raises:
        RuleError: a rule is of another family.
        PatternError: a key of its own rules means nothing.
    """
    asked = [(name, getattr(preset, name), served) for name, served in SERVED.items()]
    for name in ("late", "coarse"):
        if getattr(preset, name) is not None:
            asked.append((name, getattr(preset, name)[1], Served(Kind.LINEAR)))
    for name, rule, (kind, operation, optional) in asked:
        takes_it = isinstance(rule, Rule) and rule.fits(kind, operation)
        if not (takes_it or (optional and rule is None)):
            takes = " or a ".join(family.__name__ for family in families(kind, operation))
            raise RuleError(f"preset {preset.name}: {name}={rule!r}, and {name} takes a {takes}")
    for key, rule in preset.rules.items():
        override(key, rule)
    if preset.start not in OF_CLASSES:
        choices = " or ".join(map(repr, OF_CLASSES))
        raise RuleError(f"preset {preset.name}: start={preset.start!r}, and start takes {choices}")
    for other in (preset.attention, preset.tokens, preset.without_pictures):
        if other is not None:
            check_preset(other)


def _spelled(key: Any) -> str:
    """A key for reading: a type or function by its name, not its address."""
    name = getattr(key, "__name__", None)
    return name if isinstance(name, str) else repr(key)


def check_overrides(overrides: list[Override], nodes: list[fx.Node]) -> None:
    """Raise where an override matches nothing, or nothing that takes its rule."""
    for wanted in overrides:
        matched = [node for node in nodes if wanted.matches(node)]
        if not matched:
            known = _known_names(nodes, wanted.key)
            raise PatternError(f"rules[{_spelled(wanted.key)}] matches nothing in the model; {known}")
        if not any(fits(wanted.rule, facts(node)) for node in matched):
            kinds = ", ".join(sorted({str(facts(node).kind) for node in matched}))
            raise RuleError(
                f"rules[{_spelled(wanted.key)}] = {wanted.rule!r} cannot be taken by what it matches ({kinds}): "
                + "; ".join(f"{s.kind} takes a {families(s.kind)[0].__name__}" for s in _of_whole_kinds())
            )


def _of_whole_kinds() -> list[Served]:
    return [served for served in SERVED.values() if not served.operation and not served.optional]


def _known_names(nodes: list[fx.Node], key: Any) -> str:
    names = list(dict.fromkeys(path for node in nodes for path, _ in facts(node).origin.modules[:1]))
    shown = ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")
    every = {path for node in nodes for path, _ in facts(node).origin.modules}
    hint = did_you_mean(key, every) if isinstance(key, str) else ""
    return f"its modules are {shown}{hint}" if names else "it has no named modules"
