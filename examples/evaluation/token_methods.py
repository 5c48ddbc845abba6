"""Methods for ``fxlrp evaluate`` that say how much each token of a prompt matters to the next one.

Each gets a prompt and the token that is explained, and gives a number for each token of the prompt. What is explained
is the token's log-odds against all others, or its logit; attention rollout does not ask for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxlrp.evaluation.tokens import Passage, TokenModel
from fxlrp.evaluation.tokens.measures import log_odds
from fxlrp.extras import require

Method = Callable[[Passage, int], Tensor]
"""From a prompt and the token that follows to a number for each token of the prompt, (tokens,)."""


class Scored:
    """What a model says of the next token.

    Args:
        model: a causal model of transformers.
        start: what is explained, ``"log_odds"`` or ``"logit"``.
    """

    def __init__(self, model: Any, start: str) -> None:
        self.model, self.start = model, start

    def __call__(self, target: int, **inputs: Tensor) -> Tensor:
        """(batch,), of ``input_ids`` or ``inputs_embeds``."""
        logits = self.model(use_cache=False, **inputs).logits[:, -1]
        return logits[:, target] if self.start == "logit" else log_odds(logits, target)


def gradient(subject: TokenModel, *, start: str = "log_odds") -> Method:
    """Gradient × input as a method of an evaluation."""
    scored = Scored(subject.model, start)
    return lambda passage, target: gradient_times_input(scored, passage.ids, target)


def integrated(subject: TokenModel, *, start: str = "log_odds", steps: int = 16, zero: bool = False) -> Method:
    """Integrated gradients as a method of an evaluation, from blanks or from zero."""
    scored, blank = Scored(subject.model, start), None if zero else subject.blank
    return lambda passage, target: integrated_gradients(scored, passage.ids, target, blank, steps)


def attention_rollout(subject: TokenModel) -> Method:
    """Attention rollout as a method of an evaluation."""
    told = telling(subject.model)
    return lambda passage, target: rollout(told, passage.ids)


def gradient_times_input(scored: Scored, ids: Tensor, target: int) -> Tensor:
    """Of the embeddings, summed over their width."""
    embeddings = scored.model.get_input_embeddings()(ids).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(scored(target, inputs_embeds=embeddings).sum(), embeddings)
    return (gradient * embeddings).detach().sum(2)[0]


def integrated_gradients(scored: Scored, ids: Tensor, target: int, blank: float | None, steps: int) -> Tensor:
    """Captum's, of the embeddings, from those of blanks or from zero (Sundararajan et al., ICML 2017)."""
    embed = scored.model.get_input_embeddings()
    embeddings = embed(ids).detach()
    baseline = torch.zeros_like(embeddings) if blank is None else embed(torch.full_like(ids, blank)).detach()
    method = require("captum.attr", "evaluate").IntegratedGradients(
        lambda embeddings: scored(target, inputs_embeds=embeddings)
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
