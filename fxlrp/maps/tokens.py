"""Relevance of tokens and words, from the relevance of an embedding, and text in colours.

The colours are those of the heatmaps and need the extra ``draw``; text for a terminal needs ``text``.
"""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from fxlrp.common.errors import InputError
from fxlrp.common.extras import require


def token_relevance(relevance: Tensor) -> Tensor:
    """The relevance of tokens: the sum over the features of their embeddings.

    Args:
        relevance: (batch, tokens, features), as in an explanation of an input of token numbers; for several
            targets (batch, rows, tokens, features).

    Returns:
        (batch, tokens), or (batch, rows, tokens); zero for padding that the model masks.

    Raises:
        InputError: it has another shape, such as that of a mask, or is a tuple for several inputs.
    """
    if isinstance(relevance, Tensor) and relevance.dim() in (3, 4) and relevance.is_floating_point():
        return relevance.sum(dim=-1)
    hint = "; take that of the tokens from explanation.by_input" if isinstance(relevance, tuple) else ""
    raise InputError(
        f"tokens take the relevance of their embeddings, (batch, tokens, features), not {_described(relevance)}{hint}"
    )


def join_pieces(tokens: Sequence[str], relevance: Tensor, continued: str = "##") -> tuple[list[str], Tensor]:
    """Join word pieces to words; the relevance of a word is the sum over its pieces.

    Args:
        tokens: the tokens of one text, as a WordPiece tokenizer names them.
        relevance: (tokens,).
        continued: the prefix of a token that continues the one before it.

    Returns:
        The words, and their relevance, (words,).

    Raises:
        InputError: tokens and relevance do not match.
    """
    _check(tokens, relevance)
    words: list[str] = []
    word_of_token = []
    for token in tokens:
        if words and token.startswith(continued):
            words[-1] += token.removeprefix(continued)
        else:
            words.append(token)
        word_of_token.append(len(words) - 1)
    index = torch.tensor(word_of_token, dtype=torch.long, device=relevance.device)
    return words, relevance.new_zeros(len(words)).index_add(0, index, relevance)


def to_html(
    tokens: Sequence[str], relevance: Tensor, *, limit: float | None = None, faint: Collection[str] = ()
) -> str:
    """The text in colours, as one HTML element for a light or a dark page.

    Positive relevance is red, negative blue, none nearly white. The tooltip of a token shows its number.

    Args:
        tokens: the tokens, or words, of one text.
        relevance: (tokens,).
        limit: the relevance that has the strongest colour, the same for texts to compare; ``None``: the largest here.
        faint: tokens that are shown smaller and paler, such as ``("[CLS]", "[SEP]")``.

    Raises:
        InputError: tokens and relevance do not match, or the limit is not positive.
        MissingExtraError: matplotlib is not installed.
    """
    _check(tokens, relevance)
    spans = []
    for token, value, background in zip(tokens, relevance.tolist(), _backgrounds(relevance, limit), strict=True):
        style = f"background:{background};color:{_readable_on(background)};padding:.1em .2em;border-radius:.2em"
        style += ";font-size:.75em;opacity:.7" if token in faint else ""
        spans.append(f'<span style="{style}" title="{value:+.4g}">{html.escape(token)}</span>')
    # The whole text has a background too: on a dark page the gaps between words would be dark.
    (plain,) = _backgrounds(torch.zeros(1), None)
    style = f"background:{plain};color:{_readable_on(plain)};padding:.3em;line-height:1.8"
    style += ";-webkit-box-decoration-break:clone;box-decoration-break:clone"
    return f'<span class="relevance" style="{style}">{" ".join(spans)}</span>'


def to_rich(
    tokens: Sequence[str], relevance: Tensor, *, limit: float | None = None, faint: Collection[str] = ()
) -> Any:
    """The text in the same colours for a terminal, as a ``rich.text.Text``.

    Args:
        tokens: the tokens, or words, of one text.
        relevance: (tokens,).
        limit: the relevance that has the strongest colour; ``None``: the largest here.
        faint: tokens that are shown dim.

    Raises:
        InputError, MissingExtraError: as for :func:`to_html`; rich may be missing as well.
    """
    text = require("rich.text", "text").Text()
    _check(tokens, relevance)
    for token, background in zip(tokens, _backgrounds(relevance, limit), strict=True):
        text.append(" " if text else "")
        text.append(token, f"{'dim ' if token in faint else ''}{_readable_on(background)} on {background}")
    return text


def _check(tokens: Any, relevance: Any) -> None:
    if isinstance(tokens, str):
        raise InputError("tokens are a list of strings, not one string")
    if not isinstance(relevance, Tensor) or relevance.dim() != 1 or not relevance.is_floating_point():
        raise InputError(f"a text takes one floating point number per token, (tokens,), not {_described(relevance)}")
    if len(tokens) != len(relevance):
        raise InputError(f"there are {len(tokens)} tokens and relevance of {len(relevance)}")


def _backgrounds(relevance: Tensor, limit: float | None) -> list[str]:
    """The background of each token, ``"#rrggbb"``; grey if relevance is not finite."""
    from fxlrp.maps.rendering import colorize

    if limit is not None and not (math.isfinite(limit) and limit > 0):
        raise InputError(f"limit must be a positive number, not {limit!r}")
    values = relevance.detach().cpu().double()
    count = len(values)
    if not count:
        return []
    if limit is not None:
        # colorize() ends its range at the largest number, so the limit is added as one more token.
        inside = torch.where(values.isfinite(), values.clamp(-limit, limit), torch.nan)
        values = torch.cat([inside, values.new_tensor([limit])])
    colors = colorize(values.unsqueeze(0), percentile=100)[0, :count]
    return ["#{:02x}{:02x}{:02x}".format(*color) for color in colors.tolist()]


def _readable_on(background: str) -> str:
    """Black or white, whichever has more contrast: at least 4.5 : 1 on any colour (WCAG 2, contrast ratio)."""
    levels = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def _described(value: Any) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
