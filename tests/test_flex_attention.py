"""torch's attention in which functions change the scores and choose who looks at whom."""

import pytest
import torch
from checks import assert_close, assert_conserves
from torch import nn
from torch.nn.attention import flex_attention as by_module
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import fxlrp
from fxlrp.errors import CaptureError

TOKENS, SLOPES = 5, torch.tensor([0.1, 0.3])


def earlier(item, head, query, key):
    return query >= key


def later(item, head, query, key):
    return query < key


def leaning(score, item, head, query, key):
    return score + SLOPES[head] * (query - key)


class Flexible(nn.Module):
    """Attention of two heads, of keys and values that they may share; ``options`` are those of ``flex_attention``."""

    def __init__(self, chosen=None, **options):
        super().__init__()
        shared = 1 if options.get("enable_gqa") else 2
        self.parts = nn.ModuleList(nn.Linear(8, 4 * heads) for heads in (2, shared, shared))
        self.out = nn.Linear(8, 3)
        self.options = options
        self.mask = chosen and create_block_mask(chosen, None, None, TOKENS, TOKENS, device="cpu")

    def forward(self, x):
        parts = [part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in self.parts]
        mixed = self.attention(*parts, block_mask=self.mask, **self.options)
        return self.out(mixed.transpose(1, 2).flatten(2)).mean(dim=1)

    def attention(self, *parts, **options):
        return flex_attention(*parts, **options)


class ByItsModule(Flexible):
    def attention(self, *parts, **options):
        return by_module.flex_attention(*parts, **options)


class WithLogarithms(Flexible):
    def attention(self, *parts, **options):
        return flex_attention(*parts, return_lse=True, **options)[0]


MODELS = {
    "plain": lambda: Flexible(),
    "by its module": lambda: ByItsModule(),
    "causal": lambda: Flexible(earlier),
    "one that may look at nothing": lambda: Flexible(later),
    "scores are changed": lambda: Flexible(score_mod=leaning, scale=0.7),
    "all of it": lambda: Flexible(earlier, score_mod=leaning, enable_gqa=True),
    "all of it, one that may look at nothing": lambda: Flexible(later, score_mod=leaning),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_functions_of_scores_and_pairs_are_followed(name):
    torch.manual_seed(0)
    model, x = MODELS[name]().double().eval(), torch.randn(3, TOKENS, 8).double()
    explainer = fxlrp.compile(model, "conserving")
    assert_close(explainer(x).output, model(x))
    assert by_module.flex_attention is flex_attention
    assert_close(explainer(x[:2]).output, model(x[:2]))
    assert_conserves(explainer, x, absorbs=("bias", "constant"))


def test_what_is_returned_beside_attention_is_refused():
    with pytest.raises(CaptureError, match="higher-order"):
        fxlrp.compile(WithLogarithms().eval())(torch.randn(2, TOKENS, 8))
