"""What is measured of an image: every method's map, what it conserves, and what the model makes of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fxlrp.common.errors import EvaluationError, FxlrpError, MethodError
from fxlrp.evaluation.agreement import rank_correlations
from fxlrp.evaluation.config import Entry, MetricsConfig
from fxlrp.evaluation.data import Sample
from fxlrp.evaluation.evaluated_image import EvaluatedImage
from fxlrp.evaluation.insertion import InsertionDeletion, PlateauWarning, insertion_deletion
from fxlrp.evaluation.map_files import Maps
from fxlrp.evaluation.methods import Attribution, Explain, prepare
from fxlrp.evaluation.store import Row
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
    prepared = []
    for entry in entries:
        try:
            prepared.append(Prepared(entry, prepare(entry.spec, model, example, metrics.checkpoints, forward)))
        except MethodError as error:
            prepared.append(Prepared(entry, None, one_line(error)))
    return prepared


class Failure(NamedTuple):
    """Why a method gives no map.

    Attributes:
        status: ``"unavailable"``, where it cannot explain the model, or ``"failed"``, on this image.
        reason: one line.
    """

    status: str
    reason: str


def measure(
    image: EvaluatedImage, methods: Sequence[Prepared], model: nn.Module, metrics: MetricsConfig,
    forward: nn.Module | None = None,
) -> tuple[list[Row], Maps]:  # fmt: skip
    """All that is measured of an image: its rows, and its maps with the model's output.

    Args:
        image: the image.
        methods: what explains it.
        model: what is explained.
        metrics: what to measure.
        forward: what runs the model for insertion and deletion; ``None``: the model itself.

    Raises:
        EvaluationError: the model gives no logits for it, or it has no label to explain.
    """
    inputs = image.input
    with torch.no_grad():
        logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise EvaluationError(f"the model must give logits (batch, classes), not {got}")
    predicted = int(logits.argmax())
    target = predicted if metrics.target == "predicted" else image.sample.label
    if target is None:
        raise EvaluationError('the image has no label: explain the predicted class (metrics.target = "predicted")')
    if not 0 <= target < logits.shape[1]:
        raise EvaluationError(f"label {target} is no class of a model of {logits.shape[1]} classes")
    columns = sample_columns(image.sample) | {
        "predicted": predicted, "target": target, "probability": float(logits.double().softmax(1)[0, target]),
    }  # fmt: skip
    attributions = {m.entry.spec.name: _attribution(m, inputs, target) for m in methods}
    maps = _maps(attributions)
    agreements = _agreements(maps) if metrics.agreement else {}
    rows = []
    for method in methods:
        name = method.entry.spec.name
        attribution = attributions[name]
        for levels in method.entry.levels:
            row = columns | {"method": name, "levels": levels, "status": "ok", "reason": ""}
            if isinstance(attribution, Attribution):
                try:
                    row |= _measured(image, attribution, levels, target, forward or model, metrics)
                    row |= {} if levels else {"agreement": agreements.get(name)}
                except Exception as error:  # one map must not cost the others
                    row |= {"status": "failed", "reason": one_line(error)}
            else:
                row |= attribution._asdict()
            rows.append(row)
    return rows, _arrays(maps) | {"": logits[0].float().cpu().numpy()}


def maps_of(image: EvaluatedImage, methods: Sequence[Prepared], model: nn.Module, metrics: MetricsConfig) -> Maps:
    """The maps of an image, by the methods that give one: (height, width)."""
    with torch.no_grad():
        predicted = int(model(image.input).argmax())
    label = image.sample.label
    target = predicted if metrics.target == "predicted" or label is None else label
    return _arrays(_maps({m.entry.spec.name: _attribution(m, image.input, target) for m in methods}))


def failed_rows(sample: Sample, entries: Sequence[Entry], reason: str) -> list[Row]:
    """The rows of an image of which nothing could be measured."""
    return [
        sample_columns(sample) | {"method": entry.spec.name, "levels": levels, "status": "failed", "reason": reason}
        for entry in entries
        for levels in entry.levels
    ]


def sample_columns(sample: Sample) -> Row:
    """What the data say of an image."""
    return {"index": sample.index, "image": sample.name, "label": sample.label}


def one_line(error: BaseException) -> str:
    """An error as one line of a table."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, FxlrpError) and text else f"{type(error).__name__}: {text}"


def _maps(attributions: Mapping[str, Attribution | Failure]) -> dict[str, Tensor]:
    return {name: given.heatmaps for name, given in attributions.items() if isinstance(given, Attribution)}


def _arrays(maps: Mapping[str, Tensor]) -> Maps:
    """The maps of one image as arrays, (height, width)."""
    return {name: heatmaps[0].float().cpu().numpy() for name, heatmaps in maps.items()}


def _attribution(method: Prepared, inputs: Tensor, target: int) -> Attribution | Failure:
    """What a method gives, or why it gives nothing."""
    if method.explain is None:
        return Failure("unavailable", method.reason)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attribution = method.explain(inputs, torch.tensor([target], device=inputs.device))
    except Exception as error:  # a library may raise anything
        return Failure("failed", one_line(error))
    if not bool(torch.isfinite(attribution.heatmaps).all()):
        return Failure("failed", "its map holds NaN or infinity")
    return attribution


def _measured(
    image: EvaluatedImage, attribution: Attribution, levels: int, target: int, model: nn.Module, metrics: MetricsConfig
) -> Row:
    maps = attribution.heatmaps if not levels else quantize_heat(attribution.heatmaps, levels)
    row: Row = {"tied": float(tied_share(maps)[0])}
    result: InsertionDeletion | None = None
    for ties in metrics.ties:
        if result is None or row["tied"]:  # where no pixels tie one rule is the other
            result = _insertion_deletion(image, maps, target, model, metrics, ties)
        row |= {
            f"insertion_{ties}": float(result.insertion[0]),
            f"deletion_{ties}": float(result.deletion[0]),
            f"insertion_curve_{ties}": result.curves.insertion[0].tolist(),
            f"deletion_curve_{ties}": result.curves.deletion[0].tolist(),
        }
    if attribution.start is not None:
        row["start"] = float(attribution.start[0])
        row["checkpoints"] = [(name, float(total[0])) for name, total in attribution.checkpoints.items()]
    return row


def _insertion_deletion(
    image: EvaluatedImage, maps: Tensor, target: int, model: nn.Module, metrics: MetricsConfig, ties: str
) -> InsertionDeletion:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlateauWarning)  # the report says it once for all images
        return insertion_deletion(
            model, image.image, maps, target, step=metrics.step, ties=ties, baseline=metrics.baseline,
            normalize=image.normalize, batch_size=metrics.batch_size,
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
