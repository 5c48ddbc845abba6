"""Rank correlation and the check by randomised weights."""

import copy
import math

import pytest
import torch
from checks import assert_close
from torch import nn

from fxlrp.errors import InputError
from fxlrp.evaluation import randomization_check, rank_correlation
from fxlrp.evaluation.agreement import rank_correlations, ranks


def test_rank_correlation_is_spearmans():
    stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(0)
    first = torch.randn(5, 6, 7, dtype=torch.float64)
    second = 0.5 * first + torch.randn(5, 6, 7, dtype=torch.float64)
    for a, b in ((first, second), ((2 * first).round(), second), ((2 * first).round(), (3 * second).round())):
        expected = [stats.spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)]
        assert_close(rank_correlation(a, b), torch.tensor(expected, dtype=torch.float64))


def test_rank_correlation_of_the_same_and_of_the_reverse():
    torch.manual_seed(0)
    maps = torch.rand(3, 4, 5)
    assert_close(rank_correlation(maps, maps.exp()), torch.ones(3, dtype=torch.float64))
    assert_close(rank_correlation(maps, -maps), -torch.ones(3, dtype=torch.float64))
    assert math.isnan(rank_correlation(maps[:1], torch.ones(1, 4, 5)).item())
    with pytest.raises(InputError, match="cannot be compared"):
        rank_correlation(maps, maps[:, :2])


def test_correlations_of_all_pairs_equal_those_of_each_pair():
    torch.manual_seed(0)
    maps = torch.cat([torch.randn(3, 4, 5), torch.randint(0, 3, (2, 4, 5)).float(), torch.ones(1, 4, 5)])
    table = rank_correlations(maps)
    for i in range(6):
        row = rank_correlation(maps[i].expand_as(maps), maps)
        assert torch.allclose(table[i], row, atol=1e-12, equal_nan=True)


def test_ranks_share_the_mean_where_values_tie():
    assert ranks(torch.tensor([[3.0, 1.0, 3.0, 2.0, 3.0]])).tolist() == [[3, 0, 3, 1, 3]]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean(dim=(2, 3)))


def gradient_map(model):
    def explain(x, targets):
        x = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(model(x).gather(1, targets[:, None]).sum(), x)
        return (found * x).sum(1).detach()

    return explain


def edge_map(model):
    return lambda x, targets: x.diff(dim=3, append=x[..., :1]).abs().sum(1)


def test_maps_of_the_model_change_with_its_weights_and_edges_do_not():
    model = Small().eval()
    before = copy.deepcopy(model.state_dict())
    x, targets = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    found = list(randomization_check(model, gradient_map, x, targets))
    assert [stage.layer for stage in found] == ["fc", "conv"]
    assert found[-1].correlation.mean() < 0.5
    edges = list(randomization_check(model, edge_map, x, targets))
    assert all(torch.allclose(stage.correlation, torch.ones(4, dtype=torch.float64)) for stage in edges)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_fewer_stages_are_spread_evenly_and_end_at_the_first_layer():
    layers = [nn.Linear(4, 4) for _ in range(10)]
    model = nn.Sequential(*layers).eval()
    found = list(randomization_check(model, lambda m: lambda x, t: m(x)[:, None], torch.rand(2, 4),
                                     torch.tensor([0, 0]), stages=3))  # fmt: skip
    assert [stage.layer for stage in found] == ["7", "3", "0"]
