"""``python -m benchmarks NAME``: every benchmark is a command."""

from importlib import import_module

import typer

from benchmarks import runs

TIMED = ("speed", "scaling", "optimizer", "kinds", "targets", "precision", "evaluation")
app = typer.Typer(help="Measure what models fxlrp explains, and how fast. Pages and CSV files lie in benchmarks/.")
for name in (*TIMED, "coverage", "choose_timm_models"):
    module = import_module(f"benchmarks.{name}")
    run = runs.command(module.BENCHMARK) if name in TIMED else module.main
    app.command(name.replace("_", "-"), help=module.BENCHMARK.about if name in TIMED else None)(run)

if __name__ == "__main__":
    app()
