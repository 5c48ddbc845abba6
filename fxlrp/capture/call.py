"""The arguments of one call of a model: its tensors by name, all else held fixed."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxlrp.capture.objects import opened
from fxlrp.common.errors import InputError
from fxlrp.common.items import FRONT, Items


class _Tensor:
    """Stands where a tensor stood."""

    def __repr__(self) -> str:
        return "tensor"


TENSOR = _Tensor()


@dataclass(frozen=True)
class Call:
    """How a model is called: which of its arguments are tensors, and what the others are.

    Two calls are alike if a graph that was captured for one serves the other.

    Attributes:
        names: the names of the tensors, in order; ``past.0`` for one inside a list.
        floating: for each, whether it holds floating point numbers.
        leaves: all that was given, flattened, ``TENSOR`` in place of each tensor.
        structure: how the leaves make up the arguments.
        items: which axis of each tensor is the batch.
    """

    names: tuple[str, ...]
    floating: tuple[bool, ...]
    leaves: tuple[Any, ...]
    structure: pytree.TreeSpec
    items: Items = FRONT

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(args, kwargs)`` with ``tensors`` in their places."""
        waiting = iter(tensors)
        leaves = [next(waiting) if leaf is TENSOR else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return tuple(args), dict(kwargs)

    @property
    def graph_names(self) -> tuple[str, ...]:
        """The names as a graph may bear them: keys of dicts that are given may be any text."""
        words = [re.sub(r"\W", "_", name, flags=re.ASCII) for name in self.names]
        words = [word if word.isidentifier() and not keyword.iskeyword(word) else f"input_{word}" for word in words]
        return tuple(word if words.index(word) == i else f"{word}_{i}" for i, word in enumerate(words))

    @property
    def plain(self) -> bool:
        """Whether every argument is a tensor."""
        return all(leaf is TENSOR for leaf in self.leaves)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that are alike."""
        return self.names, self.floating, tuple(map(repr, self.leaves)), str(self.structure), self.items

    def count(self, tensors: Sequence[Tensor]) -> int:
        """How many items there are in tensors."""
        return self.items.count(self.graph_names, tensors)


def bind(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], items: Items = FRONT
) -> tuple[Call, list[Tensor]]:
    """Understand the arguments of a call as the model's ``forward`` would.

    Raises:
        InputError: ``forward`` does not take these arguments, or there is no tensor among them.
    """
    signature = inspect.signature(model.forward)
    try:
        bound = _without_defaults(signature, signature.bind(*args, **kwargs))
    except TypeError as error:
        raise InputError(f"{_taken(signature)}, not {len(args) + len(kwargs)}: {error}") from error
    _refuse_caches(bound)
    positional = [p.name for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY][: len(bound.args)]
    starred = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL), "input")
    heads = [*positional[: len(bound.args)], *[starred] * (len(bound.args) - len(positional))]
    pairs, structure = pytree.tree_flatten_with_path(opened((list(bound.args), dict(bound.kwargs))))
    names: list[str] = []
    floating: list[bool] = []
    leaves: list[Any] = []
    tensors: list[Tensor] = []
    for path, leaf in pairs:
        if not isinstance(leaf, Tensor):
            leaves.append(leaf)
            continue
        _, first, *rest = path
        head = heads[first.idx] if isinstance(first, pytree.SequenceKey) else _text(first)
        names.append(_unused(".".join([head, *(_text(key) for key in rest)]), names))
        floating.append(leaf.is_floating_point())
        leaves.append(TENSOR)
        tensors.append(leaf)
    if not tensors:
        given = next(iter([*bound.args, *bound.kwargs.values()]), None)
        raise InputError(f"an input must be a tensor, not {type(given).__name__}{_instead_of(given)}")
    return Call(tuple(names), tuple(floating), tuple(leaves), structure, items), tensors


def _refuse_caches(bound: inspect.BoundArguments) -> None:
    """Raise where a cache of transformers is given: each run of the model would write to it."""
    for name, value in {**bound.arguments, **bound.kwargs}.items():
        tuples = name == "past_key_values" and isinstance(value, tuple | list)
        if tuples or any(kind.__name__ == "Cache" for kind in type(value).__mro__):
            raise InputError(
                f"{name} is a cache: what it holds was computed before, and no relevance leads from there to tokens. "
                "Give all tokens in one call, without it: "
                "explainer(input_ids=all_tokens, attention_mask=…, use_cache=False)"
            )


def _instead_of(given: Any) -> str:
    """What to give in place of what is no tensor."""
    if isinstance(given, Mapping):
        return ": give its entries by name, explainer(**inputs)"
    if type(given).__module__.startswith("PIL."):
        return ": make one of it by the model's preprocessing, transform(image).unsqueeze(0)"
    if type(given).__module__ == "numpy":
        return ": torch.from_numpy(…) makes one of it"
    if isinstance(given, str):
        return ": a tokenizer makes numbers of it; fxlrp.language_model(model, tokenizer) takes text"
    return ""


def input_counts(model: nn.Module) -> tuple[int, float]:
    """How many inputs the model's ``forward`` cannot do without, and how many it takes by position."""
    signature = inspect.signature(model.forward)
    kinds = [p.kind for p in signature.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return _required(signature), float("inf")
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return _required(signature), sum(kind in by_position for kind in kinds)


def _required(signature: inspect.Signature) -> int:
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(p.default is p.empty and p.kind not in starred for p in signature.parameters.values())


def _taken(signature: inspect.Signature) -> str:
    """``"the model takes 2 input(s) (x, mask=None)"``."""
    parameters = signature.parameters.values()
    named = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    return f"the model takes {_required(signature)} input(s) ({named})"


def _without_defaults(signature: inspect.Signature, bound: inspect.BoundArguments) -> inspect.BoundArguments:
    """Without the arguments that only repeat a default, so that saying it or not is the same call."""
    starred = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    kept, by_name = [], {}
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        if starred or parameter.kind is parameter.VAR_KEYWORD:
            return bound
        if parameter.default is not parameter.empty and value is parameter.default:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            kept.append(value)
        else:
            by_name[name] = value
    return signature.bind(*kept, **by_name)


def _unused(name: str, names: list[str]) -> str:
    """A starred parameter may take several tensors."""
    return name if name not in names else f"{name}.{sum(n.split('.')[0] == name for n in names)}"


def _text(key: Any) -> str:
    return str(getattr(key, "idx", getattr(key, "key", getattr(key, "name", key))))
