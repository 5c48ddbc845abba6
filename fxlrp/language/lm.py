"""A language model of transformers and its tokenizer, to be asked which tokens an answer rests on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fxlrp.common.errors import InputError, StartError
from fxlrp.compiler import compile
from fxlrp.language import text as texts
from fxlrp.language.places import AtPlace, codes
from fxlrp.language.story import Story
from fxlrp.language.text import Text
from fxlrp.presets import preset_named
from fxlrp.rules.starts import STARTS
from fxlrp.runtime.captures import CapturedModel

_AT_ONCE = 16
"""How many tokens of an answer are explained at once, unless it is said."""
_KEEPS = "logits_to_keep"
"""By this argument causal models of transformers are told for which positions logits are wanted."""


def _logits(returned: Any) -> Any:
    return returned.logits


class LanguageModel:
    """A language model, causal, masked or with an encoder and a decoder, whose answers are explained token by token.

    It reads the model at the first explanation; prompts and answers of other lengths need no second reading.

    Args:
        model: a model of transformers with logits, (batch, tokens, vocabulary), in eval mode. It is not changed.
        tokenizer: its fast tokenizer.
        preset: the rules, as :func:`fxlrp.compile` takes them.
        start: what enters at a token: a name of :data:`fxlrp.rules.starts.STARTS` for classes; ``"auto"``: as the
            preset has it, log-odds or the probability.
        **options: as for :func:`fxlrp.compile`.

    Raises:
        InputError: the model makes no logits of tokens; the error says what to write instead.
        StartError: the start is of no class.
        TrainingModeError, CaptureError: as for :func:`fxlrp.compile`.
    """

    def __init__(
        self, model: nn.Module | CapturedModel, tokenizer: Any, preset: Any = "evidence", *, start: str = "auto",
        **options: Any,
    ) -> None:  # fmt: skip
        self.captured = model if isinstance(model, CapturedModel) else CapturedModel(model)
        self.tokenizer = tokenizer
        self.kind = _kind(self.captured.model, tokenizer)
        name = preset_named(preset).start if start == "auto" else start
        if name not in STARTS or name == "output":
            raise StartError(f"start={start!r}: a token is explained by one of {', '.join(map(repr, STARTS))}")
        self.start_name = name
        parameters = inspect.signature(self.captured.model.forward).parameters
        self._keeps = _KEEPS in parameters and self.kind == "causal"
        self._vocabulary: int | None = None  # how many logits there are, which a configuration need not say
        self._fixed = {"use_cache": False} if "use_cache" in parameters else {}
        self.explainer = compile(
            self.captured, preset, output=_logits, start=AtPlace(STARTS[name], name), batch=None, **options
        )

    @property
    def model(self) -> Any:
        """The model."""
        return self.captured.model

    def explain(
        self, prompt: str | None = None, answer: str | None = None, *,
        messages: Sequence[Mapping[str, str]] | None = None, against: str | None = None, max_new_tokens: int = 40,
        at_once: int = _AT_ONCE,
    ) -> Story:  # fmt: skip
        """Explain every token of an answer, in one pass through the model.

        Args:
            prompt: the text before the answer. For a masked model the text with its mask tokens, which are explained.
            answer: the answer; ``None``: what the model says, greedily. Between a prompt and an answer that begins with
                a letter or digit a space is put where neither has one.
            messages: a chat, in place of a prompt: dicts with ``role`` and ``content``. The tokenizer's chat template
                makes the prompt; its own tokens are told apart.
            against: another answer to the same prompt. The token where the two part is explained against that of the
                other: relevance sums to the log of the odds between them.
            max_new_tokens: how many tokens the model says at most.
            at_once: how many tokens are explained at once, which bounds the memory.

        Raises:
            InputError: there is nothing to explain, or arguments do not go together.
            CaptureError: the model cannot be captured, at the first call.
        """
        prompt, contents = self._prompt(prompt, messages)
        if self.kind == "masked":
            if answer is not None or against is not None:
                raise InputError("a masked model fills its masks: give the text with them as the prompt, and no answer")
            return self._filled(prompt, at_once)
        if against is not None and answer is None:
            raise InputError("against= is a rival of answer=: give both")
        if self.kind == "seq2seq":
            if contents is not None or against is not None:
                raise InputError("messages= and against= are for causal models; this one has an encoder and a decoder")
            return self._translated(prompt, answer, max_new_tokens, at_once)
        generated = self._said(prompt, contents, max_new_tokens) if answer is None else answer
        text = texts.read(self.tokenizer, prompt, generated, contents)
        if text.answer == len(text.ids):
            raise InputError("the answer has no token")
        if text.answer == 0:
            raise InputError("the prompt has no token: a first token without a prompt rests on nothing")
        places = torch.arange(text.answer, len(text.ids))
        tokens, rivals = text.ids[text.answer :], None
        if against is not None:
            rival = texts.read(self.tokenizer, prompt, against, contents)
            parting = _parting(text.ids, rival.ids, text.answer)
            places, tokens, rivals = places[parting:][:1], tokens[parting:][:1], rival.ids[text.answer + parting :][:1]
        return self._story(text, places - 1, tokens, rivals, at_once, against)

    def _prompt(
        self, prompt: str | None, messages: Sequence[Mapping[str, str]] | None
    ) -> tuple[str, list[tuple[int, int]] | None]:
        if (prompt is None) == (messages is None):
            raise InputError("give a prompt, or messages=, one of the two")
        if messages is not None:
            return texts.chat(self.tokenizer, messages)
        if not isinstance(prompt, str):
            raise InputError(f"a prompt is text, not {type(prompt).__name__}; explain several one after the other")
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

    def _translated(self, prompt: str, answer: str | None, most: int, at_once: int) -> Story:
        """The story of an encoder's prompt and a decoder's answer."""
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
        places = torch.tensor(rows)
        first = text.answer - 1
        given = {"input_ids": text.ids[:first], "decoder_input_ids": text.ids[first:-1]}
        return self._story(text, places, text.ids[text.answer :][places], None, at_once, None, given)

    def _filled(self, prompt: str, at_once: int) -> Story:
        text = texts.read(self.tokenizer, prompt, None, None)
        places = (text.ids == self.tokenizer.mask_token_id).nonzero().flatten()
        if not len(places):
            raise InputError(f"the prompt has no {self.tokenizer.mask_token!r} to fill")
        return self._story(text, places, None, None, at_once, None)

    def _story(
        self, text: Text, places: Tensor, tokens: Tensor | None, rivals: Tensor | None, at_once: int,
        against: str | None, given: Mapping[str, Tensor] | None = None,
    ) -> Story:  # fmt: skip
        """Explain ``tokens`` at the positions ``places`` of the logits; no tokens: those that are predicted there.

        ``given``: what the model is given by name, one part of the tokens of the text after the other.
        """
        device = self.model.device
        parts = {name: ids.to(device)[None] for name, ids in (given or {"input_ids": text.ids}).items()}
        inputs = {**parts, "attention_mask": torch.ones_like(parts["input_ids"]), **self._fixed}
        rows = places
        if self._keeps:
            inputs[_KEEPS], rows = places.to(device), torch.arange(len(places))
        if tokens is None or self._vocabulary is None:
            with torch.no_grad():
                logits = self.model(**inputs).logits[0][rows.to(device)].cpu()
            self._vocabulary = logits.shape[-1]
            tokens = logits.argmax(-1) if tokens is None else tokens
        wanted = codes(rows, tokens, rivals, self._vocabulary).to(device)
        explanation = self.explainer.explain((), inputs, target=wanted, chunk=at_once)
        of_parts = [explanation.by_input[name].sum(-1)[:, 0].detach().float().cpu() for name in parts]
        matrix = torch.cat(of_parts, 1)
        # The last token of an answer is given to no decoder: it rests on itself nowhere.
        matrix = torch.nn.functional.pad(matrix, (0, len(text.ids) - matrix.shape[1]))
        logits = explanation.output["logits"][0][rows.to(device)].detach().float().cpu()
        start = explanation.start[0].detach().float().cpu()
        names = tuple(text.text[first:last] if last > first else self.tokenizer.convert_ids_to_tokens(int(token))
                      for (first, last), token in zip(text.spans, text.ids, strict=True))  # fmt: skip
        explained = tuple(self.tokenizer.decode([int(token)]) for token in tokens)
        return Story(
            matrix, explained, names, text.parts, start, start - matrix.sum(1),
            logits.softmax(-1).gather(1, tokens[:, None])[:, 0],
            "log_odds against the rival" if rivals is not None else self.start_name, text,
            self.tokenizer.decode(tokens), against,
        )  # fmt: skip


def language_model(model: Any, tokenizer: Any, preset: Any = "evidence", **options: Any) -> LanguageModel:
    """A language model to be explained: ``fxlrp.language_model(model, tokenizer).explain(prompt)``.

    Arguments and errors are those of :class:`LanguageModel`.
    """
    return LanguageModel(model, tokenizer, preset, **options)


def _kind(model: Any, tokenizer: Any) -> Literal["causal", "masked", "seq2seq"]:
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
    if not hasattr(model, "generate") or not name.endswith(("LMHeadModel", "ForCausalLM")):
        raise InputError(
            f"{name} gives no logits of tokens: explain a classifier with fxlrp.compile(model, output='logits')"
            "(input_ids=…, attention_mask=…)"
        )
    return "causal"


def _parting(ids: Tensor, rival: Tensor, first: int) -> int:
    """The number of the first token of an answer that differs from its rival's.

    Raises:
        InputError: they do not differ.
    """
    for place in range(first, min(len(ids), len(rival))):
        if ids[place] != rival[place]:
            return place - first
    raise InputError("the answer and against= begin alike, and one of them ends there: give answers that differ")
