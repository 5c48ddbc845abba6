"""What each command can be told: one field for each option, with its name, type, default and help.

The command line reads these classes, see :mod:`fxlrp.cli.application`. To add an option, add a field and use it
in the command's ``run``. Nothing here imports torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model and its rules. What is ``None`` is left to the defaults of :func:`fxlrp.compile`."""

    model: Annotated[
        str,
        Option(
            metavar="SPEC",
            help="torchvision:NAME, timm:NAME, transformers:FOLDER, onnx:FILE or python:package.module:callable.",
        ),
    ]
    weights: Annotated[
        Path | None,
        Option(metavar="FILE", help="A checkpoint; without one, torchvision and timm models are untrained."),
    ] = None
    preset: Annotated[str | None, Option(metavar="NAME", help="The rules of the explanation; else evidence.")] = None
    rules: Annotated[
        list[str] | None,
        Option(
            "--rule", metavar="PATTERN=RULE",
            help="A rule for modules by name or pattern, such as 'layer4.*=Epsilon(1e-6)'; may be repeated.",
        ),
    ] = None  # fmt: skip
    split: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="How a join shares: ratio, symmetric, signed, gamma, residual or skip; else as the preset has it.",
        ),
    ] = None
    size: Annotated[
        int | None, Option(min=1, metavar="PX", help="Height and width of the input; else as the model says.")
    ] = None
    mean: Annotated[
        str | None,
        Option(metavar="NUMBERS", help="Mean of each channel, such as 0.5,0.5,0.5, for values from 0 to 1."),
    ] = None
    std: Annotated[str | None, Option(metavar="NUMBERS", help="Standard deviation of each channel.")] = None
    channels: Annotated[int | None, Option(metavar="N", help="Channels of the input, 1 or 3; else as said.")] = None
    classes: Annotated[
        Path | None, Option(metavar="FILE", help="The classes' names: one per line, or JSON; else the model's own.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ExplanationOptions(ModelOptions):
    """What is explained of a model's output, and where."""

    start: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Relevance that enters at the class: log_odds, probability, logit, one, centred, contrastive, "
            "softmax_gradient; else auto.",
        ),
    ] = None
    checkpoints: Annotated[
        list[str] | None,
        Option("--checkpoint", metavar="MODULE", help="Also give the relevance at a module's input; may be repeated."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(ExplanationOptions):
    """Explain images: a PNG with the heatmap on the photograph for each, and what it adds up to."""

    images: Annotated[
        list[Path],
        Argument(metavar="IMAGE", help="Image files, patterns, folders, .txt lists of them, or arrays (.npy)."),
    ]
    target: Annotated[
        list[str] | None,
        Option(metavar="CLASS", help="The class, by number or name; may be repeated; else the predicted one."),
    ] = None
    top: Annotated[
        int, Option(min=1, metavar="N", help="Without --target: explain the N most probable classes of each image.")
    ] = 1  # fmt: skip
    against: Annotated[
        list[str] | None,
        Option(metavar="CLASS", help="Also: why not this class instead; may be repeated."),
    ] = None  # fmt: skip
    out: Annotated[
        Path | None,
        Option(metavar="PATH", help="A .png file (one image) or a folder; else the current folder, or explained."),
    ] = None  # fmt: skip
    json: Annotated[
        Path | None, Option(metavar="FILE", help="Also write the results as JSON; - is the standard output.")
    ] = None
    save: Annotated[
        Path | None,
        Option(metavar="FILE", help="Also write relevance and outputs as numbers: .npz, .json or .parquet."),
    ] = None  # fmt: skip
    view: Annotated[
        str, Option(metavar="NAME", help="whole photograph, the crop that the model sees, or tiles over all of it.")
    ] = "whole"  # fmt: skip
    workers: Annotated[int, Option(min=1, metavar="N", help="Processes that share a folder's images.")] = 1
    fresh: Annotated[bool, Option("--fresh", help="Explain again what a folder's results have already.")] = False
    device: Annotated[str, Option(metavar="NAME", help="cpu, cuda, cuda:1, mps, ...")] = "cpu"
    batch_size: Annotated[int, Option(min=1, metavar="N", help="Images explained at once.")] = 8
    colors: Annotated[
        str | None, Option(metavar="NAME", help="symmetric (blue to red, the default) or positive (white to red).")
    ] = None
    quantize: Annotated[
        int | None, Option(min=2, metavar="N", help="Show each map in this many levels (Heat Quantization).")
    ] = None
    smooth: Annotated[
        float | None,
        Option(min=0, metavar="PX", help="Blur the map in the picture; else 1 pixel, 0 for a quantized one."),
    ] = None
    pixels: Annotated[
        bool, Option("--pixels", help="Show single pixels of models that read patches, such as ViTs, too.")
    ] = False
    percentile: Annotated[
        float, Option(metavar="P", help="The colours end at this percentile of the relevance that is shown.")
    ] = 99.5
    contour: Annotated[
        float | None,
        Option(metavar="SHARE", help="A line round the region with this share of the evidence, such as 0.5."),
    ] = None  # fmt: skip
    bar: Annotated[
        bool, Option("--bar", help="A title with class, probability and share, and a colour bar in the start's unit.")
    ] = False  # fmt: skip
    ledger: Annotated[bool, Option(help="Account for what was absorbed; about doubles the time.")] = True
    report: Annotated[
        Path | None,
        Option(metavar="FILE", help="Also write a page on how relevance flows, .html, of all images."),
    ] = None

    def run(self) -> None:
        from fxlrp.cli.explain import explain_images

        explain_images(self)


@dataclass(frozen=True, kw_only=True)
class GraphOptions(ModelOptions):
    """Draw the graph that computes the explanation, or look at it in a browser."""

    out: Annotated[
        Path, Option(metavar="FILE", help="The drawing: .svg, .png, .pdf, or .dot for Graphviz' text.")
    ] = Path("graph.svg")  # fmt: skip
    view: Annotated[str, Option(metavar="NAME", help="both, forward (the model) or relevance (its rules).")] = "both"
    depth: Annotated[
        int | None, Option(min=1, metavar="N", help="Draw modules at this depth as one box each.")
    ] = None  # fmt: skip
    flow: Annotated[
        Path | None, Option(metavar="IMAGE", help="Explain this image and draw how much relevance flows.")
    ] = None
    target: Annotated[str | None, Option(metavar="CLASS", help="The class to explain; else the predicted one.")] = None
    explore: Annotated[
        Path | None,
        Option(metavar="IMAGE", help="Explain this image; show the graph in a browser, in Model Explorer."),
    ] = None

    def run(self) -> None:
        from fxlrp.cli.graph import draw_graph

        draw_graph(self)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ExplanationOptions):
    """Write the explanation as a file that runs without the model's Python code."""

    place: Annotated[Path | None, Argument(metavar="[OUT]", help="The same as --out.")] = None
    out: Annotated[
        Path | None,
        Option(metavar="FILE", help="A .pt2 file, for fxlrp.load or torch.export.load, an .onnx file, or a folder."),
    ] = None
    to: Annotated[
        str | None,
        Option(metavar="NAME", help="web: a folder with a page that explains photographs in the browser; else a file."),
    ] = None
    runtime: Annotated[
        Path | None, Option(metavar="FOLDER", help="The files of onnxruntime-web, for --to web; else npm fetches them.")
    ] = None
    compiled: Annotated[
        bool, Option("--compiled", help="Compile the .pt2 by AOTInductor for this kind of machine.")
    ] = False  # fmt: skip

    def run(self) -> None:
        from fxlrp.cli.export import export_explanation

        export_explanation(self)


Options = ExplainOptions | GraphOptions | ExportOptions

COMMANDS: dict[str, type[Options]] = {"explain": ExplainOptions, "graph": GraphOptions, "export": ExportOptions}
"""The commands by name, without those of evaluations, which :mod:`fxlrp.evaluation.command` has."""
