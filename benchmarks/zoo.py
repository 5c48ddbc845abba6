"""The models of the coverage sweep by zoo: each with its inputs, and where relevance starts."""

import json
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torchvision.models import get_model_weights, list_models

from benchmarks.models import noise, usable
from benchmarks.workers import HERE, Row


class Subject(NamedTuple):
    """A model with random weights that are always the same, a batch of its inputs, and what to explain of it.

    ``asked`` are arguments of ``fxlrp.compile``. No start: the probability of the predicted class, or for an output of
    another shape its magnitude.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    keywords: dict[str, Tensor]
    asked: dict[str, Any]

    def given_to(self, function: Callable[..., Any]) -> Any:
        """What a function returns for the inputs."""
        return function(*self.inputs, **self.keywords)


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


def load(entry: Row, dtype: torch.dtype) -> Subject:
    """What an entry of a zoo describes; its parts are as `_made` takes them.

    ``model``, ``start`` and ``output``; ``inputs`` and ``keywords``, or ``noise``: the shape of an input of noise, for
    which batch norms are measured on other noise; ``further``: what else ``fxlrp.compile`` needs;
    ``group``: a family, a task or a package.
    """
    torch.manual_seed(0)
    model, inputs, keywords, shape, start, output = (
        _made(entry.get(part)) for part in ("model", "inputs", "keywords", "noise", "start", "output")
    )
    inputs, keywords = (noise(*shape),) if shape else tuple(inputs or ()), keywords or {}
    usable(model, *shape or (), run=None if shape else lambda: model(*inputs, **keywords))
    model = model.double() if dtype == torch.float64 else model.float()  # complex weights stay complex
    inputs, keywords = tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, (inputs, keywords))
    return Subject(model, inputs, keywords, {"start": start, "output": output, **entry.get("further", {})})


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
TORCHVISION = {
    "torchvision": torchvision.models, "torchvision-segmentation": torchvision.models.segmentation,
    "torchvision-video": torchvision.models.video, "torchvision-detection": torchvision.models.detection,
}  # fmt: skip
TIMM = {model["name"]: family for family, model in _read("timm_smallest").items()}
ZOOS = {
    **{zoo: _of_names(zoo, list_models(module=module)) for zoo, module in TORCHVISION.items()},
    "timm": {name: {"group": TIMM[name], **entry} for name, entry in _of_names("timm", TIMM).items()},
    "transformers": _read("small_transformers"),
    **FIELD,
}


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
    path = HERE / "timm_smallest.json"
    path.write_text(json.dumps(smallest, indent=1, sort_keys=True) + "\n")
    print(f"{len(smallest)} families of timm {timm.__version__}: {path}")
