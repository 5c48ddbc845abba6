"""Whether W and W⁺ are faster in one convolution than in two: ``python -m benchmarks.together --help``.

A layer's input is convolved with W, by the model, and with W⁺, for its denominators. One convolution with both as
its weights reads the input once, but its result must be taken apart.
"""

import shlex
import statistics
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.origin import CORES, processor
from benchmarks.rows import FORMATS
from fxlrp.common.text_tables import markdown

HERE = Path(__file__).parent
LAYERS = [
    # in, out, kernel, stride, height and width: those of a ResNet-50
    (3, 64, 7, 2, 224), (64, 64, 1, 1, 56), (64, 64, 3, 1, 56), (64, 256, 1, 1, 56), (256, 128, 1, 1, 56),
    (128, 128, 3, 1, 28), (128, 512, 1, 1, 28), (512, 256, 1, 1, 28), (256, 256, 3, 1, 14), (256, 1024, 1, 1, 14),
    (1024, 512, 1, 1, 14), (512, 512, 3, 1, 7), (512, 2048, 1, 1, 7),
]  # fmt: skip
_NN: Any = torch._C._nn


def main(
    batch: Annotated[list[int] | None, typer.Option(min=1, help="May be repeated. Default: 1, 8.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = min(2, CORES),
    out: Annotated[Path, typer.Option(help="The page that is written.")] = HERE / "together.md",
) -> None:
    """Time the layers of a ResNet-50 with W and W⁺, apart and together, in turn."""
    torch.set_num_threads(threads)
    console, lines = Console(), []
    for memory_format, packed in (("contiguous", False), ("channels-last", False), ("channels-last", True)):
        for size in batch or (1, 8):
            apart, together = zip(*(timed(layer, size, memory_format, packed, rounds) for layer in LAYERS), strict=True)
            ratios = [both / two for two, both in zip(apart, together, strict=True)]
            form = f"{memory_format}, weights packed" if packed else memory_format
            faster = sum(ratio < 0.98 for ratio in ratios)
            lines.append([form, size, f"{sum(together) / sum(apart):.2f}", f"{min(ratios):.2f}–{max(ratios):.2f}",
                          f"{faster} of {len(LAYERS)}"])  # fmt: skip
            console.print("  ".join(map(str, lines[-1])))
    out.write_text(page(lines, rounds) + "\n")
    console.print(f"written: {out}")


def timed(layer: tuple[int, ...], batch: int, memory_format: str, packed: bool, rounds: int) -> tuple[float, float]:
    """Median seconds of two convolutions, and of one with the weights of both."""
    inputs, outputs, kernel, stride, size = layer
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, inputs, size, size, generator=generator)
    w = torch.randn(outputs, inputs, kernel, kernel, generator=generator)
    form = FORMATS[memory_format]
    plus = w.clamp(min=0)
    x, w, plus, both = (t.contiguous(memory_format=form) for t in (x, w, plus, torch.cat([w, plus])))
    convolve = _packed if packed else _dense
    first, second, joint = (convolve(x, weight, stride, kernel // 2) for weight in (w, plus, both))

    def two() -> Any:
        return first(), second()

    def one() -> Any:
        result = joint()
        return [part.contiguous(memory_format=form) for part in (result[:, :outputs], result[:, outputs:])]

    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for number in range(rounds + 3):
            for run, found in zip((two, one), seconds, strict=True):
                began = time.perf_counter()
                run()
                if number >= 3:
                    found.append(time.perf_counter() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _dense(x: Tensor, weight: Tensor, stride: int, padding: int) -> Callable[[], Tensor]:
    return lambda: F.conv2d(x, weight, None, stride, padding)


def _packed(x: Tensor, weight: Tensor, stride: int, padding: int) -> Callable[[], Tensor]:
    """The convolution as oneDNN likes it best, with weights laid out ahead."""
    how: Any = ([padding] * 2, [stride] * 2, [1, 1], 1)
    weight = _NN.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *how, list(x.shape))
    return lambda: torch.ops.mkldnn._convolution_pointwise(x, weight, None, *how, "none", [], "")


def page(lines: list[list[Any]], rounds: int) -> str:
    """What was measured and how, around the table."""
    command = shlex.join(["python", "-m", "benchmarks.together", *sys.argv[1:]])
    columns = ["memory format", "batch", "one / two, all layers", "one / two, by layer", "layers where one is faster"]
    return "\n".join([
        "# W and W⁺ in one convolution", "",
        f"The {len(LAYERS)} forms of convolution in a ResNet-50, float32: time of one convolution with the weights W "
        "and W⁺, its result taken apart, over that of two. Faster: by more than 2 %.", "",
        f"Made with `{command}`, {datetime.now(timezone.utc):%Y-%m-%d}; torch {torch.__version__}, {processor()}, "
        f"{torch.get_num_threads()} thread(s). The two ways take turns, {rounds} rounds after three to warm up; "
        "medians.", "", markdown(columns, lines), "",
        "Below 1 one convolution would be faster. fxlrp makes two.",
    ])  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
