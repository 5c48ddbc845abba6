"""Configurations of evaluations: TOML files, read and checked before anything runs."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import os
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fxlrp.errors import ConfigError
from fxlrp.evaluation import data as datasets
from fxlrp.evaluation.data import Sample
from fxlrp.evaluation.insertion import BASELINES, TIES
from fxlrp.evaluation.methods import KINDS, MethodSpec
from fxlrp.evaluation.paper import ROLES
from fxlrp.extras import require

T = TypeVar("T")


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
    """

    out: str = "results"
    device: str = "cpu"
    threads: int = 1
    maps: bool = False
    title: str | None = None


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


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read a configuration.

    Raises:
        ConfigError: there is no such file, it is not TOML, or something in it is nothing that there is; the
            message names the place.
    """
    path = Path(path)
    toml = _toml()
    try:
        with path.open("rb") as file:
            table = toml.load(file)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except toml.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        return parse_config(table, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(table: Mapping[str, Any], folder: Path) -> Config:
    """A configuration from what its file holds; paths are relative to ``folder``.

    Raises:
        ConfigError: as :func:`read_config`.
    """
    _known(table, ("model", "data", "metrics", "run", "methods", "sweep"), "the configuration")
    for name in ("model", "data"):
        if name not in table:
            raise ConfigError(f"[{name}] is missing")
    config = Config(
        folder,
        _section(ModelConfig, table, "model"),
        _section(DataConfig, table, "data"),
        _section(MetricsConfig, table, "metrics"),
        _section(RunConfig, table, "run"),
        (*_methods(table.get("methods", {})), *_sweep(table.get("sweep", {}))),
    )
    _check(config)
    return config


def _toml() -> Any:
    return require("tomllib" if sys.version_info >= (3, 11) else "tomli", "evaluate")


def _known(table: Mapping[str, Any], names: typing.Iterable[str], where: str) -> None:
    names = list(names)
    for key in table:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names)}"
            raise ConfigError(f"{where} has no {key!r}: {hint}")


def _section(kind: type[T], table: Mapping[str, Any], name: str) -> T:
    given = table.get(name, {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"[{name}] must be a table")
    hints = typing.get_type_hints(kind)
    _known(given, hints, f"[{name}]")
    values = {key: _value(value, hints[key], f"{name}.{key}") for key, value in given.items()}
    try:
        return kind(**values)
    except TypeError as error:
        missing = str(error).rpartition(": ")[2]
        raise ConfigError(f"[{name}] lacks {missing}") from error


def _value(value: Any, hint: Any, where: str) -> Any:
    """``value`` if it is of the type that is wanted; a list, or one entry of it, as a tuple."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        entries = value if isinstance(value, list) else [value]
        return tuple(_value(entry, inner[0], where) for entry in entries)
    kinds = inner if origin in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, bool) and bool not in kinds:
        matches = False
    else:
        matches = isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type)))
    if not matches and float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not matches:
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise ConfigError(f"{where} = {value!r}: a value of type {wanted} is expected")
    return value


def _methods(table: Any) -> list[Entry]:
    if not isinstance(table, Mapping):
        raise ConfigError('methods are tables by name, such as [methods."Grad-CAM"]')
    found: list[Entry] = []
    for name, given in table.items():
        if not isinstance(given, Mapping):
            raise ConfigError(f"methods.{name} must be a table")
        options = dict(given)
        kind = options.pop("kind", "fxlrp")
        levels = _value(options.pop("levels", [0]), tuple[int, ...], f"methods.{name}.levels")
        paper = _value(options.pop("paper", None), str | None, f"methods.{name}.paper")
        if kind not in KINDS:
            raise ConfigError(f"methods.{name}.kind = {kind!r}: choose among {', '.join(KINDS)}")
        if paper is not None and paper not in ROLES:
            raise ConfigError(f"methods.{name}.paper = {paper!r}: choose among {', '.join(ROLES)}")
        if any(level == 1 or level < 0 for level in levels):
            raise ConfigError(f"methods.{name}.levels = {list(levels)}: levels are at least 2, or 0 for none")
        _check_options(f"methods.{name} (kind {kind})", kind, options)
        found.append(Entry(MethodSpec(name, kind, options), levels, paper))
    return found


def _check_options(where: str, kind: str, options: Mapping[str, Any]) -> None:
    import inspect

    parameters = [p.name for p in inspect.signature(KINDS[kind]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    _known(options, parameters, where)


def _sweep(table: Any) -> list[Entry]:
    """Every combination of the listed options, as methods of fxlrp; ``[sweep.NAME]`` are independent of each other."""
    if not isinstance(table, Mapping):
        raise ConfigError("[sweep.NAME] are tables of options, each with one value or a list of them")
    found: list[Entry] = []
    for name, given in table.items():
        if not isinstance(given, Mapping):
            raise ConfigError(f"sweep.{name} must be a table")
        given = dict(given)
        levels = _value(given.pop("levels", [0]), tuple[int, ...], f"sweep.{name}.levels")
        axes = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
        for values in itertools.product(*axes.values()):
            options = dict(zip(axes, values, strict=True))
            _check_options(f"sweep.{name}", "fxlrp", options)
            varied = [f"{key}={_text(options[key])}" for key, value in axes.items() if len(value) > 1]
            label = f"{name}: {', '.join(varied)}" if varied else name
            found.append(Entry(MethodSpec(label, "fxlrp", options), levels, group=name))
    return found


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def _check(config: Config) -> None:
    metrics, given = config.metrics, config.data
    if given.kind not in ("imagenet", "cub", "folder", "npz"):
        raise ConfigError(f"data.kind = {given.kind!r}: choose imagenet, cub, folder or npz")
    if given.part not in (None, "development", "confirmation"):
        raise ConfigError(f"data.part = {given.part!r}: choose development or confirmation")
    for tie in metrics.ties:
        if tie not in TIES:
            raise ConfigError(f"metrics.ties = {tie!r}: choose {' or '.join(TIES)}")
    if isinstance(metrics.baseline, str) and metrics.baseline not in BASELINES:
        raise ConfigError(f"metrics.baseline = {metrics.baseline!r}: choose {', '.join(BASELINES)} or a number")
    if metrics.target not in ("label", "predicted"):
        raise ConfigError(f"metrics.target = {metrics.target!r}: choose label or predicted")
    for name, number in (("metrics.step", metrics.step), ("metrics.batch_size", metrics.batch_size),
                         ("run.threads", config.run.threads)):  # fmt: skip
        if number < 1:
            raise ConfigError(f"{name} = {number}: at least 1 is needed")
    for name, wanted in (("data.count", given.count), ("data.per_class", given.per_class)):
        if wanted is not None and wanted < 1:
            raise ConfigError(f"{name} = {wanted}: at least 1 is needed")
    if given.count is not None and given.per_class is not None:
        raise ConfigError("[data] gives count and per_class: one of them says how many images there are")
    if not config.methods:
        raise ConfigError("there are no methods: give [methods.NAME] or [sweep.NAME]")
    names = [entry.spec.name for entry in config.methods]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two methods are called {name!r}")
