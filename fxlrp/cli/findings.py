"""What ``fxlrp explain`` found of a file: as text for people, as JSON for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fxlrp.results.files import header
from fxlrp.results.words import in_words, titled


@dataclass(frozen=True)
class Class:
    """A class and its probability.

    Attributes:
        number: in the output.
        name: its name, or its number as text.
        probability: by the softmax of the output; ``None``: the output is not one value per class.
    """

    number: int
    name: str
    probability: float | None = None

    def __str__(self) -> str:
        return self.name if self.name == f"class {self.number}" else f"{self.name} ({self.number})"


@dataclass(frozen=True)
class Reason:
    """One explanation: why a class, or why it and not others.

    Attributes:
        target: the class; ``None`` where the model has none.
        against: the classes that it is explained against.
        start_name, unit, start: what entered.
        arrived: Σ relevance at the input.
        absorbed: by reason, without those that absorbed nothing; ``None``: no ledger was kept.
        inside: by module, Σ relevance at its input.
    """

    target: Class | None
    against: Sequence[Class]
    start_name: str
    unit: str
    start: float
    arrived: float
    absorbed: dict[str, float] | None = None
    inside: dict[str, float] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """What it answers: the class, or the class and not others."""
        name = "the output" if self.target is None else self.target.name
        return f"{name}, not {', '.join(rival.name for rival in self.against)}" if self.against else name

    @property
    def entered(self) -> str:
        """What entered, where one knows whether there is one output."""
        return "the value itself" if self.unit == "output" else self.start_name.partition(", or the value itself")[0]

    @property
    def title(self) -> str:
        """Above a picture: the question, the probability, and which share of the start arrived."""
        probability = None if self.target is None or self.against else self.target.probability
        return titled(self.question, probability, self.start, self.arrived, self.unit)

    @property
    def in_words(self) -> str:
        """The ledger as a sentence."""
        return in_words(self.start, self.arrived, self.absorbed, self.unit)


@dataclass(frozen=True)
class Finding:
    """What was found of one file.

    Attributes:
        file: its path, as it was named.
        top: the most probable classes, at most five.
        reasons: the explanations.
        picture: the path of the picture that was written.
        others: the paths of the pictures at checkpoints, and what else there is to tell, by kind in order.
    """

    file: str
    top: Sequence[Class]
    reasons: Sequence[Reason]
    picture: str = ""
    others: Sequence[tuple[str, str]] = ()

    def as_text(self) -> Any:
        """As a ``rich.text.Text``."""
        from rich.text import Text

        text = Text.assemble((self.file, "bold"), "\n")
        explained = {reason.target.number for reason in self.reasons if reason.target}
        for each in self.top:
            percent = 0.0 if each.probability is None else 100 * each.probability
            text.append(f"  {percent:6.2f} %  {each}\n", "bold cyan" if each.number in explained else "")
        for reason in self.reasons:
            probability = None if reason.target is None else reason.target.probability
            told = "" if probability is None else f", probability {probability:.6f}"
            rivals = f", not {', '.join(map(str, reason.against))}" if reason.against else ""
            text.append(f"  explained   {reason.target or 'the output'}{rivals}{told}\n")
            text.append(f"  start       {reason.entered} {reason.start:.6f}\n")
            text.append(f"  Σ relevance {amount(reason.arrived, reason.start)}\n")
            if reason.absorbed is not None:
                kept = ", ".join(f"{name} {value:.6f}" for name, value in reason.absorbed.items())
                text.append(f"  absorbed    {sum(reason.absorbed.values()):.6f}{f' ({kept})' if kept else ''}\n")
        if self.picture:
            text.append(f"  picture     {self.picture}\n")
        for kind, told in self.others:
            text.append(f"  {kind:<11} {told}\n")
        return text

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Finding:
        """What :func:`asdict` made of one."""
        reasons = [
            Reason(**{**reason, "target": reason["target"] and Class(**reason["target"]),
                      "against": [Class(**rival) for rival in reason["against"]]})
            for reason in content["reasons"]
        ]  # fmt: skip
        others = [(kind, told) for kind, told in content["others"]]
        return cls(content["file"], [Class(**each) for each in content["top"]], reasons, content["picture"], others)


def amount(total: float, start: float) -> str:
    """A sum of relevance, and which share it is of what entered."""
    return f"{total:.6f}" + (f", {100 * total / start:.2f} % of what entered" if start else "")


def as_json(findings: Sequence[Finding], about: dict[str, Any]) -> dict[str, Any]:
    """All findings, with what they were made by."""
    return {**header("findings"), **about, "findings": [asdict(finding) for finding in findings]}
