"""Small models of tables, series and words for ``fxlrp evaluate``, which learn tasks whose truth is known.

Their classes follow from known inputs: six columns of a table of twenty; five steps of a series in which something
happens; words for and against among neutral ones. Each model learns in seconds, when it is loaded.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fxlrp.evaluation.tokens import Passage, TokenModel

CLASSES, COLUMNS, KNOWN = 3, 20, 6
STEPS, CHANNELS = 30, 4
WORDS, LENGTH, SIDE = 40, 15, 5
TRAINING, BATCH, ROUNDS, UNSEEN = 6000, 256, 500, 150


class Items(NamedTuple):
    """Inputs, (items, places, …), their classes, (items,), and where the truth is, (items, places)."""

    inputs: Tensor
    classes: Tensor
    truth: Tensor


# Tasks ----------------------------------------------------------------------------------------------


def table(count: int) -> Items:
    """Classes from six of twenty columns, and from a product of two of them."""
    weights = torch.zeros(COLUMNS, CLASSES)
    weights[:KNOWN] = 2 * torch.randn(KNOWN, CLASSES, generator=torch.Generator().manual_seed(1))
    rows = torch.randn(count, COLUMNS)
    product = rows[:, :1] * rows[:, 1:2] * torch.tensor([[1.0, -1.0, 0.0]])
    return Items(rows, (rows @ weights + product).argmax(1), (torch.arange(COLUMNS) < KNOWN).expand(count, -1))


def series(count: int) -> Items:
    """A bump or a dip in one of four noisy channels."""
    values, classes = 0.4 * torch.randn(count, STEPS, CHANNELS), torch.randint(0, 2, (count,)) * 2
    near = (torch.arange(STEPS) - torch.randint(3, STEPS - 3, (count, 1))).abs() <= 2
    values[:, :, 0] += near * (classes[:, None] - 1) * 2.0
    return Items(values, classes, near)


def words(count: int) -> Items:
    """More words for than against, as many, or fewer; word 0 is the blank."""
    ids = torch.randint(0, WORDS, (count, LENGTH))
    good, bad = (ids >= 1) & (ids <= SIDE), (ids > SIDE) & (ids <= 2 * SIDE)
    return Items(ids, (good.sum(1) - bad.sum(1)).sign() + 1, good | bad)


def unseen_rows() -> list[Passage]:
    return _unseen(table)


def unseen_series() -> list[Passage]:
    return _unseen(series)


def unseen_words() -> list[Passage]:
    return _unseen(words)


def _unseen(draw: Callable[[int], Items]) -> list[Passage]:
    """Items that training does not see."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # training has 0
        items = draw(UNSEEN)
    return [
        Passage({"x": x[None]}, "x", truth=truth, label=int(label))
        for x, label, truth in zip(items.inputs, items.classes, items.truth, strict=True)
    ]


# Models ---------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A body and a classifier, ``head``."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x))
        return result


class Convolved(nn.Module):
    """Two convolutions over a series, and the mean or the most of what they find."""

    def __init__(self, channels: int, *, most: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(channels, 16, 5, padding=2), nn.Conv1d(16, 32, 5, padding=2)
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        found = self.second(self.first(x.transpose(1, 2)).relu()).relu()
        return found.amax(-1) if self.most else found.mean(-1)


class Recurred(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.layer(x)[0]
        return states[:, -1]


class Mean(nn.Module):
    """The mean over the words."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Skip(nn.Module):
    """A perceptron beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 96), nn.GELU(), nn.Linear(96, width))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.branch(x)
        return result


def taught(draw: Callable[[int], Items], make: Callable[[], Net], rounds: int = ROUNDS) -> TokenModel:
    """A model that has learned a task. Zero stands for nothing at a place; of words that is the blank."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        items, model = draw(TRAINING), make()
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(rounds):
            some = torch.randint(0, len(items.classes), (BATCH,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(items.inputs[some]), items.classes[some]).backward()
            optimizer.step()
    return TokenModel(model, read=None, blank=0)


def mlp() -> TokenModel:
    return taught(table, lambda: Net(nn.Sequential(_wide(COLUMNS), nn.ReLU(), _wide(64), nn.GELU()), 64))


def mlp_with_skips() -> TokenModel:
    return taught(table, lambda: Net(nn.Sequential(nn.Linear(COLUMNS, 48), Skip(48), Skip(48)), 48))


def gated_mlp() -> TokenModel:
    return taught(table, lambda: Net(nn.Sequential(nn.Linear(COLUMNS, 64), nn.GLU(), nn.Linear(32, 64), nn.GLU()), 32))


def convolutions() -> TokenModel:
    return taught(series, lambda: Net(Convolved(CHANNELS, most=False), 32))


def gru() -> TokenModel:
    return taught(series, lambda: Net(Recurred(nn.GRU(CHANNELS, 32, batch_first=True)), 32))


def lstm() -> TokenModel:
    return taught(series, lambda: Net(Recurred(nn.LSTM(CHANNELS, 32, batch_first=True)), 32))


def mean_of_words() -> TokenModel:
    return taught(words, lambda: Net(_embedded(nn.Sequential(Mean(), nn.Linear(16, 32), nn.ReLU())), 32))


def convolved_words() -> TokenModel:
    return taught(words, lambda: Net(_embedded(Convolved(16, most=True)), 32))


def gru_of_words() -> TokenModel:
    return taught(words, lambda: Net(_embedded(Recurred(nn.GRU(16, 32, batch_first=True))), 32))


def lstm_of_words() -> TokenModel:
    return taught(words, lambda: Net(_embedded(Recurred(nn.LSTM(16, 32, batch_first=True))), 32))


def _wide(width: int) -> nn.Module:
    return nn.Linear(width, 64)


def _embedded(body: nn.Module) -> nn.Module:
    """A body that reads words."""
    return nn.Sequential(nn.Embedding(WORDS, 16), body)
