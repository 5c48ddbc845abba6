"""Whether W and W⁺ are faster in one convolution than in two.

A layer's input is convolved with W, by the model, and with W⁺, for its denominators. One convolution with both as its
weights reads the input once, but its result must be taken apart.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.methods import Case, Method, Trial
from benchmarks.runs import Benchmark, listed
from benchmarks.targets import FORMATS

LAYERS = [
    # in, out, kernel, stride, height and width: those of a ResNet-50
    (3, 64, 7, 2, 224), (64, 64, 1, 1, 56), (64, 64, 3, 1, 56), (64, 256, 1, 1, 56), (256, 128, 1, 1, 56),
    (128, 128, 3, 1, 28), (128, 512, 1, 1, 28), (512, 256, 1, 1, 28), (256, 256, 3, 1, 14), (256, 1024, 1, 1, 14),
    (1024, 512, 1, 1, 14), (512, 512, 3, 1, 7), (512, 2048, 1, 1, 7),
]  # fmt: skip
VARIANTS = ("contiguous", "channels-last", "channels-last, weights packed")


def subject(case: Case) -> tuple[torch.nn.Module, Tensor]:
    """Nothing: the layers make their own."""
    return torch.nn.Identity(), torch.zeros(0)


def _layer(number: int, case: Case, joint: bool) -> Callable[[], list[Tensor]]:
    """Both results of a layer, by two convolutions or by one."""
    inputs, outputs, kernel, stride, size = LAYERS[number]
    name, _, packed = case.variant.partition(", ")
    form, generator = {"memory_format": FORMATS[name]}, torch.Generator().manual_seed(0)
    x = torch.rand(case.batch, inputs, size, size, generator=generator).contiguous(**form)
    w = torch.randn(outputs, inputs, kernel, kernel, generator=generator)
    weights = [torch.cat([w, w.clamp(min=0)])] if joint else [w, w.clamp(min=0)]
    how = (stride, kernel // 2, bool(packed))
    first, *second = [_convolution(x, weight.contiguous(**form), *how) for weight in weights]

    def one() -> list[Tensor]:
        result = first()
        return [part.contiguous(**form) for part in (result[:, :outputs], result[:, outputs:])]

    return one if joint else lambda: [first(), second[0]()]


def _convolution(x: Tensor, weight: Tensor, stride: int, padding: int, packed: bool) -> Callable[[], Tensor]:
    if not packed:
        return lambda: F.conv2d(x, weight, None, stride, padding)
    # As oneDNN likes it best, with weights laid out ahead.
    how: Any = ([padding] * 2, [stride] * 2, [1, 1], 1)
    weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *how, list(x.shape))
    return lambda: torch.ops.mkldnn._convolution_pointwise(x, weight, None, *how, "none", [], "")


def _method(joint: bool) -> Method:
    def steps(trial: Trial) -> Iterator[Any]:
        layers = [_layer(number, trial.case, joint) for number in range(len(LAYERS))]

        @torch.no_grad()
        def seconds_by_layer() -> dict[str, float]:
            times = [time.perf_counter(), *((layer(), time.perf_counter())[1] for layer in layers)]
            return {f"layer {number}": times[number + 1] - times[number] for number in range(len(layers))}

        yield
        yield seconds_by_layer

    return Method(steps, "model", parts=True)


METHODS = {"two": _method(joint=False), "one": _method(joint=True)}
BENCHMARK = Benchmark(
    "joint-convolutions", "Time the layers of a ResNet-50 with W and W⁺, apart and together.", __name__,
    listed(*(Case("resnet50", batch, 224, variant) for variant in VARIANTS for batch in (1, 8))),
)  # fmt: skip
