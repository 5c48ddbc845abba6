"""What many explanations in one call cost, beside as many calls: ``python -m benchmarks.rows --help``."""

import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import torch
import torchvision
import typer
from rich.console import Console
from torch import Tensor

import fxlrp
from benchmarks.subjects import noise, usable
from fxlrp.common.text_tables import markdown

HERE = Path(__file__).parent
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


@dataclass
class Timed:
    """Seconds of each round, by the clock and of the processor.

    Attributes:
        run: what is timed.
        wall, cpu: one entry a round.
    """

    run: Callable[[], object]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def once(self) -> None:
        """One more round."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.run()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def main(
    model: Annotated[str, typer.Option(help="A classifier of torchvision, on random weights.")] = "resnet50",
    layer: Annotated[str, typer.Option(help="The module whose channels are conditions.")] = "layer3",
    rows: Annotated[int, typer.Option(min=1, help="How many explanations, K.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 1,
    size: Annotated[int, typer.Option(min=32, help="Their height and width.")] = 224,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    out: Annotated[Path, typer.Option(help="The page that is written.")] = HERE / "rows.md",
) -> None:
    """Time K targets, and K conditions, in one call and in K calls, in turn."""
    torch.set_num_threads(threads)
    console = Console()
    network = usable(torchvision.models.get_model(model, weights=None), 3, size, size)
    lines = []
    for name, memory_format in FORMATS.items():
        network = network.to(memory_format=memory_format)
        x = noise(3, size, size, batch=batch).to(memory_format=memory_format)
        explainer = fxlrp.compile(network)
        for what, (together, apart) in cases(explainer, x, rows, layer).items():
            difference = agreement(together, apart)
            pair = Timed(together), Timed(lambda apart=apart: [call() for call in apart])
            for _ in range(rounds):
                for timed in pair:
                    timed.once()
            lines.append(line(what, name, *pair, difference))
            console.print("  ".join(lines[-1]))
    columns = ["what", "memory format", "one call", "K calls", "ratio", "processor time: ratio", "largest difference"]
    table = markdown(columns, lines)
    out.write_text(page(table, model, layer, rows, batch, size, rounds) + "\n")
    console.print(f"written: {out}")


def cases(
    explainer: fxlrp.Explainer, x: Tensor, rows: int, layer: str
) -> dict[str, tuple[Callable[[], Tensor], list[Callable[[], Tensor]]]]:
    """What is timed: one call for all rows, and one a row."""
    conditions = [{layer: [channel]} for channel in range(rows)]
    return {
        "targets": (
            lambda: explainer(x, target=range(rows)).relevance,
            [lambda target=target: explainer(x, target=target).relevance for target in range(rows)],
        ),
        "conditions": (
            lambda: explainer(x, target=0, conditions=conditions).relevance,
            [lambda one=one: explainer(x, target=0, conditions=one).relevance for one in conditions],
        ),
    }


def agreement(together: Callable[[], Tensor], apart: Sequence[Callable[[], Tensor]]) -> float:
    """The largest difference between the two ways, relative to the row's largest value; it warms them up as well."""
    found, expected = together(), torch.stack([call() for call in apart], dim=1)
    scale = expected.abs().flatten(2).amax(2)
    return float(((found - expected).abs().flatten(2).amax(2) / scale.clamp(min=1e-30)).max())


def line(what: str, memory_format: str, together: Timed, apart: Timed, difference: float) -> list[str]:
    """One row of the table; a ratio is the median of those of the rounds."""
    ratios = [
        statistics.median(a / b for a, b in zip(one, many, strict=True))
        for one, many in ((together.wall, apart.wall), (together.cpu, apart.cpu))
    ]
    seconds = [f"{statistics.median(timed.wall):.2f} s" for timed in (together, apart)]
    return [what, memory_format, *seconds, *(f"{ratio:.2f}" for ratio in ratios), f"{difference:.1e}"]


def page(table: str, model: str, layer: str, rows: int, batch: int, size: int, rounds: int) -> str:
    """What was measured and how, around the table."""
    command = shlex.join(["python", "-m", "benchmarks.rows", *sys.argv[1:]])
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"
    return "\n".join([
        "# Many explanations in one call", "",
        f"K = {rows} targets, and K conditions of one channel each at `{layer}`, in one call and in K calls. {model} "
        f"on random weights, norms measured on noise; batch {batch}, {size} × {size}, float32, default preset.", "",
        f"Made with `{command}`, {datetime.now(timezone.utc):%Y-%m-%d}; torch {torch.__version__}, CPU ({machine}).",
        f"The two ways take turns, {rounds} rounds after one to warm up. Times are medians; a ratio is the median of "
        "the rounds' ratios. Processor time tells what other work on the machine does not change.", "",
        table,
    ])  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
