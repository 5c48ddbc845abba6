"""The models of the coverage sweep by zoo: each with its inputs, and where relevance starts."""

import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from benchmarks.models import noise, usable

TIMM_SMALLEST = Path(__file__).parent / "timm_smallest.json"
TIMM = json.loads(TIMM_SMALLEST.read_text())
FIELD = json.loads((Path(__file__).parent / "field.json").read_text())
TRANSFORMERS = json.loads((Path(__file__).parent / "small_transformers.json").read_text())


@dataclass(frozen=True)
class Subject:
    """A model with random weights that are always the same, a batch of its inputs, and what to explain of it.

    ``start`` and ``output`` are as ``fxlrp.compile`` takes them; no start: the probability of the predicted class, or
    for an output of another shape its magnitude. ``further`` is what else it needs.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...] = ()
    keywords: dict[str, Tensor] = field(default_factory=dict)
    start: Any = None
    output: Any = None
    further: dict[str, Any] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> "Subject":
        """The same in another precision; integers stay integers."""
        inputs, keywords = tree_map_only(
            Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, (self.inputs, self.keywords)
        )
        model = self.model.double() if dtype == torch.float64 else self.model.float()  # complex weights stay complex
        return replace(self, model=model, inputs=inputs, keywords=keywords)

    def run(self) -> Any:
        """What the model returns for the inputs."""
        with torch.no_grad():
            return self.model(*self.inputs, **self.keywords)


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


FAMILIES = (
    "alexnet", "convnext", "densenet", "efficientnet", "efficientnet_v2", "googlenet", "inception", "maxvit", "mnasnet",
    "mobilenet_v2", "mobilenet_v3", "regnet_x", "regnet_y", "resnet", "resnext", "shufflenet", "squeezenet", "swin",
    "swin_v2", "vgg", "vit", "wide_resnet",
)  # fmt: skip


def _classifiers() -> dict[str, str]:
    """The names, each with its family: the longest of ``FAMILIES`` that fits."""
    return {
        name: max((family for family in FAMILIES if name.startswith(family)), key=len) + "_bn" * name.endswith("_bn")
        for name in list_models(module=torchvision.models)
    }


def smallest_classifiers() -> dict[str, str]:
    """The smallest of each torchvision family, with its family."""
    families = _classifiers()
    sizes = {name: get_model_weights(name).DEFAULT.meta["num_params"] for name in families}
    smallest = {families[name]: name for name in sorted(sizes, key=sizes.get, reverse=True)}
    return {smallest[family]: family for family in families.values()}


def _classifier(name: str) -> Subject:
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    # The sizes of the weights where the architecture asks for them, 224 where any size will do.
    size = 299 if name == "inception_v3" else 256 if name.startswith("swin_v2") else 224
    return _of_noise(_torchvision(name, **options), 3, size, size)


def _segmenter(name: str) -> Subject:
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    model = _torchvision(name, weights_backbone=None, **options)
    return _of_noise(model, 3, 128, 128, start=class_map, output="out")


def _video(name: str) -> Subject:
    # What takes any size gets a small one; MViT's positions and S3D's last pool are for 16 frames of 224 × 224.
    sizes = {"mvit": (16, 224, 224), "s3d": (16, 224, 224), "swin3d": (8, 112, 112)}
    size = next((sizes[kind] for kind in sizes if name.startswith(kind)), (8, 64, 64))
    return _of_noise(_torchvision(name), 3, *size)


def _backbone(name: str) -> Subject:
    size = 300 if name.startswith("ssd300") else 320 if name.startswith("ssdlite") else 224
    subject = _of_noise(_torchvision(name, weights_backbone=None).backbone, 3, size, size, start=magnitude)
    levels = list(subject.run())
    # The level that most of the backbone leads to: a pyramid's first, otherwise the last.
    return replace(subject, output=levels[0] if isinstance(subject.model, BackboneWithFPN) else levels[-1])


def _torchvision(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return get_model(name, weights=None, **options)


def _of_noise(model: nn.Module, *shape: int, **options: Any) -> Subject:
    return Subject(usable(model, *shape), (noise(*shape),), **options)


def _listed(task: str) -> Callable[[], dict[str, str]]:
    return lambda: dict.fromkeys(list_models(module=getattr(torchvision.models, task)), task)


def _timm(name: str) -> Subject:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    return _of_noise(model, *(model.default_cfg.get("input_size") or (3, 224, 224)))


def _transformer(name: str) -> Subject:
    entry = TRANSFORMERS[name]
    task, kind = entry["task"], getattr(importlib.import_module("transformers"), entry["class"])
    torch.manual_seed(0)
    model = usable(kind(kind.config_class(**entry["options"])))
    if task == "images":
        return Subject(model, keywords={"pixel_values": noise(3, 32, 32)}, output="logits")
    # The first few ids stand for padding and the like.
    ids = torch.randint(5, 128, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if task != "next token":
        mask[1, 9:] = 0  # a shorter sentence
    start = {"next token": next_token, "features": magnitude}.get(task)
    output = "last_hidden_state" if task == "features" else "logits"
    return Subject(model, keywords={"input_ids": ids, "attention_mask": mask}, start=start, output=output)


def _packages(zoo: str) -> dict[str, str]:
    """The models of a zoo of the field, each with the package that it is from: the first it names beside torch."""
    named = {name: re.findall(r'"@?(\w+)\.', json.dumps(entry["model"])) for name, entry in FIELD[zoo].items()}
    return {name: next(package for package in packages if package != "torch") for name, packages in named.items()}


def _of_the_field(zoo: str, name: str) -> Subject:
    entry = FIELD[zoo][name]
    torch.manual_seed(0)
    model, inputs, keywords, output = (_made(entry.get(part)) for part in ("model", "inputs", "keywords", "output"))
    inputs, keywords = tuple(inputs or ()), keywords or {}
    usable(model.eval(), run=lambda: model(*inputs, **keywords))
    return Subject(model, inputs, keywords, output=output, further=entry.get("further", {}))


def _made(value: Any) -> Any:
    """What an entry of the field stands for.

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


@dataclass(frozen=True)
class Zoo:
    """A collection of models: their names, each with its family or its task, and how one is made, in float32.

    ``alone``: whether the model alone is tried first, with no start and no output.
    """

    members: Callable[[], dict[str, str]]
    load: Callable[[str], Subject]
    alone: bool = False


ZOOS = {
    "torchvision": Zoo(_classifiers, _classifier),
    "torchvision-segmentation": Zoo(_listed("segmentation"), _segmenter),
    "torchvision-video": Zoo(_listed("video"), _video),
    "torchvision-detection": Zoo(_listed("detection"), _backbone),
    "timm": Zoo(lambda: {smallest["name"]: family for family, smallest in TIMM.items()}, _timm),
    "transformers": Zoo(lambda: {name: entry["task"] for name, entry in TRANSFORMERS.items()}, _transformer),
    **{zoo: Zoo(partial(_packages, zoo), partial(_of_the_field, zoo), alone=True) for zoo in FIELD},
}


def choose_timm_models() -> None:
    """Choose the smallest model of each timm family, a few minutes: so that all sweeps of coverage take the same."""
    import timm
    from rich.progress import track
    from timm.models._registry import _model_to_module

    smallest: dict[str, dict[str, Any]] = {}
    for name in track(timm.list_models(), "counting"):
        try:
            with torch.device("meta"):  # parameters are counted without memory for them
                count = sum(int(p.numel()) for p in timm.create_model(name, pretrained=False).parameters())
        except Exception:
            count = None  # a family none of whose models can be built is kept: the sweep's row says why
        best = smallest.setdefault(_model_to_module[name], {"name": name, "parameters": count})
        if count is not None and (best["parameters"] is None or count < best["parameters"]):
            best.update(name=name, parameters=count)
    TIMM_SMALLEST.write_text(json.dumps(smallest, indent=1, sort_keys=True) + "\n")
    print(f"{len(smallest)} families of timm {timm.__version__}: {TIMM_SMALLEST}")
