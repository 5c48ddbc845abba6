"""Methods that say how much each token of a prompt matters to the next one, side by side.

Each gets a prompt and the token that is explained, and gives a number for each token of the prompt. What is explained
is the token's log-odds against all others, or its logit; attention rollout and chance do not ask for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fxlrp
from fxlrp.evaluation.tokens import Passage, TokenModel
from fxlrp.evaluation.tokens.measures import falls, log_odds
from fxlrp.extras import require

PRESETS = ("evidence", "attnlrp", "cp_lrp", "conserving")
STARTS = ("log_odds", "logit")


class Question(NamedTuple):
    """What is explained.

    Attributes:
        prompt: as text.
        answer: the next token, as text.
        ids: (1, tokens), of the prompt.
        target: the number of the next token.
    """

    prompt: str
    answer: str
    ids: Tensor
    target: int


Method = Callable[[Question], Tensor]
"""From a question to a number for each token of the prompt, (tokens,)."""

OfPassage = Callable[[Passage, int | None], Tensor]
"""The same as ``kind = "python"`` of ``fxlrp evaluate`` takes it: of a text and the token that follows."""


class Scored:
    """What a model says of the next token.

    Args:
        model: a causal model of transformers.
        start: one of :data:`STARTS`.
    """

    def __init__(self, model: Any, start: str) -> None:
        self.model, self.start = model, start

    def __call__(self, target: int, **inputs: Tensor) -> Tensor:
        """(batch,), of ``input_ids`` or ``inputs_embeds``."""
        logits = self.model(use_cache=False, **inputs).logits[:, -1]
        return logits[:, target] if self.start == "logit" else log_odds(logits, target)


def methods(model: Any, tokenizer: Any, blank: int, *, start: str = "log_odds", steps: int = 16) -> dict[str, Method]:
    """All methods, by name.

    Args:
        model: a causal model of transformers.
        tokenizer: its tokenizer.
        blank: the token that stands for none: what a token is replaced by, and where integrated gradients begin.
        start: what is explained, one of :data:`STARTS`.
        steps: of integrated gradients.
    """
    scored, captured, told = Scored(model, start), fxlrp.capture(model), telling(model)
    generator = torch.Generator().manual_seed(0)
    return {
        **{preset: relevance(captured, tokenizer, preset, start) for preset in PRESETS},
        "gradient × input": lambda asked: gradient_times_input(scored, asked),
        "integrated gradients, from blanks": lambda asked: integrated_gradients(scored, asked, blank, steps),
        "integrated gradients, from zero": lambda asked: integrated_gradients(scored, asked, None, steps),
        "attention rollout": lambda asked: rollout(told, asked.ids),
        "occlusion": lambda asked: occlusion(scored, asked, blank),
        "random": lambda asked: torch.rand(asked.ids.shape[1], generator=generator),
    }


def gradient(subject: TokenModel, *, start: str = "log_odds") -> OfPassage:
    """Gradient × input as a method of an evaluation."""
    scored = Scored(subject.model, start)
    return lambda passage, target: gradient_times_input(scored, _question(passage, target))


def integrated(subject: TokenModel, *, start: str = "log_odds", steps: int = 16, zero: bool = False) -> OfPassage:
    """Integrated gradients as a method of an evaluation, from blanks or from zero."""
    scored, blank = Scored(subject.model, start), None if zero else subject.blank
    return lambda passage, target: integrated_gradients(scored, _question(passage, target), blank, steps)


def attention_rollout(subject: TokenModel) -> OfPassage:
    """Attention rollout as a method of an evaluation."""
    told = telling(subject.model)
    return lambda passage, target: rollout(told, passage.ids)


def _question(passage: Passage, target: int | None) -> Question:
    assert target is not None
    return Question("", "", passage.ids, target)


def relevance(model: Any, tokenizer: Any, preset: str, start: str) -> Method:
    """By a preset of fxlrp. The model, captured or not, is read at the first question."""
    lm = fxlrp.language_model(model, tokenizer, preset, start=start, verify="never")

    def explained(asked: Question) -> Tensor:
        story = lm.explain(asked.prompt, asked.answer)
        assert story.text.ids.tolist() == [*asked.ids[0].tolist(), asked.target]
        return story.matrix[0, :-1]

    return explained


def occlusion(scored: Scored, asked: Question, blank: int) -> Tensor:
    """By how much the answer falls when a token is replaced by a blank."""
    with torch.no_grad():
        return falls(lambda ids: {"": scored(asked.target, input_ids=ids)}, Passage({"input_ids": asked.ids}), blank)


def gradient_times_input(scored: Scored, asked: Question) -> Tensor:
    """Of the embeddings, summed over their width."""
    embeddings = scored.model.get_input_embeddings()(asked.ids).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(scored(asked.target, inputs_embeds=embeddings).sum(), embeddings)
    return (gradient * embeddings).detach().sum(2)[0]


def integrated_gradients(scored: Scored, asked: Question, blank: int | None, steps: int) -> Tensor:
    """Captum's, of the embeddings, from those of blanks or from zero (Sundararajan et al., ICML 2017)."""
    embed = scored.model.get_input_embeddings()
    embeddings = embed(asked.ids).detach()
    baseline = torch.zeros_like(embeddings) if blank is None else embed(torch.full_like(asked.ids, blank)).detach()
    method = require("captum.attr", "evaluate").IntegratedGradients(
        lambda embeddings: scored(asked.target, inputs_embeds=embeddings)
    )
    found: Tensor = method.attribute(embeddings, baselines=baseline, n_steps=steps, internal_batch_size=steps)
    return found.detach().sum(2)[0].float()


def telling(model: Any) -> Any:
    """A copy that tells its attention weights and shares the model's own: transformers leaves hooks in it."""
    copied = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    copied.set_attn_implementation("eager")
    return copied


def rolled_out(attentions: list[Tensor]) -> Tensor:
    """(tokens, tokens), how much of each token reaches each: attention rollout (Abnar & Zuidema, ACL 2020).

    Args:
        attentions: of each layer, (heads, tokens, tokens).
    """
    flow = torch.eye(attentions[0].shape[-1])
    for weights in attentions:
        mean = weights.float().mean(0)
        flow = (mean + torch.eye(len(mean))) / 2 @ flow
    return flow


def rollout(told: Any, ids: Tensor) -> Tensor:
    """How much of each token reaches the last one, (tokens,), in a model that tells its attention weights."""
    with torch.no_grad():
        attentions = told(input_ids=ids, use_cache=False, output_attentions=True).attentions
    return rolled_out([weights[0] for weights in attentions])[-1]
