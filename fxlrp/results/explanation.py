"""What an explainer returns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.common.compiling import is_compiling
from fxlrp.common.items import FRONT, Items
from fxlrp.maps.heatmap import CHANNEL_AXIS
from fxlrp.passes.request import Results
from fxlrp.rules.starts import contrast, told, unit_of
from fxlrp.runtime.prepared import Prepared

if TYPE_CHECKING:
    import numpy as np


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
        given: the inputs themselves, in the order of ``relevance``: what relevance is shown on.
        start_name: what entered at the output: ``"probability"``, ``"logit"``, …
        items: which axis of each input is the batch. Where all inputs are one item, as a graph is, relevance is like
            them, targets have their axis in front of it, and ``target`` and ``start`` are (rows of the output,).
        patch: the height and width of the patches in which the model reads a picture, its only input, as a ViT does;
            ``None``: it reads pixels.
    """

    relevance: Any
    output: Any
    target: Tensor | None
    start: Tensor
    checkpoints: dict[str, Any]
    inputs: tuple[str, ...] = ()
    given: tuple[Tensor, ...] = ()
    start_name: str = ""
    items: Items = FRONT
    patch: tuple[int, int] | None = None

    @property
    def by_input(self) -> dict[str, Tensor]:
        """Relevance by the name of the input."""
        several = self.relevance if isinstance(self.relevance, tuple) else (self.relevance,)
        return dict(zip(self.inputs, several, strict=True))

    @property
    def by_item(self) -> Explanation:
        """The same with the batch in front of everything; inputs that are one item together make a batch of one."""
        from fxlrp.results.explanation_data import by_item

        return by_item(self)

    @property
    def pictures(self) -> Tensor | None:
        """The input, where it is one batch of pictures, (batch, 1 or 3, height, width); else ``None``."""
        return self.given[0] if len(self.given) == 1 and _are_pictures(self.given[0]) else None

    @property
    def unit(self) -> str:
        """What relevance is in: ``"logits"``, ``"probability"``, or ``"relevance"`` for a start of one's own.

        A single output is in a unit of the model's own: ``"output"``.
        """
        single = isinstance(self.output, Tensor) and (self.output.dim() < 2 or self.output.shape[1] == 1)
        told_single = single and self.start_name.endswith("where there is one output")
        return "output" if told_single else unit_of(self.start_name)

    # As data ------------------------------------------------------------------------------------------

    def to_numpy(self) -> dict[str, np.ndarray[Any, Any]]:
        """All tensors as NumPy arrays by name.

        The names are ``relevance`` (of several inputs ``relevance.NAME``), ``output`` (of several ``output.PATH``),
        ``target``, ``start`` and ``checkpoint.NAME``. What is ``None`` has no entry; bfloat16 becomes float32.
        """
        from fxlrp.results.explanation_data import arrays

        return arrays(self)

    def to_frame(self) -> Any:
        """A ``polars.DataFrame`` with one row per item, or per item and target.

        Its columns are ``item``, ``explanation`` (the number of the target, where there are several), ``target``,
        ``start``, ``start_name``, ``sum`` (of relevance over all inputs), and as arrays ``relevance`` and ``output``,
        or those of several by name. ``.to_pandas()`` makes it a table of pandas.

        Raises:
            MissingExtraError: polars is not installed (extra ``tables``).
        """
        from fxlrp.results.explanation_data import frame

        return frame(self)

    def save(self, path: str | os.PathLike[str], **labels: Sequence[str]) -> Path:
        """Write a file that other programs read; its suffix says what.

        Args:
            path: ``.npz`` or ``.json``: all numbers, which :meth:`read` reads back; ``.parquet``: the table of
                :meth:`to_frame`; ``.png``, ``.svg`` or ``.pdf``: the picture of :meth:`plot`. The file is
                written completely or not at all, and its folder is created if needed.
            **labels: further columns, such as ``file=``: a text for each item.

        Raises:
            InputError: the suffix is another one, labels do not fit, or the file cannot be written.
            MissingExtraError: polars (extra ``tables``) or matplotlib (extra ``draw``) is needed and not installed.
        """
        from fxlrp.results.explanation_data import save

        return save(self, path, labels)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Explanation:
        """Read what :meth:`save` wrote as ``.npz`` or ``.json``; it runs no code from the file.

        The inputs are not in it. An output of several tensors is a dict of them by path.

        Raises:
            InputError: there is no such file, or it holds no explanation.
        """
        from fxlrp.results.explanation_data import read

        return read(path)

    def plot(
        self, items: Sequence[int] | None = None, *, titles: Sequence[str] = (), labels: Sequence[str] = (),
        pixels: bool = False,
    ) -> Any:  # fmt: skip
        """Draw relevance on what it is of: pictures, signals, volumes, tables or tokens, whichever the input is.

        Red speaks for the class and blue against it. All panels share one range, whose colour bar is in the unit of
        the start. Several targets stand side by side.

        Args:
            items: which items of the batch; ``None``: the first four.
            titles: one per item, or with several targets one per target; else the class.
            labels: the names of features, or the tokens.
            pixels: whether to show single pixels where the model reads patches, too; see :func:`fxlrp.patch_map`.

        Returns:
            A ``matplotlib.figure.Figure``.

        Raises:
            InputError: relevance has no plot, there is no such item, or titles and labels do not fit.
            MissingExtraError: matplotlib is not installed (extra ``draw``).
        """
        from fxlrp.results.explanation_views import plot

        return plot(self, items, titles, labels, pixels=pixels)

    def __repr__(self) -> str:
        from fxlrp.results.explanation_views import text

        return text(self)

    def _repr_png_(self) -> bytes | None:
        """Relevance over the first pictures; ``None`` where it is no map of pictures."""
        from fxlrp.maps.rendering import contact_sheet

        return contact_sheet(self.pictures, self.relevance, self.patch)

    def _repr_html_(self) -> str:
        """For a notebook: the same as a table, with the plot below where it can be drawn."""
        from fxlrp.results.explanation_views import page

        return page(self)


def explanation_of(results: Results, prepared: Prepared) -> Explanation:
    """The explanation that a program computed for a call."""
    relevance, inputs, start = results.relevance, prepared.inputs, prepared.plan.start
    specs = prepared.plan.inputs
    if not is_compiling():
        for part, given in zip(relevance, inputs, strict=True):
            if given.dim() > 2 and given.is_floating_point() and prepared.plan.items.in_front:
                setattr(part, CHANNEL_AXIS, 2 if prepared.targets == "several" or prepared.conditions_several else 1)
    return Explanation(
        relevance=relevance[0] if len(relevance) == 1 else tuple(relevance),
        output=pytree.tree_unflatten(results.output, prepared.plan.returns),
        target=results.target,
        start=results.start,
        checkpoints=results.checkpoints,
        inputs=tuple(spec.name for spec in specs),
        start_name=told(start if prepared.against is None else contrast(start)),
        given=tuple(inputs),
        items=prepared.plan.items,
        patch=specs[0].patch if len(specs) == 1 else None,
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
