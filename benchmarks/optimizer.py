"""What each optimisation of the emitted program brings."""

from inspect import getdoc
from typing import Any

import polars as pl

from benchmarks.harness import PLACEBO
from benchmarks.methods import fxlrp_method
from benchmarks.pages import groups, in_order
from benchmarks.runs import Benchmark, every
from fxlrp.passes.optimize import EMITTED, NAMES, PASSES

ALL = "all"
MODELS = ("resnet50", "vgg16_bn", "efficientnet_b0", "vit_b_16")
WORTH = 0.03
"""An optimisation is kept if it wins this share of time or memory beyond the placebo on any model."""


METHODS = {
    name: fxlrp_method(channels_last=True, optimize=chosen) for name, chosen in {
        ALL: True, "none": False,
        **{f"without {name}": [other for other in NAMES if other != name] for name in NAMES},
    }.items()
}  # fmt: skip
"""Programs with all optimisations, with none, and without each one."""


def context(frame: pl.DataFrame) -> dict[str, Any]:
    """What each optimisation wins at best, the figures of all programs by model, and what the names mean."""
    frame = in_order(frame, "method", [PLACEBO, *METHODS])
    models = {key: [{**row, "what": what, "column": f"{what}, batch {row['batch']}"}
                    for row in rows.sort("batch", maintain_order=True).iter_rows(named=True)
                    for what in ("time", "memory")]
              for key, rows in groups(frame, "model", "device_name").items()}  # fmt: skip
    told = {name: EMITTED.get(name) or getdoc(PASSES[name]) or "" for name in NAMES}
    described = [(name, text.partition("\n")[0]) for name, text in told.items()]
    return {"models": models, "described": described, "verdicts": _verdicts(frame)}


def _verdicts(frame: pl.DataFrame) -> list[list[str]]:
    """Per optimisation the largest gain on any model and batch beyond the placebo, and whether that is enough.

    Measures are time, memory held between calls, and that with what one call takes beyond it.
    """
    case, measures = ["device_name", "model", "batch"], ["ratio", "held_mb", "peak"]
    good = frame.filter(pl.col("status") == "ok").with_columns(peak=pl.col("held_mb") + pl.col("call_mb"))
    for name, suffix in ((ALL, "_default"), (PLACEBO, "_placebo")):
        good = good.join(good.filter(pl.col("method") == name).select(*case, *measures), on=case, suffix=suffix)
    lines = []
    for name in NAMES if len(good) else ():
        best = []
        for measure in measures:
            other, default, placebo = (pl.col(measure + suffix) for suffix in ("", "_default", "_placebo"))
            rows = good.filter(pl.col("method") == f"without {name}", other > 0, default > 0, placebo > 0)
            gains = rows.select(1 - default / other - (placebo / default - 1).abs(), "model", "batch").rows()
            best.append(max(gains, default=(0.0, "", 0)))
        told = [f"{gain:+.1%} ({model}, batch {batch})" if model else "" for gain, model, batch in best]
        lines.append([name, *told, "yes" if max(best)[0] >= WORTH else "**no**"])
    return lines


BENCHMARK = Benchmark(
    "optimizer", "Time explainers with all optimisations, with none, and without each of them.", f"{__name__}:METHODS",
    every(MODELS, (1, 8)), context,
)  # fmt: skip
