"""What insertion and deletion cost beside the forward passes in them: ``python -m benchmarks.evaluation``."""

import platform
import shlex
import statistics
import sys
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import torch
import torchvision
import typer
from rich.console import Console
from torch import nn

from benchmarks.rows import Timed
from benchmarks.speed_models import CifarResNet
from benchmarks.subjects import noise, usable
from fxlrp.common.text_tables import markdown
from fxlrp.evaluation import PlateauWarning, insertion_deletion
from fxlrp.heatmap import quantize_heat

HERE = Path(__file__).parent

CASES = (("cifar_resnet56", 32, 16), ("resnet18", 224, 1000), ("resnet50", 224, 2000))
"""Model, height and width of the images, pixels a step."""


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that the model sees at once.")] = 32,
    out: Annotated[Path, typer.Option(help="The page that is written.")] = HERE / "evaluation.md",
) -> None:
    """Time the metric on one image, and the same number of forward passes in the same batches, in turn."""
    torch.set_num_threads(threads)
    console = Console()
    lines = []
    for name, size, step in CASES:
        for ties, levels in (("strict", 0), ("plateau", 0), ("plateau", 8)):
            lines.append(line(name, size, step, ties, levels, batch_size, rounds))
            console.print("  ".join(lines[-1]))
    columns = ["model", "pixels a step", "ties", "levels", "forward passes", "they take", "the metric takes", "ratio"]
    command = shlex.join(["python", "-m", "benchmarks.evaluation", *sys.argv[1:]])
    out.write_text("\n".join([
        "# The cost of insertion and deletion", "",
        "One image, its map, and its class; beside as many forward passes in the same batches on images that are "
        "ready. Random weights, float32, batches of "
        f"{batch_size}. Where a map of few levels names the same pixels at several steps, one pass serves them.", "",
        f"Made with `{command}`, {datetime.now(timezone.utc):%Y-%m-%d}; torch {torch.__version__}, CPU "
        f"({platform.processor() or platform.machine()}, {threads} thread(s)). The two take turns, {rounds} rounds "
        "after one to warm up. Times are medians; the ratio is the median of the rounds' ratios.", "",
        markdown(columns, lines),
    ]) + "\n")  # fmt: skip
    console.print(f"written: {out}")


def line(name: str, size: int, step: int, ties: str, levels: int, batch_size: int, rounds: int) -> list[str]:
    """A row of the table."""
    torch.manual_seed(0)
    model: nn.Module = CifarResNet(56) if name.startswith("cifar") else torchvision.models.get_model(name, weights=None)
    model = usable(model, 3, size, size)
    image, heat = torch.rand(1, 3, size, size), torch.randperm(size * size).reshape(1, size, size).float()
    heat = quantize_heat(heat, levels) if levels else heat
    seen: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(batch)

    def metric() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PlateauWarning)
            insertion_deletion(model, image, heat, 0, step=step, ties=ties, batch_size=batch_size,
                               normalize=lambda x: (x - 0.45) / 0.22)  # fmt: skip

    metric()
    hook.remove()
    batches = [noise(3, size, size, batch=count) for count in seen]
    pair = Timed(forward), Timed(metric)
    for turn in range(rounds + 1):
        for timed in pair:
            timed.once()
            if not turn:  # the first one warms up
                timed.wall.clear()
    ratio = statistics.median(b / a for a, b in zip(pair[0].wall, pair[1].wall, strict=True))
    seconds = [f"{statistics.median(timed.wall):.2f} s" for timed in pair]
    return [name, str(step), ties, str(levels or "all"), str(sum(seen)), *seconds, f"{ratio:.3f}"]


if __name__ == "__main__":
    typer.run(main)
