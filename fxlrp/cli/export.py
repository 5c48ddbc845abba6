"""``fxlrp export``: the explanation as a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fxlrp import compile
from fxlrp.cli.arguments import ModelOptions, example_of, start_named
from fxlrp.common.errors import ExportError
from fxlrp.exports.portable import check_path
from fxlrp.loading.models import load_model


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """The options of ``fxlrp export``, as its help describes them."""

    out: Path
    start: str = "probability"
    checkpoints: Sequence[str] = ()
    compiled: bool = False
    size: int | None = None


def export_explanation(options: ExportOptions) -> None:
    """Write a model's explanation as a file, and say what it takes and gives.

    Raises:
        FxlrpError: whatever can be wrong, and before the model is built where it can be known by then.
    """
    rules = options.read_rules()
    check_path(options.out, (".pt2", ".onnx"))
    onnx = options.out.suffix.lower() == ".onnx"
    if onnx and options.compiled:
        raise ExportError("--compiled makes a .pt2 file; an .onnx file is compiled by what runs it")
    loaded = load_model(options.model, options.weights)
    explainer = compile(
        loaded.model, options.preset, rules=rules, split=options.split, start=start_named(options.start),
        checkpoints=options.checkpoints,
    )  # fmt: skip
    example = example_of(loaded)
    if options.size is not None:
        example = example.new_zeros(*example.shape[:2], options.size, options.size)
    if onnx:
        explainer.export_onnx(options.out, example)
    elif options.compiled:
        explainer.export_aot(options.out, example)
    else:
        explainer.save(options.out, example)
    shape = ", ".join(map(str, ("batch", *example.shape[1:])))
    print(f"{options.out}  {options.out.stat().st_size / 2**20:.1f} MiB, for inputs ({shape}) and a target (batch)")
