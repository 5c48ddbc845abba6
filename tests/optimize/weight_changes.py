"""Every way to change a weight, a network to change, and the check that an explainer follows."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from optimize_checks import DOUBLE, assert_same, explained
from optimize_nets import seeded_weights
from torch import nn


class Network(nn.Module):
    """A first layer, a layer that is called twice and both of their norms."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.twice, self.behind = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.behind(self.twice(F.silu(self.twice(x))))
        return self.head(F.relu(x).mean((2, 3)))


def network(dtype=DOUBLE):
    """The network, and images for it."""
    torch.manual_seed(0)
    return seeded_weights(Network()).to(dtype), torch.randn(3, 3, 16, 16, dtype=dtype)


def assert_follows(explainer, model, *inputs, preset="conserving", limit=1e-12, **options):
    """The explainer explains the model as it is now: as one that is compiled afresh."""
    afresh = explained(copy.deepcopy(model), *inputs, optimize=False, preset=preset, **options)
    assert_same(explainer(*inputs, **options), afresh, limit)


def in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7).add_(0.01)


def one_element(model):
    with torch.no_grad():
        model.twice.weight[0, 0, 0, 0] += 3


def through_a_view(model):
    with torch.no_grad():
        model.twice.weight.view(-1)[5] += 3


def through_detach(model):
    model.twice.weight.detach()[1] += 3


def data_in_place(model):
    for parameter in model.parameters():
        parameter.data.mul_(-0.7)


def data_copied(model):
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn_like(parameter))


def data_replaced(model):
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)


def data_filled(model):
    for parameter in model.parameters():
        parameter.data.fill_(0.1)


def by_numpy(model):
    for parameter in model.parameters():
        parameter.detach().numpy()[...] *= -0.7


def initialised(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)


def loaded(model):
    model.load_state_dict({name: _other(value) for name, value in model.state_dict().items()})


def assigned(model):
    model.load_state_dict({name: _other(value) for name, value in model.state_dict().items()}, assign=True)


def _other(value):
    return torch.rand_like(value) + 0.1 if value.is_floating_point() else value


def replaced(model):
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.randn_like(parameter)))


def from_a_vector(model):
    count = sum(parameter.numel() for parameter in model.parameters())
    nn.utils.vector_to_parameters(torch.randn(count, dtype=DOUBLE), model.parameters())


def swapped(model):
    for parameter in model.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(torch.randn_like(parameter)))


def statistics(model):
    with torch.no_grad():
        model.norm.running_var.mul_(3)
        model.behind.running_mean.add_(1)


def statistics_measured(model):
    model.train()
    with torch.no_grad():
        model(torch.randn(4, 3, 16, 16, dtype=DOUBLE) + 1)
    model.eval()


def statistics_replaced(model):
    model.norm.running_var = model.norm.running_var + 2


def shared_memory(model):
    model.share_memory()
    in_place(model)


def step_of(optimizer, **options):
    def step(model):
        by = optimizer(model.parameters(), lr=0.1, **options)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        by.step()
        by.zero_grad()

    return step


CHANGES = {
    function.__name__: function
    for function in (
        in_place, one_element, through_a_view, through_detach, data_in_place, data_copied, data_replaced, data_filled,
        by_numpy, initialised, loaded, assigned, replaced, from_a_vector, swapped, statistics, statistics_measured,
        statistics_replaced, shared_memory,
    )
} | {
    "SGD": step_of(torch.optim.SGD, momentum=0.9), "SGD of lists": step_of(torch.optim.SGD, foreach=True),
    "Adam": step_of(torch.optim.Adam, foreach=False), "fused Adam": step_of(torch.optim.Adam, fused=True),
    "fused SGD": step_of(torch.optim.SGD, fused=True),
}  # fmt: skip
