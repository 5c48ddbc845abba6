"""From text to tokens and back: which characters each token is of, by the tokenizer's own offsets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from fxlrp.common.errors import InputError

Part = Literal["prompt", "answer", "template", "special"]
_WORD = re.compile(r"\S+")
_SENTENCE = re.compile(r"\S[^\n]*?(?:[.!?…]+(?=\s|$)|(?=\n)|$)")
_OPENS = (" ", "\n", "\t")


@dataclass(frozen=True)
class Text:
    """A prompt and its answer in tokens.

    Attributes:
        text: the whole text.
        ids: (tokens,), the numbers of the tokens.
        spans: of each token, the characters in ``text``, from and to; a special token that is not written has none.
        parts: what each token belongs to.
        answer: the number of the first token of the answer.
    """

    text: str
    ids: Tensor
    spans: tuple[tuple[int, int], ...]
    parts: tuple[Part, ...]
    answer: int

    @property
    def plain(self) -> str:
        """The text with the ends of lines in place of special tokens: they belong to no word."""
        letters = list(self.text)
        for part, (first, last) in zip(self.parts, self.spans, strict=True):
            if part == "special":
                letters[first:last] = "\n" * (last - first)
        return "".join(letters)


def chat(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The text that a chat template makes of messages, and where their contents are in it.

    Raises:
        InputError: the tokenizer has no chat template, or messages are not a list of role and content.
    """
    if not all(isinstance(each, Mapping) and isinstance(each.get("content"), str) for each in messages):
        raise InputError("messages= is a list of dicts with 'role' and 'content', both text")
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(f"{type(tokenizer).__name__} has no chat template: give the prompt as text")
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    contents, behind = [], 0
    for each in messages:
        content = each["content"].strip()
        first = text.find(content, behind)
        if first >= 0:
            behind = first + len(content)
            contents.append((first, behind))
    return text, contents


def read(
    tokenizer: Any, prompt: str, answer: str | Tensor | None, contents: Sequence[tuple[int, int]] | None
) -> Text:
    """A prompt with its answer in tokens.

    Args:
        tokenizer: a fast tokenizer of transformers, which tells offsets.
        prompt: the text before the answer.
        answer: text, or the numbers of the tokens that were generated, (tokens,), or ``None``.
        contents: where in a prompt that a chat template made the messages are; ``None``: it is none, and the tokenizer
            puts its special tokens around it.

    Raises:
        InputError: the tokenizer tells no offsets.
    """
    written = ""
    if isinstance(answer, str):
        separate = prompt and not prompt.endswith(_OPENS) and not answer.startswith(_OPENS)
        written = f" {answer}" if separate and answer[:1].isalnum() else answer
    ids, spans = _tokens(tokenizer, prompt + written, special=contents is None)
    whole, first = prompt + written, len(ids)
    if isinstance(answer, Tensor):
        generated, texts = answer.tolist(), [""]
        for end in range(1, len(generated) + 1):
            texts.append(tokenizer.decode(generated[:end], clean_up_tokenization_spaces=False))
        whole = prompt + texts[-1]
        ids += generated
        ends = [len(prompt) + len(text) for text in texts]
        spans += [(min(before, after), after) for before, after in pairwise(ends)]
    elif written:
        first = next(place for place, (_, end) in enumerate(spans) if end > len(prompt))
        last = max(place for place, (_, end) in enumerate(spans) if end > len(prompt))
        ids, spans = ids[: last + 1], spans[: last + 1]  # what a tokenizer puts behind the text is no part of an answer
    special = set(tokenizer.all_special_ids)

    def part(place: int) -> Part:
        begin, end = spans[place]
        if place >= first:
            return "answer"
        if ids[place] in special or begin == end:
            return "special"
        inside = contents is None or any(begin < last and end > start for start, last in contents)
        return "prompt" if inside else "template"

    return Text(whole, torch.tensor(ids), tuple(spans), tuple(map(part, range(len(ids)))), first)


def read_pair(tokenizer: Any, prompt: str, answer: str | Tensor, opening: int) -> Text:
    """A prompt for an encoder, and behind it what the decoder was given, the token that opens it and the answer.

    Args:
        tokenizer: a fast tokenizer of transformers.
        prompt: the text that the encoder reads.
        answer: text, or the numbers of the tokens that were generated, (tokens,), special ones among them.
        opening: the number of the token that opens an answer.

    Raises:
        InputError: the tokenizer tells no offsets.
    """
    before, spans = _tokens(tokenizer, prompt, special=True)
    shift = len(prompt) + 1
    if isinstance(answer, str):
        ids, own = _tokens(tokenizer, answer, special=True)
    else:
        ids, texts = answer.tolist(), [""]
        texts += [tokenizer.decode(ids[:end], skip_special_tokens=True) for end in range(1, len(ids) + 1)]
        own = [(min(len(a), len(b)), len(b)) for a, b in pairwise(texts)]
        answer = texts[-1]
    special = set(tokenizer.all_special_ids)
    while ids and ids[-1] in special:  # what ends an answer is no part of it
        ids, own = ids[:-1], own[:-1]
    parts: list[Part] = ["special" if token in special else "prompt" for token in before]
    parts += ["special", *("special" if token in special else "answer" for token in ids)]
    spans += [(len(prompt), len(prompt)), *((first + shift, last + shift) for first, last in own)]
    numbers = torch.tensor([*before, opening, *ids])
    return Text(f"{prompt}\n{answer}", numbers, tuple(spans), tuple(parts), len(before) + 1)


def _tokens(tokenizer: Any, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} tells no offsets: give a fast tokenizer, "
            "AutoTokenizer.from_pretrained(…, use_fast=True)"
        )
    found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
    return list(found["input_ids"]), [tuple(span) for span in found["offset_mapping"]]


def words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text are, by the space between them."""
    return [match.span() for match in _WORD.finditer(text)]


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text are: each ends with a full stop, an exclamation or a question mark, or its line."""
    return [match.span() for match in _SENTENCE.finditer(text)]


def found(text: str, parts: Sequence[str]) -> list[tuple[int, int]]:
    """Where parts of a text are, each behind the one before it where it can be.

    Raises:
        InputError: one is not in the text.
    """
    spans, behind = [], 0
    for part in parts:
        first = text.find(part, behind)
        first = text.find(part) if first < 0 else first
        if not part or first < 0:
            raise InputError(f"{part!r} is not in the text")
        behind = first + len(part)
        spans.append((first, behind))
    return spans


def members(spans: Sequence[tuple[int, int]], units: Sequence[tuple[int, int]], text: str) -> list[list[int]]:
    """Which tokens each unit of text holds: those of which most characters, spaces in front aside, are in it."""
    held: list[list[int]] = [[] for _ in units]
    for token, (begin, end) in enumerate(spans):
        while begin < end and text[begin].isspace():
            begin += 1
        if begin == end and text[end - 1 : end] == " ":  # a space that is a token of its own opens the next word
            end += 1
        overlaps = [min(end, last) - max(begin, first) for first, last in units]
        best = max(range(len(units)), key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] > 0:
            held[best].append(token)
    return held


def shown(token: str) -> str:
    """A token as text of one line."""
    return token.replace("\n", "⏎").strip() or "␣"
