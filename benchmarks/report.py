"""coverage.md: the rows of a sweep as a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from benchmarks.table import Row
from fxlrp.common.text_tables import markdown, verbatim

K = TypeVar("K")

LIMITS = {"float32": 1e-4, "float64": 1e-10}
DEFINITIONS = """\
Weights are random and always the same: seed 0, batch norm statistics measured on noise, and what starts at zero
(heads, tokens, the last norm of a branch) made random, for nothing flows through zeros. The input is a batch of two
of noise. Explained is the probability of the predicted class under the default preset; of segmentation the
probabilities of the commonest class at all its pixels, of language models the probability of the predicted next token,
of backbones and encoders the magnitude of the features.

- *Worst node*: the largest |received − handed on − absorbed| / |start| over all nodes and items.
- *Total*: |Σ relevance at the input + absorbed − start| / |start|, the larger of the batch.
- *Absorbed*: by reason, what nodes kept, as a share of |start|.
- *Joins*: identity / projection / merge.
- *Compile*: seconds of `fxlrp.compile`; where the capture waits for the first inputs, of that too.
- *Outputs*: whether the explainer's outputs are the model's, and if not the largest difference relative to the largest
  value.
"""


def coverage_page(rows: Iterable[Row], peers: Iterable[Row], command: str) -> str:
    """The whole page."""
    rows, peers = list(rows), list(peers)
    return "\n".join([
        "# Coverage", "", _summary(rows), "", *_made([*rows, *peers], command), "", DEFINITIONS,
        *_failures(rows), "", *_tables(rows), *_peers(peers),
    ])  # fmt: skip


def _summary(rows: Sequence[Row]) -> str:
    columns = [
        "zoo", "precision", "models", "compile and run", "outputs bit-identical", "conserve", "at every node",
        "worst total", "worst node", "only constants absorb", "finite",
    ]  # fmt: skip
    lines = []
    for (zoo, dtype), members in grouped(rows, lambda row: (row["zoo"], row["dtype"])).items():
        good, limit = [row for row in members if row["status"] == "ok"], LIMITS[dtype]
        lines.append([
            zoo, dtype, len(members), len(good),
            sum(row["outputs"] == "bit-identical" for row in good),
            f"{sum(_number(row, 'total_error') <= limit for row in good)} (≤ {limit:g})",
            sum(_number(row, "node_error") <= limit for row in good),
            _worst(good, "total_error"), _worst(good, "node_error"),
            sum(_only_constants(row) for row in good),
            sum(row["finite"] == "True" for row in good),
        ])  # fmt: skip
    return markdown(columns, lines)


def _made(rows: Sequence[Row], command: str) -> list[str]:
    """How the rows came to be; more than one line where they were not all made alike."""
    dates = sorted(row["date"] for row in rows)
    measured = f" Rows were measured from {dates[0]} to {dates[-1]}." if dates else ""
    lines = [f"Made with `python -m benchmarks.coverage`; the last of its runs was `{command}`.{measured}", ""]
    return lines + [f"- {made}: {len(those)} rows" for made, those in grouped(rows, lambda row: row["made"]).items()]


def _failures(rows: Sequence[Row]) -> list[str]:
    failed = [row for row in rows if row["status"] != "ok"]
    lines = [f"- **{row['zoo']}:{row['name']}** ({row['dtype']}), at {row['stage']}: {verbatim(row['reason'])}"
             for row in failed]  # fmt: skip
    broken = [row for row in rows if row["status"] == "ok" and not _conserves(row)]
    lines += [f"- **{row['zoo']}:{row['name']}** ({row['dtype']}), does not conserve: total "
              f"{_short(row, 'total_error')}, worst node `{row['worst_node']}` {_short(row, 'node_error')}"
              for row in broken]  # fmt: skip
    return ["## Failures", "", *(lines or ["None."])]


def _tables(rows: Sequence[Row]) -> list[str]:
    precisions = [dtype for dtype in LIMITS if any(row["dtype"] == dtype for row in rows)]
    columns = ["model", "group", "capture", "joins", "compile"]
    for dtype in precisions:
        columns += [f"worst node, {dtype}", f"total, {dtype}"]
    page = []
    for zoo, members in grouped(rows, lambda row: row["zoo"]).items():
        lines = []
        for name, versions in grouped(members, lambda row: row["name"]).items():
            by = {row["dtype"]: row for row in versions}
            row = next((by[dtype] for dtype in precisions if dtype in by and by[dtype]["status"] == "ok"), versions[0])
            joins = "/".join(row[f"joins_{kind}"] for kind in ("identity", "projection", "merge"))
            line = [name, row["group"], row["capture"], joins.strip("/"), _seconds(row)]
            for dtype in precisions:
                line += _errors(by.get(dtype))
            lines.append([*line, row["absorbed"], row["outputs"]])
        page += [f"## {zoo}", "", markdown([*columns, "absorbed", "outputs"], lines), ""]
    return page


def _peers(rows: Sequence[Row]) -> list[str]:
    """Model × peer: Σ relevance at the input over what the peer started from."""
    if not rows:
        return []
    names = list(dict.fromkeys(row["peer"] for row in rows))
    models = grouped(rows, lambda row: row["name"])
    lines = []
    for name, cells in models.items():
        by = {row["peer"]: row for row in cells}
        lines.append([name, *(_ratio(by.get(peer)) for peer in names)])
    counts = ["within 1 %", *(_count(rows, peer) for peer in names)]
    failed = [f"- **{row['name']}**, {row['peer']}, at {row['stage']}: {verbatim(row['reason'])}"
              for row in rows if row["status"] != "ok"]  # fmt: skip
    used = grouped((row for row in rows if row["status"] == "ok"), lambda row: (row["peer"], row["start"], row["how"]))
    settings = [f"- {peer}: start {start}; {how} ({len(those)})" for (peer, start, how), those in used.items()]
    return [
        "## Peers", "",
        "Σ relevance at the input / start, of the item farthest from 1; bold within 1 %. Each peer is used as its "
        "documentation does, explains the predicted class from a start of its own, and gets activations out of place.",
        "", markdown(["model", *names], [*lines, counts]), "",
        "Settings, with how many models they served:", "", *settings, "", "Failures:", "",
        *(failed or ["None."]), "",
    ]  # fmt: skip


def _ratio(row: Row | None) -> str:
    if row is None:
        return ""
    if row["status"] != "ok":
        return "fails"
    if row["finite"] != "True":
        return "NaN"
    ratio = f"{float(row['ratio']):.4g}"
    return f"**{ratio}**" if row["within_1_percent"] == "True" else ratio


def _count(rows: Sequence[Row], peer: str) -> str:
    own = [row for row in rows if row["peer"] == peer]
    return f"{sum(row['within_1_percent'] == 'True' for row in own)} of {len(own)}"


# Cells -------------------------------------------------------------------------------------------


def _errors(row: Row | None) -> list[str]:
    if row is None:
        return ["", ""]
    if row["status"] != "ok":
        return ["failed", f"at {row['stage']}"]
    return [_short(row, "node_error"), _short(row, "total_error")]


def _conserves(row: Row) -> bool:
    return _number(row, "total_error") <= LIMITS[row["dtype"]] and row["finite"] == "True"


def _only_constants(row: Row) -> bool:
    return all(part.split(" ")[0] == "constant" for part in row["absorbed"].split("; ") if part)


def _number(row: Row, column: str) -> float:
    return float(row[column] or "nan")


def _short(row: Row, column: str) -> str:
    return f"{_number(row, column):.1e}"


def _worst(rows: Sequence[Row], column: str) -> str:
    values = [_number(row, column) for row in rows]
    if not values:
        return ""
    return "NaN" if any(map(math.isnan, values)) else f"{max(values):.1e}"


def _seconds(row: Row) -> str:
    return f"{float(row['compile_s']):.2f}" if row["compile_s"] else ""


def grouped(rows: Iterable[Row], key: Callable[[Row], K]) -> dict[K, list[Row]]:
    groups: dict[K, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups
