"""``fxlrp export``: the explanation as a file."""

from __future__ import annotations

from fxlrp.cli.arguments import compile_options, example_of
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
    check_path(options.out, (".pt2", ".onnx"))
    onnx = options.out.suffix.lower() == ".onnx"
    if onnx and options.compiled:
        raise ExportError("--compiled makes a .pt2 file; an .onnx file is compiled by what runs it")
    loaded = load_model(options.model, options.weights)
    explainer = compile(loaded.model, **compiling)
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
