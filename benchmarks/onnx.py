"""What an exported explanation costs in onnxruntime on a CPU, beside its model exported the same way."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

import fxlrp
from benchmarks.methods import Case, Method, Steps, Trial, subject
from benchmarks.pages import grid, groups, in_order
from benchmarks.runs import Benchmark, listed
from fxlrp.extras import require

CASES = [Case(name, batch, 224) for name in ("efficientnet_lite0", "resnet50", "vit_b_16") for batch in (1, 8)]
BY_OPERATOR = ", by operator"


def _subject(case: Case) -> tuple[nn.Module, Tensor]:
    if case.model != "efficientnet_lite0":
        return subject(case)
    return require("examples.efficientnet_lite0", "demo").load().model, subject(Case("resnet18", case.batch, 224))[1]


def _run(trial: Trial, preset: str = "", by_operator: bool = False, rounds: int = 5) -> Steps:
    """The model, or its explanation by a preset; ``by_operator``: seconds by kind of operator instead of a call."""
    runtime = require("onnxruntime", "onnx")
    with TemporaryDirectory() as folder:
        yield
        path = Path(folder, "exported.onnx")
        if preset:
            fxlrp.compile(trial.model, preset).export_onnx(path, trial.images)
        else:
            axes = ({0: torch.export.Dim("batch", min=1)},)
            torch.onnx.export(trial.model, (trial.images,), path, dynamo=True, dynamic_shapes=axes,
                              external_data=False, verbose=False)  # fmt: skip
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # sessions that wait take no core
        options.enable_profiling, options.profile_file_prefix = by_operator, f"{folder}/profile"
        session = partial(runtime.InferenceSession, str(path), options, providers=["CPUExecutionProvider"])
        given = [trial.images.numpy(), torch.full((len(trial.images),), -1).numpy()]
        feed = {value.name: array for value, array in zip(session().get_inputs(), given, strict=False)}

        def seconds_by_operator() -> Counter[str]:
            profiled, seconds = session(), Counter[str]()
            for _ in range(rounds):
                profiled.run(None, feed)
            for event in json.loads(Path(profiled.end_profiling()).read_text()):
                if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                    seconds[event["args"]["op_name"]] += event["dur"] / rounds / 1e6
            return seconds

        yield seconds_by_operator if by_operator else partial(session().run, None, feed)


METHODS = {
    (preset or "model") + what: Method(
        partial(_run, preset=preset, by_operator=bool(what)), "fxlrp" if preset else "onnxruntime", parts=bool(what),
        subject=_subject,
    ) for what in ("", BY_OPERATOR) for preset in ("", "evidence", "conserving")
}  # fmt: skip


def by_operator(frame: pl.DataFrame) -> dict[str, Any]:
    """Milliseconds of a call by kind of operator, by case and method."""
    parts = frame.filter(pl.col("part") != "", pl.col("seconds") >= 1e-4)
    parts = in_order(parts, "method", METHODS).sort("seconds", descending=True, maintain_order=True)
    return {"operators": {
        key: grid(rows.rows(named=True), "part", "method", lambda row: f"{1000 * row['seconds']:.1f}", "operator")
        for key, rows in groups(parts, "model", "batch").items()
    }}  # fmt: skip


ONNX = Benchmark(
    "onnx", "Time exported explanations in onnxruntime, beside their models.", f"{__name__}:METHODS", listed(*CASES),
    by_operator,
)  # fmt: skip
