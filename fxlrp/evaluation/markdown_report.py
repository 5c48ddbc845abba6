"""The report of an evaluation, made from its results: tables, curves, scatter plots and galleries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined

from fxlrp.common.atomic_files import made_folder, whole
from fxlrp.common.errors import EvaluationError, FxlrpError
from fxlrp.common.text_tables import markdown
from fxlrp.evaluation import paper, plots, result_frames
from fxlrp.evaluation.config import Config
from fxlrp.evaluation.costs import costs_of, told
from fxlrp.evaluation.galleries import Gallery
from fxlrp.evaluation.report_tables import TIE_NAMES, ReportTables, Table, title
from fxlrp.evaluation.store import COSTS, PROPERTIES, RANDOMIZED, Store
from fxlrp.evaluation.tokens.report import write_passage_report

_SHOWN = 5
"""Images in a gallery of the best, and in one of the worst."""


def write_report(config: Config, folder: Path | None = None, *, gallery: bool = True) -> Path:
    """Write the report of what is in the folder of results.

    Args:
        config: what was run.
        folder: where to write; ``None``: ``report`` in the folder of the results.
        gallery: whether to show maps, for which some images are explained anew.

    Returns:
        The page, ``report.md``.

    Raises:
        EvaluationError: there are no results.
        MissingExtraError: a package of the extra ``evaluate`` is not installed.
    """
    store, results = Store(config.out, passages=config.passages), result_frames.read_results(config)
    folder = folder or config.out / "report"
    made_folder(folder, EvaluationError)
    if config.passages:
        return write_passage_report(config, results, store.read_json(COSTS), folder)
    tables = ReportTables(config, results)
    tables.summary.write_csv(folder / "results.csv")
    best, gallery_texts = _galleries(config, tables, folder) if gallery else (set(), {})
    pictures = _plots(config, tables, folder) | best
    randomized = store.read_json(RANDOMIZED)
    costs = costs_of(store.read_json(COSTS))
    properties = store.read_json(PROPERTIES)
    text = _template(pictures).render(
        config=config, metrics=config.metrics, tie_names=TIE_NAMES, pictures=pictures,
        images=results["index"].n_unique(), correct=_correct(results), roles={entry.paper for entry in config.methods},
        all_methods=tables.all_methods(), against=tables.against(config.run.against),
        paper_tables=tables.paper_tables(), orderings=tables.orderings(), paper_failures=paper.FAILURES,
        sweeps=tables.sweeps(costs),
        costs=Table(
            ["method", "time / forward", "placebo"],
            [[name, told(cost.turns, 2), told(cost.placebo, 2)] for name, cost in costs.items()],
        ),
        conservation=tables.conservation(), randomized=_randomized(randomized),
        randomized_images=randomized.get("images"), properties=tables.properties(properties),
        counts=properties, gallery=gallery_texts, failures=tables.failures(),
    )  # fmt: skip
    with whole(folder / "report.md", EvaluationError) as path:
        path.write_text(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", encoding="utf-8")
    return folder / "report.md"


def _template(pictures: set[str]) -> Any:
    """The page, whose ``picture`` shows what was drawn and else nothing."""
    environment = Environment(
        loader=PackageLoader("fxlrp.evaluation", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=False,  # it writes Markdown
    )  # fmt: skip
    environment.filters["markdown"] = lambda table, most=None: markdown(table.columns, table.lines[:most])
    environment.globals["picture"] = lambda name, caption: f"![{caption}]({name})" if name in pictures else ""
    return environment.get_template("report.md.jinja")


def _correct(results: pl.DataFrame) -> float | None:
    """The share of images that the model classifies as their label says; ``None`` where there are no labels."""
    images = results.drop_nulls(["label", "predicted"]).unique("index")
    share: float | None = images.select((pl.col("label") == pl.col("predicted")).mean()).item()
    return share


def _plots(config: Config, tables: ReportTables, folder: Path) -> set[str]:
    """Draw all plots; the names of those that have something to show."""
    results, ties = tables.results, config.metrics.ties
    drawn = {
        "scores.png": plots.scores(tables.summary, ties, folder / "scores.png"),
        "conservation.png": plots.conservation(result_frames.arrivals(results), folder / "conservation.png"),
        "agreement.png": plots.agreement(*result_frames.agreement(results), folder / "agreement.png"),
    }
    for tie in ties:
        drawn[f"curves_{tie}.png"] = plots.curves(results, tie, folder / f"curves_{tie}.png")
    return {name for name, anything in drawn.items() if anything}


def _galleries(config: Config, tables: ReportTables, folder: Path) -> tuple[set[str], dict[str, str]]:
    """Draw the best and the worst images by one method: names of pictures, and what the page says of them."""
    tie = config.metrics.ties[0]
    lead = _lead(config, tables.summary, tie)
    if lead is None:
        return set(), {}
    ranked = result_frames.of_method(tables.results, lead, 0).sort(f"id_{tie}", descending=True, maintain_order=True)
    order = ranked["index"].to_list()
    gallery = Gallery(config, tables.results)
    names, texts = set(), {"lead": title(lead, 0), "missing": ""}
    for name, indices in (("best", order[:_SHOWN]), ("worst", order[::-1][:_SHOWN])):
        try:
            plots.gallery(gallery.images(indices), gallery.methods, folder / f"gallery_{name}.jpg")
        except FxlrpError as error:
            texts["missing"] = str(error)
            break
        names.add(f"gallery_{name}.jpg")
    return names, texts


def _lead(config: Config, summary: pl.DataFrame, tie: str) -> str | None:
    """The method by which galleries are sorted: the paper's proposed one, or else the first."""
    measured = summary.filter(levels=0).drop_nulls(f"id_{tie}")["method"].to_list()
    proposed = [entry.spec.name for entry in config.methods if entry.paper == "iv" and entry.spec.name in measured]
    return next(iter(proposed + measured), None)


def _randomized(content: Mapping[str, Any]) -> Table:
    """The mean rank correlation with the trained model's maps: one line per stage, one column per method."""
    methods = content.get("methods", {})
    cells = [["–" if mean is None else f"{mean:.2f}" for mean in means] for means in methods.values()]
    lines = [list(line) for line in zip(content.get("layers", []), *cells, strict=False)]
    return Table(["down to", *methods], lines)
