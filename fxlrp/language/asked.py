"""What is asked of a language model: a text in tokens, and which of its tokens are explained, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fxlrp.common.errors import InputError
from fxlrp.language import text as texts
from fxlrp.language.text import Text

Kind = Literal["causal", "masked", "seq2seq"]


@dataclass(frozen=True)
class Asked:
    """Tokens to explain.

    Attributes:
        text: the whole text in tokens.
        places: (tokens to explain,), which row of the logits predicts each.
        tokens: (tokens to explain,), their numbers; ``None``: those that the model predicts there.
        given: what the model is given by name, one part of the tokens of the text after the other.
        rivals: (tokens to explain,), the token that each is explained against; ``None``: as the start says.
        against: the rival answer, as text.
    """

    text: Text
    places: Tensor
    tokens: Tensor | None
    given: Mapping[str, Tensor]
    rivals: Tensor | None = None
    against: str | None = None


class Asking:
    """Makes what is asked out of prompts, chats and answers.

    Args:
        model: a model of transformers.
        kind: what it does.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, kind: Kind, tokenizer: Any) -> None:
        self.model, self.kind, self.tokenizer = model, kind, tokenizer

    def asked(
        self, prompt: str | None, answer: str | None, messages: Sequence[Mapping[str, str]] | None, against: str | None,
        most: int,
    ) -> Asked:  # fmt: skip
        """What is asked by the arguments of :meth:`fxlrp.LanguageModel.explain`.

        Raises:
            InputError: there is nothing to explain, or arguments do not go together.
        """
        prompt, contents = self._prompt(prompt, messages)
        if self.kind == "masked":
            if answer is not None or against is not None:
                raise InputError("a masked model fills its masks: give the text with them as the prompt, and no answer")
            return self._filled(prompt)
        if against is not None and answer is None:
            raise InputError("against= is a rival of answer=: give both")
        if self.kind == "seq2seq":
            if contents is not None:
                raise InputError("messages= is for causal models; this one has an encoder and a decoder")
            return self._translated(prompt, answer, against, most)
        said = self._said(prompt, contents, most) if answer is None else answer
        text = texts.read(self.tokenizer, prompt, said, contents)
        if text.answer == len(text.ids):
            raise InputError("the answer has no token")
        if text.answer == 0:
            raise InputError("the prompt has no token: a first token without a prompt rests on nothing")
        places, tokens = torch.arange(text.answer, len(text.ids)), text.ids[text.answer :]
        given = {"input_ids": text.ids}
        asked = Asked(text, places - 1, tokens, given)
        if against is None:
            return asked
        return _rivalled(asked, places - text.answer, texts.read(self.tokenizer, prompt, against, contents), against)

    def _prompt(
        self, prompt: str | None, messages: Sequence[Mapping[str, str]] | None
    ) -> tuple[str, list[tuple[int, int]] | None]:
        if (prompt is None) == (messages is None):
            raise InputError("give a prompt, or messages=, one of the two")
        if messages is not None:
            return texts.chat(self.tokenizer, messages)
        if not isinstance(prompt, str):
            raise InputError(
                f"a prompt is text, not {type(prompt).__name__}; explain several one after the other: "
                "[lm.explain(prompt) for prompt in prompts]"
            )
        return prompt, None

    def _said(self, prompt: str, contents: Any, most: int) -> Tensor:
        """The tokens that the model says, greedily, without those that end it."""
        ids = texts.read(self.tokenizer, prompt, None, contents).ids.to(self.model.device)[None]
        with torch.no_grad():
            said = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            )[0, ids.shape[1] :].cpu()  # fmt: skip
        special = set(self.tokenizer.all_special_ids)
        kept = [token for token in said.tolist() if token not in special]
        return torch.tensor(kept, dtype=torch.long)

    def _translated(self, prompt: str, answer: str | None, against: str | None, most: int) -> Asked:
        """A prompt for an encoder, and the answer of a decoder."""
        opening, said = self.model.config.decoder_start_token_id, answer
        if answer is None:
            ids = texts.read(self.tokenizer, prompt, None, None).ids.to(self.model.device)[None]
            with torch.no_grad():
                said = self.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False,
                    num_beams=1,
                )[0, 1:].cpu()  # fmt: skip
        assert said is not None
        text = texts.read_pair(self.tokenizer, prompt, said, opening)
        rows = [place - text.answer for place in range(text.answer, len(text.ids)) if text.parts[place] == "answer"]
        if not rows:
            raise InputError("the answer has no token")
        places, first = torch.tensor(rows), text.answer - 1
        given = {"input_ids": text.ids[:first], "decoder_input_ids": text.ids[first:-1]}
        asked = Asked(text, places, text.ids[text.answer :][places], given)
        if against is None:
            return asked
        return _rivalled(asked, places, texts.read_pair(self.tokenizer, prompt, against, opening), against)

    def _filled(self, prompt: str) -> Asked:
        text = texts.read(self.tokenizer, prompt, None, None)
        places = (text.ids == self.tokenizer.mask_token_id).nonzero().flatten()
        if not len(places):
            raise InputError(f"the prompt has no {self.tokenizer.mask_token!r} to fill")
        return Asked(text, places, None, {"input_ids": text.ids})


def kind_of(model: Any, tokenizer: Any) -> Kind:
    """What a model does: go on with a text, fill its masks, or answer it with a decoder of its own.

    Raises:
        InputError: it does none of them.
    """
    config = getattr(model, "config", None)
    name = type(model).__name__
    if config is None or not hasattr(tokenizer, "all_special_ids"):
        raise InputError("a language model is one of transformers, with its tokenizer")
    if getattr(config, "is_encoder_decoder", False) and name.endswith(("ForConditionalGeneration", "MTModel")):
        return "seq2seq"
    if name.endswith("ForMaskedLM"):
        return "masked"
    if hasattr(config, "vision_config") and hasattr(model, "generate"):
        raise InputError(
            f"{name} reads pictures beside tokens: explain it with fxlrp.compile(model, batch=None, "
            "output=lambda out: out.logits[:, -1])(input_ids=…, pixel_values=…, attention_mask=…, use_cache=False), "
            "the processor's tensors of one prompt; .by_input has the relevance of tokens and of pixels"
        )
    if not hasattr(model, "generate") or not name.endswith(("LMHeadModel", "ForCausalLM")):
        raise InputError(
            f"{name} gives no logits of tokens: explain a classifier with fxlrp.compile(model, output='logits')"
            "(input_ids=…, attention_mask=…)"
        )
    return "causal"


def _rivalled(asked: Asked, offsets: Tensor, rival: Text, against: str) -> Asked:
    """Of an answer the token where it parts from a rival, to be explained against that of the rival.

    Args:
        asked: all tokens of the answer.
        offsets: (tokens,), where each is in the answer.
        rival: the same prompt with the rival.
        against: the rival, as text.

    Raises:
        InputError: they do not part.
    """
    own, other = asked.text.ids[asked.text.answer :], rival.ids[rival.answer :]
    for row, offset in enumerate(offsets.tolist()):
        here = slice(offset, offset + 1)
        if offset < len(other) and own[offset] != other[offset]:
            places = asked.places[row : row + 1]
            return replace(asked, places=places, tokens=own[here], rivals=other[here], against=against)
    raise InputError("the answer and against= begin alike, and one of them ends there: give answers that differ")
