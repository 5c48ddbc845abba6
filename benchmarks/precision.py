"""What lower precision does to an explanation: ``python -m benchmarks.precision``."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated

import torch
import typer
from torch import Tensor

import fxlrp
from examples.demo import PHOTOS, photo_folder
from examples.efficientnet_lite0 import load
from fxlrp.common.text_tables import markdown
from fxlrp.images import read_image, to_input


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
) -> None:
    """Explain the demo's photographs with EfficientNet-Lite0 in several precisions, and hold them against float64.

    Prints the table of docs/speed.md.
    """
    torch.set_num_threads(threads)
    loaded = load()
    model = loaded.model.to(memory_format=torch.channels_last)
    x = torch.stack([to_input(read_image(photo_folder() / name), loaded.preprocess) for name in PHOTOS])
    x = x.contiguous(memory_format=torch.channels_last)
    exact = fxlrp.compile(copy.deepcopy(model).double())(x.double())
    half = copy.deepcopy(model).to(torch.bfloat16)
    explainers = fxlrp.compile(model), fxlrp.compile(half)
    low = x.to(torch.bfloat16)
    ways: dict[str, tuple[Callable[[], fxlrp.Explanation], Callable[[], object]]] = {
        "float32": (lambda: explainers[0](x, target=exact.target), nullcontext),
        "autocast to bfloat16": (
            lambda: explainers[0](x, target=exact.target), lambda: torch.autocast("cpu", torch.bfloat16),
        ),
        "model in bfloat16": (lambda: explainers[1](low, target=exact.target), nullcontext),
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for count in range(rounds + 2):
        for name, (explain, around) in ways.items():
            with around():  # type: ignore[attr-defined]
                start = time.perf_counter()
                found[name] = explain()
                if count > 1:
                    times[name].append(time.perf_counter() - start)
    base = statistics.median(times["float32"])
    rows = [
        [name, *errors(found[name], exact), f"{statistics.median(times[name]) / base:.2f}"] for name in ways
    ]
    columns = ["precision", "largest difference", "rank correlation", "Σ R / start − 1", "time"]
    print(markdown(columns, rows))


def errors(found: fxlrp.Explanation, exact: fxlrp.Explanation) -> list[str]:
    """How far heatmaps are from the exact ones, the worst image: relative to the largest value, and in ranks."""
    maps, wanted = fxlrp.heatmap(found.relevance).double(), fxlrp.heatmap(exact.relevance)
    # Maps are compared as shares of what entered, for a probability itself is rounded as well.
    maps, wanted = (m / e.start.double()[:, None, None] for m, e in ((maps, found), (wanted, exact)))
    worst = ((maps - wanted).abs().amax((1, 2)) / wanted.abs().amax((1, 2))).max()
    ranks = min(float(torch.corrcoef(torch.stack([rank(a), rank(b)]))[0, 1]) for a, b in zip(maps, wanted, strict=True))
    lost = (found.relevance.double().sum((1, 2, 3)) / found.start.double() - 1).abs().max()
    return [f"{worst:.1e}", f"{ranks:.4f}", f"{lost:.1e}"]


def rank(values: Tensor) -> Tensor:
    return values.flatten().argsort().argsort().double()


if __name__ == "__main__":
    typer.run(main)
