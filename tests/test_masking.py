"""The example that compares the relevance of tokens with what masking them takes away."""

import pytest
import torch

from examples.evaluation.masking import PAIRS, correlations, falls

WEIGHTS = torch.tensor([0.0, 5.0, 1.0, 3.0, 2.0, 4.0])
MASK, START, END = 0, 1, 1


def similarity(ids, mask, other_ids, other_mask):
    """The sum of a weight per token: a mask token, number 0, adds nothing."""
    return WEIGHTS[ids].sum(dim=1)


class Tokenizer:
    mask_token_id = MASK

    def __call__(self, sentences, **options):
        words = [START, *(2 + len(word) % 4 for word in sentences[0].split()), END]
        ids = torch.tensor([words])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_masking_takes_the_tokens_own_part_away():
    ids = torch.tensor([[1, 3, 2, 1]])
    fallen = falls(similarity, MASK, ids, torch.ones_like(ids), (ids, ids))
    assert fallen.tolist() == [5, 3, 1, 5]


@pytest.mark.parametrize("half", [0, 1])
def test_relevance_that_is_each_tokens_part_has_rank_correlation_one(half):
    found = correlations(similarity, Tokenizer(), lambda ids, *others: WEIGHTS[ids], half)
    assert len(found) == len(PAIRS)
    assert found == pytest.approx([1] * len(found))
    turned = correlations(similarity, Tokenizer(), lambda ids, *others: -WEIGHTS[ids], half)
    assert turned == pytest.approx([-1] * len(found))
