"""How fast explanations are, beside autograd and other implementations."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator

import polars as pl

from benchmarks.methods import METHODS, YARDSTICK
from benchmarks.models import MODELS
from benchmarks.pages import Row, Section, grid, groups, in_order, ratio
from benchmarks.plots import draw_speed
from benchmarks.runs import Benchmark, every

WAYS = {
    "eager": ("fxlrp eager", "fxlrp channels-last"),
    "compiled": ("fxlrp inductor", "fxlrp cudagraphs"),
}
"""The default preset, by the way it runs."""

SAME_RULES = {
    "zennit EpsilonPlus": ("fxlrp channels-last epsilon_plus", "fxlrp inductor epsilon_plus"),
    "captum LRP": ("fxlrp channels-last epsilon", "fxlrp inductor epsilon"),
    "autolrp composite": ("fxlrp channels-last epsilon_plus", "fxlrp inductor epsilon_plus"),
    "lxt": ("fxlrp eager cp_lrp", "fxlrp inductor cp_lrp"),
}
"""By peer, the methods of fxlrp with the same rules."""

ROOFS = {
    "fxlrp eager": "forward",
    "fxlrp channels-last": "forward channels-last",
    "fxlrp inductor": "forward inductor",
    "fxlrp cudagraphs": "forward cudagraph",
}
"""By method of fxlrp, the forward pass of the same kind: three of these are the least that z⁺ takes."""

_PEERS = [name for name, method in METHODS.items() if method.kind == "peer"]
_EXPLAIN = [name for name, method in METHODS.items() if method.kind != "model"]


def sections(frame: pl.DataFrame) -> Iterator[Section]:
    """The page: per device the claims, and tables by batch."""
    frame = in_order(in_order(frame, "method", METHODS), "model", MODELS)
    for device, rows in groups(frame, "device_name").items():
        yield from _Device(device, rows).sections()


def quotient(row: Row | None, other: Row | None) -> float | None:
    """The time of one over that of another, each a multiple of its own run's autograd; ``None`` where one failed."""
    if row is None or other is None or row["status"] != "ok" or other["status"] != "ok":
        return None
    return row["ratio"] / other["ratio"]


def starred_quotient(row: Row | None, other: Row | None) -> str:
    """A quotient as tables tell it: starred where the two are of different runs."""
    value = quotient(row, other)
    return "" if value is None else f"{value:.2f}" + ("" if row["run"] == other["run"] else "\\*")


class _Device:
    """The rows of one device, by model, batch and method."""

    def __init__(self, name: str, frame: pl.DataFrame) -> None:
        self.name, self.frame = name, frame
        self.models, self.batches = frame["model"].unique(maintain_order=True), sorted(set(frame["batch"]))
        self.rows = {(row["model"], row["batch"], row["method"]): row for row in frame.iter_rows(named=True)}

    def fastest(self, model: str, batch: int, methods: Iterable[str]) -> Row | None:
        rows = (self.rows.get((model, batch, method)) for method in methods)
        return min((row for row in rows if row and row["status"] == "ok"), key=lambda row: row["ratio"], default=None)

    def sections(self) -> Iterator[Section]:
        yield Section(self.name, level=2)
        yield self._beside_the_fastest_peer()
        yield self._beside_the_same_rules()
        for batch in self.batches:
            yield from (self._times(batch), *self._roof(batch))
        yield self._throughput()
        for batch in self.batches:
            yield self._table(f"Memory, batch {batch}", batch, _memory, "MiB beyond model and images: at the peak of "
                              "all / of one call, beyond what is held between calls / held between calls.")  # fmt: skip
        batch = min(self.batches)
        yield self._table("Set-up", batch, lambda row: f"{row['setup_s']:.2f} + {row['first_s']:.2f}", "Seconds until "
                          "the explainer is there (imports not counted) + of its first call, which compiles where that "
                          f"is lazy; batch {batch}, compilers without caches.")  # fmt: skip

    def _table(
        self, title: str, batch: int, cell: Callable[[Row], str], text: str, methods: Iterable[str] = METHODS,
        notes: str = "",
    ) -> Section:  # fmt: skip
        rows = [row for row in self.frame.iter_rows(named=True) if row["batch"] == batch and row["method"] in methods]
        table = grid(sorted(rows, key=lambda row: list(METHODS).index(row["method"])), "method", "model", cell)
        return Section(title, text, notes=notes, **table)

    def _beside_the_fastest_peer(self) -> Section:
        lines, gains, alone = [], {way: [] for way in WAYS}, []
        for batch in self.batches:
            for model in self.models:
                peer = self.fastest(model, batch, _PEERS)
                ours = {way: self.fastest(model, batch, names) for way, names in WAYS.items()}
                if peer is None:
                    alone += [f"{model} (batch {batch})"] if any(ours.values()) else []
                    continue
                line = [model, batch, peer["method"], f"{peer['ratio']:.2f}"]
                for way, row in ours.items():
                    line += [f"{row['ratio']:.2f} ({row['method'].removeprefix('fxlrp ')})" if row else "",
                             starred_quotient(peer, row)]  # fmt: skip
                    gains[way] += [quotient(peer, row)] if row else []
                lines.append(line)
        bullets = [f"{way}: faster in {sum(gain > 1 for gain in some)} of {len(some)} cases; {min(some):.2f} to "
                   f"{max(some):.2f} times, median {statistics.median(some):.2f}"
                   for way, some in gains.items() if some]  # fmt: skip
        bullets += [f"no peer runs, fxlrp does: {', '.join(alone)}"] if alone else []
        columns = ["model", "batch", "fastest peer", "its time"]
        columns += [word for way in WAYS for word in (f"fxlrp {way}", "times faster")]
        text = "The default preset of fxlrp and whichever peer is fastest by whatever rules, where both run."
        return Section("Beside the fastest peer", text, bullets, columns, lines)

    def _beside_the_same_rules(self) -> Section:
        lines = []
        for peer, names in SAME_RULES.items():
            for ours in names:
                for batch in self.batches:
                    pairs = [[self.rows.get((model, batch, name)) for name in (peer, ours)] for model in self.models]
                    gains = ["peer fails" if other and other["status"] != "ok" else starred_quotient(other, row)
                             for other, row in pairs]  # fmt: skip
                    if any(gains) and any(row for _, row in pairs):
                        lines.append([peer, ours, batch, *gains])
        text = ("Time of the peer / time of fxlrp. The rules of zennit's and autolrp's composites are z⁺ in convolutions "
                "and ε elsewhere.")  # fmt: skip
        return Section("Beside the peer with the same rules", text, columns=["peer", "fxlrp", "batch", *self.models],
                       lines=lines)  # fmt: skip

    def _times(self, batch: int) -> Section:
        def cell(row: Row) -> str:
            if row["method"] == YARDSTICK:
                return f"1 ({row['seconds']:.3g} s)"
            text = ratio(row)
            return f"**{text.replace(' ', '** ', 1)}" if row["method"] == best[row["model"]] else text

        best = {model: (self.fastest(model, batch, _EXPLAIN) or {}).get("method") for model in self.models}
        used = self.frame.filter(pl.col("batch") == batch, pl.col("memory_format") != "")
        formats = [f"{name}: {', '.join(in_order(rows, 'method', METHODS)['method'].unique(maintain_order=True))}"
                   for name, rows in groups(used, "memory_format").items()]  # fmt: skip
        return self._table(f"Time, batch {batch}", batch, cell, "As multiples of autograd, whose seconds are given; the "
                           "fastest explanation in bold.", ("placebo", *METHODS),
                           notes=f"Memory formats: {'; '.join(formats)}.")  # fmt: skip

    def _roof(self, batch: int) -> list[Section]:
        def cell(row: Row) -> str:
            share = quotient(self.rows.get((row["model"], batch, ROOFS[row["method"]])), row)
            return f"{3 * share:.0%}" if share else ""

        text = ("z⁺ takes three passes through the convolutions: the forward one, the one through W⁺, and its transpose. "
                "The roof is three times the forward pass of the same kind (eager, channels-last, compiled, replayed); "
                "the share is that time / the time of fxlrp.")  # fmt: skip
        table = self._table(f"Share of the roof, batch {batch}", batch, cell, text, ROOFS)
        return [table] if any(any(line[1:]) for line in table.lines) else []

    def _throughput(self) -> Section:
        lines = []
        for method in METHODS:
            cells = []
            for model in self.models:
                rows = [row for batch in self.batches if (row := self.fastest(model, batch, [method]))]
                single = [f"{1000 * row['seconds']:.1f} ms" for row in rows if row["batch"] == 1]
                rates = [(row["batch"] / row["seconds"], str(row["batch"])) for row in rows]
                cells.append(", ".join([*single, *(["{:.1f}/s ({})".format(*max(rates))] if rates else [])]))
            lines += [[method, *cells]] if any(cells) else []
        text = ("Median time of one image, and the most images per second, with the batch in brackets. These are of the "
                "clock: rows of different runs may have seen the machine in different states.")  # fmt: skip
        return Section("Latency and throughput", text, columns=["method", *self.models], lines=lines)


def _memory(row: Row) -> str:
    if row["peak_mb"] is None:
        return ""
    return " / ".join(f"{row[column]:.0f}" for column in ("peak_mb", "call_mb", "held_mb"))


BENCHMARK = Benchmark(
    "speed", "Time models, explanations of them, and peers.", "benchmarks.methods", every(MODELS, (1, 8, 32)), sections,
    draw=draw_speed,
)  # fmt: skip
