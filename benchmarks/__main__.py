"""``python -m benchmarks NAME``: every benchmark is a command."""

import typer

from benchmarks import (
    choose_timm_models,
    coverage,
    evaluation,
    joint_convolutions,
    kinds,
    optimizer,
    precision,
    runs,
    scaling,
    speed,
    targets,
)  # fmt: skip

app = typer.Typer(help="Measure what models fxlrp explains, and how fast. Pages and CSV files lie in benchmarks/.")
for module in (speed, scaling, optimizer, kinds, targets, precision, evaluation, joint_convolutions):
    app.command(module.BENCHMARK.name, help=module.BENCHMARK.about)(runs.command(module.BENCHMARK))
app.command("coverage")(coverage.main)
app.command("choose-timm-models")(choose_timm_models.main)

if __name__ == "__main__":
    app()
