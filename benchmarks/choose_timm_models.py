"""Choose the smallest model of each timm family, a few minutes: so that all sweeps of coverage take the same."""

import json
from collections import defaultdict

import torch
from rich.progress import track

from benchmarks.zoo import TIMM_SMALLEST


def main() -> None:
    """Write timm_smallest.json, from which the coverage sweep takes the names of timm's models."""
    import timm
    from timm.models._registry import _model_to_module

    families: dict[str, dict[str, int | None]] = defaultdict(dict)
    for name in track(timm.list_models(), "counting"):
        try:
            with torch.device("meta"):  # parameters are counted without memory for them
                count = sum(int(p.numel()) for p in timm.create_model(name, pretrained=False).parameters())
        except Exception:
            count = None  # a family none of whose models can be built is kept: the sweep's row says why
        families[_model_to_module[name]][name] = count
    smallest = {}
    for family, counts in sorted(families.items()):
        name, count = min(counts.items(), key=lambda pair: float("inf") if pair[1] is None else pair[1])
        smallest[family] = {"name": name, "parameters": count}
    TIMM_SMALLEST.write_text(json.dumps(smallest, indent=1) + "\n")
    print(f"{len(smallest)} families of timm {timm.__version__}: {TIMM_SMALLEST}")
