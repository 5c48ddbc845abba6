"""Where the time of an explanation goes, by kind of node: ``python -m benchmarks.kinds --help``."""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import fxlrp
from benchmarks.origin import CORES, busy_cores, commit, processor
from benchmarks.report import grouped
from benchmarks.speed import Names, checked
from benchmarks.speed_methods import METHODS, YARDSTICK
from benchmarks.speed_models import MODELS, build, images_for, known, native_size
from benchmarks.table import Row, Table
from fxlrp.common.text_tables import markdown

HERE = Path(__file__).parent
PRESETS = ("conserving", "otsuki2024")
COLUMNS = (
    "device_name", "preset", "model", "size", "batch", "kind", "forward", "products", "rest", "yardstick_s", "rounds",
    "threads", "dtype", "memory_format", "torch", "version", "busy", "date",
)  # fmt: skip
KEY = ("device_name", "preset", "model", "batch", "kind")
FORWARD = "forward"
CALL = "one call"
"""The kind of the row of a whole explanation, timed by itself."""

_LEAST = 0.005
"""What is below in every model has no line of its own."""


def main(
    model: Annotated[Names, typer.Option(help="May be repeated. Default: the seven.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="May be repeated. Default: 1, 8.")] = None,
    preset: Annotated[list[str] | None, typer.Option(help=f"May be repeated. Default: {', '.join(PRESETS)}.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = min(2, CORES),
    page_only: Annotated[bool, typer.Option("--page-only", help="Measure nothing, make the page anew.")] = False,
    out: Annotated[Path, typer.Option(help="The folder of kinds.csv and kinds.md.")] = HERE,
) -> None:
    """Time every step of the optimised program, beside autograd's two passes and a whole call, in turn."""
    names = checked(model or list(MODELS), known, "model")
    presets = checked(preset or list(PRESETS), fxlrp.PRESETS.__contains__, "preset")
    out.mkdir(parents=True, exist_ok=True)
    table, console = Table(out / "kinds.csv", COLUMNS, KEY), Console()
    if not page_only:
        torch.set_num_threads(threads)
        for name in names:
            for size in batch or (1, 8):
                console.print(f"{name}, batch {size}")
                for rows in measured(name, size, presets, rounds).values():
                    table.drop(key for key in list(table.rows) if key[:4] == table.key_of(rows[0])[:4])
                    for row in rows:
                        table.add(row)
    (out / "kinds.md").write_text(page(table.rows.values()))
    console.print(f"written: {out / 'kinds.md'}")


def measured(name: str, batch: int, presets: Iterable[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """By preset a row a kind, in multiples of autograd's forward and backward pass of the same round."""
    network, images = build(name), images_for(batch, native_size(name))
    yardstick = METHODS[YARDSTICK].begin(copy.deepcopy(network), images)()
    network = network.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    explainers = {preset: fxlrp.compile(network, preset) for preset in presets}
    for _ in range(2):  # weights are packed at the second call
        yardstick()
        for explainer in explainers.values():
            explainer(images)
    units, found = [], {preset: defaultdict[tuple[str, str], list[float]](list) for preset in explainers}
    for _ in range(rounds):
        unit = _seconds(yardstick)
        units.append(unit)
        for preset, explainer in explainers.items():
            times = found[preset]
            times[CALL, "rest"].append(_seconds(lambda explainer=explainer: explainer(images)) / unit)
            for kind, (forward, relevance) in explainer.profile(images, rounds=1).kinds.items():
                times[kind, "forward"].append(forward.total / 1000 / unit)
                times[kind, "products"].append(relevance.products / 1000 / unit)
                times[kind, "rest"].append(relevance.rest / 1000 / unit)
    common = {
        "device_name": processor(), "model": name, "size": native_size(name), "batch": batch,
        "yardstick_s": statistics.median(units), "rounds": rounds, "threads": torch.get_num_threads(),
        "dtype": "float32", "memory_format": "channels-last", "torch": torch.__version__,
        "version": f"fxlrp {fxlrp.__version__}, {commit()}", "busy": busy_cores(),
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M UTC}",
    }  # fmt: skip
    return {
        preset: [
            {**common, "preset": preset, "kind": kind,
             **{part: statistics.median(ratios) for (of, part), ratios in times.items() if of == kind}}
            for kind in dict.fromkeys(kind for kind, _ in times)
        ]
        for preset, times in found.items()
    }  # fmt: skip


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


# The page ----------------------------------------------------------------------------------------


def page(rows: Iterable[Row]) -> str:
    """The rows as a page."""
    lines = [
        "# Where the time goes, by kind of node", "",
        "The optimised program, run step by step: time of each kind of node as a multiple of autograd's forward pass "
        "and backward pass to the input in the same round (contiguous); medians. Of relevance, what convolutions and "
        "matrix products take is told from all else (dividing, multiplying, parts by sign, rescaling). What stays "
        f"below {_LEAST} in every model is summed as \"others\". Random weights, channels-last, eager. Made with "
        "`python -m benchmarks.kinds`.", "",
    ]  # fmt: skip
    for (device, preset, batch), those in sorted(
        grouped(rows, lambda row: (row["device_name"], row["preset"], int(row["batch"]))).items()
    ):
        lines += [f"## {preset}, batch {batch}, {device}", "", *_made(those), "", _table(those), ""]
    return "\n".join(lines).rstrip() + "\n"


def _made(rows: list[Row]) -> list[str]:
    made = {tuple(row[column] for column in ("threads", "rounds", "torch", "dtype", "size")) for row in rows}
    dates = sorted({row["date"] for row in rows})
    return [
        f"- {threads} thread(s), {rounds} rounds; torch {torch}, {dtype}; {size} × {size}; {dates[0]} to {dates[-1]}"
        for threads, rounds, torch, dtype, size in sorted(made)
    ]


def _table(rows: list[Row]) -> str:
    models = [name for name in MODELS if any(row["model"] == name for row in rows)]
    models += sorted({row["model"] for row in rows} - set(models))
    cells: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["kind"] == CALL:
            continue
        for part, told in (("forward", FORWARD), ("products", "relevance: products"), ("rest", "relevance: rest")):
            cells[f"{row['kind']}, {told}"][row["model"]] = float(row[part] or 0)
    small = [name for name, values in cells.items() if max(values.values()) < _LEAST]
    others = {model: sum(cells[name].get(model, 0) for name in small) for model in models}
    shown = {name: values for name, values in cells.items() if name not in small}
    order = sorted(shown, key=lambda name: -sum(shown[name].values()))
    lines = [[name, *(_cell(shown[name].get(model, 0)) for model in models)] for name in order]
    whole = {name: values for name, values in cells.items() if name.endswith(f", {FORWARD}")}
    forward, both = (
        {model: sum(values.get(model, 0) for values in those) for model in models}
        for those in (whole.values(), cells.values())
    )
    ends = {
        "others": others, "**sum of the forward pass**": forward,
        "**sum of relevance**": {model: both[model] - forward[model] for model in models},
        "**sum of both**": both,
        "one call, by itself": {row["model"]: float(row["rest"]) for row in rows if row["kind"] == CALL},
    }  # fmt: skip
    for name, values in ends.items():
        lines.append([name, *(f"{values[model]:.2f}" for model in models)])
    return markdown(["kind of node", *models], lines)


def _cell(value: float) -> str:
    return f"{value:.2f}" if value >= _LEAST else ""


if __name__ == "__main__":
    typer.run(main)
