"""The command line: ``fxlrp explain``, ``graph``, ``export``, ``evaluate`` and ``report``.

Without the extra ``cli`` this module can be imported, and ``main`` says what to install. It does
without ``from __future__ import annotations``: typer reads annotations made inside a function.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, get_args, get_type_hints

from fxlrp.common.errors import FxlrpError, MissingExtraError
from fxlrp.common.extras import require
from fxlrp.common.version import __version__


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
    from fxlrp.evaluation.command import evaluate, report

    app = typer.Typer(
        name="fxlrp", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
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

    for name, kind in options.COMMANDS.items():
        app.command(name)(_command(kind, lambda asked: asked.run()))
    for function in (evaluate, report):
        app.command(function.__name__)(_command(function, lambda done: None))
    return app


def _command(work: Callable[..., Any], finish: Callable[[Any], None]) -> Callable[..., None]:
    """A command for typer, with the parameters of a function or a dataclass, and ``--debug``.

    Args:
        work: is called with the options.
        finish: is called with what ``work`` returns.
    """
    import typer
    from typer.models import ParameterInfo

    debug_option = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
    types = {**get_type_hints(work, include_extras=True), "debug": debug_option}
    for kind in types.values():
        for told in get_args(kind):
            if isinstance(told, ParameterInfo):
                told.readable = False  # files that may not be read are told as other mistakes are
    fields = inspect.signature(work).parameters.values()
    debug_parameter = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False)

    def command(*, debug: bool, **values: Any) -> None:
        with _errors_reported(debug):
            finish(work(**values))

    command.__doc__ = work.__doc__
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
            raise SystemExit(error.exit_code) from None
