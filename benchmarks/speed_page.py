"""results.md: the rows of the speed benchmark as a page."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from benchmarks.report import grouped
from benchmarks.speed_methods import METHODS, ROOFS, SAME_RULES, YARDSTICK
from benchmarks.speed_sheet import COMPILED, EAGER, Sheet, fastest, number, quotient, sheets, told_quotient
from benchmarks.table import Row
from fxlrp.common.text_tables import markdown, verbatim

DEFINITIONS = """\
Each method has a process of its own, and the processes take turns, one call each a round, so that all see the same
machine; the order is reversed from round to round. Calls count after a first one and warm-ups. A figure is the median
over the rounds of *seconds / seconds of autograd in the same round*, and in brackets its least and its largest. Where
the memory does not hold all processes at once, they run in groups, each with an autograd of its own. A quotient of
figures from two runs, each a multiple of its own run's autograd, bears a \\*.

- *autograd*: the yardstick: forward, and backward from the predicted logit to the image; eager, contiguous, no
  gradients of parameters.
- Weights are random and always the same, batch norm statistics measured on noise; images are noise, float32.
- *eager*: contiguous; *channels-last*: model and images laid out so; *inductor*: channels-last, compiled by
  `torch.compile`, for fxlrp by `fxlrp.compile(model, backend="inductor")`. A name of rules after it is the preset;
  without one it is the default, which conserves relevance.
- Peers are used as their documentation says and in their fastest way: a whole batch in one pass, hooks and canonizers
  attached once, parameters without gradients, activations out of place. Captum is told the class; the forward pass to
  find it is not counted. The classes of lxt are patched by hand where its package does not import beside the installed
  transformers.
"""


def speed_page(rows: Iterable[Row]) -> str:
    """The whole page."""
    rows = list(rows)
    parts = ["# Speed", "", *_measured_on(rows), "", *_captions(rows), DEFINITIONS]
    for sheet in sheets(rows):
        parts += [f"## {sheet.name}", "", *_claims(sheet), *_same_rules(sheet)]
        for batch in sheet.batches:
            parts += _times(sheet, batch) + _roof(sheet, batch)
        parts += _throughput(sheet)
        for batch in sheet.batches:
            parts += _memory(sheet, batch)
        parts += [*_set_up(sheet), *_failures(sheet)]
    return "\n".join(parts).rstrip() + "\n"


def _measured_on(rows: Sequence[Row]) -> list[str]:
    lines = ["Made with `python -m benchmarks.speed`, on:", ""]
    for (device, name, threads, torch, dtype, rounds), those in grouped(
        (row for row in rows if row["status"] == "ok"),
        lambda row: tuple(row[c] for c in ("device", "device_name", "threads", "torch", "dtype", "rounds")),
    ).items():
        dates = sorted(row["date"] for row in those)
        many = f", {threads} thread{'s' if threads != '1' else ''}" if device == "cpu" else ""
        lines.append(
            f"- {device.upper()}: {name}{many}; torch {torch}, {dtype}, {rounds} rounds; {len(those)} rows from "
            f"{dates[0]} to {dates[-1]}{_others(those)}"
        )
    used = sorted({row["version"] for row in rows if row["version"]})
    lines += ["", f"Versions: {'; '.join(used)}."] if used else []
    if not any(row["device"] == "cuda" for row in rows):
        lines += ["", "No GPU was at hand: all figures are of a CPU. With one, `--device cuda` makes the same tables."]
    return lines


def _others(rows: Sequence[Row]) -> str:
    busy = [float(row["busy"]) for row in rows if row["busy"]]
    return f"; right before, other work kept {max(busy):.2f} cores busy at most" if busy else ""


def _captions(rows: Sequence[Row]) -> list[str]:
    return ["![Time by model and method](results.png)", ""] if rows else []


# Claims ------------------------------------------------------------------------------------------


def _claims(sheet: Sheet) -> list[str]:
    lines, gains = [], {"eager": [], "compiled": []}  # type: tuple[list[list[str]], dict[str, list[float]]]
    alone = []
    for batch in sheet.batches:
        for model in sheet.models:
            peer = fastest(sheet.ok(model, batch, kind="peer"))
            ways = {"eager": sheet.best(model, batch, EAGER), "compiled": sheet.best(model, batch, COMPILED)}
            if peer is None:
                alone += [f"{model} (batch {batch})"] if any(ways.values()) else []
                continue
            line = [model, batch, peer["method"], _ratio(peer)]
            for way, ours in ways.items():
                gain = quotient(peer, ours)
                line += [f"{_ratio(ours)} ({_layout(ours)})" if ours else "", told_quotient(peer, ours)]
                gains[way] += [gain] if gain else []
            lines.append(line)
    columns = ["model", "batch", "fastest peer", "its time", "fxlrp eager", "times faster", "fxlrp compiled",
               "times faster"]  # fmt: skip
    told = [f"- {way}: {_summary(found)}" for way, found in gains.items() if found]
    told += [f"- no peer runs, fxlrp does: {', '.join(alone)}"] if alone else []
    return [
        "### Beside the fastest peer", "",
        "The default preset of fxlrp and whichever peer is fastest by whatever rules, where both run; times as "
        "multiples of autograd. That a peer runs does not say that its relevance is conserved: "
        "[coverage.md](coverage.md) tells.", "",
        *told, "", markdown(columns, lines), "",
    ]  # fmt: skip


def _summary(gains: Sequence[float]) -> str:
    won = sum(gain > 1 for gain in gains)
    return (
        f"faster in {won} of {len(gains)} cases; {min(gains):.2f} to {max(gains):.2f} times, median "
        f"{statistics.median(gains):.2f}"
    )


def _same_rules(sheet: Sheet) -> list[str]:
    lines = []
    for peer, ours in ((peer, name) for peer, names in SAME_RULES.items() for name in names):
        for batch in sheet.batches:
            pairs = [(sheet.get(model, batch, peer), sheet.get(model, batch, ours)) for model in sheet.models]
            gains = [_gain(*pair) for pair in pairs]
            if any(gains) and any(mine is not None for _, mine in pairs):
                lines.append([peer, ours, batch, *gains])
    return [
        "### Beside the peer with the same rules", "",
        "Time of the peer / time of fxlrp. The rules of zennit's and autolrp's composites are z⁺ in convolutions and ε "
        "elsewhere.", "",
        markdown(["peer", "fxlrp", "batch", *sheet.models], lines), "",
    ]  # fmt: skip


def _gain(peer: Row | None, ours: Row | None) -> str:
    if peer is None:
        return ""
    if peer["status"] != "ok":
        return "peer fails"
    return told_quotient(peer, ours)


def _layout(row: Row) -> str:
    return row["method"].removeprefix("fxlrp ")


# Tables by batch ---------------------------------------------------------------------------------


def _by_model(
    sheet: Sheet, batch: int, cell: Callable[[Row], str], methods: Iterable[str] = METHODS
) -> list[list[str]]:
    """A line a method that has rows, a cell a model."""
    lines = []
    for method in methods:
        found = [sheet.get(model, batch, method) for model in sheet.models]
        if any(found):
            lines.append([method, *("" if row is None else "fails" if row["status"] != "ok" else cell(row)
                                    for row in found)])  # fmt: skip
    return lines


def _times(sheet: Sheet, batch: int) -> list[str]:
    best = {model: fastest(sheet.explained(model, batch)) for model in sheet.models}

    def cell(row: Row) -> str:
        text = _ratio(row)
        if row["method"] == YARDSTICK:
            return f"1 ({number(row, 'seconds'):.3g} s)"
        text = f"**{text}**" if row is best[row["model"]] else text
        return f"{text} ({number(row, 'ratio_min'):.2f}–{number(row, 'ratio_max'):.2f})"

    formats = "; ".join(f"{name}: {', '.join(methods)}" for name, methods in sheet.formats(batch).items())
    return [
        f"### Time, batch {batch}", "",
        "As multiples of autograd, whose seconds are given; the fastest explanation in bold. "
        f"{_sizes(sheet, batch)}", "",
        markdown(["method", *sheet.models], _by_model(sheet, batch, cell)), "",
        f"Memory formats: {formats}.", "",
    ]  # fmt: skip


def _sizes(sheet: Sheet, batch: int) -> str:
    sizes = sorted({int(row["size"]) for row in sheet.rows if int(row["batch"]) == batch})
    return f"Images {', '.join(f'{size} × {size}' for size in sizes)}."


def _roof(sheet: Sheet, batch: int) -> list[str]:
    def cell(row: Row) -> str:
        forward = sheet.get(row["model"], batch, ROOFS[row["method"]])
        share = quotient(forward, row)
        return f"{3 * share:.0%}" if share else ""

    lines = _by_model(sheet, batch, cell, ROOFS)
    if not any(any(line[1:]) for line in lines):
        return []
    return [
        f"### Share of the roof, batch {batch}", "",
        "z⁺ takes three passes through the convolutions: the forward one, the one through W⁺, and its transpose. The "
        "roof is three times the forward pass of the same kind (eager, channels-last, compiled, replayed); the share "
        "is that time / the time of fxlrp.", "",
        markdown(["method", *sheet.models], lines), "",
    ]  # fmt: skip


def _memory(sheet: Sheet, batch: int) -> list[str]:
    def cell(row: Row) -> str:
        if not row["peak_mb"]:
            return ""
        return " / ".join(f"{number(row, column):.0f}" for column in ("peak_mb", "call_mb", "held_mb"))

    return [
        f"### Memory, batch {batch}", "",
        "MiB beyond model and images, of the process, or on CUDA of torch's allocator: at the peak of all, set-up and "
        "first call included / of one call, beyond what is held between calls / held between calls. What was freed is "
        "given back to the system before the last two.", "",
        markdown(["method", *sheet.models], _by_model(sheet, batch, cell)), "",
    ]  # fmt: skip


# Tables of all batches ---------------------------------------------------------------------------


def _throughput(sheet: Sheet) -> list[str]:
    lines = []
    for method in METHODS:
        cells = []
        for model in sheet.models:
            found = [row for batch in sheet.batches if (row := sheet.best(model, batch, [method]))]
            single = next((f"{1000 * number(row, 'seconds'):.1f} ms" for row in found if row["batch"] == "1"), "")
            rates = [(int(row["batch"]) / number(row, "seconds"), row["batch"]) for row in found]
            best = "{:.1f}/s ({})".format(*max(rates)) if rates else ""
            cells.append(", ".join(part for part in (single, best) if part))
        if any(cells):
            lines.append([method, *cells])
    return [
        "### Latency and throughput", "",
        "Median time of one image, and the most images a second, with the batch in brackets. These are of the clock: "
        "rows of different runs may have seen the machine in different states, which the ratios above leave out.", "",
        markdown(["method", *sheet.models], lines), "",
    ]  # fmt: skip


def _set_up(sheet: Sheet) -> list[str]:
    batch = min(sheet.batches)

    def cell(row: Row) -> str:
        return f"{number(row, 'setup_s'):.2f} + {number(row, 'first_s'):.2f}"

    return [
        "### Set-up", "",
        f"Seconds until the explainer is there (imports not counted) + of its first call, which compiles where that is "
        f"lazy; batch {batch}, compilers without caches.", "",
        markdown(["method", *sheet.models], _by_model(sheet, batch, cell)), "",
    ]  # fmt: skip


def _failures(sheet: Sheet) -> list[str]:
    failed = [row for row in sheet.rows if row["status"] != "ok"]
    lines = []
    for (method, stage, reason), those in grouped(
        failed, lambda row: (row["method"], row["stage"], row["reason"])
    ).items():
        where = ", ".join(f"{model} (batch {', '.join(row['batch'] for row in rows)})"
                          for model, rows in grouped(those, lambda row: row["model"]).items())  # fmt: skip
        lines.append(f"- **{method}**, {where}, at {stage}: {verbatim(reason)}")
    return ["### Failures", "", *(lines or ["None."]), ""]


def _ratio(row: Row | None) -> str:
    return f"{number(row, 'ratio'):.2f}" if row else ""
