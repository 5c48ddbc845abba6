"""A picture as DOT text, the language of Graphviz.

Written here, not by a library, so that the text is there without Graphviz.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from fxlrp.views.draw.picture import RELEVANCE, Arrow, Picture, Role, Thing, Way, call_name

# Okabe and Ito's palette (2008), which colour-blind readers can tell apart, and tints of it.
_INK, _GREY = "#333333", "#8C8C8C"
_BLUE, _ORANGE, _VERMILLION, _GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
_BLUE_TINT, _ORANGE_TINT, _VERMILLION_TINT, _GREEN_TINT = "#DCEEF9", "#FCEFD0", "#F9D9C4", "#CFEDE3"
_YELLOW, _PURPLE = "#F0E442", "#CC79A7"

_ABSORBS = {"color": _PURPLE, "penwidth": "3"}
_WORTH_TELLING = 5e-5
"""What is absorbed is told from this share of what entered on, which is 0.01 %, rounded."""

_THIN, _THICK = 0.4, 7.0
"""The width of an arrow without relevance, and what all of it adds."""

_SHAPES: dict[Role, dict[str, str]] = {
    Role.INPUT: {"shape": "oval", "style": "filled", "fillcolor": _GREEN_TINT, "color": _GREEN},
    Role.OUTPUT: {"shape": "oval", "style": "filled", "fillcolor": _GREEN_TINT, "color": _GREEN},
    Role.OPERATION: {"shape": "box", "style": "filled", "fillcolor": "white", "color": _GREY},
    Role.LAYER: {"shape": "box", "style": "filled", "fillcolor": _BLUE_TINT, "color": _BLUE},
    Role.JOIN: {"shape": "hexagon", "style": "filled", "fillcolor": _YELLOW, "color": _INK, "margin": "0.02,0.02"},
    Role.MODULE: {"shape": "box3d", "style": "filled", "fillcolor": _BLUE_TINT, "color": _BLUE, "margin": "0.2,0.1"},
    Role.START: {"shape": "oval", "style": "filled", "fillcolor": _VERMILLION_TINT, "color": _VERMILLION},
    Role.RULE: {"shape": "box", "style": "filled,rounded", "fillcolor": _ORANGE_TINT, "color": _ORANGE},
    Role.SPLIT: {"shape": "trapezium", "style": "filled", "fillcolor": _VERMILLION_TINT, "color": _VERMILLION,
                 "margin": "0.02,0.03"},
    Role.MOVE: {"shape": "plaintext", "fontcolor": _VERMILLION, "fontsize": "9", "margin": "0.03", "height": "0.2"},
    Role.SUM: {"shape": "circle", "style": "filled", "fillcolor": "white", "color": _VERMILLION,
               "fixedsize": "true", "width": "0.24", "fontsize": "11"},
    Role.RULES: {"shape": "box", "style": "filled,rounded", "fillcolor": _ORANGE_TINT, "color": _ORANGE,
                 "peripheries": "2"},
    Role.RESULT: {"shape": "oval", "style": "filled", "fillcolor": _VERMILLION_TINT, "color": _VERMILLION},
}  # fmt: skip

_LINES: dict[Way, dict[str, str]] = {
    Way.VALUE: {"color": _INK, "weight": "4"},
    Way.RESIDUAL: {"color": _INK, "weight": "4"},
    Way.SKIP: {"color": _BLUE, "style": "dashed", "penwidth": "2"},
    Way.RELEVANCE: {"color": _VERMILLION, "weight": "2"},
    Way.RELEVANCE_SKIP: {"color": _VERMILLION, "style": "dashed", "penwidth": "2"},
    Way.OF: {"color": _GREY, "style": "dotted", "arrowhead": "none", "minlen": "0", "weight": "8"},
}

_MEANINGS: tuple[tuple[Role, str, str], ...] = (
    (Role.LAYER, "name", "a linear operation"),
    (Role.OPERATION, "name", "any other operation"),
    (Role.JOIN, "add", "a join of two branches, and its kind"),
    (Role.MODULE, "path", "a module, drawn closed"),
    (Role.RULE, "rule", "the rule of an operation"),
    (Role.RULES, "rules", "the rules inside a closed module"),
    (Role.SPLIT, "split", "a join's relevance, shared out"),
    (Role.MOVE, "moved back", "relevance goes back to where values came from"),
    (Role.SUM, "Σ", "relevance of a value with several readers"),
)

_LINE_MEANINGS: tuple[tuple[Way, str], ...] = (
    (Way.VALUE, "values"),
    (Way.SKIP, "the skip of a join"),
    (Way.RELEVANCE, "relevance"),
    (Way.RELEVANCE_SKIP, "relevance of the skip"),
    (Way.OF, "an operation and its rule"),
)


def dot_text(picture: Picture, name: str) -> str:
    """The picture as DOT text; ``name`` is its title."""
    both = len({thing.role in RELEVANCE for thing in picture.things.values()}) == 2
    return "\n".join(
        [
            f"digraph {quote(name)} {{",
            f"  graph [{_attributes(_GRAPH | {'tooltip': name})}];",
            f"  node [{_attributes(_NODE)}];",
            f"  edge [{_attributes(_EDGE)}];",
            *_Clusters(picture).lines(),
            *(f"  {_arrow(arrow, picture.shares.get(arrow), backwards=both)}" for arrow in picture.arrows),
            *_legend(picture),
            "}\n",
        ]
    )


_FONT = "Helvetica,Arial,sans-serif"
_GRAPH = {"rankdir": "TB", "nodesep": "0.22", "ranksep": "0.28", "fontname": _FONT}
_CLUSTER = {"style": "rounded", "color": "#BBBBBB", "fontcolor": "#555555", "fontsize": "10", "labeljust": "l"}
_NODE = {"fontname": _FONT, "fontsize": "10", "height": "0.3", "width": "0.5", "margin": "0.1,0.05", "fontcolor": _INK}
_EDGE = {"arrowsize": "0.6", "fontname": _FONT, "fontsize": "9"}


def quote(text: str) -> str:
    """``text`` as a DOT string that stands for itself: quotes, backslashes, line breaks and entities are safe."""
    text = text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\r", "").replace("\n", "\\n") + '"'


def _attributes(values: dict[str, str]) -> str:
    return ", ".join(f"{name}={quote(value)}" for name, value in values.items() if value)


class _Clusters:
    """Things inside the boxes of their modules, modules inside modules."""

    def __init__(self, picture: Picture) -> None:
        self.things = list(picture.things.values())
        forward = [thing for thing in self.things if thing.role not in RELEVANCE]
        counted = forward or self.things
        self.sizes = Counter(call for thing in counted for call in thing.origin.calls)

    def lines(self) -> Iterator[str]:
        """The statements for all things; every cluster is written once."""
        tree = _Branch()
        for thing in self.things:
            branch = tree
            for call, (path, kind) in zip(thing.origin.calls, thing.origin.modules, strict=True):
                if self.sizes[call] > 1:  # a box around one thing says nothing
                    branch = branch.inside.setdefault(call, _Branch(path, call, kind.__name__))
            branch.things.append(thing)
        yield from tree.lines("  ", "")


class _Branch:
    """A module's own things and the modules inside it."""

    def __init__(self, path: str = "", call: str = "", kind: str = "") -> None:
        self.path, self.call, self.kind = path, call, kind
        self.things: list[Thing] = []
        self.inside: dict[str, _Branch] = {}

    def lines(self, indent: str, around: str) -> Iterator[str]:
        for thing in self.things:
            yield f"{indent}{_thing(thing, around)}"
        for branch in self.inside.values():
            yield f"{indent}subgraph {quote(f'cluster {branch.call}')} {{"
            label = f"{call_name(branch.call, branch.path)}  {branch.kind}"
            yield f"{indent}  graph [{_attributes(_CLUSTER | {'label': label, 'tooltip': label})}];"
            yield from branch.lines(indent + "  ", branch.path)
            yield f"{indent}}}"


def _thing(thing: Thing, around: str) -> str:
    """The statement of one thing, its path shortened to what the cluster ``around`` does not say."""
    title = thing.title.removeprefix(f"{around}.") if around else thing.title
    absorbs = _absorbs(thing)
    kept = f"absorbs {100 * thing.absorbed:.2f} %" if absorbs else ""
    label = "\n".join(line for line in (title, thing.detail, thing.shares, kept) if line)
    look = _SHAPES[thing.role] | (_ABSORBS if absorbs else {})
    return f"{quote(thing.name)} [{_attributes({'label': label, 'tooltip': thing.tooltip} | look)}];"


def _absorbs(thing: Thing) -> bool:
    return abs(thing.absorbed) >= _WORTH_TELLING


def _arrow(arrow: Arrow, share: float | None, *, backwards: bool) -> str:
    """One arrow, as thick as its share; relevance beside the forward part points upwards, to higher ranks."""
    attributes = dict(_LINES[arrow.way])
    if share is not None:
        attributes |= {"penwidth": f"{_THIN + _THICK * min(abs(share), 1):.2f}", "tooltip": f"{100 * share:.2f} %"}
    source, target = arrow.source, arrow.target
    if backwards and arrow.way in (Way.RELEVANCE, Way.RELEVANCE_SKIP):
        source, target = target, source
        attributes["dir"] = "back"
    return f"{quote(source)} -> {quote(target)} [{_attributes(attributes)}];"


def _legend(picture: Picture) -> Iterator[str]:
    """A cluster that explains the shapes and lines that occur, and only those."""
    roles = {thing.role for thing in picture.things.values()}
    ways = {arrow.way for arrow in picture.arrows}
    weighed = {arrow.way for arrow in picture.shares}
    hidden = {"style": "invis"}
    entries = [
        (role.value, {"label": sample} | _SHAPES[role], meaning, hidden)
        for role, sample, meaning in _MEANINGS if role in roles
    ]  # fmt: skip
    if any(map(_absorbs, picture.things.values())):
        look = {"label": "absorbs 1 %"} | _SHAPES[Role.RULE] | _ABSORBS
        entries.append(("absorbs", look, "keeps a share of what entered", hidden))
    for way, meaning in _LINE_MEANINGS:
        if way in ways:
            told = f"{meaning}: the thicker the more" if way in weighed else meaning
            entries.append((way.value, {"shape": "point"} | hidden, told, _LINES[way]))
    yield f"  subgraph {quote('cluster_legend')} {{"
    yield f"    label=legend; style=filled; color={quote('#F7F7F7')}; fontsize=11;"
    for name, look, meaning, line in entries:
        sample, text = f"legend {name}", f"legend {name} meaning"
        yield f"    {quote(sample)} [{_attributes(look)}];"
        yield f"    {_legend_text(text, meaning)}"
        yield f"    {_beside(sample, text, line)}"
    for above, below in pairwise(entries):
        yield f"    {quote(f'legend {above[0]}')} -> {quote(f'legend {below[0]}')} [style=invis];"
    yield "  }"


def _legend_text(name: str, text: str) -> str:
    return f"{quote(name)} [{_attributes({'label': text, 'shape': 'plaintext', 'fontsize': '9'})}];"


def _beside(left: str, right: str, line: dict[str, str]) -> str:
    return f"{{rank=same; {quote(left)} -> {quote(right)} [{_attributes(line | {'minlen': '1'})}];}}"
