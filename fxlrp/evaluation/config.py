"""What a configuration of an evaluation says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from fxlrp.evaluation import data as datasets
from fxlrp.evaluation.data import Sample
from fxlrp.evaluation.methods import MethodSpec


@dataclass(frozen=True)
class ModelConfig:
    """``[model]``: what is explained.

    Attributes:
        spec: ``torchvision:NAME``, ``timm:NAME`` or ``python:package.module:callable``.
        weights: a checkpoint file; relative to the configuration's folder.
        name: what the report calls it; else the spec.
    """

    spec: str
    weights: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: which images.

    Attributes:
        kind: ``"imagenet"``, ``"cub"``, ``"folder"`` or ``"npz"``.
        path: a folder or file, relative to the configuration's folder.
        name: what the report calls it; else the kind.
        split: of ImageNet (``"val"``) or CUB (``"test"``, ``"validation"``, ``"train"``).
        labels: of a folder: ``"folders"``, ``"order"``, ``"none"`` or the name of a CSV file in it.
        count: how many images, of each class the same number.
        per_class: how many of each class, in place of ``count``.
        part: ``"development"`` or ``"confirmation"``: one of two halves of what was chosen.
        seed: of every choice.
    """

    kind: str
    path: str
    name: str | None = None
    split: str | None = None
    labels: str = "folders"
    count: int | None = None
    per_class: int | None = None
    part: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class MetricsConfig:
    """``[metrics]``: what is measured.

    Attributes:
        step: pixels named at a time.
        ties: ``"strict"``, ``"plateau"`` or both.
        baseline: what stands where a pixel is missing: ``"black"``, ``"mean"``, ``"blurred"`` or a number.
        target: the class that is explained and followed: the ``"label"`` or the ``"predicted"`` one.
        batch_size: images that the model sees at once.
        backend: what runs the forward passes of insertion, deletion and Score-CAM: ``"eager"``, or ``"inductor"``,
            which is about twice as fast on a CPU and differs in the last digits.
        checkpoints: modules at whose input relevance is added up.
        agreement: whether each pair of maps of an image is compared by rank correlation.
        failure: images with an ID up to this count as failures (the paper's D.4: 0.371).
        randomize: how many images the check by randomised weights takes; 0: it is left out.
    """

    step: int = 500
    ties: tuple[str, ...] = ("strict",)
    baseline: str | float = "black"
    target: str = "label"
    batch_size: int = 64
    backend: str = "eager"
    checkpoints: tuple[str, ...] = ()
    agreement: bool = True
    failure: float = 0.371
    randomize: int = 0


@dataclass(frozen=True)
class RunConfig:
    """``[run]``: where and how.

    Attributes:
        out: the folder of the results, relative to the configuration's folder.
        device: ``"cpu"``, ``"cuda"`` (each process its own), ``"cuda:1"``, …
        threads: of torch, in each process. The last digits of sums depend on it, so that it is given here and does
            not follow from the number of processes.
        maps: whether the maps themselves are kept, in HDF5.
        title: the report's headline; else made of model and data.
        against: the method that the report compares all others with, image by image.
    """

    out: str = "results"
    device: str = "cpu"
    threads: int = 1
    maps: bool = False
    title: str | None = None
    against: str | None = None


@dataclass(frozen=True)
class Entry:
    """A method with what is made of its maps.

    Attributes:
        spec: the method.
        levels: by how many levels its maps are quantised before they are measured; 0: as they are.
        paper: the row of the paper's tables that it stands beside.
        group: the variable of a sweep that it belongs to.
    """

    spec: MethodSpec
    levels: tuple[int, ...] = (0,)
    paper: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Config:
    """A whole configuration."""

    folder: Path
    model: ModelConfig
    data: DataConfig
    metrics: MetricsConfig
    run: RunConfig
    methods: tuple[Entry, ...] = field(default_factory=tuple)

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return self.folder / self.run.out

    @property
    def title(self) -> str:
        """The headline of the report."""
        return self.run.title or f"{self.model.name or self.model.spec} on {self.data.name or self.data.kind}"

    def samples(self) -> list[Sample]:
        """The images that are evaluated.

        Raises:
            DataError: they are not there.
        """
        given, path = self.data, self.folder / self.data.path
        if given.kind == "imagenet":
            found = datasets.imagenet(path, given.split or "val")
        elif given.kind == "cub":
            found = datasets.cub(path, given.split or "test", given.seed)
        elif given.kind == "npz":
            found = datasets.arrays(path)
        else:
            found = datasets.image_folder(path, given.labels)
        chosen = datasets.choose(found, count=given.count, per_class=given.per_class, seed=given.seed)
        return chosen if given.part is None else datasets.half(chosen, given.part, given.seed)

    def fingerprint(self) -> str:
        """The same for configurations that give the same results."""
        kept = {
            "model": dataclasses.asdict(self.model) | {"name": None},
            "data": dataclasses.asdict(self.data) | {"name": None},
            "metrics": dataclasses.asdict(self.metrics) | {"failure": None},
            "methods": [dataclasses.asdict(entry) | {"paper": None, "group": None} for entry in self.methods],
            "run": {"maps": self.run.maps, "threads": self.run.threads},
        }
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]
