"""``python -m benchmarks NAME``: every benchmark is a command."""

import typer

from benchmarks import costs, coverage, kinds, optimizer, runs, speed, zoo

TIMED = (speed.BENCHMARK, speed.SCALING, optimizer.BENCHMARK, kinds.BENCHMARK, costs.TARGETS, costs.PRECISION,
         costs.EVALUATION)  # fmt: skip

app = typer.Typer(help="Measure what models fxlrp explains, and how fast. Pages and CSV files lie in benchmarks/.")
for benchmark in TIMED:
    app.command(benchmark.name, help=benchmark.about)(runs.command(benchmark))
app.command("coverage")(coverage.main)
app.command("choose-timm-models")(zoo.choose_timm_models)

if __name__ == "__main__":
    app()
