"""Do explanations of tables, series and texts name what a class is known to rest on?

    python -m examples.evaluation.without_pictures [--only lstm mlp]

Small models learn tasks whose classes follow from known inputs, in seconds each: six columns of a table of twenty; five
steps of a series in which something happens; words for and against among neutral ones. Each preset explains the
log-odds of the predicted class on 150 items that training did not see. Figures are means over them:

- *order*: correlation of the relevance of each column, step or word with by how much the log-odds fall without it, when
  zero or a blank stands there;
- *share*: what part of all magnitudes lies on the inputs that the class follows from; *occlusion* has the falls' own;
- *bound*: Σ|R| at the input over that at the classifier's input, below which nine of ten items are.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fxlrp

PRESETS = ("evidence", "conserving", "epsilon", "attnlrp")
CLASSES, COLUMNS, KNOWN = 3, 20, 6
STEPS, CHANNELS = 30, 4
WORDS, LENGTH, SIDE = 40, 15, 5
TRAINING, BATCH, ROUNDS, UNSEEN = 6000, 256, 500, 150


class Items(NamedTuple):
    """Inputs, (items, places, …), their classes, (items,), and where the truth is, (items, places)."""

    inputs: Tensor
    classes: Tensor
    truth: Tensor


class Net(nn.Module):
    """A body and a classifier, ``head``."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x))
        return result


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


def embedded(body: nn.Module) -> nn.Module:
    """A body that reads words."""
    return nn.Sequential(nn.Embedding(WORDS, 16), body)


MODELS: dict[str, tuple[Callable[[int], Items], Callable[[], Net]]] = {
    "mlp": (table, lambda: Net(nn.Sequential(nn.Linear(COLUMNS, 64), nn.ReLU(), nn.Linear(64, 64), nn.GELU()), 64)),
    "mlp with skips": (table, lambda: Net(nn.Sequential(nn.Linear(COLUMNS, 48), Skip(48), Skip(48)), 48)),
    "gated mlp": (table, lambda: Net(nn.Sequential(nn.Linear(COLUMNS, 64), nn.GLU(), nn.Linear(32, 64), nn.GLU()), 32)),
    "convolutions": (series, lambda: Net(Convolved(CHANNELS, most=False), 32)),
    "gru": (series, lambda: Net(Recurred(nn.GRU(CHANNELS, 32, batch_first=True)), 32)),
    "lstm": (series, lambda: Net(Recurred(nn.LSTM(CHANNELS, 32, batch_first=True)), 32)),
    "mean of words": (words, lambda: Net(embedded(nn.Sequential(Mean(), nn.Linear(16, 32), nn.ReLU())), 32)),
    "convolved words": (words, lambda: Net(embedded(Convolved(16, most=True)), 32)),
    "gru of words": (words, lambda: Net(embedded(Recurred(nn.GRU(16, 32, batch_first=True))), 32)),
    "lstm of words": (words, lambda: Net(embedded(Recurred(nn.LSTM(16, 32, batch_first=True))), 32)),
}


def trained(make: Callable[[], Net], items: Items, rounds: int = ROUNDS) -> Net:
    """A model that has learned the items."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(rounds):
        some = torch.randint(0, len(items.classes), (BATCH,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(items.inputs[some]), items.classes[some]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def log_odds(model: Net, inputs: Tensor, classes: Tensor) -> Tensor:
    """Of each item's class against the others: (items,)."""
    logits, own = model(inputs), classes[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).logsumexp(1)


def falls(model: Net, inputs: Tensor, classes: Tensor) -> Tensor:
    """By how much log-odds fall without each place: (items, places)."""
    before, columns = log_odds(model, inputs, classes), []
    for place in range(inputs.shape[1]):
        without = inputs.clone()
        without[:, place] = 0
        columns.append(before - log_odds(model, without, classes))
    return torch.stack(columns, 1)


def order(relevance: Tensor, fallen: Tensor) -> float:
    """The mean correlation over items, (items, places) each."""
    first, second = (values - values.mean(1, keepdim=True) for values in (relevance, fallen))
    return float(nn.functional.cosine_similarity(first, second, dim=1).mean())


def share(values: Tensor, truth: Tensor) -> float:
    """The mean part of magnitudes that lies on the truth."""
    sizes = values.abs()
    return float(((sizes * truth).sum(1) / sizes.sum(1)).mean())


def figures(model: Net, preset: str, items: Items, fallen: Tensor) -> tuple[float, float, float]:
    """The order, the share and the bound of a preset."""
    classes = model(items.inputs).argmax(1)
    found = fxlrp.compile(model, preset, start="log_odds", checkpoints=("head",))(items.inputs, target=classes)
    places = found.relevance.flatten(2).sum(2) if found.relevance.dim() > 2 else found.relevance
    arrived, entered = (values.flatten(1).abs().sum(1) for values in (found.relevance, found.checkpoints["head"]))
    return order(places, fallen), share(places, items.truth), float((arrived / entered).quantile(0.9))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    for name in parser.parse_args().only:
        draw, make = MODELS[name]
        torch.manual_seed(0)
        model, items = trained(make, draw(TRAINING)), draw(UNSEEN)
        classes = model(items.inputs).argmax(1)
        fallen = falls(model, items.inputs, classes)
        right = float((classes == items.classes).float().mean())
        print(f"{name}: {right:.0%} right; share of occlusion {share(fallen, items.truth):.2f}")
        for preset in PRESETS:
            correlation, on_truth, bound = figures(model, preset, items, fallen)
            print(f"  {preset:12s} order {correlation:5.2f}   share {on_truth:.2f}   bound {bound:.1f}", flush=True)


if __name__ == "__main__":
    main()
