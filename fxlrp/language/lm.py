"""A language model of transformers and its tokenizer, to be asked which tokens an answer rests on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.common.errors import InputError, StartError
from fxlrp.compiler import compile
from fxlrp.language.asked import Asked, Asking, kind_of
from fxlrp.language.blocks import DECODER_INPUT
from fxlrp.language.inside import Conditions, Inside, Units
from fxlrp.language.places import AtPlace, codes
from fxlrp.language.story import Story
from fxlrp.presets import preset_named
from fxlrp.results.explanation import Explanation
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
        self.kind = kind_of(self.captured.model, tokenizer)
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
        conditions: Conditions | None = None, at_once: int = _AT_ONCE,
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
            conditions: units inside the model: only relevance that flows through one of them is kept. Names of heads
                and neurons, ``["L5H3", "L7N120"]``, or numbers by the names of TransformerLens,
                ``{"blocks.5.attn.hook_z": [3], "blocks.7.mlp.hook_post": [120]}``.
            at_once: how many tokens are explained at once, which bounds the memory.

        Raises:
            InputError: there is nothing to explain, or arguments do not go together.
            ConditionError: a condition names no unit of the model.
            CaptureError: the model cannot be captured, at the first call.
        """
        asked = self._asked(prompt, answer, messages, against, max_new_tokens)
        inputs, wanted, tokens, rows = self._call(asked)
        explanation = self.explainer.explain((), inputs, target=wanted, chunk=at_once)
        matrix = self._matrix(explanation, asked)
        if conditions is not None:  # what flows through the units is what does not arrive without them
            units = self._units()
            masks = {units.hooks[name]: mask for name, mask in units.masks(conditions).items()}
            without = self.explainer.explain((), inputs, target=wanted, conditions=masks, chunk=at_once)
            matrix = matrix - self._matrix(without, asked)
        return self._story(asked, tokens, rows, explanation, matrix)

    def inside(
        self, prompt: str | None = None, answer: str | None = None, *,
        messages: Sequence[Mapping[str, str]] | None = None, against: str | None = None, max_new_tokens: int = 40,
        row: int | None = None, stack: str | None = None, at_once: int = _AT_ONCE,
    ) -> Inside:  # fmt: skip
        """The relevance of attention heads, neurons, layers, and the residual stream, at every token.

        Args:
            prompt: as for :meth:`explain`.
            answer: likewise.
            messages: likewise.
            against: likewise.
            max_new_tokens: likewise.
            row: the number of the token of the answer that is explained; ``None``: all of them, summed.
            stack: ``"encoder"`` or ``"decoder"`` of a model that has both; ``None``: its decoder.
            at_once: how many tokens are explained at once, which bounds the memory.

        Raises:
            InputError: there is nothing to explain, or no block of a transformer is found.
            CaptureError: the model cannot be captured, at the first call.
        """
        stack = self._stack(stack)
        asked = self._asked(prompt, answer, messages, against, max_new_tokens)
        inputs, wanted, tokens, _ = self._call(asked)
        if row is not None:
            if not 0 <= row < len(tokens):
                raise InputError(f"row={row}: {len(tokens)} token(s) are explained, 0 to {len(tokens) - 1}")
            wanted, tokens = wanted[:, row : row + 1], tokens[row : row + 1]
        self.explainer.explain((), inputs, target=wanted[:, :1])  # reads the model, for sizes like these
        units, names = self._units(), self._names(asked)
        read = len(asked.given["input_ids"])
        names = names[read : read + len(asked.given[DECODER_INPUT])] if stack == "decoder" else names[:read]
        amounts: dict[str, Tensor] = {}
        for some in torch.split(wanted, at_once, dim=1):
            found = self.explainer.relevance_of(nodes=units.nodes(stack), target=some, **inputs)
            for name, amount in units.amounts(stack, found, len(names)).items():
                amounts[name] = amounts[name] + amount if name in amounts else amount
        return Inside(amounts, names, self.tokenizer.decode(tokens))

    @contextmanager
    def ablated(self, conditions: Conditions) -> Iterator[None]:
        """Within, the model runs with zeros in place of the units that are named, as :meth:`explain` takes them.

        It must have been explained before, which tells where the units are. Afterwards it is as it was.

        Raises:
            ConditionError: a condition names no unit of the model.
            NotCapturedError: the model was not explained before.
        """
        with self._units().ablated(self.model, conditions):
            yield

    def _asked(
        self, prompt: str | None, answer: str | None, messages: Sequence[Mapping[str, str]] | None, against: str | None,
        most: int,
    ) -> Asked:  # fmt: skip
        return Asking(self.model, self.kind, self.tokenizer).asked(prompt, answer, messages, against, most)

    def _stack(self, stack: str | None) -> str:
        """The name of a stack of blocks."""
        if self.kind != "seq2seq":
            if stack is not None:
                raise InputError(f"stack={stack!r} is of a model with an encoder and a decoder; this one has one stack")
            return "blocks"
        if stack not in (None, "encoder", "decoder"):
            raise InputError(f"stack={stack!r}: choose 'encoder' or 'decoder'")
        return stack or "decoder"

    def _units(self) -> Units:
        """The units inside the model, which was read before.

        Raises:
            InputError: none are found.
        """
        return Units.of(self.explainer, self.model.config)

    def _call(self, asked: Asked) -> tuple[dict[str, Any], Tensor, Tensor, Tensor]:
        """What the explainer is given by name, the targets, the tokens that are explained, and their rows."""
        device = self.model.device
        inputs: dict[str, Any] = {name: ids.to(device)[None] for name, ids in asked.given.items()}
        inputs = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"]), **self._fixed}
        rows, tokens = asked.places, asked.tokens
        if self._keeps:
            inputs[_KEEPS], rows = asked.places.to(device), torch.arange(len(asked.places))
        if tokens is None or self._vocabulary is None:
            with torch.no_grad():
                logits = self.model(**inputs).logits[0][rows.to(device)].cpu()
            self._vocabulary = logits.shape[-1]
            tokens = logits.argmax(-1) if tokens is None else tokens
        return inputs, codes(rows, tokens, asked.rivals, self._vocabulary).to(device), tokens, rows

    def _matrix(self, explanation: Explanation, asked: Asked) -> Tensor:
        """(explained tokens, tokens of the text), float32."""
        parts = [explanation.by_input[name].sum(-1)[:, 0].detach().float().cpu() for name in asked.given]
        matrix = torch.cat(parts, 1)
        # The last token of an answer is given to no decoder: it rests on itself nowhere.
        return torch.nn.functional.pad(matrix, (0, len(asked.text.ids) - matrix.shape[1]))

    def _names(self, asked: Asked) -> tuple[str, ...]:
        """The tokens of a text, in words."""
        text = asked.text
        return tuple(text.text[first:last] if last > first else self.tokenizer.convert_ids_to_tokens(int(token))
                     for (first, last), token in zip(text.spans, text.ids, strict=True))  # fmt: skip

    def _story(self, asked: Asked, tokens: Tensor, rows: Tensor, explanation: Explanation, matrix: Tensor) -> Story:
        logits = explanation.output["logits"][0][rows.to(self.model.device)].detach().float().cpu()
        start = explanation.start[0].detach().float().cpu()
        return Story(
            matrix, tuple(self.tokenizer.decode([int(token)]) for token in tokens), self._names(asked),
            asked.text.parts, start, start - matrix.sum(1), logits.softmax(-1).gather(1, tokens[:, None])[:, 0],
            "log_odds against the rival" if asked.rivals is not None else self.start_name, asked.text,
            self.tokenizer.decode(tokens), asked.against,
        )  # fmt: skip


def language_model(model: Any, tokenizer: Any, preset: Any = "evidence", **options: Any) -> LanguageModel:
    """A language model to be explained: ``fxlrp.language_model(model, tokenizer).explain(prompt)``.

    Arguments and errors are those of :class:`LanguageModel`.
    """
    return LanguageModel(model, tokenizer, preset, **options)
