"""Small models of texts, series and tables for evaluations, which a configuration names."""

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


class Layer(nn.Module):
    """An attention that looks by what ``read`` is, on a skip."""

    def __init__(self):
        super().__init__()
        self.value, self.out = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, stream, read):
        return stream + self.out(torch.softmax(read @ read.mT, dim=-1) @ self.value(stream))


class Heads(nn.Module):
    """Two attentions that look by the embeddings alone, so that what a head adds reaches the class linearly."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_attention_heads=4)
        self.embed, self.head = nn.Embedding(len(WORDS), 8), nn.Linear(8, 3, bias=False)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, input_ids):
        stream = read = self.embed(input_ids)
        for layer in self.layers:
            stream = layer(stream, read)
        return self.head(stream[:, -1])


def heads():
    return TokenModel(Heads().double(), read, 0)


class Weighed(nn.Module):
    """Logits that are sums over places and channels of values, each with its weight."""

    def __init__(self, *size):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(torch.Size(size).numel(), 3, bias=False)

    def forward(self, x):
        return self.head(x.flatten(1))


COLUMNS, STEPS = 5, (4, 2)


def table():
    return TokenModel(Weighed(COLUMNS).double(), None, 0.0)


def series():
    return TokenModel(Weighed(*STEPS).double(), None, 0.0)


def rows():
    """Of each the truth is the column with the largest part of the class, and of the second all but the last one."""
    weights = table().model.head.weight.detach()
    found = []
    for number in range(3):
        x = torch.randn(1, COLUMNS, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        label = int((x @ weights.T).argmax())
        parts = (x[0] * weights[label]).abs()
        truth = parts == parts.max() if number != 1 else torch.arange(COLUMNS) < COLUMNS - 1
        found.append(Passage({"x": x}, "x", truth=truth, label=label if number else (label + 1) % 3))
    return found


def steps():
    values = torch.randn(2, *STEPS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return [Passage({"x": x[None]}, "x") for x in values]


def no_passages():
    return [torch.zeros(1, 3)]


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
