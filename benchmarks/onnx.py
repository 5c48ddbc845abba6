"""What an exported explanation costs in onnxruntime on a CPU, beside its model exported the same way.

The two take turns, and so does the model in a second session, the placebo: how far its ratio lies from 1 is
what nothing explains. ``--profile`` tells the operators that take the time.
"""

import json
from collections import Counter
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

import fxlrp
from benchmarks.models import build, noise
from benchmarks.workers import CORES, commit, processor, versions
from fxlrp.extras import require

MODELS = ("efficientnet_lite0", "resnet50", "vit_b_16")


def main(
    model: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    preset: Annotated[str, typer.Option(help="The rules.")] = "evidence",
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each that count.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="Threads of onnxruntime.")] = min(2, CORES),
    profile: Annotated[bool, typer.Option("--profile", help="Tell the time by kind of operator.")] = False,
) -> None:
    """Time exported explanations in onnxruntime, beside their models."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{processor()}, {threads} threads, batch {batch}, {rounds} rounds, preset {preset}, {commit()}")
    busy = require("psutil", "bench").cpu_percent(0.5) / 100 * CORES
    console.print(f"{versions('torch', 'onnxruntime')}; other work keeps {busy:.1f} cores busy")
    with TemporaryDirectory() as folder:
        for name in model or MODELS:
            net, x = _subject(name), noise(3, 224, 224, batch=batch)
            path = fxlrp.compile(net, preset).export_onnx(Path(folder, f"{name}.onnx"), x)
            own = Path(folder, f"{name}_model.onnx")
            axes = ({0: torch.export.Dim("batch", min=1)},)
            torch.onnx.export(net, (x,), own, dynamo=True, dynamic_shapes=axes, external_data=False, verbose=False)
            runs = [_session(file, x, threads) for file in (own, path, own)]
            times = [[_seconds(*run) for run in runs] for _ in range(rounds + 2)][2:]
            seconds, ratio, placebo = (median(row[i] / row[0] ** bool(i) for row in times) for i in range(3))
            console.print(f"{name}: {ratio:.2f} of the model's {seconds * 1e3:.1f} ms; placebo {placebo:.3f}")
            for file in (own, path) if profile else ():
                console.print(_profiled(file, x, threads, rounds))


def _subject(name: str) -> nn.Module:
    if name == "efficientnet_lite0":
        return require("examples.efficientnet_lite0", "demo").load().model
    return build(name)


def _session(path: Path, x: torch.Tensor, threads: int, profile: str = "") -> tuple[Any, dict[str, Any]]:
    """A session and what it is given; ``profile`` is where its profile goes."""
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # sessions that wait take no core
    options.enable_profiling, options.profile_file_prefix = bool(profile), profile
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = [x.numpy(), torch.full((len(x),), -1).numpy()]
    feed = {value.name: array for value, array in zip(session.get_inputs(), given, strict=False)}
    return session, feed


def _seconds(session: Any, feed: dict[str, Any]) -> float:
    start = perf_counter()
    session.run(None, feed)
    return perf_counter() - start


def _profiled(path: Path, x: torch.Tensor, threads: int, rounds: int) -> str:
    """Milliseconds of a call by kind of operator."""
    session, feed = _session(path, x, threads, str(path.with_suffix("")))
    for _ in range(rounds):
        session.run(None, feed)
    times: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += event["dur"] / rounds / 1e3
    listed = ", ".join(f"{kind} {taken:.2f}" for kind, taken in times.most_common(14))
    return f"  {path.stem}: {sum(times.values()):.1f} ms: {listed}"
