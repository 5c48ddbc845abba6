"""What ``fxlrp explain`` asks of every file: why each class, and why not others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxlrp.cli.arguments import class_number
from fxlrp.cli.options import ExplainOptions
from fxlrp.common.errors import InputError


@dataclass(frozen=True)
class Question:
    """Why a class, and not others.

    Attributes:
        target: the class; ``None``: one of the most probable ones of each image.
        against: the others.
        rank: which one: 0 is the predicted class.
    """

    target: int | None
    against: tuple[int, ...] = ()
    rank: int = 0


def questions(options: ExplainOptions, classes: Sequence[str] | None) -> list[Question]:
    """What is asked of every file: why each class, and why not others.

    Two classes without ``--against`` are also explained one against the other.

    Raises:
        TargetError: there is no such class.
        InputError: a class is explained against itself.
    """
    targets = [class_number(target, classes) for target in options.target or ()] or [None]
    numbers = [class_number(rival, classes, "--against") for rival in options.against or ()]
    rivals = tuple(number for number in numbers if number is not None)
    if same := [target for target in targets if target in rivals]:
        raise InputError(f"--against {same[0]} is also a --target")
    if options.target and options.top > 1:
        raise InputError(f"--top {options.top} is of the most probable classes: leave out --target, or --top")
    asked = [Question(target) for target in dict.fromkeys(targets)]
    asked += [Question(None, rank=rank) for rank in range(1, options.top)]
    if rivals:
        return asked + [Question(question.target, rivals, question.rank) for question in asked]
    first = asked[0].target
    others = [question.target for question in asked[1:] if question.target is not None]
    return asked + ([Question(first, (others[0],))] if len(others) == 1 else [])
