"""The example that compares the relevance of a prompt's tokens with what taking them out does to the next token."""

import pytest
import torch

from examples.evaluation.next_token import falls, log_odds


def test_log_odds_are_those_of_the_softmax():
    logits = torch.randn(3, 7, dtype=torch.float64)
    probability = logits.softmax(1)[:, 2]
    torch.testing.assert_close(log_odds(logits, 2), (probability / (1 - probability)).log())


def test_a_fall_is_what_the_token_was_worth():
    worth = torch.tensor([0.0, 5.0, 1.0, 3.0])
    ids = torch.tensor([[1, 3, 2, 1]])
    assert falls(lambda batch: worth[batch].sum(1), ids, 0).tolist() == pytest.approx([5, 3, 1, 5])
