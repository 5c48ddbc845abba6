"""Models of texts, series and tables, what they take, and how they are loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.common.errors import EvaluationError, WeightsError
from fxlrp.common.extras import require
from fxlrp.loading.models import imported_result

Output = Callable[[Any], Tensor]
"""From what a model returns to logits, (batch, classes), or to one score for each item, (batch,)."""


@dataclass(frozen=True)
class Passage:
    """A text, a series or a row of a table as a model takes it. Its tokens, steps or columns are its places.

    Attributes:
        inputs: what the model takes, by name; each holds one item, (1, …).
        name: which of them holds the places: numbers of tokens, (1, places), or values, (1, places) or
            (1, places, channels).
        measured: which places are measured; those that mark the ends of a sentence need not be.
        truth: (places,), whether the right class is known to rest on a place; ``None``: it is not known.
        label: the right class; ``None``: it is not known.

    Raises:
        EvaluationError: ``truth`` is of another shape, or holds no truth values.
    """

    inputs: Mapping[str, Tensor]
    name: str = "input_ids"
    measured: slice = field(default_factory=lambda: slice(None))
    truth: Tensor | None = None
    label: int | None = None

    def __post_init__(self) -> None:
        if self.truth is not None and (self.truth.shape != (self.places,) or self.truth.dtype != torch.bool):
            got = f"{self.truth.dtype} {tuple(self.truth.shape)}"
            raise EvaluationError(f"truth must be torch.bool ({self.places},), one for each place, not {got}")

    @property
    def content(self) -> Tensor:
        """What stands at the places: (1, places), or (1, places, channels)."""
        return self.inputs[self.name]

    @property
    def ids(self) -> Tensor:
        """The content of a text: the numbers of its tokens, (1, tokens)."""
        return self.content

    @property
    def places(self) -> int:
        """How many places there are."""
        return self.content.shape[1]

    def with_content(self, content: Tensor) -> dict[str, Tensor]:
        """What the model takes where other content stands here, (batch, places, …)."""
        return {name: content if name == self.name else value.expand(len(content), *value.shape[1:])
                for name, value in self.inputs.items()}  # fmt: skip

    def to(self, device: torch.device | str) -> Passage:
        """The same on a device."""
        return replace(self, inputs={name: value.to(device) for name, value in self.inputs.items()})


@dataclass(frozen=True)
class TokenModel:
    """A model with what is needed to ask it about passages: what ``[model] spec = "python:…"`` returns for them.

    Attributes:
        model: is explained; in eval mode.
        read: from a line of a file of texts to what the model takes; ``None``: it takes only passages as they are.
        blank: what stands for nothing at a place: the number of a token, such as ``[MASK]``, or a value, such as zero.
        output: from what the model returns to logits, (batch, classes), or one score, (batch,); ``None``: as it is.
        say: from a class to its name; ``None``: classes have only numbers.
    """

    model: nn.Module
    read: Callable[[str], Passage] | None
    blank: float
    output: Output | None = None
    say: Callable[[int], str] | None = None

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits, (batch, classes), or scores, (batch,).

        Raises:
            EvaluationError: the model gives something else.
        """
        with torch.no_grad():
            output = self.model(**inputs)
            output = output if self.output is None else self.output(output)
        if isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] == 1:
            output = output[:, 0]
        if not isinstance(output, Tensor) or output.dim() not in (1, 2):
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise EvaluationError(f"the model must give logits (batch, classes) or scores (batch,), not {got}")
        return output


def load_token_model(spec: str, device: torch.device | str = "cpu") -> TokenModel:
    """Build the model of passages that a specification names. Nothing is downloaded.

    Args:
        spec: ``python:package.module:callable``, whose callable returns a :class:`TokenModel`, or
            ``transformers:FOLDER``, which ``save_pretrained`` wrote, of a causal model or a classifier of texts, with
            its tokenizer.
        device: where to.

    Raises:
        WeightsError: there is no such model, or it is of another kind.
    """
    source, _, name = spec.partition(":")
    if source == "python":
        made = imported_result(name)
        if not isinstance(made, TokenModel):
            raise WeightsError(f"{name} returned {type(made).__name__}: for texts it must return a TokenModel")
    elif source == "transformers":
        made = _of_transformers(name)
    else:
        kinds = "python:package.module:callable or transformers:FOLDER"
        raise WeightsError(f"model.spec = {spec!r}: for texts it is {kinds}")
    made.model.to(device).eval().requires_grad_(False)
    return made


def _of_transformers(folder: str) -> TokenModel:
    transformers = require("transformers", "text")
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise WeightsError(f"{folder} holds no config.json: give a folder that save_pretrained wrote")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        (architecture,) = config.architectures or ("no model",)
        causal = architecture.endswith(("ForCausalLM", "LMHeadModel"))
        if not causal and not architecture.endswith("ForSequenceClassification"):
            raise WeightsError(f"{folder} holds a {architecture}: for texts it must be a causal model or a classifier")
        model = getattr(transformers, architecture).from_pretrained(folder, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except WeightsError:
        raise
    except Exception as error:  # whatever in the folder transformers cannot read
        raise WeightsError(f"transformers cannot read {folder}: {type(error).__name__}: {error}") from error
    if causal:
        return causal_model(model, tokenizer)
    return TokenModel(model, _reader(tokenizer), _blank(tokenizer), _logits, lambda label: str(config.id2label[label]))


def causal_model(model: nn.Module, tokenizer: Any) -> TokenModel:
    """A causal model of transformers, asked for the token that follows a text."""

    def say(token: int) -> str:
        return str(tokenizer.decode([token]))

    return TokenModel(model, _reader(tokenizer, ("input_ids",)), _blank(tokenizer), _next, say)


def _reader(tokenizer: Any, names: tuple[str, ...] | None = None) -> Callable[[str], Passage]:
    def read(line: str) -> Passage:
        found = tokenizer(line, return_tensors="pt")
        ids = found["input_ids"][0].tolist()
        special = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        own = [place for place, marked in enumerate(special) if not marked] or [0]
        inputs = {name: value for name, value in found.items() if names is None or name in names}
        return Passage(inputs, measured=slice(own[0], own[-1] + 1))

    return read


def _blank(tokenizer: Any) -> int:
    for name in ("mask_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        number = getattr(tokenizer, name, None)
        if number is not None:
            return int(number)
    raise WeightsError("the tokenizer has no token that stands for none: write a TokenModel with blank=")


def _logits(output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits


def _next(output: Any) -> Tensor:
    logits: Tensor = output.logits[:, -1]
    return logits
