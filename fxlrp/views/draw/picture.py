"""A picture: things, the arrows between them, and the modules that they lie in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from fxlrp.passes.facts import Origin


class Role(Enum):
    """What a thing is; it decides on shape and colour."""

    INPUT = "input"
    OUTPUT = "output"
    OPERATION = "operation"
    LAYER = "layer"
    JOIN = "join"
    MODULE = "module"
    START = "start"
    RULE = "rule"
    SPLIT = "split"
    MOVE = "move"
    SUM = "sum"
    RULES = "rules"
    RESULT = "result"


RELEVANCE = frozenset({Role.START, Role.RULE, Role.SPLIT, Role.MOVE, Role.SUM, Role.RULES, Role.RESULT})
"""The roles of the relevance part."""


class Way(Enum):
    """What an arrow carries."""

    VALUE = "value"
    SKIP = "skip"
    RESIDUAL = "residual"
    RELEVANCE = "relevance"
    RELEVANCE_SKIP = "relevance of a skip"
    OF = "of"
    """No flow: from a forward thing to the rule that belongs to it."""


START = "the start"
"""Who hands the output its relevance; a space keeps it apart from the names of nodes, which are identifiers."""


class Handing(NamedTuple):
    """Relevance that one node hands another; both are nodes of the forward graph, by name.

    Attributes:
        value: whose relevance it is.
        reader: who hands it, or :data:`START`; ``""``: all readers together.
    """

    value: str
    reader: str = ""


@dataclass
class Thing:
    """One node of the picture.

    Attributes:
        name: unique in the picture.
        role: what it is.
        title: the first line of its label; a module path, or the name of what it does.
        detail: the second line; may be empty.
        tooltip: what a reader sees who points at it.
        origin: the modules around it.
        of: the forward thing that it belongs to.
        node: the forward node that it is, or whose rule it is.
        branches: of a join or its split, the forward nodes of skip and residual.
        shares: of those, what is to be said of the shares that each gets, where they are known.
        absorbed: how much relevance it keeps, as a share of what entered, where that is known.
    """

    name: str
    role: Role
    title: str
    detail: str = ""
    tooltip: str = ""
    origin: Origin = field(default_factory=Origin)
    of: str | None = None
    node: str = ""
    branches: tuple[str, str] = ("", "")
    shares: str = ""
    absorbed: float = 0.0


@dataclass(frozen=True)
class Arrow:
    """One arrow, in the direction in which the value or the relevance goes."""

    source: str
    target: str
    way: Way


class Picture:
    """Things by name and the arrows between them, each in the order in which they were added.

    Attributes:
        things: by name.
        arrows: each with the relevance that flows along it, the other way round for an arrow of values.
        shares: how much that is, as a share of what entered, where it is known.
    """

    def __init__(self) -> None:
        self.things: dict[str, Thing] = {}
        self.arrows: dict[Arrow, set[Handing]] = {}
        self.shares: dict[Arrow, float] = {}

    def add(self, thing: Thing) -> None:
        """Add a thing."""
        self.things[thing.name] = thing

    def link(self, source: str, target: str, way: Way, handings: Iterable[Handing] = ()) -> None:
        """Add an arrow, once; a thing does not point at itself."""
        if source != target:
            self.arrows.setdefault(Arrow(source, target, way), set()).update(handings)


def collapse(picture: Picture, depth: int) -> Picture:
    """The same picture with every module at ``depth`` that holds other modules drawn as one box.

    What a box does with relevance is one box as well.
    """
    closed = {thing.origin.calls[depth - 1] for thing in picture.things.values() if len(thing.origin.calls) > depth}
    homes: dict[str, str] = {}
    """From the name of a thing to the name of what it is drawn as."""
    for thing in picture.things.values():
        calls = thing.origin.calls[:depth]
        inside = len(calls) == depth and calls[-1] in closed and thing.role is not Role.SUM
        homes[thing.name] = f"{_part(thing)} of {calls[-1]}" if inside else thing.name
    _close_sums(picture, homes, closed, depth)
    contents: dict[str, list[Thing]] = {}
    for thing in picture.things.values():
        contents.setdefault(homes[thing.name], []).append(thing)
    small = Picture()
    for name, things in contents.items():
        box = _box(name, things, depth) if name not in picture.things else replace(things[0])
        if box.role is Role.SUM:  # the value that it belongs to may be inside a box
            box.origin = _cut(box.origin, depth, closed)
        small.add(box)
    for arrow, handings in picture.arrows.items():
        source, target = small.things[homes[arrow.source]], small.things[homes[arrow.target]]
        if arrow.way is not Way.OF or target.of == source.name:
            small.link(source.name, target.name, _shown(arrow.way, source, target), handings)
    return small


def call_name(call: str, path: str) -> str:
    """The module's path, and which call it is where that is not the first."""
    return call if call.startswith(path) else path


def _part(thing: Thing) -> str:
    return "rules" if thing.role in RELEVANCE else "module"


def _close_sums(picture: Picture, homes: dict[str, str], closed: set[str], depth: int) -> None:
    """Draw a sum only where what it adds comes from different things, none of them its own box."""
    sources: dict[str, set[str]] = {name: set() for name, thing in picture.things.items() if thing.role is Role.SUM}
    for arrow in picture.arrows:
        if arrow.target in sources and arrow.way is not Way.OF:
            sources[arrow.target].add(arrow.source)
    # Things are in the order in which relevance is computed, so a sum of sums comes late.
    for name, added in sources.items():
        boxes = {homes[source] for source in added}
        calls = picture.things[name].origin.calls[:depth]
        own = f"rules of {calls[-1]}" if len(calls) == depth and calls[-1] in closed else ""
        only = next(iter(boxes)) if len(boxes) == 1 else ""
        if own in boxes:
            homes[name] = own
        elif only and only not in picture.things:
            homes[name] = only


def _cut(origin: Origin, depth: int, closed: set[str]) -> Origin:
    """``origin`` without the modules that are drawn as a box."""
    if len(origin.calls) < depth or origin.calls[depth - 1] not in closed:
        return origin
    return replace(origin, modules=origin.modules[: depth - 1], calls=origin.calls[: depth - 1])


def _shown(way: Way, source: Thing, target: Thing) -> Way:
    """Skip and residual mean something only at a join that is drawn."""
    if way in (Way.SKIP, Way.RESIDUAL) and target.role is not Role.JOIN:
        return Way.VALUE
    if way is Way.RELEVANCE_SKIP and source.role is not Role.SPLIT:
        return Way.RELEVANCE
    return way


def _box(name: str, things: list[Thing], depth: int) -> Thing:
    """One box for ``things``, all of one module."""
    origin = next(thing.origin for thing in things if thing.role is not Role.SUM)
    call, (path, kind) = origin.calls[depth - 1], origin.modules[depth - 1]
    title = call_name(call, path)
    around = _cut(origin, depth, {call})
    absorbed = sum(thing.absorbed for thing in things)
    if things[0].role not in RELEVANCE:
        joins = sum(thing.role is Role.JOIN for thing in things)
        detail = f"{kind.__name__}, {joins} join{'s' * (joins > 1)}" if joins else kind.__name__
        tooltip = f"{title}: {kind.__name__}, {len(things)} operations"
        return Thing(name, Role.MODULE, title, detail, tooltip, around, absorbed=absorbed)
    rules = Counter(_rule(thing) for thing in things if thing.role in (Role.RULE, Role.SPLIT, Role.RULES))
    lines = [f"{count} × {rule}" if count > 1 else rule for rule, count in rules.items()] or ["moved back"]
    tooltip = "\n".join([f"{title}: {kind.__name__}", *lines])
    shared = [thing.shares for thing in things if thing.shares]
    return Thing(
        name, Role.RULES, lines[0], "\n".join(lines[1:]), tooltip, around, of=f"module of {call}",
        shares=shared[0] if len(shared) == 1 else "", absorbed=absorbed,
    )  # fmt: skip


def _rule(thing: Thing) -> str:
    """The name of the rule: what its label says last."""
    return thing.detail.split("\n")[-1] or thing.title
