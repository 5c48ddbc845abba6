"""Configurations of small evaluations, and ways to run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import evaluation_nets
import pyarrow.parquet as pq

from fxlrp.evaluation import parse_config
from fxlrp.evaluation.store import RESULTS

HERE = Path(__file__).parent

METHODS = {
    "conserving": {"preset": "conserving", "levels": [0, 8], "paper": "iv"},
    "symmetric": {"split": "symmetric", "identity_skips": False, "levels": [0, 8], "paper": "i"},
    "bright": {"kind": "python", "function": "evaluation_nets:brightness", "options": {"power": 2.0}},
    "random": {"kind": "random"},
    "edges": {"kind": "edges"},
}


def small_table(folder, *, model="load", methods=METHODS, per_class=2, metrics=None, **run):
    """A configuration of an evaluation in a folder; its images are written where they are not there."""
    if not (folder / "images.npz").exists():
        evaluation_nets.write_arrays(folder / "images.npz")
    return {
        "model": {"spec": f"python:evaluation_nets:{model}"},
        "data": {"kind": "npz", "path": "images.npz", "per_class": per_class, "seed": 1},
        "metrics": {"step": 9, "ties": ["strict", "plateau"], "checkpoints": ["block", "fc"], "batch_size": 16,
                    **(metrics or {})},
        "run": {"out": "out", **run},
        "methods": methods,
    }  # fmt: skip


def small_config(folder, **options):
    return parse_config(small_table(folder, **options), folder)


def small_file(folder, **options):
    """The same as a TOML file."""

    def written(value):
        if isinstance(value, dict):
            return "{" + ", ".join(f'"{key}" = {written(each)}' for key, each in value.items()) + "}"
        return json.dumps(value)

    lines = []
    for name, section in small_table(folder, **options).items():
        lines += [f"[{name}]", *(f'"{key}" = {written(value)}' for key, value in section.items())]
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def result_table(config):
    """The results, as a user reads them."""
    return pq.read_table(config.out / RESULTS)


def result_rows(config):
    return result_table(config).to_pylist()


def start(*arguments):
    """Start ``python -m`` with these arguments in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)], cwd=HERE, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
