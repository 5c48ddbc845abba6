"""``fxlrp export``: the explanation as a file, or as a folder for a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxlrp.cli.arguments import asked_of, compile_options, example_of
from fxlrp.cli.options import ExportOptions
from fxlrp.common.errors import ExportError
from fxlrp.compiler import compile
from fxlrp.exports.portable import check_path
from fxlrp.loading.models import load_model


def export_explanation(options: ExportOptions) -> None:
    """Write a model's explanation as a file, and print its size and its inputs.

    Raises:
        FxlrpError: an option is wrong, or the model cannot be explained or exported.
    """
    compiling = compile_options(options)
    out = options.out or options.place
    if out is None or (options.out is not None and options.place is not None):
        raise ExportError("name one file or folder to write, such as --out explainer.onnx")
    if options.to not in (None, "web"):
        raise ExportError(f"--to {options.to}: web is what there is, or leave it out and name a .pt2 or .onnx file")
    if options.to == "web":
        _export_web(options, out, compiling)
        return
    check_path(out, (".pt2", ".onnx"))
    onnx = out.suffix.lower() == ".onnx"
    if onnx and options.compiled:
        raise ExportError("--compiled makes a .pt2 file; an .onnx file is compiled by what runs it")
    loaded = load_model(options.model, options.weights, asked_of(options))
    explainer = compile(loaded.model, **compiling)
    example = example_of(loaded)
    if onnx:
        explainer.export_onnx(out, example)
    elif options.compiled:
        explainer.export_aot(out, example)
    else:
        explainer.save(out, example)
    shape = ", ".join(map(str, ("batch", *example.shape[1:])))
    print(f"{out}  {_mebibytes(out)}, for inputs ({shape}) and a target (batch)")


def _export_web(options: ExportOptions, out: Path, compiling: dict[str, Any]) -> None:
    if options.compiled:
        raise ExportError("--compiled makes a .pt2 file, and --to web a folder")
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file: --to web writes a folder")
    loaded = load_model(options.model, options.weights, asked_of(options))
    if loaded.input_format is None:
        raise ExportError(
            "the page must do the preprocessing itself, and this model has one of its own: say what it does by --size, "
            "--mean, --std and --channels"
        )
    compile(loaded.model, **compiling).export_web(
        out, loaded.input_format, loaded.classes, title=options.model.partition(":")[2], runtime=options.runtime
    )
    print(f"{out}  {_mebibytes(*out.iterdir())}: try it by python -m http.server --directory {out}")


def _mebibytes(*files: Path) -> str:
    return f"{sum(file.stat().st_size for file in files) / 2**20:.1f} MiB"
