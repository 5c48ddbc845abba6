"""Configurations from TOML files, checked before anything runs."""

from __future__ import annotations

import difflib
import inspect
import itertools
import json
import os
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fxlrp.common.errors import ConfigError
from fxlrp.common.extras import require
from fxlrp.evaluation.config import Config, DataConfig, Entry, MetricsConfig, ModelConfig, RunConfig
from fxlrp.evaluation.forward import FORWARD_BACKENDS
from fxlrp.evaluation.insertion import BASELINES, TIES
from fxlrp.evaluation.methods import KINDS, MethodSpec
from fxlrp.evaluation.paper import ROLES

T = TypeVar("T")


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read a configuration.

    Raises:
        ConfigError: there is no such file, it is not TOML, or something in it is nothing that there is; the
            message names the place.
    """
    path = Path(path)
    try:
        return parse_config(_with_included(_table(path), path.parent), path.parent)
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


def _table(path: Path) -> dict[str, Any]:
    toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli", "evaluate")
    try:
        with path.open("rb") as file:
            found: dict[str, Any] = toml.load(file)
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror}") from error
    except toml.TOMLDecodeError as error:
        raise ConfigError(f"{path.name} is not TOML: {error}") from error
    return found


def _with_included(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A table with those of the files that it includes in front; what both have is as the table has it."""
    merged: dict[str, Any] = {}
    for name in _value(table.pop("include", []), tuple[str, ...], "include"):
        included = _table(folder / name)
        _known(included, ("methods", "sweep"), name)
        merged = _merged(merged, included)
    return _merged(merged, table)


def _merged(first: dict[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two configurations in one: sections are joined, and of their entries the second's stand."""
    joined = dict(first)
    for name, section in second.items():
        both = isinstance(section, dict) and isinstance(first.get(name), dict)
        joined[name] = {**first[name], **section} if both else section
    return joined


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
    found: list[Entry] = []
    for name, options in _tables(table, "methods"):
        kind = options.pop("kind", "fxlrp")
        levels = _levels(options, f"methods.{name}")
        paper = _value(options.pop("paper", None), str | None, f"methods.{name}.paper")
        if kind not in KINDS:
            raise ConfigError(f"methods.{name}.kind = {kind!r}: choose among {', '.join(KINDS)}")
        if paper is not None and paper not in ROLES:
            raise ConfigError(f"methods.{name}.paper = {paper!r}: choose among {', '.join(ROLES)}")
        _check_options(f"methods.{name} (kind {kind})", kind, options)
        found.append(Entry(MethodSpec(name, kind, options), levels, paper))
    return found


def _tables(table: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables by name in a section."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} are tables by name, such as [{where}.NAME]")
    for name, given in table.items():
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where}.{name} must be a table")
        yield name, dict(given)


def _levels(options: dict[str, Any], where: str) -> tuple[int, ...]:
    levels: tuple[int, ...] = _value(options.pop("levels", [0]), tuple[int, ...], f"{where}.levels")
    if any(level == 1 or level < 0 for level in levels):
        raise ConfigError(f"{where}.levels = {list(levels)}: levels are at least 2, or 0 for none")
    return levels


def _check_options(where: str, kind: str, options: Mapping[str, Any]) -> None:
    parameters = [p.name for p in inspect.signature(KINDS[kind]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    _known(options, parameters, where)


def _sweep(table: Any) -> list[Entry]:
    """Every combination of the listed options, as methods of fxlrp; ``[sweep.NAME]`` are independent of each other."""
    found: list[Entry] = []
    for name, given in _tables(table, "sweep"):
        levels = _levels(given, f"sweep.{name}")
        axes = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
        for values in itertools.product(*axes.values()):
            options = dict(zip(axes, values, strict=True))
            _check_options(f"sweep.{name}", "fxlrp", options)
            told = [key for key, value in axes.items() if len(value) > 1 or key == name]
            settings = ", ".join(f"{key}={_text(options[key])}" for key in told)
            label = f"{name}: {settings}" if settings else name
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
    if metrics.backend not in FORWARD_BACKENDS:
        raise ConfigError(f"metrics.backend = {metrics.backend!r}: choose {' or '.join(FORWARD_BACKENDS)}")
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
    if config.run.against is not None and config.run.against not in names:
        raise ConfigError(f"run.against = {config.run.against!r}: there is no method of that name")
