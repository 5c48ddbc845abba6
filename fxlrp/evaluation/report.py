"""The report of an evaluation, made from its results: tables, curves, scatter plots and galleries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fxlrp.common.atomic_files import whole
from fxlrp.common.errors import EvaluationError, FxlrpError
from fxlrp.common.text_tables import markdown, verbatim
from fxlrp.evaluation import paper, plots, tables
from fxlrp.evaluation.config import Config
from fxlrp.evaluation.galleries import Gallery
from fxlrp.evaluation.statistics import Group, agreement, groups
from fxlrp.evaluation.store import COSTS, RANDOMIZED, Store
from fxlrp.evaluation.tables import TIE_NAMES, title

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
    """
    store = Store(config.out, [(entry.spec.name, n) for entry in config.methods for n in entry.levels])
    store.merge()
    results = store.read()
    if not len(results):
        raise EvaluationError(f"{config.out} holds no results")
    folder = folder or config.out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    page = _Page(config, folder, results)
    page.write(Gallery(config) if gallery else None)
    return folder / "report.md"


class _Page:
    """A report while it is written."""

    def __init__(self, config: Config, folder: Path, results: Any) -> None:
        self.config, self.folder, self.results = config, folder, results
        self.found = groups(results)
        self.text: list[str] = []

    def write(self, gallery: Gallery | None) -> None:
        self._head()
        self._tables()
        self._conservation()
        self._agreement()
        self._randomized()
        if gallery is not None:
            self._galleries(gallery)
        self._failures()
        tables.write_csv(self.found, self.config, self.folder / "results.csv")
        with whole(self.folder / "report.md") as path:
            path.write_text("\n\n".join(self.text) + "\n", encoding="utf-8")

    # Parts ----------------------------------------------------------------------------------------

    def _head(self) -> None:
        config, metrics = self.config, self.config.metrics
        rows = self.results.select(["index", "label", "predicted"]).to_pylist()
        images = len({row["index"] for row in rows})
        known = {row["index"]: row for row in rows if row["predicted"] is not None and row["label"] is not None}
        correct = sum(row["predicted"] == row["label"] for row in known.values())
        self._add(f"# {config.title}")
        told = [f"{images} images"]
        if known:
            told.append(f"of which the model gets {100 * correct / len(known):.1f} % right")
        what = "the label" if metrics.target == "label" else "the predicted class"
        self._add(
            f"{', '.join(told)}. Explained and followed: {what}. {metrics.step} pixels a step, "
            f"baseline {metrics.baseline}, forward passes by the backend {metrics.backend}. Brackets hold 95 % of "
            "bootstrap samples of the images. Scores in %."
        )
        if "plateau" in metrics.ties:
            self._add(
                "*Strict order* names exactly n pixels at step n, as the definition says; *plateaus* names every pixel "
                "that attains the attribution of the n-th, as the paper's released code does. The two agree where no "
                "pixels tie. Under plateaus a map of few values, or a useless one, can score high: the column *tied "
                "pixels* says how far to believe it."
            )

    def _tables(self) -> None:
        found, config = self.found, self.config
        self._add("## All methods", tables.all_methods(found, config))
        self._picture("scores.png", plots.scores(list(found.values()), config.metrics.ties, self._at("scores.png")),
                      "ID score by method")  # fmt: skip
        other = found.get((config.run.against or "", 0))
        if other is not None:
            self._add(f"## Against {other.method}", "ID less that of the same image, its mean over images.",
                      tables.against(found, config, other))  # fmt: skip
        for headline, table in tables.paper_tables(found, config):
            self._add(f"## {headline}", table)
        claims = tables.orderings(found, config)
        if claims:
            self._add("## What of the paper's ordering holds", claims)
        failures = paper.FAILURES
        if any(entry.paper == "iv" for entry in config.methods):
            self._add(f"The paper counts {failures.score:.1f} % {failures.name} (D.4) for (iv).")
        costs = self._json(COSTS)
        for headline, table in tables.sweep(found, config, costs):
            self._add(f"## {headline}", table)
        if costs:
            lines = [[name, f"{ratio:.2f}"] for name, ratio in costs.items()]
            self._add("## Cost", "Time of one image / that of a forward pass, median of rounds in turn.",
                      markdown(["method", "time / forward"], lines))  # fmt: skip
        for tie in config.metrics.ties:
            plain = [group for group in found.values() if not group.levels and group.measured(tie)]
            name = f"curves_{tie}.png"
            self._picture(name, plots.curves(plain, tie, self._at(name)), f"Curves, {TIE_NAMES[tie]}")

    def _conservation(self) -> None:
        table = tables.conservation(self.found)
        if table:
            self._add("## Conservation", "Σ R over an image / the relevance that entered.", table)
            kept = [group for group in self.found.values() if group.checkpoints and not group.levels][:8]
            self._picture("conservation.png", plots.conservation(kept, self._at("conservation.png")),
                          "Relevance that arrived against relevance that entered")  # fmt: skip

    def _agreement(self) -> None:
        names, matrix = agreement(self.results)
        if plots.agreement(names, matrix, self._at("agreement.png")):
            self._add("## Agreement", "Spearman's rank correlation of maps, pixel by pixel, mean over the images.")
            self._picture("agreement.png", True, "Agreement of methods")

    def _randomized(self) -> None:
        found = self._json(RANDOMIZED)
        if not found:
            return
        methods = list(found["methods"])
        lines = [
            [layer, *("–" if found["methods"][m][i] is None else f"{found['methods'][m][i]:.2f}" for m in methods)]
            for i, layer in enumerate(found["layers"])
        ]
        self._add(
            "## Maps of a randomised model",
            f"Weights made random from the output down to the layer of the line (Adebayo et al., 2018), "
            f"{found['images']} images: mean rank correlation with the maps of the trained model. A map that stays as "
            "it is does not rest on what the model has learned.",
            markdown(["down to", *methods], lines),
        )

    def _galleries(self, gallery: Gallery) -> None:
        tie = self.config.metrics.ties[0]
        lead = self._lead(tie)
        if lead is None:
            return
        order = np.argsort(-lead.score(tie), kind="stable")
        methods = [entry.spec.name for entry in self.config.methods]
        self._add("## Galleries", f"Images by the ID of {title(lead.method, lead.levels)}, {TIE_NAMES[tie]}.")
        for name, picked in (("best", order[:_SHOWN]), ("worst", order[::-1][:_SHOWN])):
            try:
                images = gallery.images([int(lead.index[i]) for i in picked], self.found, tie)
            except FxlrpError as error:
                self._add(f"No gallery of the {name}: {error}")
                return
            file = f"gallery_{name}.png"
            self._picture(file, plots.gallery(images, methods, self._at(file)), f"The {name} images")

    def _lead(self, tie: str) -> Group | None:
        """The method by which galleries are sorted: the paper's proposed one, or else the first."""
        measured = [group for group in self.found.values() if group.measured(tie) and not group.levels]
        roles = {entry.spec.name: entry.paper for entry in self.config.methods}
        return next((g for g in measured if roles.get(g.method) == "iv"), measured[0] if measured else None)

    def _failures(self) -> None:
        lines = [
            [str(index), title(group.method, group.levels), verbatim(reason)]
            for group in self.found.values()
            for index, reason in group.failed.items()
        ]
        if lines:
            more = f" The first 50 of {len(lines)}." if len(lines) > 50 else ""
            self._add("## What failed", f"Images that a method gave no score for.{more}",
                      markdown(["image", "method", "reason"], lines[:50]))  # fmt: skip

    # Writing --------------------------------------------------------------------------------------

    def _add(self, *parts: str) -> None:
        self.text += parts

    def _at(self, name: str) -> Path:
        return self.folder / name

    def _picture(self, name: str, drawn: bool, caption: str) -> None:
        if drawn:
            self._add(f"![{caption}]({name})")

    def _json(self, name: str) -> dict[str, Any]:
        path = self.config.out / name
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found

