"""What an explanation in a file takes and gives, as the file says it."""

from __future__ import annotations

import json
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.common.errors import ExportError
from fxlrp.results.explanation import Explanation
from fxlrp.runtime.inputs import InputSpec

PREDICTED = -1
"""The target that stands for the predicted class."""


@dataclass(frozen=True)
class Signature:
    """What an exported explanation takes and gives.

    Attributes:
        inputs: what is known of each input.
        dtypes: of the inputs, such as ``"float32"``.
        outputs: the names of what it returns, a tensor each.
        structure: of the explanation that these make up, as ``torch.utils._pytree`` writes it down.
        absent: the places in it where there is no tensor but ``None``.
        takes_target: whether a target (batch,) of classes follows the inputs; ``PREDICTED`` asks for
            the predicted one.
        classes: how many classes there are; ``None`` where the output is not (batch, classes).
        about: what was compiled: the model's class, preset, start, and versions.
    """

    inputs: tuple[InputSpec, ...]
    dtypes: tuple[str, ...]
    outputs: tuple[str, ...]
    structure: str
    absent: tuple[int, ...]
    takes_target: bool
    classes: int | None
    about: dict[str, str]

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Signature:
        """From what ``dataclasses.asdict`` and JSON made of it.

        Raises:
            ExportError: a field is missing, unknown, or of another type.
        """
        fields = dict(fields)
        fields["inputs"] = [_checked(InputSpec, {"shape": None, **spec}) for spec in fields["inputs"]]
        return _checked(cls, fields)

    def explanation(self, results: Sequence[Tensor]) -> Explanation:
        """The explanation that the returned tensors make up."""
        leaves: list[Tensor | None] = list(results)
        for place in self.absent:
            leaves.insert(place, None)
        found: Explanation = pytree.tree_unflatten(leaves, pytree.treespec_loads(self.structure))
        return found


def _checked(kind: type[Any], fields: dict[str, Any]) -> Any:
    """A dataclass of these fields, each of the type that the class says; lists become tuples."""
    types_of = get_type_hints(kind)
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    for name, value in fields.items():
        if name not in types_of or not _is_of(value, types_of[name]):
            raise ExportError(f"{name} is {str(value)[:60]!r}, which fxlrp never writes")
    return kind(**fields)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a type: a class, ``X | Y``, ``tuple[X, ...]`` or ``dict[X, Y]``."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_is_of(value, each) for each in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of(item, inner[0]) for item in value)
    if origin is dict:
        pairs = value.items() if isinstance(value, dict) else [(None, None)]
        return all(_is_of(key, inner[0]) and _is_of(item, inner[1]) for key, item in pairs)
    return type(value) is kind
