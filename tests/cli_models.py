"""Small models for tests of the command line, as a file that it imports."""

TINY = """
import torch
from torch import nn
from torchvision import transforms
from fxlrp.models import LoadedModel

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3, bias=False),
    )

def load():
    steps = [transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    return LoadedModel(net(), transforms.Compose(steps), ["cat", "dog", "Crane"])

def patches():
    torch.manual_seed(0)
    steps = [transforms.Resize((32, 32)), transforms.ToTensor()]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    return LoadedModel(model, transforms.Compose(steps), ["cat", "dog", "Crane"])

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x).relu())

def twice():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("again", Twice())
    model.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    return LoadedModel(model, transforms.ToTensor(), ["cat", "dog", "Crane"])

def any_size():
    return LoadedModel(net(), transforms.ToTensor(), ["cat", "dog", "Crane"])
"""
