"""The models: those that are timed, by name, and the zoos of the coverage sweep, as entries of data; and their inputs.

Weights are random, always the same, and worth explaining.
"""

import json
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pkgutil import resolve_name
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torchvision.models import get_model_weights, list_models
from torchvision.models.resnet import BasicBlock

from benchmarks.workers import HERE, Row

MODELS = ("resnet50", "vgg16_bn", "densenet121", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t")
TRAINED = "efficientnet_lite0"
_CIFAR = re.compile(r"cifar_resnet(\d+)")


def build(name: str) -> nn.Module:
    """A classifier of torchvision, or ``cifar_resnetN`` with N layers; weights always the same, nothing to train.

    ``efficientnet_lite0`` alone has its trained weights.
    """
    if name == TRAINED:
        return resolve_name("examples.efficientnet_lite0:load")().model.requires_grad_(False)
    match = _CIFAR.fullmatch(name)
    cifar = {"model": {"benchmarks.models.CifarResNet": [int(match[1])]}, "noise": [3, 32, 32]} if match else {}
    return load(cifar or ZOOS["torchvision"][name], torch.float32)[0].requires_grad_(False)


def native_size(name: str) -> int:
    """Height and width of the images that a model is made for."""
    return 32 if _CIFAR.fullmatch(name) else 224


def is_model(name: str) -> bool:
    """Whether ``build`` has such a model."""
    match = _CIFAR.fullmatch(name)
    return int(match[1]) % 6 == 2 if match else name in (TRAINED, *ZOOS["torchvision"])


def noise(*shape: int, seed: int = 1, batch: int = 2) -> Tensor:
    """(batch, *shape), float32, always the same."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def usable(model: nn.Module, *shape: int, run: Callable[[], Any] | None = None) -> nn.Module:
    """Random weights made fit to be explained: nothing silent, batch norms measured on noise; eval mode.

    ``run`` runs the model, where its input is not noise of this ``shape``.
    """
    model.eval()
    with torch.no_grad():
        # Heads, tokens and residual branches that start at zero would leave nothing to propagate through.
        for name, parameter in model.named_parameters():
            if not name.endswith("bias") and parameter.is_floating_point() and not parameter.any():
                # One dimension: the scale of a norm or of a branch.
                parameter.normal_(std=0.01) if parameter.dim() > 1 else parameter.fill_(1)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
        for norm in norms:
            norm.reset_running_stats()
            norm.train().momentum = None  # the plain average over the batches
        for seed in (2, 3) if norms else ():
            run() if run else model(noise(*shape, seed=seed, batch=4))
    return model.eval()


class CifarResNet(nn.Module):
    """A residual network for 32 × 32 images of He et al. (CVPR 2016), 6n + 2 layers.

    Made of torchvision's blocks, so that other packages know them; where the width grows the skip is a projection.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        layers, width = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
        for wider in [width for width in (16, 32, 64) for _ in range(depth // 6)]:
            grows = wider != width
            skip = nn.Sequential(nn.Conv2d(width, wider, 1, 2, bias=False), nn.BatchNorm2d(wider)) if grows else None
            layers.append(BasicBlock(width, wider, wider // width, skip))
            width = wider
        self.layers, self.fc = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x).flatten(1))  # no module: Captum has no rule for nn.Flatten


def _read(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text())


def magnitude(output: Tensor, target: Tensor | None) -> Tensor:
    """Of features: each one's magnitude."""
    return output.abs()


def class_map(output: Tensor, target: Tensor | None) -> Tensor:
    """Of (batch, classes, height, width): the probabilities of the class that most of the image shows."""
    probabilities = output.softmax(dim=1)
    chosen = probabilities.mean(dim=(2, 3)).argmax(dim=1)
    return probabilities * nn.functional.one_hot(chosen, output.shape[1])[:, :, None, None]


def next_token(output: Tensor, target: Tensor | None) -> Tensor:
    """Of (batch, tokens, vocabulary): the probability of the token predicted after the last one."""
    probabilities = output[:, -1].softmax(dim=1)
    chosen = probabilities * nn.functional.one_hot(probabilities.argmax(dim=1), output.shape[2])
    return nn.functional.pad(chosen[:, None], (0, 0, output.shape[1] - 1, 0))


def first_tensor(returned: Any) -> Tensor:
    """The output that comes first in whatever a model returns."""
    return tree_leaves(returned)[0]


def load(entry: Row, dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor], dict[str, Any]]:
    """A model with random weights that are always the same, its inputs, those by keyword, and what to explain of it.

    The latter are arguments of ``fxlrp.compile``. No start: the probability of the predicted class, or for an output of
    another shape its magnitude. The parts of an entry are as `_made` takes them: ``model``, ``start`` and ``output``;
    ``inputs`` and ``keywords``, or ``noise``: the shape of an input of noise, for which batch norms are measured on
    other noise; ``further``: what else ``fxlrp.compile`` needs; ``group``: a family, a task or a package.
    """
    torch.manual_seed(0)
    model, inputs, keywords, shape, start, output = (
        _made(entry.get(part)) for part in ("model", "inputs", "keywords", "noise", "start", "output")
    )
    inputs, keywords = (noise(*shape),) if shape else tuple(inputs or ()), keywords or {}
    usable(model, *shape or (), run=None if shape else lambda: model(*inputs, **keywords))
    model = model.double() if dtype == torch.float64 else model.float()  # complex weights stay complex
    inputs, keywords = tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, (inputs, keywords))
    return model, inputs, keywords, {"start": start, "output": output, **entry.get("further", {})}


def _made(value: Any) -> Any:
    """What a part of an entry stands for.

    ``{"module.name": arguments}`` calls what has this name, with a list of arguments or a dict of those by name;
    ``"@module.name"`` is the object itself; ``{"noise": shape}`` is a batch of noise.
    """
    if isinstance(value, list):
        return [_made(each) for each in value]
    if isinstance(value, str) and value.startswith("@"):
        return resolve_name(value[1:])
    if not isinstance(value, dict):
        return value
    made = {name: _made(each) for name, each in value.items()}
    name, arguments = next(iter(made.items()), ("", None))
    if name == "noise":
        return noise(*arguments)
    if "." not in name:
        return made
    called = resolve_name(name)
    if isinstance(arguments, list):
        return called(*arguments)
    return called(called.config_class(**arguments)) if hasattr(called, "config_class") else called(**arguments)


def _of_names(zoo: str, names: Iterable[str]) -> dict[str, Row]:
    """Entries of models by their names, each that of the first pattern that fits, with the name in place of NAME."""
    patterns = {pattern: json.dumps(entry) for pattern, entry in _read("models_by_pattern")[zoo].items()}
    texts = {name: next(text for pattern, text in patterns.items() if fnmatchcase(name, pattern)) for name in names}
    return {name: json.loads(text.replace("NAME", name)) for name, text in texts.items()}


FIELD = _read("field")
"""Models that are tried alone first, with no start and no output."""
TIMM = {model["name"]: family for family, model in _read("timm_smallest").items()}
ZOOS = {
    "torchvision": _of_names("torchvision", list_models(module=torchvision.models)),
    **{f"torchvision-{task}": _of_names(f"torchvision-{task}", list_models(module=getattr(torchvision.models, task)))
       for task in ("segmentation", "video", "detection")},
    "timm": {name: {"group": TIMM[name], **entry} for name, entry in _of_names("timm", TIMM).items()},
    "transformers": _read("small_transformers"),
    **FIELD,
}  # fmt: skip


def smallest_classifiers() -> list[str]:
    """The smallest of each torchvision family."""
    sizes = {name: get_model_weights(name).DEFAULT.meta["num_params"] for name in ZOOS["torchvision"]}
    return [*{ZOOS["torchvision"][name]["group"]: name for name in sorted(sizes, key=sizes.get, reverse=True)}.values()]


def choose_timm_models() -> None:
    """Choose the smallest model of each timm family, a few minutes: so that all sweeps of coverage take the same."""
    import timm
    from rich.progress import track
    from timm.models._registry import _model_to_module

    families: dict[str, list[Row]] = {}
    for name in track(timm.list_models(), "counting"):
        try:
            with torch.device("meta"):  # parameters are counted without memory for them
                count = sum(int(p.numel()) for p in timm.create_model(name, pretrained=False).parameters())
        except Exception:
            count = None  # a family none of whose models can be built is kept: the sweep's row says why
        families.setdefault(_model_to_module[name], []).append({"name": name, "parameters": count})
    smallest = {family: min(models, key=lambda model: (model["parameters"] is None, model["parameters"]))
                for family, models in families.items()}  # fmt: skip
    (HERE / "timm_smallest.json").write_text(json.dumps(smallest, indent=1, sort_keys=True) + "\n")
    print(f"{len(smallest)} families of timm {timm.__version__}: timm_smallest.json")
