"""What a word that is not known may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """``"; did you mean 'a' or 'b'?"``, of the two nearest choices; nothing where none is near."""
    close = difflib.get_close_matches(word, choices, n=2, cutoff=cutoff)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
