"""The tables ``[methods.NAME]`` and ``[sweep.NAME]`` of a configuration, checked against the options of their kind."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from fxlrp.common.errors import ConfigError, RuleError, StartError, WeightsError
from fxlrp.evaluation.config import Entry, as_tuple
from fxlrp.evaluation.methods import KINDS, MethodSpec, options_of
from fxlrp.evaluation.methods.relevance import check_options
from fxlrp.evaluation.mistakes import mistakes_of, not_among
from fxlrp.evaluation.paper import ROLES
from fxlrp.evaluation.tokens.methods import PASSAGE_KINDS, passage_options_of

_WRITTEN = (str, bool, int, float, Mapping, Sequence, NoneType)
"""Types that TOML can write, and what is left out."""


def _level(number: int) -> int:
    if number < 0 or number == 1:
        raise ValueError(f"{number} levels: give at least 2, or 0 for maps as they are")
    return number


def _role(name: str) -> str:
    if name not in ROLES:
        raise ValueError(f"{name!r} is no row of the paper: {not_among(name, ROLES)}")
    return name


class _Method(BaseModel):
    """What a method may say beside its options: nothing, where it is one for passages."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Map(_Method):
    """What a method for images may say."""

    levels: Annotated[tuple[Annotated[int, AfterValidator(_level)], ...], BeforeValidator(as_tuple)] = (0,)
    paper: Annotated[str, AfterValidator(_role)] | None = None


@dataclass(frozen=True, eq=False)
class Kinds:
    """The kinds of methods that a configuration may name.

    Attributes:
        functions: by name, what makes a method.
        options_of: from a name to the options of that kind.
        common: what a method may say beside its options.
    """

    functions: Mapping[str, Callable[..., Any]]
    options_of: Callable[[str], dict[str, inspect.Parameter]]
    common: type[_Method]


FOR_IMAGES = Kinds(KINDS, options_of, _Map)
FOR_PASSAGES = Kinds(PASSAGE_KINDS, passage_options_of, _Method)


def methods_of(table: Any, kinds: Kinds) -> list[Entry]:
    """The methods of ``[methods.NAME]``.

    Raises:
        ConfigError: a kind, a key or a value is not one that there is.
    """
    entries = []
    for name, given in _tables(table, "methods"):
        kind = given.pop("kind", "fxlrp")
        if not isinstance(kind, str) or kind not in kinds.functions:
            raise ConfigError(f"methods.{name}.kind = {kind!r}: {not_among(str(kind), kinds.functions)}")
        common, options = _checked(f"methods.{name}", kind, given, kinds)
        entries.append(Entry(MethodSpec(name, kind, options), **common))
    return entries


def sweeps_of(table: Any, kinds: Kinds) -> list[Entry]:
    """Every combination of the listed options, as methods of fxlrp; ``[sweep.NAME]`` are independent of each other.

    Raises:
        ConfigError: a key or a value is not one that there is.
    """
    entries = []
    for name, given in _tables(table, "sweep"):
        levels = {"levels": given.pop("levels")} if "levels" in given else {}
        axes = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
        for values in itertools.product(*axes.values()):
            given = dict(zip(axes, values, strict=True)) | levels
            common, options = _checked(f"sweep.{name}", "fxlrp", given, kinds)
            varied = [key for key, value in axes.items() if len(value) > 1 or key == name]
            settings = ", ".join(f"{key}={_text(options[key])}" for key in varied)
            label = f"{name}: {settings}" if settings else name
            entries.append(Entry(MethodSpec(label, "fxlrp", options), **common, group=name))
    return entries


def _tables(table: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables by name in a section."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} are tables by name, such as [{where}.NAME]")
    for name, given in table.items():
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where}.{name} must be a table")
        yield name, dict(given)


def _checked(where: str, kind: str, given: Mapping[str, Any], kinds: Kinds) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a table says beside its options, and the options as they are written."""
    model, beside = _model(kind, kinds), kinds.common.model_fields
    try:
        common = model(**given)
    except ValidationError as error:
        raise ConfigError(f"{mistakes_of(error, where, model.model_fields)} (kind {kind})") from error
    options = {key: value for key, value in given.items() if key not in beside}
    if kind == "fxlrp":
        try:
            check_options(options)
        except (RuleError, StartError, WeightsError) as error:
            raise ConfigError(f"{where}: {error}") from error
    return {name: getattr(common, name) for name in beside}, options


@functools.cache
def _model(kind: str, kinds: Kinds) -> type[_Method]:
    """The keys of a method of this kind: those of every method, and the options of its function."""
    options = {
        name: (_of_toml(option.annotation), ... if option.default is option.empty else option.default)
        for name, option in kinds.options_of(kind).items()
    }
    model: type[_Method] = create_model(kind, __base__=kinds.common, **options)  # type: ignore[call-overload]
    return model


def _of_toml(annotation: Any) -> Any:
    """A type without the members of its union that TOML cannot write, such as ``Preset`` of ``str | Preset``."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    members = [member for member in get_args(annotation) if (get_origin(member) or member) in _WRITTEN]
    return functools.reduce(operator.or_, members)


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, Mapping) else str(value)
