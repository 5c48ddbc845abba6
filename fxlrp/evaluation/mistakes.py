"""Mistakes in a configuration, in words: where, what, and what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fxlrp.common.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError


def not_among(word: str, choices: Collection[str]) -> str:
    """What to write in place of a word: the nearest choice, or else all choices."""
    return _nearest(word, choices) or f"choose among {', '.join(choices)}"


def check_keys(table: Mapping[str, Any], choices: Collection[str], where: str) -> None:
    """Raise where a table has a key that means nothing.

    Raises:
        ConfigError: names the key and the nearest one that there is.
    """
    for key in table:
        if key not in choices:
            raise ConfigError(f"{where} has no {key!r}: {not_among(key, choices)}")


def mistakes_of(error: ValidationError, section: str, choices: Collection[str]) -> str:
    """The mistakes that pydantic found in a section, one after the other.

    Args:
        error: of pydantic.
        section: the name of the section, such as ``metrics`` or ``methods.NAME``.
        choices: the keys that it may have.
    """
    by_key: dict[str, list[Any]] = {}
    for detail in error.errors():
        by_key.setdefault(str(detail["loc"][0]) if detail["loc"] else "", []).append(detail)
    return "; ".join(_mistake(key, details, section, choices) for key, details in by_key.items())


def _mistake(key: str, details: Sequence[Mapping[str, Any]], section: str, choices: Collection[str]) -> str:
    """The mistake at one key; of a union each member has a detail of its own."""
    first = details[0]
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"[{section}] has no {key!r}: {not_among(key, choices)}"
    if first["type"] in ("missing", "missing_argument"):
        return f"[{section}] lacks {key!r}"
    if first["type"] == "value_error":
        return f"{f'{section}.{key}' if key else f'[{section}]'}: {first['ctx']['error']}"
    wanted = ", or ".join(dict.fromkeys(detail["msg"].removeprefix("Input should be ") for detail in details))
    near = _nearest(first["input"], re.findall("'(.+?)'", wanted))  # the words of a Literal stand in quotes
    must = "it must be " if first["msg"].startswith("Input should be ") else ""
    return f"{section}.{key} = {first['input']!r}: {must}{wanted}{f'; {near}' if near else ''}"


def _nearest(value: Any, words: Collection[str]) -> str:
    """``did you mean``, where one of the words is near."""
    near = difflib.get_close_matches(value, list(words), n=1) if isinstance(value, str) else []
    return f"did you mean {near[0]!r}?" if near else ""
