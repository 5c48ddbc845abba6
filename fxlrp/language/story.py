"""What a language model's answer rests on, token by token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxlrp.common.errors import InputError
from fxlrp.language import text as texts
from fxlrp.language.text import Part, Text


@dataclass(frozen=True)
class Story:
    """Relevance of every token for every token of an answer.

    Attributes:
        matrix: (rows, columns): a row for each explained token, a column for each token of prompt and answer, or for
            each unit of text that they were joined to. A token gets nothing from those before it: there are zeros.
        rows: the explained tokens, in words.
        columns: what each column is.
        parts: what each column belongs to: ``"prompt"``, ``"answer"``, ``"template"`` of a chat, or ``"special"``.
        start: (rows,), the relevance that entered: what the model says of the token, in the unit of ``start_name``.
        absorbed: (rows,), what was absorbed on the way: ``start`` less the sum of the row.
        probability: (rows,), the probability of each explained token.
        start_name: what entered, such as ``"log_odds"``.
        text: the whole text in tokens.
        answer: the answer, as text.
        against: the rival that the answer is explained against; ``None``: it is not.
    """

    matrix: Tensor
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    parts: tuple[Part, ...]
    start: Tensor
    absorbed: Tensor
    probability: Tensor
    start_name: str
    text: Text
    answer: str
    against: str | None = None

    def words(self) -> Story:
        """The same by words: the columns of the tokens that make up a word are summed."""
        return self._joined(texts.words(self.text.plain))

    def sentences(self) -> Story:
        """The same by sentences."""
        return self._joined(texts.sentences(self.text.plain))

    def spans(self, parts: Sequence[str]) -> Story:
        """The same by parts of the text, such as facts in a prompt; tokens beside them have no column.

        Raises:
            InputError: one is not in the text.
        """
        return self._joined(texts.found(self.text.text, parts), rest=False)

    def total(self) -> Tensor:
        """Relevance for the whole answer, (columns,): the sum over its tokens."""
        return self.matrix.sum(0)

    def shares(self) -> dict[str, float]:
        """How much of what entered went to each part: the prompt, the answer so far, the template, special tokens."""
        entered = float(self.start.abs().sum())
        sums = {
            part: float(self.matrix[:, [own == part for own in self.parts]].sum()) for part in dict.fromkeys(self.parts)
        }
        return {part: amount / entered if entered else 0.0 for part, amount in sums.items()}

    def _joined(self, units: Sequence[tuple[int, int]], *, rest: bool = True) -> Story:
        """Columns summed over units of text; ``rest``: tokens in none of them keep their own."""
        if len(self.columns) != len(self.text.spans):
            raise InputError("this story was joined before: join the tokens of the first one")
        held = texts.members(self.text.spans, units, self.text.text)
        taken = {token for unit in held for token in unit}
        groups = [(members, self.text.text[first:last], self.text.parts[members[0]])
                  for members, (first, last) in zip(held, units, strict=True) if members]  # fmt: skip
        if rest:
            groups += [([token], self.columns[token], self.parts[token])
                       for token in range(len(self.columns)) if token not in taken]  # fmt: skip
            groups.sort(key=lambda group: group[0][0])
        matrix = torch.stack([self.matrix[:, members].sum(1) for members, _, _ in groups], 1)
        names, parts = tuple(name for _, name, _ in groups), tuple(part for _, _, part in groups)
        return replace(self, matrix=matrix, columns=names, parts=parts)

    # To look at ---------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in self.shares().items())
        rival = f" rather than {self.against!r}" if self.against is not None else ""
        return f"<Story of {self.answer!r}{rival}: {len(self.rows)} × {len(self.columns)}, {self.start_name}; {shares}>"

    def show(self, row: int | None = None) -> None:
        """Print the text in colours, for the whole answer or for one of its tokens.

        Args:
            row: the number of an explained token; ``None``: the sum over all.

        Raises:
            MissingExtraError: rich or matplotlib is not installed (extra ``text``).
        """
        from fxlrp.common.extras import require
        from fxlrp.maps.tokens import to_rich

        relevance = self.total() if row is None else self.matrix[row]
        console = require("rich.console", "text").Console()
        console.print(repr(self), markup=False, highlight=False)
        names = list(map(texts.shown, self.columns))
        faint = {name for name, part in zip(names, self.parts, strict=True) if part in ("special", "template")}
        console.print(to_rich(names, relevance, faint=faint))

    def to_frame(self) -> Any:
        """A ``polars.DataFrame`` with one row per explained token and column.

        Its columns are ``row``, ``token``, ``column``, ``text``, ``part``, ``relevance``, ``start`` and
        ``probability``.

        Raises:
            MissingExtraError: polars is not installed (extra ``tables``).
        """
        from fxlrp.results.files import polars

        rows, columns = self.matrix.shape
        return polars().DataFrame({
            "row": torch.arange(rows).repeat_interleave(columns).numpy(),
            "token": [name for name in self.rows for _ in self.columns],
            "column": torch.arange(columns).repeat(rows).numpy(),
            "text": list(self.columns) * rows,
            "part": list(self.parts) * rows,
            "relevance": self.matrix.flatten().double().cpu().numpy(),
            "start": self.start.repeat_interleave(columns).double().cpu().numpy(),
            "probability": self.probability.repeat_interleave(columns).double().cpu().numpy(),
        })  # fmt: skip

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file: ``.html``, the text in colours for each explained token; ``.parquet``, ``.csv``: the table.

        Raises:
            InputError: the suffix is another one, or the file cannot be written.
            MissingExtraError: matplotlib (extra ``draw``) or polars (extra ``tables``) is needed and not installed.
        """
        from fxlrp.language.page import page
        from fxlrp.results.files import frame_writers, write

        return write(path, {
            ".html": lambda beside: beside.write_text(page(self), encoding="utf-8"),
            **frame_writers(self.to_frame),
        })  # fmt: skip
