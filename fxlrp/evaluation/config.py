"""What a configuration of an evaluation says: types and ranges, which pydantic checks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from fxlrp.evaluation import data as datasets
from fxlrp.evaluation.baselines import BaselineName
from fxlrp.evaluation.data import Sample
from fxlrp.evaluation.insertion import TieRule
from fxlrp.evaluation.methods import MethodSpec


def as_tuple(value: Any) -> Any:
    """A list of TOML as a tuple; a single value stands for a list of one."""
    return value if isinstance(value, tuple) else tuple(value) if isinstance(value, list) else (value,)


NotNegative = Annotated[int, Field(ge=0)]
Strings = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Ties = Annotated[tuple[TieRule, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Part = Literal["development", "confirmation"]

_SECTION = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, config=_SECTION)
class ModelConfig:
    """``[model]``: what is explained.

    Attributes:
        spec: ``torchvision:NAME``, ``timm:NAME`` or ``python:package.module:callable``; for passages
            ``transformers:FOLDER`` or ``python:…`` (:func:`fxlrp.evaluation.tokens.subject.load_token_model`).
        weights: a checkpoint file; relative to the configuration's folder.
        name: the name in the report; else the spec.
    """

    spec: str
    weights: str | None = None
    name: str | None = None


@dataclass(frozen=True, config=_SECTION)
class DataConfig:
    """``[data]``: which images, texts or other passages.

    Attributes:
        kind: the layout of the data; see :mod:`fxlrp.evaluation.data`.
        path: a folder or file, relative to the configuration's folder; of ``"python"`` and ``"passages"`` the function
            that gives the images, or the passages, ``package.module:callable``.
        name: the name in the report; else the kind.
        split: of ImageNet (``"val"``) or CUB (``"test"``, ``"validation"``, ``"train"``).
        labels: of a folder: ``"folders"``, ``"order"``, ``"none"`` or the name of a CSV file in it.
        count: how many images, or passages, of each class the same number.
        per_class: how many of each class, in place of ``count``.
        part: one of two halves of what was chosen; ``None``: both.
        seed: of every choice.
    """

    kind: Literal["imagenet", "cub", "folder", "npz", "python", "text", "passages"]
    path: str
    name: str | None = None
    split: str | None = None
    labels: str = "folders"
    count: PositiveInt | None = None
    per_class: PositiveInt | None = None
    part: Part | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _one_number(self) -> DataConfig:
        if self.count is not None and self.per_class is not None:
            raise ValueError("count and per_class both give the number of images: leave one of them out")
        return self

    @property
    def of_passages(self) -> bool:
        """Whether it holds texts or other passages, and else images."""
        return self.kind in ("text", "passages")


@dataclass(frozen=True, config=_SECTION)
class SubjectConfig:
    """A model, and what it is explained on: ``[model]`` and ``[data]``, or one of several, ``[subjects.NAME]``.

    Attributes:
        model: is explained.
        data: on this.
        name: among several; of the only one empty.
    """

    model: ModelConfig
    data: DataConfig
    name: str = ""


@dataclass(frozen=True, config=_SECTION)
class MetricsConfig:
    """``[metrics]``: what is measured.

    Attributes:
        step: how many pixels are named at a time.
        ties: tie rules, one or both.
        baseline: what stands where a pixel is missing; a number is a grey value.
        target: the class that is explained and followed.
        batch_size: how many images, or passages, the model sees at once.
        backend: what runs the forward passes of insertion, deletion and Score-CAM. ``"inductor"`` is about twice as
            fast on a CPU and differs in the last digits.
        checkpoints: modules at whose input relevance is added up; for passages its magnitudes.
        agreement: whether each pair of maps of an image is compared by rank correlation.
        failure: images with an ID up to this count as failures (the paper's D.4: 0.371).
        randomize: how many images the check by randomised weights takes; 0: it is left out.
        properties: of how many images it is measured what maps are like: :mod:`fxlrp.evaluation.properties`.
        grids: how many grids the pointing game takes; 0: it is left out.
        cell: height and width that images are resized to before they make a grid; ``None``: they stay as they are.
        patch: maps of grids are summed over squares of this many pixels, such as the patches of a transformer.
        heads: of passages, how many attention heads of a model of transformers are ablated at once: those with the most
            relevance, those with the least, and others at random; 0: none.
        rounds: how many turns each method takes while costs are measured.
    """

    step: PositiveInt = 500
    ties: Ties = ("strict",)
    baseline: BaselineName | float = "black"
    target: Literal["label", "predicted"] = "label"
    batch_size: PositiveInt = 64
    backend: Literal["eager", "inductor"] = "eager"
    checkpoints: Strings = ()
    agreement: bool = True
    failure: float = 0.371
    randomize: NotNegative = 0
    properties: NotNegative = 0
    grids: NotNegative = 0
    cell: PositiveInt | None = None
    patch: PositiveInt = 1
    heads: NotNegative = 0
    rounds: PositiveInt = 5


_LATER = {"properties": 0, "grids": 0, "cell": None, "patch": 1, "heads": 0}
"""Metrics that earlier results do not know, and what leaves them out."""


@dataclass(frozen=True, config=_SECTION)
class RunConfig:
    """``[run]``: where and how.

    Attributes:
        out: the folder of the results, relative to the configuration's folder.
        device: ``"cpu"``, ``"cuda"`` (each process its own), ``"cuda:1"``, …
        threads: of torch, in each process. The last digits of sums depend on it, so that it is given here and does
            not follow from the number of processes.
        maps: whether the maps themselves are kept, in HDF5.
        title: the headline of the report; else made of model and data.
        against: the method that the report compares all others with, image by image.
    """

    out: str = "results"
    device: str = "cpu"
    threads: PositiveInt = 1
    maps: bool = False
    title: str | None = None
    against: str | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method with what is made of its maps.

    Attributes:
        spec: the method.
        levels: by how many levels its maps are quantised before they are measured; 0: as they are.
        paper: the row of the paper's tables beside which it stands.
        group: the sweep that it belongs to.
    """

    spec: MethodSpec
    levels: tuple[int, ...] = (0,)
    paper: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Config:
    """A whole configuration."""

    folder: Path
    subjects: tuple[SubjectConfig, ...]
    metrics: MetricsConfig
    run: RunConfig
    methods: tuple[Entry, ...] = ()

    @model_validator(mode="after")
    def _of_passages(self) -> Config:
        if len(self.subjects) > 1 and not all(subject.data.of_passages for subject in self.subjects):
            raise ValueError("several subjects are for texts and passages: give each set of images a configuration")
        if self.passages:
            what, given = self.what, self.metrics
            of_passages = ("target", "batch_size", "checkpoints", "heads", "rounds")
            own = MetricsConfig(**{name: getattr(given, name) for name in of_passages})
            for_images = [name for name, value in _content(given).items() if value != getattr(own, name)]
            if for_images:
                raise ValueError(f"metrics.{for_images[0]} is for images, and [data] has {what}: leave it out")
            if given.target != "predicted":
                raise ValueError(f'of {what} what the model predicts is explained: write metrics.target = "predicted"')
            if any(subject.model.weights is not None for subject in self.subjects):
                raise ValueError(f"model.weights is for images: a model of {what} comes with its weights")
            if self.run.maps:
                raise ValueError(f"run.maps is for images: what each place of {what} has is in the results")
        elif self.metrics.heads:
            raise ValueError("metrics.heads is for texts and passages, and [data] has images: leave it out")
        return self

    @property
    def model(self) -> ModelConfig:
        """What is explained; of several subjects the first one's."""
        return self.subjects[0].model

    @property
    def data(self) -> DataConfig:
        """What it is explained on; of several subjects the first one's."""
        return self.subjects[0].data

    @property
    def passages(self) -> bool:
        """Whether it is about texts or other passages, and else about images."""
        return self.data.of_passages

    @property
    def what(self) -> str:
        """What it is about, in a word: images, texts or passages."""
        if not self.passages:
            return "images"
        return "texts" if all(subject.data.kind == "text" for subject in self.subjects) else "passages"

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return self.folder / self.run.out

    @property
    def title(self) -> str:
        """The headline of the report."""
        if self.run.title is not None:
            return self.run.title
        return ", ".join(
            f"{each.model.name or each.model.spec} on {each.data.name or each.data.kind}" for each in self.subjects
        )

    def samples(self) -> list[Sample]:
        """The images, or passages, that are evaluated; those of several subjects one after the other.

        Raises:
            DataError: they are not there.
        """
        found: list[Sample] = []
        for subject in self.subjects:
            before = found[-1].index + 1 if found else 0
            own = self._samples(subject)
            found += [dataclasses.replace(each, index=before + each.index, subject=subject.name) for each in own]
        return found

    def _samples(self, subject: SubjectConfig) -> list[Sample]:
        given, path = subject.data, self.folder / subject.data.path
        if given.kind == "imagenet":
            samples = datasets.imagenet(path, given.split or "val")
        elif given.kind == "cub":
            samples = datasets.cub(path, given.split or "test", given.seed)
        elif given.kind == "npz":
            samples = datasets.arrays(path)
        elif given.kind == "python":
            samples = datasets.own(given.path)
        elif given.kind == "text":
            samples = datasets.texts(path)
        elif given.kind == "passages":
            samples = datasets.passages(given.path)
        else:
            samples = datasets.image_folder(path, given.labels)
        chosen = datasets.choose(samples, count=given.count, per_class=given.per_class, seed=given.seed)
        return chosen if given.part is None else datasets.half(chosen, given.part, given.seed)

    def fingerprint(self) -> str:
        """A text that is the same for configurations that give the same results."""
        metrics = _content(self.metrics) | {"failure": None}
        del metrics["rounds"]  # costs are another thing than what is measured of images
        subjects = {
            each.name: {"model": _content(each.model) | {"name": None}, "data": _content(each.data) | {"name": None}}
            for each in self.subjects
        }
        kept = {
            **subjects.get("", {"subjects": subjects}),
            "metrics": {name: value for name, value in metrics.items() if name not in _LATER or value != _LATER[name]},
            "methods": [_content(entry) | {"paper": None, "group": None} for entry in self.methods],
            "run": {"maps": self.run.maps, "threads": self.run.threads},
        }
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _content(section: Any) -> dict[str, Any]:
    return dataclasses.asdict(section)
