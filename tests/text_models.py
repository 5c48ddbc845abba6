"""Small models of texts for evaluations, which a configuration names."""

from types import SimpleNamespace

import torch
from torch import nn

from fxlrp.evaluation.tokens import Passage, TokenModel

WORDS = ["[blank]", "the", "cat", "sat", "on", "a", "mat"]


class Sums(nn.Module):
    """Logits that are sums over the tokens of a linear map of their embeddings."""

    def __init__(self, classes):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(len(WORDS), 5), nn.Linear(5, classes, bias=False)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids).sum(1))


class Scores(Sums):
    """One score for each text."""

    def __init__(self):
        super().__init__(1)

    def forward(self, input_ids):
        return super().forward(input_ids)[:, 0]


class Named(Sums):
    """What transformers' models give: an output with ``logits``, of every position."""

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.head(self.embed(input_ids)).cumsum(1))


def read(line):
    return Passage({"input_ids": torch.tensor([[WORDS.index(word) for word in line.split()]])})


def classifier():
    return TokenModel(Sums(3).double(), read, 0, say=["first", "second", "third"].__getitem__)


def scorer():
    return TokenModel(Scores().double(), read, 0)


def without_ends():
    """The first and the last token are not measured."""

    def inner(line):
        return Passage(read(line).inputs, measured=slice(1, -1))

    return TokenModel(Sums(3).double(), inner, 0)


def causal():
    return TokenModel(Named(len(WORDS)).double(), read, 0, lambda output: output.logits[:, -1], WORDS.__getitem__)


def no_token_model():
    return Sums(3)


def worth(subject, *, sign=1.0):
    """A method: what each token adds to the class."""

    def explain(passage, target):
        parts = subject.model.head(subject.model.embed(passage.ids[0]))
        return sign * parts[:, 0 if target is None else target]

    return explain


def too_few(subject):
    return lambda passage, target: torch.zeros(1)
