"""An explanation as arrays, as a table, and as files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.common.atomic_files import unusable
from fxlrp.common.errors import InputError
from fxlrp.common.items import FRONT, Items
from fxlrp.results.files import frame_writers, header, json_writer, npz_writer, polars, to_array, write

if TYPE_CHECKING:
    from fxlrp.results.explanation import Explanation

Arrays = dict[str, np.ndarray[Any, Any]]
PICTURES = (".png", ".svg", ".pdf")
KIND = "explanation"


def arrays(explanation: Explanation) -> Arrays:
    """See :meth:`Explanation.to_numpy`."""
    return {name: to_array(value) for name, value in _tensors(explanation).items()}


def frame(explanation: Explanation) -> Any:
    """See :meth:`Explanation.to_frame`."""
    tables, explanation = polars(), explanation.by_item
    several = explanation.start.dim() > 1
    count, targets = (*explanation.start.shape, 1)[:2]
    columns: dict[str, Any] = {"item": np.repeat(np.arange(count), targets)}
    if several:
        columns["explanation"] = np.tile(np.arange(targets), count)
    columns["target"] = None if explanation.target is None else to_array(explanation.target).reshape(-1)
    columns["start"] = to_array(explanation.start).reshape(-1)
    columns["start_name"] = [explanation.start_name] * (count * targets)
    shape = explanation.start.shape
    axes = len(shape)
    sums = [part.detach().double().reshape(*shape, -1).sum(axes) for part in explanation.by_input.values()]
    columns["sum"] = to_array(torch.stack(sums).sum(0)).reshape(-1)
    for name, value in _tensors(explanation).items():
        if name.partition(".")[0] in ("relevance", "checkpoint") and value.shape[:axes] == explanation.start.shape:
            columns[name] = to_array(value).reshape(count * targets, *value.shape[axes:])
        elif name.partition(".")[0] == "output" and value.shape[:1] == (count,):
            columns[name] = np.repeat(to_array(value), targets, axis=0)
    # A column of arrays is told its shape by NumPy; of a missing target there is no column.
    return tables.DataFrame({name: column for name, column in columns.items() if column is not None})


def save(explanation: Explanation, path: str | os.PathLike[str], labels: Mapping[str, Sequence[str]]) -> Path:
    """See :meth:`Explanation.save`."""
    count = len(explanation.by_item.start)
    for name, texts in labels.items():
        if len(texts) != count:
            raise InputError(f"{name}= has {len(texts)} texts, and the explanation {count} items")
    layout = {} if explanation.items.in_front else {"batch": explanation.items.told}
    about = {**header(KIND), "inputs": list(explanation.inputs), "start_name": explanation.start_name,
             "unit": explanation.unit, **layout}  # fmt: skip

    def write_json(beside: Path) -> None:
        found = arrays(explanation)
        dtypes = {name: str(array.dtype) for name, array in found.items()}
        json_writer({**about, **labels, "dtypes": dtypes, **found})(beside)

    def write_npz(beside: Path) -> None:
        texts = {name: np.array(list(each), dtype=str) for name, each in labels.items()}
        npz_writer({**texts, **arrays(explanation)}, {**about, "labels": list(labels)})(beside)

    def labelled() -> Any:
        table, tables = frame(explanation), polars()
        columns = [tables.Series(name, [texts[item] for item in table["item"]]) for name, texts in labels.items()]
        return table.select(*columns, *table.columns)

    def write_picture(beside: Path) -> None:
        explanation.plot().savefig(beside, dpi=150)

    return write(path, {
        ".npz": write_npz, ".json": write_json, ".parquet": frame_writers(labelled)[".parquet"],
        **dict.fromkeys(PICTURES, write_picture),
    })  # fmt: skip


def read(path: str | os.PathLike[str]) -> Explanation:
    """See :meth:`Explanation.read`."""
    path = Path(path)
    readers = {".npz": _read_npz, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: explanations are read from {' or '.join(readers)} files")
    if reason := unusable(path):
        raise InputError(f"{path}: {reason}")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        about, found = readers[path.suffix.lower()](path)
        if about.get("format") != header(KIND)["format"]:
            raise InputError(f"{path} holds no explanation")
        if about.get("version") != header(KIND)["version"]:
            raise InputError(f"{path} is of version {about.get('version')} of its format, this fxlrp reads version 1")
        return _explanation(about, {name: torch.from_numpy(array) for name, array in found.items()})
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise almost anything
        raise InputError(f"{path} cannot be read as an explanation: {type(error).__name__}: {error}") from error


def _read_npz(path: Path) -> tuple[dict[str, Any], Arrays]:
    with np.load(path, allow_pickle=False) as archive:
        about = json.loads(str(archive["about"]))
        return about, {name: archive[name] for name in archive.files if name not in ("about", *about.get("labels", ()))}


def _read_json(path: Path) -> tuple[dict[str, Any], Arrays]:
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not isinstance(content.get("dtypes"), dict):
        return {}, {}
    # Numbers that JSON has no word for were written as null, which NumPy reads as NaN.
    return content, {name: np.array(content[name], dtype=dtype) for name, dtype in content["dtypes"].items()}


def _explanation(about: dict[str, Any], tensors: dict[str, Tensor]) -> Explanation:
    from fxlrp.results.explanation import Explanation

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}

    inputs = tuple(about["inputs"])
    several = part("relevance")
    return Explanation(
        relevance=tensors["relevance"] if len(inputs) == 1 else tuple(several[name] for name in inputs),
        output=tensors.get("output", part("output")), target=tensors.get("target"), start=tensors["start"],
        checkpoints=part("checkpoint"), inputs=inputs, start_name=about["start_name"],
        items=Items.of(about.get("batch", 0)),
    )  # fmt: skip


def _tensors(explanation: Explanation) -> dict[str, Tensor]:
    """All tensors by the names that arrays have."""
    several = explanation.by_input if len(explanation.inputs) > 1 else {"": explanation.relevance}
    parts = {"relevance": several, "output": explanation.output, "target": explanation.target,
             "start": explanation.start, "checkpoint": explanation.checkpoints}  # fmt: skip
    found: dict[str, Tensor] = {}
    for kind, tree in parts.items():
        leaves, _ = pytree.tree_flatten_with_path(tree)
        for path, leaf in leaves:
            if isinstance(leaf, Tensor):
                found[".".join(filter(None, (kind, *map(_step, path))))] = leaf
    return found


def _step(key: Any) -> str:
    """One step of a path into a tree: the name, the key or the number."""
    return str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)))


def by_item(explanation: Explanation) -> Explanation:
    """See :attr:`Explanation.by_item`."""
    items = explanation.items
    if items.in_front:
        return explanation
    if items.whole:
        rows = len(explanation.start)
        fields = {name: pytree.tree_map(_as_one, getattr(explanation, name))
                  for name in ("relevance", "output", "checkpoints", "given")}  # fmt: skip
        start, target = explanation.start.sum(0, keepdim=True), explanation.target if rows == 1 else None
        return replace(explanation, **fields, start=start, target=target, items=FRONT)

    def moved(parts: Any, axes: int) -> tuple[Any, ...]:
        each = []
        for name, part in zip(explanation.inputs, parts, strict=True):
            axis = items.axis_of(name, part.dim() - axes + 1)
            each.append(part.movedim(tuple(range(axis, axis + axes)), tuple(range(axes))))
        return tuple(each)

    relevance = moved(explanation.by_input.values(), explanation.start.dim())
    return replace(
        explanation, relevance=relevance if len(relevance) > 1 else relevance[0], items=FRONT,
        given=moved(explanation.given, 1) if explanation.given else (),
    )  # fmt: skip


def _as_one(value: Any) -> Any:
    return value.unsqueeze(0) if isinstance(value, Tensor) else value


def item(explanation: Explanation, index: int) -> Explanation:
    """The explanation of one item, a batch of one."""
    explanation = explanation.by_item
    count = len(explanation.start)

    def one(value: Any) -> Any:
        return value[index : index + 1] if isinstance(value, Tensor) and value.shape[:1] == (count,) else value

    return _mapped(one, explanation)


def joined(explanations: Sequence[Explanation], axis: int = 0) -> Explanation:
    """Several explanations as one: of other items, or (``axis`` 1) of the same items by other targets.

    Raises:
        InputError: they have tensors of different shapes.
    """
    explanations = [each.by_item for each in explanations]
    first = explanations[0]

    def together(name: str, *parts: Any) -> Any:
        if not isinstance(parts[0], Tensor):
            return parts[0]
        if axis == 1 and name == "output":
            return parts[0]
        return torch.cat(parts) if axis == 0 else torch.stack(parts, dim=1)

    try:
        fields = {
            name: pytree.tree_map(partial(together, name), *(getattr(each, name) for each in explanations))
            for name in ("relevance", "output", "target", "start", "checkpoints")
        }
    except (RuntimeError, ValueError) as error:
        raise InputError(f"these explanations have tensors of different shapes: {error}") from error
    names = ", ".join(dict.fromkeys(each.start_name for each in explanations))
    return replace(first, **fields, given=(), start_name=names)


def _mapped(change: Callable[[Any], Any], explanation: Explanation) -> Explanation:
    fields = {name: pytree.tree_map(change, getattr(explanation, name))
              for name in ("relevance", "output", "target", "start", "checkpoints", "given")}  # fmt: skip
    return replace(explanation, **fields)
