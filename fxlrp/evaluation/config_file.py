"""Configurations from TOML files, checked before anything runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fxlrp.common.errors import ConfigError
from fxlrp.common.extras import require
from fxlrp.evaluation.config import Config, DataConfig, MetricsConfig, ModelConfig, RunConfig, Strings, SubjectConfig
from fxlrp.evaluation.method_tables import FOR_IMAGES, FOR_PASSAGES, methods_of, sweeps_of
from fxlrp.evaluation.mistakes import check_keys, mistakes_of, not_among

T = TypeVar("T")

_SECTIONS = ("model", "data", "subjects", "metrics", "run", "methods", "sweep")


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read a configuration.

    Raises:
        ConfigError: there is no such file, it is not TOML, or something in it is unknown or out of range; the message
            names the file, the key and what to write.
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
    check_keys(table, _SECTIONS, "the configuration")
    subjects = _subjects(table)
    kinds = FOR_PASSAGES if subjects[0].data.of_passages else FOR_IMAGES
    metrics, run = _section(MetricsConfig, table, "metrics"), _section(RunConfig, table, "run")
    methods = (*methods_of(table.get("methods", {}), kinds), *sweeps_of(table.get("sweep", {}), kinds))
    try:
        config = Config(folder, subjects, metrics, run, methods)
    except ValidationError as error:
        raise ConfigError("; ".join(str(detail["ctx"]["error"]) for detail in error.errors())) from error
    names = [entry.spec.name for entry in config.methods]
    if not names:
        raise ConfigError("there are no methods: give [methods.NAME] or [sweep.NAME]")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two methods are called {twice!r}: give one of them another name")
    if config.run.against is not None and config.run.against not in names:
        raise ConfigError(f"run.against = {config.run.against!r} is no method: {not_among(config.run.against, names)}")
    return config


def _subjects(table: Mapping[str, Any]) -> tuple[SubjectConfig, ...]:
    """The only subject, or those of ``[subjects.NAME]``; what ``[model]`` and ``[data]`` say then holds for all."""
    if "subjects" not in table:
        for name in ("model", "data"):
            if name not in table:
                raise ConfigError(f"[{name}] is missing")
        return (SubjectConfig(_section(ModelConfig, table, "model"), _section(DataConfig, table, "data")),)
    named = table["subjects"]
    tables = isinstance(named, Mapping) and all(name and isinstance(own, Mapping) for name, own in named.items())
    if not named or not tables:
        raise ConfigError("subjects are tables by name, such as [subjects.NAME]")
    found = []
    for name, own in named.items():
        where = f"subjects.{name}"
        check_keys(own, ("model", "data"), f"[{where}]")
        joined = {f"{where}.{part}": _joined(table.get(part, {}), own.get(part, {})) for part in ("model", "data")}
        model, data = _section(ModelConfig, joined, f"{where}.model"), _section(DataConfig, joined, f"{where}.data")
        found.append(SubjectConfig(model, data, name))
    return tuple(found)


def _joined(common: Any, own: Any) -> Any:
    """A table with what all have in front; one that is no table stays as it is, to be told."""
    if not isinstance(common, Mapping):
        return common
    return {**common, **own} if isinstance(own, Mapping) else own


def _table(path: Path) -> dict[str, Any]:
    toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli", "evaluate")
    try:
        with path.open("rb") as file:
            table: dict[str, Any] = toml.load(file)
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror}") from error
    except toml.TOMLDecodeError as error:
        raise ConfigError(f"{path.name} is not TOML: {error}") from error
    return table


def _with_included(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A table with those of the files that it includes in front; what both have is as the table has it."""
    try:
        names = TypeAdapter(Strings).validate_python(table.pop("include", []))
    except ValidationError as error:
        raise ConfigError("include must be a list of file names") from error
    tables = [_table(folder / name) for name in names]
    for name, included in zip(names, tables, strict=True):
        check_keys(included, ("methods", "sweep"), name)
    joined: dict[str, Any] = {}
    for each in (*tables, table):
        for name, section in each.items():
            both = isinstance(section, dict) and isinstance(joined.get(name), dict)
            joined[name] = {**joined[name], **section} if both else section
    return joined


def _section(kind: type[T], table: Mapping[str, Any], name: str) -> T:
    given = table.get(name, {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"[{name}] must be a table")
    try:
        return kind(**given)
    except ValidationError as error:
        raise ConfigError(mistakes_of(error, name, [field.name for field in fields(kind)])) from error  # type: ignore[arg-type]
