"""Models, methods and data for tests of evaluations, by name, as a configuration finds them."""

import time

import numpy as np
import torch
from torch import nn
from torchvision import transforms

from fxlrp.models import LoadedModel

SIZE, CLASSES = 8, 3
PREPROCESS = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])])


class Net(nn.Module):
    """A residual block between two convolutions."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()
        self.block, self.relu2 = nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, CLASSES)

    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.fc(self.pool(self.relu2(self.block(x) + x)).flatten(1))


class Slow(Net):
    """Takes its time, so that there is some to be killed in."""

    def forward(self, x):
        time.sleep(0.01)
        return super().forward(x)


def _load(kind):
    torch.manual_seed(0)
    return LoadedModel(kind().eval(), PREPROCESS, ("a", "b", "c"))


def load():
    return _load(Net)


def slow():
    return _load(Slow)


def brightness(model, power=1.0):
    """A method of one's own."""
    return lambda inputs, targets: inputs.mean(dim=1) ** power


def picky(model):
    """A method that throws on some images."""

    def explain(inputs, targets):
        if float(inputs.mean()) > -0.5:
            raise ValueError("this image\nis too bright")
        return inputs.mean(dim=1)

    return explain


def wrong_shape(model):
    return lambda inputs, targets: inputs


def no_method(model):
    raise ValueError("not on this model")


def write_arrays(path, per_class=4, size=SIZE, seed=0):
    """An npz file of noise of different brightness."""
    order = np.random.default_rng(seed)
    labels = np.arange(per_class * CLASSES) % CLASSES
    bright = order.uniform(0.3, 1, len(labels))[:, None, None, None]
    images = (order.uniform(0, 255, (len(labels), size, size, 3)) * bright).astype(np.uint8)
    np.savez(path, images=images, labels=labels)
    return path
