"""Choose the smallest model of each timm family: ``python -m benchmarks.timm_smallest``, a few minutes.

It writes ``timm_smallest.json``, from which the sweep takes the names, so that all sweeps take the same.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict

import timm
import torch
from rich.progress import track
from timm.models._registry import _model_to_module

from benchmarks.zoo import TIMM_SMALLEST


def parameters(name: str) -> int | None:
    """How many parameters a model has, counted without memory for them; ``None``: it cannot be built so."""
    try:
        with torch.device("meta"):
            return sum(int(p.numel()) for p in timm.create_model(name, pretrained=False).parameters())
    except Exception:
        return None


def main() -> None:
    warnings.filterwarnings("ignore")
    families: dict[str, dict[str, int | None]] = defaultdict(dict)
    for name in track(timm.list_models(), "counting"):
        families[_model_to_module[name]][name] = parameters(name)
    smallest = {}
    for family, counts in sorted(families.items()):
        # A family none of whose models can be built is kept: the sweep's row says why.
        name, count = min(counts.items(), key=lambda pair: float("inf") if pair[1] is None else pair[1])
        smallest[family] = {"name": name, "parameters": count}
    TIMM_SMALLEST.write_text(json.dumps(smallest, indent=1) + "\n")
    print(f"{len(smallest)} families of timm {timm.__version__}: {TIMM_SMALLEST}")


if __name__ == "__main__":
    main()
