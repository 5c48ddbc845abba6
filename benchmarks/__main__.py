"""``python -m benchmarks NAME``: every benchmark is a command."""

import signal

import typer

from benchmarks import costs, coverage, models, program, runs, speed

app = typer.Typer(help="Measure what models fxlrp explains, and how fast. Pages and CSV files lie in benchmarks/.")
for benchmark in (speed.SPEED, speed.SCALING, program.OPTIMIZER, program.KINDS, costs.TARGETS, costs.PRECISION,
                  costs.EVALUATION, costs.ONNX, costs.LANGUAGE):  # fmt: skip
    app.command(benchmark.name, help=benchmark.about)(runs.command(benchmark))
app.command("coverage")(coverage.main)
app.command("choose-timm-models")(models.choose_timm_models)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: no process is left running
    app()
