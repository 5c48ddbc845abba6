"""What maps are like: sparsity, class sensitivity, stability, what arrives, and grids."""

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import ToTensor

from fxlrp.errors import EvaluationError
from fxlrp.evaluation.config import Entry, MetricsConfig
from fxlrp.evaluation.data import Sample
from fxlrp.evaluation.evaluated_image import load_image
from fxlrp.evaluation.measure import Prepared
from fxlrp.evaluation.methods import Attribution, MethodSpec
from fxlrp.evaluation.properties import joined, made_grids, measured, of_grid, of_image, sparsity, summed


class Quarters(nn.Module):
    """Four classes: how bright each quarter of the image is, times ``scale``."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, images):
        return self.scale * nn.functional.adaptive_avg_pool2d(images.mean(dim=1), 2).flatten(1)


def quarter_image(tmp_path, number, label=None):
    picture = Image.new("RGB", (8, 8))
    for x in range(4):
        for y in range(4):
            picture.putpixel((x + 4 * (number % 2), y + 4 * (number // 2)), (255, 255, 255))
    path = tmp_path / f"{number}.png"
    picture.save(path)
    return load_image(Sample(number, path.name, label, lambda: Image.open(path)), ToTensor())


def at_target(inputs, targets):
    """A map that is one in the quarter of the class that is asked for."""
    maps = torch.zeros(1, *inputs.shape[-2:])
    height, width = inputs.shape[-2] // 2, inputs.shape[-1] // 2
    row, column = divmod(int(targets), 2)
    maps[:, row * height : (row + 1) * height, column * width : (column + 1) * width] = 1
    return Attribution(maps, start=torch.tensor([2.0]))


def test_sparsity_is_the_gini_index():
    one = torch.zeros(1, 4, 5)
    one[0, 2, 3] = -7
    assert sparsity(torch.full((1, 4, 5), 3.0)) == pytest.approx(0)
    assert sparsity(one) == pytest.approx(1 - 1 / 20)
    values = torch.rand(1, 3, 4, dtype=torch.float64)
    flat = values.flatten()
    assert sparsity(values) == pytest.approx(float((flat[:, None] - flat).abs().sum() / (2 * 12 * flat.sum())))
    assert sparsity(torch.zeros(1, 2, 2)).isnan()


def test_properties_of_an_image_compare_classes_and_noise(tmp_path):
    found = of_image(quarter_image(tmp_path, 1), Quarters(1), at_target)
    assert found["stability"] == pytest.approx([1])
    assert found["second class"] == pytest.approx([-1 / 3])
    assert found["random class"] == pytest.approx([-1 / 3])
    assert found["sparsity"] == pytest.approx([0.75])
    assert found["arriving"] == [8]
    constant = of_image(quarter_image(tmp_path, 1), Quarters(1), lambda x, t: Attribution(torch.ones(1, 8, 8)))
    assert (constant["second class"], constant["arriving"]) == ([None], [None])


def test_grids_are_made_of_recognised_images(tmp_path):
    images = [quarter_image(tmp_path, number, label) for number, label in enumerate((0, None, 2, 3))]
    metrics = MetricsConfig(grids=2, cell=4)
    for grid, classes in made_grids(images, Quarters(8), metrics):
        assert grid.shape == (3, 8, 8)
        assert sorted(classes) == [0, 1, 2, 3]
    with pytest.raises(EvaluationError, match="not 0"):
        made_grids(images, Quarters(1), metrics)
    images[2] = quarter_image(tmp_path, 2, label=0)
    with pytest.raises(EvaluationError, match="not 3"):
        made_grids(images, Quarters(8), metrics)


def test_a_grid_is_read_by_patch():
    grid = torch.zeros(3, 8, 8), [0, 1, 2, 3]
    found = of_grid(grid, 2, at_target)
    assert found["pointing"] == [1, 1, 1, 1]
    assert found["correlation in a grid"] == pytest.approx([-1 / 3])
    assert torch.equal(summed(torch.ones(1, 4, 4), 2), torch.full((1, 2, 2), 4.0))


def test_a_method_that_fails_leaves_the_others(tmp_path):
    def failing(inputs, targets):
        raise ValueError("no map")

    methods = [Prepared(Entry(MethodSpec(name, "python")), explain)
               for name, explain in (("good", at_target), ("bad", failing), ("none", None))]  # fmt: skip
    with pytest.warns(UserWarning, match="bad: ValueError: no map"):
        found = measured(methods, [lambda explain: {"sum": [float(explain(torch.ones(1, 3, 4, 4), 0).heatmaps.sum())]}])
    assert found == [{"good": {"sum": [4.0]}}]


def test_what_processes_measured_is_joined_in_order():
    shares = [[{"a": {"p": [0.0]}}, {"a": {"p": [2.0, 2.5]}}], [{"a": {"p": [1.0]}, "b": {"q": [None]}}]]
    assert joined(shares) == {"a": {"p": [0.0, 1.0, 2.0, 2.5]}, "b": {"q": [None]}}
