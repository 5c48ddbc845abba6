"""What is measured of an image: every method's map, what it conserves, and what the model makes of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxlrp.common.errors import EvaluationError, FxlrpError, MethodError
from fxlrp.evaluation.agreement import rank_correlations
from fxlrp.evaluation.config import Entry, MetricsConfig
from fxlrp.evaluation.data import Sample
from fxlrp.evaluation.insertion import InsertionDeletion, PlateauWarning, insertion_deletion
from fxlrp.evaluation.items import Item
from fxlrp.evaluation.methods import Attribution, Explain, prepare
from fxlrp.evaluation.store import Maps, Row
from fxlrp.evaluation.ties import tied_share
from fxlrp.maps.heatmap import quantize_heat


@dataclass(frozen=True)
class Prepared:
    """A method that is ready, or the reason why there is none.

    Attributes:
        entry: the method.
        explain: the function; ``None``: it cannot explain this model.
        reason: why.
    """

    entry: Entry
    explain: Explain | None
    reason: str = ""


def prepare_all(
    entries: Sequence[Entry], model: nn.Module, example: Tensor, metrics: MetricsConfig,
    forward: nn.Module | None = None,
) -> list[Prepared]:  # fmt: skip
    """Prepare all methods; one that cannot explain the model is kept with its reason."""
    found = []
    for entry in entries:
        try:
            found.append(Prepared(entry, prepare(entry.spec, model, example, metrics.checkpoints, forward)))
        except MethodError as error:
            found.append(Prepared(entry, None, one_line(error)))
    return found


def measure(
    item: Item, methods: Sequence[Prepared], model: nn.Module, metrics: MetricsConfig, forward: nn.Module | None = None
) -> tuple[list[Row], Maps]:
    """All that is measured of an image: its rows, and its maps with the model's output.

    Args:
        item: the image.
        methods: what explains it.
        model: what is explained.
        metrics: what to measure.
        forward: what runs the model for insertion and deletion; ``None``: the model itself.

    Raises:
        EvaluationError: the model gives no logits for it, or it has no label to explain.
    """
    inputs = item.input
    with torch.no_grad():
        logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise EvaluationError(f"the model must give logits (batch, classes), not {got}")
    predicted = int(logits.argmax())
    target = predicted if metrics.target == "predicted" else item.sample.label
    if target is None:
        raise EvaluationError('the image has no label: explain the predicted class (metrics.target = "predicted")')
    if not 0 <= target < logits.shape[1]:
        raise EvaluationError(f"label {target} is no class of a model of {logits.shape[1]} classes")
    known = about(item.sample) | {
        "predicted": predicted, "target": target, "probability": float(logits.double().softmax(1)[0, target]),
    }  # fmt: skip
    attributions = {m.entry.spec.name: _attribution(m, inputs, target) for m in methods}
    maps = _maps(attributions)
    agreements = _agreements(maps) if metrics.agreement else {}
    rows = []
    for method in methods:
        name = method.entry.spec.name
        found = attributions[name]
        for levels in method.entry.levels:
            row = known | {"method": name, "levels": levels, "status": "ok", "reason": ""}
            if isinstance(found, Attribution):
                try:
                    row |= _measured(item, found, levels, target, forward or model, metrics)
                    row |= {} if levels else {"agreement": agreements.get(name)}
                except Exception as error:  # one map must not cost the others
                    row |= {"status": "failed", "reason": one_line(error)}
            else:
                row |= {"status": found[0], "reason": found[1]}
            rows.append(row)
    kept = {name: value[0].float().cpu().numpy() for name, value in maps.items()}
    return rows, kept | {"": logits[0].float().cpu().numpy()}


def maps_of(item: Item, methods: Sequence[Prepared], model: nn.Module, metrics: MetricsConfig) -> Maps:
    """The maps of an image, by the methods that give one: (height, width)."""
    with torch.no_grad():
        predicted = int(model(item.input).argmax())
    label = item.sample.label
    target = predicted if metrics.target == "predicted" or label is None else label
    found = _maps({m.entry.spec.name: _attribution(m, item.input, target) for m in methods})
    return {name: value[0].float().cpu().numpy() for name, value in found.items()}


def failed(sample: Sample, entries: Sequence[Entry], reason: str) -> list[Row]:
    """The rows of an image of which nothing could be measured."""
    return [
        about(sample) | {"method": entry.spec.name, "levels": levels, "status": "failed", "reason": reason}
        for entry in entries
        for levels in entry.levels
    ]


def about(sample: Sample) -> Row:
    """What is known of an image beforehand."""
    return {"index": sample.index, "image": sample.name, "label": sample.label}


def one_line(error: BaseException) -> str:
    """An error as one line of a table."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, FxlrpError) and text else f"{type(error).__name__}: {text}"


def _maps(attributions: Mapping[str, Attribution | tuple[str, str]]) -> dict[str, Tensor]:
    return {name: found.heatmaps for name, found in attributions.items() if isinstance(found, Attribution)}


def _attribution(method: Prepared, inputs: Tensor, target: int) -> Attribution | tuple[str, str]:
    """What a method gives, or status and reason."""
    if method.explain is None:
        return "unavailable", method.reason
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = method.explain(inputs, torch.tensor([target], device=inputs.device))
    except Exception as error:  # a library may raise anything
        return "failed", one_line(error)
    if not bool(torch.isfinite(found.heatmaps).all()):
        return "failed", "its map holds NaN or infinity"
    return found


def _measured(
    item: Item, found: Attribution, levels: int, target: int, model: nn.Module, metrics: MetricsConfig
) -> Row:
    maps = found.heatmaps if not levels else quantize_heat(found.heatmaps, levels)
    row: Row = {"tied": float(tied_share(maps)[0])}
    result: InsertionDeletion | None = None
    for ties in metrics.ties:
        if result is None or row["tied"]:  # where no pixels tie one rule is the other
            result = _insertion_deletion(item, maps, target, model, metrics, ties)
        row |= {
            f"insertion_{ties}": float(result.insertion[0]),
            f"deletion_{ties}": float(result.deletion[0]),
            f"insertion_curve_{ties}": result.curves.insertion[0].tolist(),
            f"deletion_curve_{ties}": result.curves.deletion[0].tolist(),
        }
    if found.start is not None:
        row["start"] = float(found.start[0])
        row["checkpoints"] = [(name, float(total[0])) for name, total in found.checkpoints.items()]
    return row


def _insertion_deletion(
    item: Item, maps: Tensor, target: int, model: nn.Module, metrics: MetricsConfig, ties: str
) -> InsertionDeletion:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlateauWarning)  # the report tells, once for all images
        return insertion_deletion(
            model, item.image, maps, target, step=metrics.step, ties=ties, baseline=metrics.baseline,
            normalize=item.normalize, batch_size=metrics.batch_size,
        )  # fmt: skip


def _agreements(maps: Mapping[str, Tensor]) -> dict[str, list[tuple[str, float]]]:
    """By method, the rank correlation with every other method's map; of a constant map there is none."""
    if not maps:
        return {}
    table = rank_correlations(torch.cat(list(maps.values()))).tolist()
    pairs = {name: dict(zip(maps, row, strict=True)) for name, row in zip(maps, table, strict=True)}
    return {
        name: [(other, value) for other, value in row.items() if other != name and not math.isnan(value)]
        for name, row in pairs.items()
    }
