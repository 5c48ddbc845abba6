"""What an explainer returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.common.compiling import is_compiling
from fxlrp.maps.heatmap import CHANNEL_AXIS
from fxlrp.passes.request import Results
from fxlrp.rules.starts import log_odds_against, told
from fxlrp.runtime.prepared import Prepared


@dataclass(frozen=True)
class Explanation:
    """Relevance, and what it explains.

    Where several targets or conditions were asked for, all but the output has an axis for them
    behind the batch: relevance (batch, targets, ...), target and start (batch, targets).

    Attributes:
        relevance: like the input, (batch, ...); a tuple of them for several inputs. For an
            input of tokens it is that of their embeddings, (batch, tokens, features).
        output: what the model returns.
        target: (batch,), the explained class of each item; ``None`` where a callable start
            was given no target.
        start: (batch,), the relevance that entered at the output.
        checkpoints: by module name, the relevance at the module's input; a tuple where
            the module takes several values.
        inputs: the names of the inputs, in the order of ``relevance``.
        pictures: the input, where it is one batch of pictures (batch, 1 or 3, height, width): what a notebook
            shows relevance on.
        start_name: what entered at the output: ``"probability"``, ``"logit"``, …
    """

    relevance: Any
    output: Any
    target: Tensor | None
    start: Tensor
    checkpoints: dict[str, Any]
    inputs: tuple[str, ...] = ()
    pictures: Tensor | None = None
    start_name: str = ""

    def _repr_png_(self) -> bytes | None:
        """Relevance over the first pictures, for a notebook; ``None`` where it is no map of pictures."""
        from fxlrp.maps.rendering import contact_sheet

        return contact_sheet(self.pictures, self.relevance)

    @property
    def by_input(self) -> dict[str, Tensor]:
        """Relevance by the name of the input."""
        several = self.relevance if isinstance(self.relevance, tuple) else (self.relevance,)
        return dict(zip(self.inputs, several, strict=True))


def explanation_of(results: Results, prepared: Prepared) -> Explanation:
    """The explanation that a program computed for a call."""
    relevance, inputs = results.relevance, prepared.inputs
    if not is_compiling():
        for part, given in zip(relevance, inputs, strict=True):
            if given.dim() > 2 and given.is_floating_point():
                setattr(part, CHANNEL_AXIS, 2 if prepared.targets == "several" or prepared.conditions_several else 1)
    return Explanation(
        relevance=relevance[0] if len(relevance) == 1 else tuple(relevance),
        output=pytree.tree_unflatten(results.output, prepared.plan.returns),
        target=results.target,
        start=results.start,
        checkpoints=results.checkpoints,
        inputs=tuple(spec.name for spec in prepared.plan.inputs),
        start_name=told(prepared.plan.start if prepared.against is None else log_odds_against),
        pictures=inputs[0] if len(inputs) == 1 and _are_pictures(inputs[0]) else None,
    )


def _are_pictures(value: Tensor) -> bool:
    return value.dim() == 4 and value.shape[1] in (1, 3) and value.is_floating_point()


_FIELDS = ("relevance", "output", "target", "start", "checkpoints")


def _flatten(explanation: Explanation) -> tuple[list[Any], tuple[str, ...]]:
    return [getattr(explanation, part) for part in _FIELDS], explanation.inputs


def _unflatten(parts: Iterable[Any], inputs: tuple[str, ...]) -> Explanation:
    return Explanation(**dict(zip(_FIELDS, parts, strict=True)), inputs=tuple(inputs))


def _flatten_with_keys(explanation: Explanation) -> tuple[list[Any], tuple[str, ...]]:
    parts, inputs = _flatten(explanation)
    return [(pytree.GetAttrKey(name), part) for name, part in zip(_FIELDS, parts, strict=True)], inputs


# As a tree of tensors, torch.export and torch.func take and give explanations.
pytree.register_pytree_node(
    Explanation, _flatten, _unflatten, serialized_type_name="fxlrp.Explanation",
    to_dumpable_context=list, from_dumpable_context=tuple, flatten_with_keys_fn=_flatten_with_keys,
)  # fmt: skip
