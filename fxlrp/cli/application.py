"""The command line: ``fxlrp explain``, ``graph``, ``export``, ``evaluate`` and ``report``.

Without the extra ``cli`` this module can be imported, and ``main`` says what to install. It does
without ``from __future__ import annotations``: typer reads annotations made inside a function.
"""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fxlrp.common.errors import FxlrpError, MissingExtraError
from fxlrp.common.extras import require


def main() -> None:
    """Run the command line; what the ``fxlrp`` script calls."""
    try:
        require("typer", "cli")
        require("rich", "cli")
    except MissingExtraError as error:
        print(f"fxlrp: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    _application()()


def _application() -> Any:
    import typer

    app = typer.Typer(
        name="fxlrp", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
        help="Explain image classifiers with Layer-wise Relevance Propagation.",
    )  # fmt: skip

    Model = Annotated[
        str, typer.Option(metavar="SPEC", help="torchvision:NAME, timm:NAME or python:package.module:callable.")
    ]
    Weights = Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A checkpoint; without one, torchvision and timm models are untrained."),
    ]
    PresetName = Annotated[str, typer.Option(metavar="NAME", help="The rules of the explanation.")]
    Split = Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How a join shares: ratio, symmetric, signed, residual or skip; else as the preset has it.",
        ),
    ]
    Rules = Annotated[
        list[str] | None,
        typer.Option(
            "--rule", metavar="PATTERN=RULE", show_default=False,
            help="A rule for modules by name or pattern, such as 'layer4.*=Epsilon(1e-6)'; may be repeated.",
        ),
    ]  # fmt: skip
    StartName = Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Relevance that enters at the class: probability, logit, one, contrastive, softmax_gradient.",
        ),
    ]
    Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

    def tell_version(asked: bool) -> None:
        if asked:
            import fxlrp

            typer.echo(f"fxlrp {fxlrp.__version__}")
            raise typer.Exit

    version_option = typer.Option("--version", callback=tell_version, is_eager=True, help="Print the version.")

    @app.callback()
    def base(version: Annotated[bool, version_option] = False) -> None:
        pass

    @app.command()
    def explain(
        images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.", show_default=False)],
        model: Model,
        weights: Weights = None,
        target: Annotated[
            str | None,
            typer.Option(metavar="CLASS", help="The class to explain, by number or name; else the predicted one."),
        ] = None,
        preset: PresetName = "conserving",
        rule: Rules = None,
        split: Split = None,
        start: StartName = "probability",
        checkpoint: Annotated[
            list[str] | None,
            typer.Option(
                metavar="MODULE", show_default=False,
                help="Also add up and show the relevance at this module's input; may be repeated.",
            ),
        ] = None,
        out: Annotated[
            Path | None,
            typer.Option(metavar="PATH", help="A .png file (one image) or a folder; else the current folder."),
        ] = None,
        device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps, ...")] = "cpu",
        batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images explained at once.")] = 8,
        colors: Annotated[
            str | None,
            typer.Option(metavar="NAME", help="symmetric (blue to red) or positive (dark to bright); else as it fits."),
        ] = None,
        quantize: Annotated[
            int | None, typer.Option(min=2, metavar="N", help="Show each map in this many levels (Heat Quantization).")
        ] = None,
        smooth: Annotated[
            float | None,
            typer.Option(min=0, metavar="PX", help="Blur the map in the picture; else 1 pixel, 0 for a quantized one."),
        ] = None,
        percentile: Annotated[
            float, typer.Option(metavar="P", help="The colours end at this percentile of the relevance that is shown.")
        ] = 99.5,
        bar: Annotated[bool, typer.Option("--bar", help="A colour bar beside the map, in relevance.")] = False,
        ledger: Annotated[bool, typer.Option(help="Account for what was absorbed; about doubles the time.")] = True,
        report: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Also write a page on how relevance flows, .html, of all images."),
        ] = None,
        debug: Debug = False,
    ) -> None:
        """Explain images: a PNG with the heatmap on the photograph for each, and what it adds up to."""
        from fxlrp.cli.explain import ExplainOptions, explain_images

        with _reported(debug):
            explain_images(
                ExplainOptions(
                    images=images, model=model, weights=weights, target=target, preset=preset,
                    rules=rule or (), split=split, start=start, checkpoints=checkpoint or (), out=out, device=device,
                    batch_size=batch_size, colors=colors, quantize=quantize, smooth=smooth,
                    percentile=percentile, bar=bar, ledger=ledger, report=report,
                )
            )  # fmt: skip

    @app.command()
    def graph(
        model: Model,
        weights: Weights = None,
        preset: PresetName = "conserving",
        rule: Rules = None,
        split: Split = None,
        out: Annotated[
            Path, typer.Option(metavar="FILE", help="The drawing: .svg, .png, .pdf, or .dot for Graphviz' text.")
        ] = Path("graph.svg"),
        view: Annotated[
            str, typer.Option(metavar="NAME", help="both, forward (the model) or relevance (its rules).")
        ] = "both",
        depth: Annotated[
            int | None, typer.Option(min=1, metavar="N", help="Draw modules at this depth as one box each.")
        ] = None,
        flow: Annotated[
            Path | None, typer.Option(metavar="IMAGE", help="Explain this image and draw how much relevance flows.")
        ] = None,
        target: Annotated[
            str | None, typer.Option(metavar="CLASS", help="The class to explain; else the predicted one.")
        ] = None,
        explore: Annotated[
            Path | None,
            typer.Option(metavar="IMAGE", help="Explain this image; show the graph in a browser, in Model Explorer."),
        ] = None,
        debug: Debug = False,
    ) -> None:
        """Draw the graph that computes the explanation, or look at it in a browser."""
        from fxlrp.cli.graph import GraphOptions, draw_graph

        with _reported(debug):
            draw_graph(
                GraphOptions(
                    model=model, weights=weights, preset=preset, split=split, rules=rule or (), out=out, view=view,
                    depth=depth, flow=flow, target=target, explore=explore,
                )
            )  # fmt: skip

    @app.command()
    def export(
        model: Model,
        out: Annotated[
            Path,
            typer.Option(metavar="FILE", help="A .pt2 file, for fxlrp.load or torch.export.load, or an .onnx file."),
        ],
        weights: Weights = None,
        preset: PresetName = "conserving",
        rule: Rules = None,
        split: Split = None,
        start: StartName = "probability",
        checkpoint: Annotated[
            list[str] | None,
            typer.Option(
                metavar="MODULE", show_default=False,
                help="Also give the relevance at this module's input; may be repeated.",
            ),
        ] = None,
        compiled: Annotated[
            bool, typer.Option("--compiled", help="Compile the .pt2 by AOTInductor for this kind of machine.")
        ] = False,
        size: Annotated[
            int | None,
            typer.Option(min=1, metavar="PX", help="Height and width of the images; else as preprocessed."),
        ] = None,
        debug: Debug = False,
    ) -> None:
        """Write the explanation as a file that runs without the model's Python code."""
        from fxlrp.cli.export import ExportOptions, export_explanation

        with _reported(debug):
            export_explanation(
                ExportOptions(
                    model=model, out=out, weights=weights, preset=preset, rules=rule or (), split=split, start=start,
                    checkpoints=checkpoint or (), compiled=compiled, size=size,
                )
            )  # fmt: skip

    from fxlrp.evaluation.command import evaluate
    from fxlrp.evaluation.command import report as report_command

    for name, command in (("evaluate", evaluate), ("report", report_command)):
        app.command(name)(_with_debug(command, Debug))
    return app


def _with_debug(command: Callable[..., None], debug_option: Any) -> Callable[..., None]:
    """A command with the option ``--debug``, whose errors are reported as :func:`_reported` does."""

    @functools.wraps(command)
    def run(debug: bool = False, **options: Any) -> None:
        with _reported(debug):
            command(**options)

    signature = inspect.signature(command)
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=debug_option)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), debug])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, "debug": debug_option}
    return run


@contextmanager
def _reported(debug: bool) -> Iterator[None]:
    """Errors of fxlrp as a line in red and exit code 1, warnings as a line in yellow."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)

    def say(kind: str, message: Any, style: str) -> None:
        console.print(Text.assemble((f"{kind}: ", f"bold {style}"), (str(message), style)), soft_wrap=True)

    def show(message: Any, *_: Any, **__: Any) -> None:
        say("warning", message, "yellow")

    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = show
        try:
            yield
        except FxlrpError as error:
            if debug:
                raise
            say("error", error, "red")
            raise SystemExit(1) from None


