"""What the page tells of: why each class, and why not others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.maps.heatmap import heatmap, patch_map
from fxlrp.results.explanation import Explanation
from fxlrp.results.ledger import Ledger
from fxlrp.views.readable import Readable
from fxlrp.views.report.stages import Stage, choose_stages

_MOST_PROBABLE = 3
_TOP = 5


@dataclass(frozen=True)
class Answer:
    """One explanation of all images.

    Attributes:
        questions: what it answers, one per image, such as ``"tabby cat"`` or ``"tabby cat, not lynx"``.
        probabilities: of the class by the model, one per image; ``None``: there is none to tell.
        explanation: of one target per image.
        ledger: its accounts.
        heatmaps: (batch, height, width); by patch where the model reads patches.
        relevance: at the stages, by node.
    """

    questions: Sequence[str]
    probabilities: Sequence[float | None]
    explanation: Explanation
    ledger: Ledger
    heatmaps: Tensor
    relevance: dict[str, Tensor]
    class_names: Sequence[str] | None

    def top(self, i: int) -> list[tuple[str, float]]:
        """The most probable classes of an image, and their percentages."""
        output = self.explanation.output
        if not _of_classes(output):
            return []
        found = output[i].detach().cpu().double().softmax(0).topk(min(_TOP, output.shape[1]))
        return [(_name(number, self.class_names), 100 * value)
                for number, value in zip(found.indices.tolist(), found.values.tolist(), strict=True)]  # fmt: skip


def answers_to(
    explainer: Readable, images: Tensor, target: Any, against: Any, class_names: Sequence[str] | None
) -> tuple[list[Answer], list[Stage]]:
    """Explain images; the arguments are those of :func:`fxlrp.report.write_report`.

    Returns:
        The answers, first each class, then each against the others; and the stages that their relevance is of.

    Raises:
        InputError, TargetError: as for an explanation.
    """
    explanation = explainer(images, target=target)
    targets: list[Tensor | None] = [explanation.target]
    if target is None and _of_classes(explanation.output):
        count = min(_MOST_PROBABLE, explanation.output.shape[1])
        targets = list(explanation.output.detach().topk(count, dim=1).indices.unbind(1))
    elif explanation.target is not None and explanation.target.dim() == 2:
        targets = list(explanation.target.unbind(1))
    stages = choose_stages(explainer.model_graph, explainer.shapes, images.shape[-2:])
    rivals = [] if against is None else [against] if isinstance(against, int) else list(against)
    asked: list[tuple[Tensor | None, list[int]]] = [(each, []) for each in targets]
    for each in targets if rivals else ():
        # A rival that is a target of all images itself is explained already.
        if each is None or not any(bool((each == rival).all()) for rival in rivals):
            asked.append((each, rivals))
    nodes = [stage.node for stage in stages]
    return [_answer(explainer, images, each, others, nodes, class_names) for each, others in asked], stages


def _answer(explainer: Readable, images: Tensor, target: Tensor | None, against: list[int], nodes: Sequence[str],
            class_names: Sequence[str] | None) -> Answer:  # fmt: skip
    given = {"target": target, "against": against or None}
    explanation = explainer(images, **given)
    questions, probabilities = ["the output"] * len(images), [None] * len(images)
    if target is not None:
        rivals = f", not {', '.join(_name(each, class_names) for each in against)}" if against else ""
        questions = [_name(number, class_names) + rivals for number in target.tolist()]
        if _of_classes(explanation.output) and not against:
            shares = explanation.output.detach().double().softmax(1)
            probabilities = shares.gather(1, target.to(shares.device)[:, None])[:, 0].tolist()
    maps = heatmap(explanation.relevance).detach().cpu().float()
    return Answer(
        questions, probabilities, explanation, explainer.ledger(images, **given),
        maps if explanation.patch is None else patch_map(maps, explanation.patch),
        explainer.relevance_of(images, nodes=nodes, **given), class_names,
    )  # fmt: skip


def _of_classes(output: Any) -> bool:
    return isinstance(output, torch.Tensor) and output.dim() == 2 and output.shape[1] > 1


def _name(number: int, class_names: Sequence[str] | None) -> str:
    return f"class {number}" if class_names is None else str(class_names[number])
