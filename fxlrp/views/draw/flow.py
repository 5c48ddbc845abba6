"""Relevance in a picture: how much flows along each arrow, and stays in each thing, as a ledger has it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from fxlrp.common.errors import DrawError
from fxlrp.results.ledger import Ledger, Row
from fxlrp.rules.rule import CONDITION
from fxlrp.views.draw.picture import RELEVANCE, START, Handing, Picture, Role, Thing, Way


class Flow:
    """A ledger by who hands what to whom.

    Attributes:
        share: from an amount, (batch,), to the share that it is of what entered.

    Args:
        ledger: the accounts of all nodes.
        nodes: the names of the nodes that there are.

    Raises:
        DrawError: the ledger is of another model, or of no relevance at all.
    """

    def __init__(self, ledger: Ledger, nodes: Collection[str]) -> None:
        strangers = [row.node for row in ledger if row.node not in nodes]
        if strangers:
            raise DrawError(f"the ledger is of another model: there is no {strangers[0]} in this one")
        if not bool(ledger.start.any()):
            raise DrawError("no relevance entered, so that nothing flows: explain another class, or another start")
        self.share = ledger.share
        self._start = ledger.start
        rows = [row for row in ledger if row.kind != CONDITION]  # a condition is no node, and not drawn
        self._rows = {row.node: row for row in rows}
        self._handed: defaultdict[Handing, float] = defaultdict(float)
        self._arrived: defaultdict[str, float] = defaultdict(float)
        for row in rows:
            for value, amount in row.to.items():
                self._handed[Handing(value, row.node)] += self.share(amount)
                self._arrived[value] += self.share(amount)

    def row(self, node: str) -> Row | None:
        """The account of a node, where it has one."""
        return self._rows.get(node)

    def along(self, handing: Handing) -> float:
        """What is handed over, as a share of what entered."""
        if handing.reader == START:
            return self.share(self._start)
        return self._handed[handing] if handing.reader else self._arrived[handing.value]


def mark(picture: Picture, flow: Flow) -> None:
    """Tell of each thing what it receives and keeps, and of each split its shares; before modules are closed."""
    relevance = any(thing.role in RELEVANCE for thing in picture.things.values())
    for thing in picture.things.values():
        row = flow.row(thing.node)
        if row is None or (thing.role in RELEVANCE) != relevance:
            continue
        thing.absorbed = flow.share(row.absorbed)
        told = [f"received {_percent(flow.share(row.received))}"]
        if row.reason:
            told.append(f"absorbed {_percent(thing.absorbed)} ({row.reason})")
        if bool(row.rescaled.any()):
            told.append(f"rescaled {_percent(flow.share(row.rescaled))}")
        thing.tooltip += "\n" + ", ".join(told)
        if thing.role in (Role.SPLIT, Role.JOIN):
            _tell_branches(thing, row, flow)


def _tell_branches(thing: Thing, row: Row, flow: Flow) -> None:
    skip, residual = (row.to.get(name) for name in thing.branches)
    received = flow.share(row.received)
    if not received or thing.branches[0] == thing.branches[1]:
        return
    shares = [0.0 if amount is None else flow.share(amount) / received for amount in (skip, residual)]
    thing.shares = f"skip {shares[0]:.0%}, residual {shares[1]:.0%}"


def weigh(picture: Picture, flow: Flow) -> None:
    """Give each arrow its share: those of relevance where the picture has them, else those of values."""
    ways = {Way.RELEVANCE, Way.RELEVANCE_SKIP}
    if not any(arrow.way in ways for arrow in picture.arrows):
        ways = {Way.VALUE, Way.SKIP, Way.RESIDUAL}
    for arrow, handings in picture.arrows.items():
        if arrow.way in ways and handings:
            picture.shares[arrow] = sum(map(flow.along, handings))


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
