"""The command line: ``fxlrp explain``, ``graph``, ``export``, ``evaluate`` and ``report``.

Without the extra ``cli`` this module can be imported, and ``main`` says what to install. It does
without ``from __future__ import annotations``: typer reads annotations made inside a function.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Protocol, get_type_hints

from fxlrp.common.errors import FxlrpError, MissingExtraError
from fxlrp.common.extras import require
from fxlrp.common.version import __version__


class Command(Protocol):
    """What was asked of one command: a dataclass of :mod:`fxlrp.cli.options`."""

    def run(self) -> None:
        """Do it.

        Raises:
            FxlrpError: it cannot be done as asked.
        """


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

    from fxlrp.cli import options

    app = typer.Typer(
        name="fxlrp", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
        help="Explain image classifiers with Layer-wise Relevance Propagation.",
    )  # fmt: skip

    def show_version(asked: bool) -> None:
        if asked:
            typer.echo(f"fxlrp {__version__}")
            raise typer.Exit

    version_option = typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")

    @app.callback()
    def base(version: Annotated[bool, version_option] = False) -> None:
        pass

    app.command("explain")(_command(options.ExplainOptions))
    app.command("graph")(_command(options.GraphOptions))
    app.command("export")(_command(options.ExportOptions))
    app.command("evaluate")(_command(options.EvaluateOptions))
    app.command("report")(_command(options.ReportOptions))
    return app


def _command(kind: Callable[..., Command]) -> Callable[..., None]:
    """A command for typer, whose parameters are the fields of a dataclass, and ``--debug``."""
    import typer

    debug_option = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
    types = {**get_type_hints(kind, include_extras=True), "debug": debug_option}
    fields = inspect.signature(kind).parameters.values()
    debug_parameter = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False)

    def command(*, debug: bool, **values: Any) -> None:
        with _errors_reported(debug):
            kind(**values).run()

    command.__doc__ = kind.__doc__
    command.__annotations__ = types
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(annotation=types[parameter.name]) for parameter in (*fields, debug_parameter)]
    )
    return command


@contextmanager
def _errors_reported(debug: bool) -> Iterator[None]:
    """Print an error of fxlrp as one red line and exit with code 1; print a warning as one yellow line."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)

    def show(kind: str, message: Any, style: str) -> None:
        console.print(Text.assemble((f"{kind}: ", f"bold {style}"), (str(message), style)), soft_wrap=True)

    def show_warning(message: Any, *_: Any, **__: Any) -> None:
        show("warning", message, "yellow")

    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = show_warning
        try:
            yield
        except FxlrpError as error:
            if debug:
                raise
            show("error", error, "red")
            raise SystemExit(1) from None
