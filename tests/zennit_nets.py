"""What fxlrp's presets are compared with zennit's composites on, live and by stored maps."""

from functools import lru_cache
from pathlib import Path

import torch
import torchvision
from seeded import seeded, seeded_normal, seeded_pixels
from torch import nn

GOLDEN = Path(__file__).parent / "golden" / "zennit.npz"

COMPOSITES = [
    "epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat",
    "guided_backprop", "deconvnet", "excitation_backprop",
]  # fmt: skip
"""The names that the presets share with zennit's composites."""

TARGETS = torch.tensor([1, 2])
CLASSES = 10


def _vgg(name, batch_norm):
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs[name], batch_norm=batch_norm)
    model = torchvision.models.VGG(layers, num_classes=CLASSES, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, CLASSES))
    return model


NETS = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=CLASSES), "ResNetCanonizer"),
    "resnet50": (lambda: torchvision.models.resnet50(num_classes=CLASSES), "ResNetCanonizer"),
    "vgg11": (lambda: _vgg("A", False), "VGGCanonizer"),
    "vgg11_bn": (lambda: _vgg("A", True), "VGGCanonizer"),
}
"""How each network is made, and zennit's canonizer for it."""


@lru_cache(maxsize=1)
def net(name):
    """The seeded network, and two items for it; whoever changes it takes a copy."""
    return seeded(NETS[name][0]()), seeded_pixels(2, 3, 40, 40, seed=5)


def zennits(name, composite, model, x):
    """The relevance that zennit's composite gives the input, its own canonizer applied."""
    import zennit.torchvision
    from zennit.attribution import Gradient
    from zennit.composites import COMPOSITES as THEIRS

    canonizer = getattr(zennit.torchvision, NETS[name][1])
    bounds = dict(zip(("low", "high"), _edges(), strict=True)) if composite == "epsilon_gamma_box" else {}
    with Gradient(model=model, composite=THEIRS[composite](canonizers=[canonizer()], **bounds)) as attributor:
        _, relevance = attributor(x, torch.eye(CLASSES, dtype=x.dtype)[TARGETS])
    return relevance


def _edges():
    """Black and white as they are normalised, (1, 3, 1, 1)."""
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (((pixel - mean) / std)[None, :, None, None] for pixel in (0, 1))


def digest(relevance):
    """What is stored of relevance: the first item's map, projections of all of it, and its largest value."""
    directions = seeded_normal(8, *relevance.shape[1:], seed=7) / relevance[0].numel() ** 0.5
    return {
        "map": relevance[0].sum(0),
        "projections": torch.einsum("bchw,kchw->bk", relevance, directions),
        "largest": relevance.abs().amax(),
    }
