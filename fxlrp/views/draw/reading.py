"""Reading the picture off an explainer's graph.

The forward part is read from the nodes that have :class:`Facts`. The relevance part is
read from the steps that were really emitted, not from what the rules promise: an arrow
goes from one rule to the next where relevance computed by the one is an argument of the
other. What only passes relevance on (activations, normalisation) has no steps, and so
no place of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, NamedTuple

from torch import fx

from fxlrp.passes.facts import KEY, Emitted, Origin, facts, has_facts
from fxlrp.views.draw.picture import START, Handing, Picture, Role, Thing, Way
from fxlrp.vocabulary import Kind

_OUTPUT = "the output"


def picture_of(
    graph: fx.Graph, *, forward: bool = True, relevance: bool = True, shapes: Mapping[str, Sequence[int]] | None = None
) -> Picture:
    """The picture of an explainer's graph, or of one part of it.

    Args:
        graph: the explainer's, as it was emitted.
        forward: whether to draw the model.
        relevance: whether to draw its relevance.
        shapes: of the values of forward nodes, by name, as far as they are known.
    """
    picture = Picture()
    if forward:
        add_forward(picture, graph)
    if relevance:
        add_relevance(picture, graph, alone=not forward)
    for thing in picture.things.values():
        if thing.node in (shapes or {}):
            thing.tooltip += f"\nshape: {' × '.join(map(str, (shapes or {})[thing.node]))}"
        if thing.of in picture.things:
            picture.link(str(thing.of), thing.name, Way.OF)
    return picture


def operation_counts(graph: fx.Graph) -> Counter[str]:
    """How many operations each call of a module holds, those of the modules inside included."""
    return Counter(call for node in graph.nodes if _carries_signal(node) for call in _origin(node).calls)


def _carries_signal(node: fx.Node) -> bool:
    return has_facts(node) and facts(node).signal


def _origin(node: fx.Node) -> Origin:
    """Where a node comes from, the model itself left out of the modules around it."""
    origin = facts(node).origin
    inside = [(module, call) for module, call in zip(origin.modules, origin.calls, strict=True) if module[0]]
    return Origin(origin.path, tuple(module for module, _ in inside), tuple(call for _, call in inside), origin.source)


def _results(graph: fx.Graph) -> dict[str, Any]:
    results: Any = next(node for node in graph.nodes if node.op == "output").args[0]
    return dict(results)


def _nodes_in(structure: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(structure, found.append)
    return found


# The forward part ---------------------------------------------------------------------------


def add_forward(picture: Picture, graph: fx.Graph) -> None:
    """Inputs, the operations that carry signal, and what the model returns."""
    sizes = operation_counts(graph)
    for node in graph.nodes:
        if not _carries_signal(node):
            continue
        title, detail = _label(node, sizes)
        thing = Thing(node.name, _role(node), title, detail, _tooltip(node), _origin(node), node=node.name)
        picture.add(thing)
        join = facts(node).join
        if join is not None:
            thing.branches = join.skip, join.residual
        for source in filter(_carries_signal, node.all_input_nodes):
            if join is None or source.name not in (join.skip, join.residual):
                picture.link(source.name, node.name, Way.VALUE, [_handed_by(node, source)])
                continue
            # A value added to itself is both.
            for way, operand in ((Way.SKIP, join.skip), (Way.RESIDUAL, join.residual)):
                if source.name == operand:
                    picture.link(source.name, node.name, way, [_handed_by(node, source)])
    picture.add(Thing(_OUTPUT, Role.OUTPUT, "output", tooltip="what the model returns"))
    for node in filter(_carries_signal, _nodes_in(_results(graph).get("output"))):
        picture.link(node.name, _OUTPUT, Way.VALUE, [Handing(node.name, START)])


def _handed_by(reader: fx.Node, value: fx.Node) -> Handing:
    """What a reader hands one of its operands; a piece of a list hands on what it gets itself."""
    return Handing(reader.name) if reader.target is getitem else Handing(value.name, reader.name)


def _role(node: fx.Node) -> Role:
    roles = {Kind.INPUT: Role.INPUT, Kind.LINEAR: Role.LAYER, Kind.JOIN: Role.JOIN}
    return roles.get(facts(node).kind, Role.OPERATION)


def _label(node: fx.Node, sizes: Counter[str]) -> tuple[str, str]:
    """Two lines: the module where the node is all that it does, else the operation."""
    node_facts = facts(node)
    operation = node_facts.operation.name if node_facts.operation is not None else node.name
    calls = _origin(node).calls
    if node.op == "placeholder":
        return f"input {node.name}", ""
    if node.target is getitem:
        return f"[{node.args[1]}]", ""
    if node_facts.join is not None:
        return operation, node_facts.join.kind
    if calls and sizes[calls[-1]] == 1:
        path = node_facts.origin.path
        return path, operation if path.rpartition(".")[2] != operation else ""
    return operation, "gate" if node_facts.kind is Kind.GATE else ""


def _tooltip(node: fx.Node) -> str:
    node_facts = facts(node)
    lines = [node_facts.origin.path or "the model itself", f"{node.target} ({node_facts.kind})"]
    join = node_facts.join
    if join is not None:
        fork = f", fork: {join.fork}" if join.fork else ""
        lines.append(f"{join.kind} join, skip: {join.skip}, residual: {join.residual}{fork}")
    if node_facts.rule is not None:
        lines.append(f"rule: {node_facts.rule!r} ({node_facts.reason})")
    return "\n".join(lines)


# The relevance part -------------------------------------------------------------------------


class _Leaving(NamedTuple):
    """How relevance leaves a thing."""

    way: Way
    handings: frozenset[Handing]


@dataclass
class _Result:
    """Relevance that the explainer returns."""

    name: str
    of: str | None
    value: Any


def add_relevance(picture: Picture, graph: fx.Graph, *, alone: bool = False) -> None:
    """The start, a thing for every rule, split and move, the sums between them, and the results.

    Args:
        picture: what to add them to.
        graph: the explainer's.
        alone: name the operation as well, because the forward part is not there to say it.
    """
    _Flow(picture, graph, alone=alone).run()


class _Flow:
    """Groups the emitted steps by the forward node that they belong to, and links the groups."""

    def __init__(self, picture: Picture, graph: fx.Graph, *, alone: bool) -> None:
        self.picture = picture
        self.graph = graph
        self.alone = alone
        self.sizes = operation_counts(graph)
        self.forward = {node.name: node for node in graph.nodes if has_facts(node)}
        returned = _results(graph)
        *inputs, _ = (node for node in graph.nodes if node.op == "placeholder")  # the last one is the target
        self.relevance = [
            _Result(f"relevance of {node.name}", node.name, value)
            for node, value in zip(inputs, returned["relevance"], strict=True)
        ]
        self.checkpoints = [_Result(f"checkpoint {n}", None, value) for n, value in returned["checkpoints"].items()]
        self.carriers = self._carriers()
        self.came: dict[fx.Node, dict[str, _Leaving]] = {}
        """Of each step, the things that relevance leaves with it."""

    def run(self) -> None:
        for node in self.graph.nodes:
            if node in self.carriers:
                self.came[node] = self._place(node)
        for result in [*self.relevance, *self.checkpoints]:
            nodes = self._known(_nodes_in(result.value))
            if nodes:
                self.picture.add(Thing(result.name, Role.RESULT, result.name, tooltip=result.name, of=result.of))
                self._link(nodes, result.name)

    def _carriers(self) -> set[fx.Node]:
        """The steps on the ways from the start to the inputs."""
        leaving: set[fx.Node] = set()
        for node in self.graph.nodes:
            emitted = node.meta.get(KEY)
            if isinstance(emitted, Emitted) and (
                emitted.rule == "start" or any(source in leaving for source in node.all_input_nodes)
            ):
                leaving.add(node)
        arriving: set[fx.Node] = set()
        waiting = [node for result in self.relevance for node in _nodes_in(result.value)]
        while waiting:
            node = waiting.pop()
            if node in leaving and node not in arriving:
                arriving.add(node)
                waiting.extend(node.all_input_nodes)
        return arriving

    def _known(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """The carriers that ``nodes`` are made of: a checkpoint's own sum is on no way to an input."""
        seen: dict[fx.Node, None] = {}
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node in seen or not isinstance(node.meta.get(KEY), Emitted):
                continue
            seen[node] = None
            if node not in self.carriers:
                waiting.extend(node.all_input_nodes)
        return [node for node in seen if node in self.carriers]

    def _place(self, node: fx.Node) -> dict[str, _Leaving]:
        """Add the thing that ``node`` is a step of, and say what relevance leaves with the step."""
        emitted: Emitted = node.meta[KEY]
        sources = [source for source in node.all_input_nodes if source in self.carriers]
        group = START if emitted.rule == "start" else f"{emitted.rule} of {emitted.node}"
        if self._is_sum(node, sources, group):
            return {self._sum(node, sources): _Leaving(Way.RELEVANCE, frozenset({Handing(emitted.value)}))}
        if emitted.rule == "Pass":  # its one step fits a shape
            return {name: leaving for source in sources for name, leaving in self.came[source].items()}
        if group not in self.picture.things:
            self.picture.add(self._thing(group, emitted))
        self._link(sources, group)
        reader = START if emitted.rule == "start" else emitted.node
        handings = {Handing(emitted.value, reader)} if emitted.role == "relevance" else ()
        return {group: _Leaving(self._way_out(node, emitted), frozenset(handings))}

    def _thing(self, group: str, emitted: Emitted) -> Thing:
        if emitted.rule == "start":
            return Thing(group, Role.START, "start", "", "the relevance that enters at the output", of=_OUTPUT)
        node = self.forward.get(emitted.node)
        if node is None:  # optimised away, its rule was not
            return Thing(group, Role.RULE, emitted.rule, emitted.node, emitted.node)
        node_facts = facts(node)
        role = {Kind.JOIN: Role.SPLIT, Kind.ROUTING: Role.MOVE}.get(node_facts.kind, Role.RULE)
        rule = "moved back" if role is Role.MOVE else emitted.rule
        named = self.alone and role is not Role.SPLIT
        title, detail = (_label(node, self.sizes)[0], rule) if named else (rule, "")
        thing = Thing(group, role, title, detail, _tooltip(node), _origin(node), of=node.name, node=node.name)
        if node_facts.join is not None:
            thing.branches = node_facts.join.skip, node_facts.join.residual
        return thing

    def _is_sum(self, node: fx.Node, sources: list[fx.Node], group: str) -> bool:
        """Whether ``node`` adds up what two readers of a value hand it."""
        adds = getattr(node.target, "__name__", "").split(".")[0] in ("add", "iadd")
        if not adds or len(sources) != 2 or node.meta[KEY].role != "relevance":
            return False
        return any(set(self.came[source]) != {group} for source in sources)

    def _sum(self, node: fx.Node, sources: list[fx.Node]) -> str:
        label = node.meta[KEY].value
        value = self.forward.get(label)
        name = f"sum of {label}"  # three readers make two adds, and one sum
        if name not in self.picture.things:
            tooltip = f"the relevance of {label}: the sum of what its readers hand it"
            origin = _origin(value) if value is not None else Origin()
            self.picture.add(Thing(name, Role.SUM, "Σ", "", tooltip, origin, of=label))
        self._link(sources, name)
        return name

    def _way_out(self, node: fx.Node, emitted: Emitted) -> Way:
        reader = self.forward.get(emitted.node)
        join = facts(reader).join if reader is not None else None
        if join is None or join.skip == join.residual or emitted.rule == "start" or emitted.role != "relevance":
            return Way.RELEVANCE
        return Way.RELEVANCE_SKIP if emitted.value == join.skip else Way.RELEVANCE

    def _link(self, sources: Iterable[fx.Node], target: str) -> None:
        for source in sources:
            for name, leaving in self.came[source].items():
                self.picture.link(name, target, leaving.way, leaving.handings)
