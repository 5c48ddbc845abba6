"""Relevance inside a language model: heads, neurons, and the residual stream, by the names of TransformerLens."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from fxlrp.common.errors import ConditionError, InputError
from fxlrp.common.text_tables import table
from fxlrp.language.blocks import Block
from fxlrp.language.text import shown

Conditions = Mapping[str, Sequence[int]] | Sequence[str]
"""Units inside a model: their numbers by the name of TransformerLens, or names such as L5H3 and L7N120."""
_UNIT = re.compile(r"L(\d+)([HN])(\d+)")
_HOOKS = {"attn": "attn.hook_z", "mlp": "mlp.hook_post"}
_OUT = {"attn": "hook_attn_out", "mlp": "hook_mlp_out"}


class Units:
    """The blocks of a transformer with their names and sizes.

    Args:
        blocks: as :func:`~fxlrp.language.blocks.blocks_of` finds them.
        shapes: of all values, by the name of the node.
        heads: how many heads an attention has.

    Raises:
        InputError: there is no attention on a skip.

    Attributes:
        hooks: by the name of TransformerLens, the node.
        modules: by the name of units, the path of the module that reads them.
    """

    def __init__(self, blocks: Sequence[Block], shapes: Mapping[str, tuple[int, ...]], heads: int) -> None:
        if all(block.kind != "attn" for block in blocks):
            raise InputError("what is inside is told of transformers; no attention on a skip is found in this model")
        self.shapes, self.heads = shapes, heads
        self.hooks: dict[str, str] = {}
        self.modules = {f"blocks.{block.layer}.{_HOOKS[block.kind]}": block.module for block in blocks}
        for layer, group in groupby(blocks, key=lambda block: block.layer):
            of_layer = list(group)
            self.hooks[f"blocks.{layer}.hook_resid_pre"] = of_layer[0].before
            if of_layer[-1].before != of_layer[0].before:
                self.hooks[f"blocks.{layer}.hook_resid_mid"] = of_layer[-1].before
            for block in of_layer:
                self.hooks[f"blocks.{layer}.{_HOOKS[block.kind]}"] = block.units
                self.hooks[f"blocks.{layer}.{_OUT[block.kind]}"] = block.out
            self.hooks[f"blocks.{layer}.hook_resid_post"] = of_layer[-1].after

    @property
    def nodes(self) -> list[str]:
        """The nodes whose relevance is wanted."""
        return list(dict.fromkeys(self.hooks.values()))

    def amounts(self, found: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
        """By the name of TransformerLens, relevance of each token, (tokens,), or of its units, (tokens, units).

        Where units are not of one token each, as those of experts, there are none.

        Args:
            found: by the name of the node, (explained tokens, *shape of the value); these are summed.
            tokens: how many tokens the model was given.
        """
        amounts = {}
        for hook, node in self.hooks.items():
            if math.prod(self.shapes[node][:-1]) != tokens:
                continue
            amount = found[node].detach().float().sum(0).reshape(tokens, -1).cpu()
            if hook.endswith("hook_z"):
                amounts[hook] = amount.reshape(tokens, self.heads, -1).sum(-1)
            else:
                amounts[hook] = amount if hook.endswith("hook_post") else amount.sum(-1)
        return amounts

    def masks(self, conditions: Conditions) -> dict[str, Tensor]:
        """By the name of units, a mask of their features, one after the other, that is zero at those that are named.

        Raises:
            ConditionError: a name is of no unit.
        """
        masks: dict[str, Tensor] = {}
        for hook, units in _by_hook(conditions).items():
            if hook not in self.modules:
                known = ", ".join(list(self.modules)[:4])
                raise ConditionError(f"{hook!r} has no units: write L5H3, L7N120, or one of {known}, …")
            width = self.shapes[self.hooks[hook]][-1]
            count = self.heads if hook.endswith("hook_z") else width
            mask = torch.ones(count)
            for unit in units:
                if isinstance(unit, bool) or not isinstance(unit, int) or not 0 <= unit < count:
                    raise ConditionError(f"unit {unit!r} of {hook}: it has {count}, 0 to {count - 1}")
                mask[unit] = 0
            masks[hook] = mask.repeat_interleave(width // count)
        return masks


def _by_hook(conditions: Conditions) -> dict[str, list[int]]:
    """The numbers of units by the name of TransformerLens."""
    if isinstance(conditions, Mapping):
        found = {hook: list(units) for hook, units in conditions.items()}
    else:
        found = {}
        for name in [conditions] if isinstance(conditions, str) else conditions:
            match = _UNIT.fullmatch(name) if isinstance(name, str) else None
            if match is None:
                raise ConditionError(f"{name!r} names no unit: a head is written L5H3 and a neuron L7N120")
            hook = f"blocks.{match[1]}.{_HOOKS['attn' if match[2] == 'H' else 'mlp']}"
            found.setdefault(hook, []).append(int(match[3]))
    if not any(found.values()):
        raise ConditionError("conditions= names no unit: leave it out to explain without")
    return found


@dataclass(frozen=True)
class Inside:
    """Relevance inside a model, for the tokens of an answer that were explained.

    ``inside["blocks.5.attn.hook_z"]`` is what a name of TransformerLens means: (tokens, heads) for ``attn.hook_z``,
    (tokens, neurons) for ``mlp.hook_post``, (tokens,) for the residual stream (``hook_resid_pre``, ``_mid``, ``_post``)
    and for what a block adds to it (``hook_attn_out``, ``hook_mlp_out``).

    Attributes:
        amounts: all of these, by name.
        tokens: the tokens that the model was given, in words.
        answer: the tokens that are explained, as text.
    """

    amounts: Mapping[str, Tensor]
    tokens: tuple[str, ...]
    answer: str

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.amounts:
            raise InputError(f"{name!r}: choose one of {', '.join(list(self.amounts)[:8])}, …")
        return self.amounts[name]

    @property
    def heads(self) -> Tensor:
        """(layers, heads, tokens): relevance of what each head adds, at the token to which it adds it."""
        return torch.stack([amount.T for _, amount in self._of("attn.hook_z")])

    @property
    def neurons(self) -> tuple[Tensor, ...]:
        """For each layer (neurons, tokens)."""
        return tuple(amount.T for _, amount in self._of("mlp.hook_post"))

    @property
    def residual(self) -> Tensor:
        """(layers + 1, tokens): the residual stream before each layer, and behind the last one."""
        last = self._of("hook_resid_post")[-1:]
        return torch.stack([amount for _, amount in self._of("hook_resid_pre") + last])

    def top_heads(self, count: int = 10) -> list[tuple[str, float]]:
        """The heads with the largest sums over tokens by magnitude, as ``("L5H3", relevance)``."""
        return self._top("attn.hook_z", "H", count, None)

    def top_neurons(self, count: int = 10, token: int | None = None) -> list[tuple[str, float]]:
        """The neurons with the largest relevance by magnitude, at one token or summed, as ``("L7N120", relevance)``."""
        return self._top("mlp.hook_post", "N", count, token)

    def to_frame(self) -> Any:
        """A ``polars.DataFrame`` of the residual stream, of blocks and of heads; neurons are left out.

        Its columns are ``name``, ``layer``, ``head``, ``token``, ``text`` and ``relevance``.

        Raises:
            MissingExtraError: polars is not installed (extra ``tables``).
        """
        from fxlrp.results.files import polars

        rows = [
            {"name": name, "layer": _layer(name), "head": head, "token": token, "text": text, "relevance": value}
            for name, amount in self.amounts.items() if not name.endswith("mlp.hook_post")
            for token, (text, values) in enumerate(zip(self.tokens, amount.tolist(), strict=True))
            for head, value in (enumerate(values) if isinstance(values, list) else [(None, values)])
        ]  # fmt: skip
        return polars().DataFrame(rows, infer_schema_length=None)

    def plot(self) -> Any:
        """A figure of matplotlib: the residual stream by token and layer, and the sums of the heads by layer.

        Raises:
            MissingExtraError: matplotlib is not installed (extra ``draw``).
        """
        from fxlrp.common.extras import require

        figure = require("matplotlib.figure", "draw").Figure(
            figsize=(3 + 0.35 * len(self.tokens), 8), layout="constrained"
        )
        above, below = figure.subplots(2, 1)
        for axis, values, title, label in (
            (above, self.residual, "the residual stream, before each layer and behind the last", "layer"),
            (below, self.heads.sum(-1), "heads, summed over tokens", "layer"),
        ):  # fmt: skip
            limit = float(values.abs().max()) or 1.0
            colours = {"vmin": -limit, "vmax": limit, "cmap": "RdBu_r"}
            image = axis.imshow(values.numpy(), aspect="auto", interpolation="nearest", **colours)
            figure.colorbar(image, ax=axis)
            axis.set(title=title, ylabel=label)
        above.set_xticks(range(len(self.tokens)), list(map(shown, self.tokens)), rotation=60, ha="right")
        below.set_xlabel("head")
        figure.suptitle(f"relevance for {self.answer!r}")
        return figure

    def __str__(self) -> str:
        """The residual stream, a line for each token, and the heads and neurons with most relevance."""
        steps = [*range(0, len(self.residual) - 1, max(1, len(self.residual) // 8)), len(self.residual) - 1]
        lines = [[shown(text), *(f"{float(self.residual[step, token]):+.3f}" for step in steps)]
                 for token, text in enumerate(self.tokens)]  # fmt: skip
        named = (("heads", self.top_heads(5)), ("neurons", self.top_neurons(5)))
        tops = [f"{what}: {', '.join(f'{name} {value:+.3f}' for name, value in top)}" for what, top in named if top]
        return "\n".join([table(["token", *(f"before L{step}" for step in steps[:-1]), "end"], lines), *tops])

    def __repr__(self) -> str:
        return f"<Inside for {self.answer!r}: {len(self._of('hook_resid_pre'))} layers, {len(self.tokens)} tokens>"

    def _of(self, ending: str) -> list[tuple[str, Tensor]]:
        return [(name, amount) for name, amount in self.amounts.items() if name.endswith(f".{ending}")]

    def _top(self, ending: str, letter: str, count: int, token: int | None) -> list[tuple[str, float]]:
        if token is not None and not -len(self.tokens) <= token < len(self.tokens):
            raise InputError(f"token={token}: there are {len(self.tokens)}")
        named = [
            (f"L{_layer(name)}{letter}{unit}", float(values[unit]))
            for name, amount in self._of(ending)
            for values in [amount.sum(0) if token is None else amount[token]]
            for unit in values.abs().topk(min(count, len(values))).indices.tolist()
        ]
        return sorted(named, key=lambda pair: -abs(pair[1]))[:count]


def _layer(name: str) -> int:
    return int(name.split(".")[1])
