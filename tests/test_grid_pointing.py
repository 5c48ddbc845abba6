"""The grid pointing game."""

import pytest
import torch

from fxlrp.errors import EvaluationError
from fxlrp.evaluation.grid_pointing import grids, point


def test_grids_hold_images_of_different_classes():
    images, labels = torch.arange(6.0)[:, None, None, None].expand(6, 1, 2, 3), [0, 0, 1, 2, 3, 3]
    for grid, classes in grids(images, labels, 5):
        assert grid.shape == (1, 4, 6)
        assert len(set(classes)) == 4
        cells = [grid[0, 0, 0], grid[0, 0, 3], grid[0, 2, 0], grid[0, 2, 3]]
        assert [labels[int(cell)] for cell in cells] == classes
    again = grids(images, labels, 5)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(again, grids(images, labels, 5), strict=True))
    with pytest.raises(EvaluationError, match="as many classes, not 3"):
        grids(images[:4], labels[:4], 1)


def test_a_map_points_by_its_positive_share_in_the_cell():
    def right(images, targets):
        maps = -torch.ones(1, 4, 6)
        row, column = divmod(int(targets), 2)
        maps[:, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3] = 1
        return maps

    perfect = point(right, torch.zeros(1, 4, 6), [0, 1, 2, 3])
    assert perfect.shares == [1, 1, 1, 1]
    assert perfect.correlation == pytest.approx(-1 / 3)
    blind = point(lambda images, targets: torch.arange(24.0).reshape(1, 4, 6), torch.zeros(1, 4, 6), [0, 1, 2, 3])
    assert sum(blind.shares) == pytest.approx(1)
    assert blind.correlation == pytest.approx(1)
    silent = point(lambda images, targets: torch.zeros(1, 4, 6), torch.zeros(1, 4, 6), [0, 1, 2, 3])
    assert silent.shares == [0, 0, 0, 0]
