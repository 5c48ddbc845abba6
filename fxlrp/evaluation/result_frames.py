"""Results as frames of polars: of each method a summary, what arrived at checkpoints, what differs between methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from fxlrp.evaluation.config import Config, MetricsConfig
from fxlrp.evaluation.insertion import TIES
from fxlrp.evaluation.statistics import Array, estimate
from fxlrp.evaluation.store import Store

MEASURES = ("insertion", "deletion", "id", "id_low", "id_high", "failure_share")
"""What a summary has under each tie rule, as columns ``MEASURE_TIE``."""


def read_results(config: Config) -> pl.DataFrame:
    """What an evaluation has measured so far: one row per image, method and number of levels.

    Columns are those of the results (``image``, ``label``, ``method``, ``levels``, ``status``, ``insertion_TIE``,
    ``deletion_TIE``, …) and ``id_TIE``; of passages there is one row per passage and method (``subject``,
    ``text``, ``answer``, ``method``, ``correlation``, ``areas``, ``truth``, ``values``, …). The summary by method is
    ``results.csv`` in the folder of the report.

    Raises:
        EvaluationError: there are no results.
        MissingExtraError: a package of the extra ``evaluate`` is not installed.
    """
    return frame_of(Store(config.out, passages=config.passages).read())


def frame_of(table: Any) -> pl.DataFrame:
    """Results with their ID scores as ``id_TIE``: one row per image, method and number of levels.

    Args:
        table: of pyarrow, as :meth:`fxlrp.evaluation.store.Store.read` gives it.
    """
    scores = [(pl.col(f"insertion_{tie}") - pl.col(f"deletion_{tie}")).alias(f"id_{tie}")
              for tie in TIES if f"insertion_{tie}" in table.column_names]  # fmt: skip
    for i, column in enumerate(table.schema):
        if pa.types.is_map(column.type):  # what polars makes of a map depends on its version
            entries = pa.list_(pa.struct({"key": column.type.key_type, "value": column.type.item_type}))
            table = table.set_column(i, column.name, table[column.name].cast(entries))
    return pl.DataFrame(table).with_columns(scores)


def summary(results: pl.DataFrame, metrics: MetricsConfig) -> pl.DataFrame:
    """One row per method and number of levels, in the order in which they first come.

    Its columns are ``method``, ``levels``, ``images`` that were measured, how many ``failed``, why the method is
    ``unavailable``, the mean share of ``tied`` pixels, and :data:`MEASURES`.
    """
    status, reason = pl.col("status"), pl.col("reason")
    columns = [
        (status == "ok").sum().alias("images"),
        (status == "failed").sum().alias("failed"),
        reason.filter(status == "unavailable").first().alias("unavailable"),
        pl.col("tied").mean(),
    ]
    for tie in metrics.ties:
        columns += [pl.col(f"insertion_{tie}").mean(), pl.col(f"deletion_{tie}").mean(),
                    pl.col(f"id_{tie}").drop_nulls(),
                    (pl.col(f"id_{tie}") <= metrics.failure).mean().alias(f"failure_share_{tie}")]  # fmt: skip
    methods = results.group_by("method", "levels", maintain_order=True).agg(columns)
    for tie in metrics.ties:
        estimates = [estimate(scores.to_numpy()) for scores in methods[f"id_{tie}"]]
        methods = methods.with_columns(
            pl.Series(f"{name}_{tie}", column, pl.Float64).fill_nan(None)
            for name, column in zip(("id", "id_low", "id_high"), zip(*estimates, strict=True), strict=True)
        )
    measures = [f"{measure}_{tie}" for tie in metrics.ties for measure in MEASURES]
    return methods.select("method", "levels", "images", "failed", "unavailable", "tied", *measures)


def of_method(results: pl.DataFrame, method: str, levels: int) -> pl.DataFrame:
    """The images that a method was measured on."""
    return results.filter((pl.col("method") == method) & (pl.col("levels") == levels) & (pl.col("status") == "ok"))


def differences(first: pl.DataFrame, second: pl.DataFrame, tie: str) -> Array:
    """By how much the ID of the first method is above that of the second: (images,), of those that both have."""
    score = f"id_{tie}"
    other = second.select("index", other=score)
    both = first.select("index", score).join(other, on="index", maintain_order="left")
    return both.select(pl.col(score) - pl.col("other")).drop_nulls().to_series().to_numpy()


def arrivals(results: pl.DataFrame) -> pl.DataFrame:
    """What arrived at each checkpoint of each image: ``method``, ``checkpoint``, ``start``, ``arrived``, ``share``."""
    plain = results.filter((pl.col("levels") == 0) & (pl.col("status") == "ok") & pl.col("start").is_not_null())
    sums = plain.select("method", "start", "checkpoints").explode("checkpoints").unnest("checkpoints")
    return sums.rename({"key": "checkpoint", "value": "arrived"}).with_columns(
        share=pl.col("arrived") / pl.col("start")
    )


def mean_curve(images: pl.DataFrame, name: str) -> Array | None:
    """The mean of a curve over images, (steps,); ``None`` where it was not measured on all of them."""
    if not len(images) or images[name].null_count():
        return None
    curve: Array = np.stack(images[name].to_list()).astype(np.float64).mean(axis=0)
    return curve


def agreement(results: pl.DataFrame) -> tuple[Sequence[str], Array]:
    """The mean rank correlation of each pair of methods: names, and a matrix with NaN where there is none."""
    pairs = results.select("method", "agreement").explode("agreement").drop_nulls().unnest("agreement")
    means = pairs.group_by("method", "key", maintain_order=True).agg(pl.col("value").cast(pl.Float64).mean())
    names = means["method"].unique(maintain_order=True).to_list()
    matrix = np.full((len(names), len(names)), np.nan)
    for method, other, mean in means.filter(pl.col("key").is_in(names)).iter_rows():
        matrix[names.index(method), names.index(other)] = mean
    np.fill_diagonal(matrix, 1.0)
    return names, matrix
