"""What ``fxlrp explain`` does with files: reads them, explains them, and tells what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fxlrp.cli.findings import Class, Finding, Reason
from fxlrp.cli.options import ExplainOptions
from fxlrp.cli.questions import Question, questions
from fxlrp.cli.sources import ARRAYS, read_array
from fxlrp.common.errors import FxlrpError, InputError, NonFiniteError, TargetError
from fxlrp.explainer import Explainer
from fxlrp.loading.geometry import box_of, window_input
from fxlrp.loading.images import Preprocess, as_seen, read_image, to_input
from fxlrp.loading.models import LoadedModel
from fxlrp.maps.heatmap import heatmap, patch_map
from fxlrp.maps.placing import Box, Tiling
from fxlrp.maps.rendering import blurred
from fxlrp.results.explanation import Explanation
from fxlrp.results.explanation_data import item as item_of


@dataclass(frozen=True)
class Item:
    """A file as it is explained.

    Attributes:
        path: the file.
        value: what the model gets, without the batch.
        photo: the photograph; ``None`` for an array.
        seen: what the model sees of it, (3, height, width) between 0 and 1; ``None``: no picture.
        box: where that is in the photograph; ``None``: the preprocessing does more than to resize and crop.
    """

    path: Path
    value: Tensor
    photo: Image.Image | None = None
    seen: Tensor | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Answer:
    """What was found of a file.

    Attributes:
        item: the file.
        finding: what there is to tell.
        explanations: one per question, of one item.
        maps: one per question: of photographs the map that is drawn, (height, width), of what the model sees, or with
            tiles of the whole photograph; else ``None``.
        numbers: what ``--save`` writes: the explanations, or with tiles those of the whole photograph.
    """

    item: Item
    finding: Finding
    explanations: Sequence[Explanation]
    maps: Sequence[Tensor | None]
    numbers: Sequence[Explanation]


class Work:
    """A model, and what is asked of it.

    Attributes:
        loaded: the model.
        explainer: its explainer.
        questions: what is asked of every file.
    """

    def __init__(
        self, loaded: LoadedModel, explainer: Explainer, options: ExplainOptions, device: torch.device
    ) -> None:
        self.loaded, self.explainer, self.options, self.device = loaded, explainer, options, device
        self.questions = questions(options, loaded.classes)
        self._boxes: dict[tuple[int, int], Box | None] = {}

    @property
    def preprocess(self) -> Preprocess:
        """From a picture to the model's input."""
        assert self.loaded.preprocess is not None
        return self.loaded.preprocess

    def read(self, path: Path) -> Item:
        """The file as the model takes it.

        Raises:
            ImageError, InputError: it cannot be read or preprocessed.
        """
        if path.suffix.lower() in ARRAYS:
            return Item(path, read_array(path))
        photo = read_image(path)
        value = to_input(photo, self.preprocess)
        seen = as_seen(photo, self.preprocess) if value.shape[0] in (1, 3) else None
        return Item(path, value, photo, seen, None if self.options.view == "crop" else self._box(photo.size))

    def _box(self, size: tuple[int, int]) -> Box | None:
        """Where the model looks in photographs of this width and height, measured once; ``None``: nobody can tell.

        Raises:
            InputError: so it is, and tiles are asked for, which need to know.
        """
        if size not in self._boxes:
            try:
                self._boxes[size] = box_of(size, self.preprocess)
            except InputError:
                if self.options.view == "tiles":
                    raise
                self._boxes[size] = None
        return self._boxes[size]

    def answers(
        self, paths: Sequence[Path], failed: Callable[[Path, FxlrpError], None] | None = None
    ) -> Iterator[Answer]:
        """What is found of each file; files whose inputs are alike are explained together.

        Args:
            paths: the files.
            failed: is told of a file that cannot be read, or that the model does not take; ``None``: that is an error.
        """
        for start in range(0, len(paths), self.options.batch_size):
            items = []
            for path in paths[start : start + self.options.batch_size]:
                try:
                    items.append(self.read(path))
                except FxlrpError as error:
                    if failed is None:
                        raise
                    failed(path, error)
            for _, alike in groupby(items, key=lambda item: (item.value.shape, item.value.dtype)):
                yield from self._each(list(alike), failed)

    def _each(self, items: Sequence[Item], failed: Callable[[Path, FxlrpError], None] | None) -> Iterator[Answer]:
        """The answers for items whose inputs are alike; one that the model does not take keeps none from the others."""
        try:
            answers = list(self._batch(items))
        except (InputError, NonFiniteError) as error:
            if failed is None:
                raise InputError(f"{_named(items)}: {error}") from error
            if len(items) == 1:
                failed(items[0].path, error)
            else:
                for item in items:
                    yield from self._each([item], failed)
            return
        yield from answers

    def _batch(self, items: Sequence[Item]) -> Iterator[Answer]:
        inputs = torch.stack([item.value for item in items]).to(self.device)
        told: list[list[tuple[Explanation, Reason]]] = [[] for _ in items]
        itself: list[list[tuple[str, str]]] = [[] for _ in items]
        for question in self.questions:
            target = question.target
            numbers = [target] * len(items)
            if target is None and (question.rank or question.against):
                numbers = _ranked(told, question.rank, self.options.top)
            kept = [index for index, number in enumerate(numbers) if number not in question.against]
            for index in {*range(len(items))} - {*kept}:
                number = numbers[index]
                assert number is not None
                itself[index].append(("not told", f"why {self._name(number)} and not {self._name(number)} itself"))
            if kept:
                own_target = target is None and numbers[0] is not None
                given = torch.tensor(numbers, device=self.device)[kept] if own_target else target
                explanation, absorbed = self._explained(inputs[kept], given, question.against)
                for place, index in enumerate(kept):
                    own = absorbed and {name: amount[place] for name, amount in absorbed.items()}
                    one = item_of(explanation, place)
                    told[index].append((one, self._reason(one, question, own)))
        for item, found, missing in zip(items, told, itself, strict=True):
            explanations, reasons = [each for each, _ in found], [reason for _, reason in found]
            saved = explanations
            maps: list[Tensor | None] = [None] * len(explanations)
            if item.photo is not None:
                maps = [self._shown(explanation)[0] for explanation in explanations]
            if self.options.view == "tiles" and item.photo is not None:
                tiled = [self._tiled(item, *each) for each in found]
                maps, reasons = [heat for heat, _, _ in tiled], [reason for _, reason, _ in tiled]
                saved = [explanation for _, _, explanation in tiled]
            finding = Finding(str(item.path), self._top(explanations[0]), reasons, others=self._notes(item) + missing)
            yield Answer(item, finding, explanations, maps, saved)

    def _explained(
        self, inputs: Tensor, target: int | Tensor | None, against: Sequence[int]
    ) -> tuple[Explanation, dict[str, Tensor] | None]:
        given = {"target": target, "against": list(against) or None}
        explanation = self.explainer(inputs, **given)
        if not self.options.ledger:
            return explanation, None
        ledger = self.explainer.ledger(inputs, **{**given, "target": explanation.target})
        return explanation, ledger.absorbed

    def _tiled(self, item: Item, seen: Explanation, reason: Reason) -> tuple[Tensor, Reason, Explanation]:
        """Relevance over the whole photograph, added up over windows: its sum is that of all their starts.

        Returns:
            The map as it is drawn, what there is to tell, and the explanation: of the whole photograph where numbers
            are to be saved; else ``seen``, of what the model sees by itself.
        """
        assert item.photo is not None
        assert item.box is not None
        tiling, drawn = Tiling(item.photo.size, item.box), Tiling(item.photo.size, item.box)
        start = arrived = 0.0
        absorbed: dict[str, float] | None = None if reason.absorbed is None else {}
        target = None if reason.target is None else reason.target.number
        against = [rival.number for rival in reason.against]
        for first in range(0, len(tiling.windows), self.options.batch_size):
            some = tiling.windows[first : first + self.options.batch_size]
            inputs = torch.stack([window_input(item.photo, box, self.preprocess) for box in some]).to(self.device)
            explanation, kept = self._explained(inputs, target, against)
            shown = self._shown(explanation)
            for number, heat in enumerate(heatmap(explanation.relevance).detach().cpu(), first):
                drawn.add(number, blurred(shown[number - first], smoothing(self.options)).float())
                if self.options.save is not None:
                    tiling.add(number, heat.float())
            start += float(explanation.start.double().sum())
            arrived += float(explanation.relevance.double().sum())
            for name, amount in (kept or {}).items():
                if absorbed is not None and bool(amount.any()):
                    absorbed[name] = absorbed.get(name, 0.0) + float(amount.sum())
        named = reason.target and replace(reason.target, probability=None)  # each window has its own
        if self.options.save is not None:
            seen = replace(
                seen, relevance=tiling.joined[None, None], start=seen.start.new_full((1,), start), checkpoints={},
                inputs=("photograph",), given=(),
            )  # fmt: skip
        return drawn.joined, replace(reason, target=named, start=start, arrived=arrived, absorbed=absorbed), seen

    def _shown(self, explanation: Explanation) -> Tensor:
        """The maps as they are drawn, (batch, height, width): by patch where the model reads patches."""
        maps = heatmap(explanation.relevance).detach().cpu()
        by_pixel = self.options.pixels or explanation.patch is None
        return maps if by_pixel else patch_map(maps.float(), explanation.patch)  # type: ignore[arg-type]

    def _reason(self, explanation: Explanation, question: Question, kept: dict[str, Tensor] | None) -> Reason:
        output = explanation.output
        probabilities = output.detach().cpu().double()[0].softmax(0) if _of_classes(output) else None
        target = None
        if explanation.target is not None and explanation.target.numel() == 1:
            number = int(explanation.target)
            known = probabilities is not None and number < len(probabilities)
            target = Class(number, self._name(number), float(probabilities[number]) if known else None)  # type: ignore[index]
        return Reason(
            target, [Class(rival, self._name(rival)) for rival in question.against], explanation.start_name,
            explanation.unit, float(explanation.start.double().sum()),
            sum(float(part.double().sum()) for part in explanation.by_input.values()),
            None if kept is None else {name: float(amount) for name, amount in kept.items() if bool(amount.any())},
        )  # fmt: skip

    def _top(self, explanation: Explanation) -> list[Class]:
        output = explanation.output
        if not _of_classes(output):
            return []
        values, numbers = output.detach().cpu().double()[0].softmax(0).topk(min(5, output.shape[1]))
        pairs = zip(numbers.tolist(), values.tolist(), strict=True)
        return [Class(number, self._name(number), value) for number, value in pairs]

    def _notes(self, item: Item) -> list[tuple[str, str]]:
        notes = []
        if self.loaded.preprocessing_from == "guess" and item.photo is not None:
            notes.append(("input", f"a guess: {self.loaded.input_format}"))
        if self.options.view == "tiles" and item.photo is not None and item.box is not None:
            windows = Tiling(item.photo.size, item.box).windows
            left, top, right, bottom = windows[0].rounded
            told = f"{len(windows)} of {right - left} × {bottom - top} pixels"
            notes.append(("windows", f"{told}; sums are over all, probabilities of what the model sees by itself"))
        if self.options.view == "whole" and item.photo is not None and item.box is None:
            notes.append(("picture of", "what the model sees: its preprocessing does more than to resize and crop"))
        return notes

    def _name(self, number: int) -> str:
        classes = self.loaded.classes
        return f"class {number}" if classes is None or number >= len(classes) else str(classes[number])


def smoothing(options: ExplainOptions) -> float:
    """The blur of maps that are drawn, in pixels of what the model sees; it would mix the levels of a quantized map."""
    usual = 1.0 if options.quantize is None else 0.0
    return usual if options.smooth is None else options.smooth


def _named(items: Sequence[Item]) -> str:
    """The files, and of arrays the shape: they are taken as they are, with the batch in front."""
    names = ", ".join(str(item.path) for item in items[:3]) + (", …" if len(items) > 3 else "")
    array = next((item for item in items if item.photo is None), None)
    return names if array is None else f"{names}, an item of shape {tuple(array.value.shape)} without the batch"


def _ranked(told: Sequence[Sequence[tuple[Explanation, Reason]]], rank: int, asked: int) -> list[int | None]:
    """The class of this rank of each item, by what the first explanation of each holds; ``asked``: how many ranks.

    Raises:
        TargetError: there are not as many classes.
    """
    found: list[int | None] = []
    for (first, _), *_ in told:
        output, count = first.output, first.output.shape[1] if _of_classes(first.output) else 1
        if count < asked:
            classes = "class" if count == 1 else "classes"
            raise TargetError(f"--top {asked}: the model tells {count} {classes} apart")
        found.append(int(output[0].detach().topk(rank + 1).indices[rank]) if count > 1 else None)
    return found


def _of_classes(output: object) -> bool:
    return isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] > 1
