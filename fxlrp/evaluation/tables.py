"""The tables of a report, as Markdown and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fxlrp.common.text_tables import markdown, verbatim
from fxlrp.evaluation import paper
from fxlrp.evaluation.config import Config, Entry
from fxlrp.evaluation.statistics import Group, difference, differences, estimate

Groups = Mapping[tuple[str, int], Group]
TIE_NAMES = {"strict": "strict order", "plateau": "plateaus"}


def title(method: str, levels: int) -> str:
    """What a table calls a method with a number of levels."""
    return f"{method}, {levels} levels" if levels else method


def all_methods(found: Groups, config: Config) -> str:
    """Every method under every tie rule."""
    ties = config.metrics.ties
    columns = ["method", "images"]
    for tie in ties:
        columns += [f"ID, {TIE_NAMES[tie]}", "insertion", "deletion", f"ID ≤ {config.metrics.failure:g}"]
    columns.append("tied pixels")
    rows = []
    for (method, levels), group in found.items():
        if group.unavailable is not None:
            reason = f"cannot run: {verbatim(group.unavailable)}"
            rows.append([title(method, levels), reason, *[""] * (len(columns) - 2)])
            continue
        row = [title(method, levels), _images(group)]
        for tie in ties:
            if not group.measured(tie):
                row += ["–"] * 4
                continue
            row += [estimate(group.score(tie)).text(), _percent(group.columns[f"insertion_{tie}"]),
                    _percent(group.columns[f"deletion_{tie}"]), _failures(group, tie, config)]  # fmt: skip
        rows.append([*row, _percent(group.columns["tied"]) if "tied" in group.columns else "–"])
    return markdown(columns, rows)


def paper_tables(found: Groups, config: Config) -> list[tuple[str, str]]:
    """The paper's Tables 1, 2, 3 and C with its figures beside ours: headline and table of each that has rows."""
    by_role = {entry.paper: entry for entry in config.methods if entry.paper is not None}
    data = "cub" if config.data.kind == "cub" else "imagenet"
    where = "CUB" if data == "cub" else "ImageNet"
    tables: list[tuple[str, Mapping[Any, paper.Reported], str | None]] = [
        (f"Table 1: methods (the paper's: ResNet-50 on {where})", paper.TABLE_1[data], None),
        ("Table 2: splits and skips (the paper's: ResNet-50 on ImageNet)", paper.TABLE_2, None),
        ("Table 3: Heat Quantization, setting (i)", paper.TABLE_3, "i"),
        ("Table C: a mixture of rules (the paper's: ResNet-50 on ImageNet)", paper.TABLE_C, None),
    ]
    made = []
    for headline, reported, role in tables:
        rows = []
        for key, row in reported.items():
            entry = by_role.get(role or str(key))
            wanted = [key] if role is not None else (entry.levels if entry else ())
            for levels in wanted:
                assert entry is None or isinstance(levels, int)
                group = found.get((entry.spec.name, levels)) if entry else None
                if group is not None:
                    rows.append([title(group.method, group.levels), *_scores(group, config), *_reported(row)])
        if rows:
            columns = ["method", *(f"{what}, {TIE_NAMES[tie]}" for tie in config.metrics.ties
                                   for what in ("Ins", "Del", "ID"))]  # fmt: skip
            made.append((headline, markdown([*columns, "paper: Ins", "Del", "ID"], rows)))
    return made


def orderings(found: Groups, config: Config) -> str:
    """What of the paper's ordering holds here, by tie rule and with and without quantised maps."""
    by_role = {entry.paper: entry.spec.name for entry in config.methods if entry.paper is not None}
    claims = [
        ("iv", "i", "ratio on all skips above symmetric on projections only"),
        ("iv", "ii", "ratio above symmetric, all skips"),
        ("iv", "iii", "skips above no skips, ratio"),
        ("ii", "i", "skips above no skips, symmetric"),
        ("iv", "grad_cam", "proposed above Grad-CAM"),
        ("iv", "score_cam", "proposed above Score-CAM"),
        ("iv", "guided_backprop", "proposed above Guided Backprop"),
        ("mixture", "iv", "mixture above z⁺ everywhere"),
    ]
    rows = []
    for better, worse, claim in claims:
        if better not in by_role or worse not in by_role:
            continue
        for levels in sorted({n for method, n in found if method == by_role[better]}):
            first = found[by_role[better], levels]
            second = found.get((by_role[worse], levels)) or found.get((by_role[worse], 0))
            if second is not None:
                rows.append(_claim(claim, first, second, levels, config))
    for role in ("i", "ii", "iii", "iv", "grad_cam"):
        name = by_role.get(role)
        for levels in sorted({n for method, n in found if method == name and n}):
            first, second = found[str(name), levels], found.get((str(name), 0))
            if second is not None:
                rows.append(_claim(f"Heat Quantization raises {name}", first, second, levels, config))
    if not rows:
        return ""
    return markdown(["claim", "maps", *(f"difference of ID, {TIE_NAMES[tie]}" for tie in config.metrics.ties)], rows)


def _claim(claim: str, first: Group, second: Group, levels: int, config: Config) -> list[str]:
    cells = [claim, f"{levels} levels" if levels else "as they are"]
    for tie in config.metrics.ties:
        if not (first.measured(tie) and second.measured(tie)):
            cells.append("–")
            continue
        found = difference(first, second, tie)
        verdict = "holds" if found.low > 0 else "the reverse" if found.high < 0 else "undecided"
        cells.append(f"{found.text()}: **{verdict}**")
    return cells


def conservation(found: Groups) -> str:
    """How much of what entered arrives at the checkpoints, by methods that propagate relevance."""
    rows = []
    for (method, levels), group in found.items():
        if levels or not group.checkpoints or "start" not in group.columns:
            continue
        start = group.columns["start"]
        for place, total in group.checkpoints.items():
            with np.errstate(divide="ignore", invalid="ignore"):
                share = total / start
            share = share[np.isfinite(share)]
            if len(share):
                worst = np.abs(share - 1).max()
                rows.append([method, place, *map(_share, (share.mean(), share.min(), share.max())), f"{worst:.1e}"])
    columns = ["method", "at", "Σ R / start: mean", "least", "most", "largest error"]
    return markdown(columns, rows) if rows else ""


def _share(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.1e}"


def against(found: Groups, config: Config, other: Group) -> str:
    """By how much the ID of each method is above that of one of them, image by image; the best first."""
    tie = config.metrics.ties[0]
    rows = []
    for group in found.values():
        if group is other or not (group.measured(tie) and other.measured(tie)):
            continue
        gains = differences(group, other, tie)
        if len(gains):
            name, more = title(group.method, group.levels), f"{100 * (gains > 0).mean():.0f} %"
            rows.append((gains.mean(), [name, estimate(gains).text(), more]))
    rows.sort(key=lambda row: -row[0])
    return markdown(["method", f"ID more, {TIE_NAMES[tie]}", "images with more"], [line for _, line in rows])


def sweep(found: Groups, config: Config, costs: Mapping[str, float]) -> list[tuple[str, str]]:
    """By sweep, its methods, the best first, with what they cost: headline and table."""
    by_group: dict[str, list[Entry]] = {}
    for entry in config.methods:
        if entry.group is not None:
            by_group.setdefault(entry.group, []).append(entry)
    tie = config.metrics.ties[0]
    made = []
    for name, entries in by_group.items():
        rows = [found[e.spec.name, n] for e in entries for n in e.levels if (e.spec.name, n) in found]
        rows = sorted((g for g in rows if g.measured(tie)), key=lambda g: -g.score(tie).mean())
        lines = [
            [title(g.method, g.levels), estimate(g.score(tie)).text(), _arrived(g),
             f"{costs[g.method]:.2f}" if g.method in costs else "–"]
            for g in rows
        ]  # fmt: skip
        columns = ["setting", f"ID, {TIE_NAMES[tie]}", "Σ R / start", "time / forward"]
        if lines:
            made.append((f"Sweep: {name}", markdown(columns, lines)))
    return made


def write_csv(found: Groups, config: Config, path: Path) -> None:
    """The summary of every method as numbers."""
    columns = ["method", "levels", "images", "failed", "unavailable", "tied"]
    per_tie = ["insertion", "deletion", "id", "id_low", "id_high", "failure_share"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *(f"{what}_{tie}" for tie in config.metrics.ties for what in per_tie)])
        for (method, levels), group in found.items():
            tied = group.columns["tied"].mean() if "tied" in group.columns else ""
            row: list[object] = [method, levels, len(group.index), len(group.failed), group.unavailable or "", tied]
            for tie in config.metrics.ties:
                if not group.measured(tie):
                    row += [""] * len(per_tie)
                    continue
                score = estimate(group.score(tie))
                row += [group.columns[f"insertion_{tie}"].mean(), group.columns[f"deletion_{tie}"].mean(), score.mean,
                        score.low, score.high, (group.score(tie) <= config.metrics.failure).mean()]  # fmt: skip
            writer.writerow(row)


def _scores(group: Group, config: Config) -> list[str]:
    if group.unavailable is not None:
        return [f"cannot run: {verbatim(group.unavailable)}", *[""] * (3 * len(config.metrics.ties) - 1)]
    cells = []
    for tie in config.metrics.ties:
        if group.measured(tie):
            cells += [_percent(group.columns[f"insertion_{tie}"]), _percent(group.columns[f"deletion_{tie}"]),
                      estimate(group.score(tie)).text()]  # fmt: skip
        else:
            cells += ["–"] * 3
    return cells


def _reported(row: paper.Reported) -> list[str]:
    return ["–" if value is None else f"{value:.1f}" for value in row[1:]]


def _images(group: Group) -> str:
    return f"{len(group.index)} ({len(group.failed)} failed)" if group.failed else str(len(group.index))


def _percent(values: np.ndarray) -> str:
    return f"{100 * values.mean():.1f}"


def _failures(group: Group, tie: str, config: Config) -> str:
    return f"{100 * (group.score(tie) <= config.metrics.failure).mean():.0f} %"


def _arrived(group: Group) -> str:
    if "input" not in group.checkpoints or "start" not in group.columns:
        return "–"
    with np.errstate(divide="ignore", invalid="ignore"):
        share = group.checkpoints["input"] / group.columns["start"]
    return f"{share[np.isfinite(share)].mean():.3f}"

