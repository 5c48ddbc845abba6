"""Relevance inside a language model: heads, neurons, and the residual stream, by the names of TransformerLens."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.common.errors import ConditionError, InputError
from fxlrp.common.text_tables import table
from fxlrp.explainer import Explainer
from fxlrp.language.blocks import Block, blocks_of
from fxlrp.language.text import shown

Conditions = Mapping[str, Sequence[int]] | Sequence[str]
"""Units inside a model: their numbers by the name of TransformerLens, or names such as L5H3 and L7N120."""
_UNIT = re.compile(r"([LED])(\d+)([HXN])(\d+)")
_STACKS = {"blocks": "L", "encoder": "E", "decoder": "D"}
_KINDS = {"attn": "H", "cross_attn": "X", "mlp": "N"}
_HOOKS = {"attn": "attn.hook_z", "cross_attn": "cross_attn.hook_z", "mlp": "mlp.hook_post"}
_OUT = {"attn": "hook_attn_out", "cross_attn": "hook_cross_attn_out", "mlp": "hook_mlp_out"}
_MIDDLE = ("hook_resid_mid", "hook_resid_mid_cross")


class Units:
    """The blocks of a transformer with their names and sizes.

    Args:
        blocks: as :func:`~fxlrp.language.blocks.blocks_of` finds them.
        shapes: of all values, by the name of the node.
        heads: by the name of a stack, how many heads its attentions have.

    Raises:
        InputError: there is no attention on a skip.

    Attributes:
        hooks: by the name of TransformerLens, the node.
        modules: by the name of units, the path of the module that reads them.
    """

    def __init__(
        self, blocks: Sequence[Block], shapes: Mapping[str, tuple[int, ...]], heads: Mapping[str, int]
    ) -> None:
        if all(block.kind != "attn" for block in blocks):
            raise InputError("what is inside is told of transformers; no attention on a skip is found in this model")
        self.shapes, self.heads = shapes, heads
        self.hooks: dict[str, str] = {}
        self.modules = {f"{block.stack}.{block.layer}.{_HOOKS[block.kind]}": block.module for block in blocks}
        for (stack, layer), group in groupby(blocks, key=lambda block: (block.stack, block.layer)):
            of_layer, name = list(group), f"{stack}.{layer}"
            streams = list(dict.fromkeys(block.before for block in of_layer))
            for hook, stream in zip(("hook_resid_pre", *_MIDDLE), streams, strict=False):
                self.hooks[f"{name}.{hook}"] = stream
            for block in of_layer:
                self.hooks[f"{name}.{_HOOKS[block.kind]}"] = block.units
                self.hooks[f"{name}.{_OUT[block.kind]}"] = block.out
            self.hooks[f"{name}.hook_resid_post"] = of_layer[-1].after

    @classmethod
    def of(cls, explainer: Explainer, config: Any) -> Units:
        """Those of a model that was read before.

        Args:
            explainer: of the model.
            config: says how many heads there are, as those of transformers do.

        Raises:
            InputError: none are found.
            NotCapturedError: the model was not explained before.
        """
        heads = {stack: getattr(config, f"{stack}_attention_heads", getattr(config, "num_attention_heads", 1))
                 for stack in ("blocks", "encoder", "decoder")}  # fmt: skip
        return cls(blocks_of(explainer.model_graph, explainer.joins), explainer.shapes, heads)

    @property
    def stacks(self) -> list[str]:
        """Their names."""
        return list(dict.fromkeys(hook.split(".")[0] for hook in self.hooks))

    def nodes(self, stack: str) -> list[str]:
        """The nodes of a stack whose relevance is wanted."""
        return list(dict.fromkeys(node for hook, node in self.hooks.items() if hook.startswith(f"{stack}.")))

    def amounts(self, stack: str, found: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
        """By the name of TransformerLens, relevance of each token, (tokens,), or of its units, (tokens, units).

        Where units are not of one token each, as those of experts, there are none.

        Args:
            stack: of whose blocks.
            found: by the name of the node, (explained tokens, *shape of the value); these are summed.
            tokens: how many tokens the stack was given.
        """
        amounts = {}
        for hook, node in self.hooks.items():
            if not hook.startswith(f"{stack}.") or math.prod(self.shapes[node][:-1]) != tokens:
                continue
            amount = found[node].detach().float().sum(0).reshape(tokens, -1).cpu()
            if hook.endswith("hook_z"):
                amounts[hook] = amount.reshape(tokens, self.heads[stack], -1).sum(-1)
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
                letter = _STACKS[self.stacks[-1]]
                raise ConditionError(f"{hook!r} has no units: write {letter}5H3, {letter}7N120, or one of {known}, …")
            width = self.shapes[self.hooks[hook]][-1]
            count = self.heads[hook.split(".")[0]] if hook.endswith("hook_z") else width
            mask = torch.ones(count)
            for unit in units:
                if isinstance(unit, bool) or not isinstance(unit, int) or not 0 <= unit < count:
                    raise ConditionError(f"unit {unit!r} of {hook}: it has {count}, 0 to {count - 1}")
                mask[unit] = 0
            masks[hook] = mask.repeat_interleave(width // count)
        return masks

    @contextmanager
    def ablated(self, model: nn.Module, conditions: Conditions) -> Iterator[None]:
        """Within, the model runs with zeros in place of the units that are named.

        Raises:
            ConditionError: a name is of no unit.
        """
        with ExitStack() as stack:
            for name, mask in self.masks(conditions).items():
                layer = model.get_submodule(self.modules[name])
                stack.callback(layer.register_forward_pre_hook(partial(_masked, mask)).remove)
            yield


def _masked(mask: Tensor, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return inputs[0] * mask.to(inputs[0]), *inputs[1:]


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
            stack, kind = _named(_STACKS, match[1]), _named(_KINDS, match[3])
            found.setdefault(f"{stack}.{match[2]}.{_HOOKS[kind]}", []).append(int(match[4]))
    if not any(found.values()):
        raise ConditionError("conditions= names no unit: leave it out to explain without")
    return found


def _named(letters: Mapping[str, str], letter: str) -> str:
    return next(name for name, each in letters.items() if each == letter)


@dataclass(frozen=True)
class Inside:
    """Relevance inside a model, or inside its encoder or decoder, for the tokens of an answer that were explained.

    ``inside["blocks.5.attn.hook_z"]`` is what a name of TransformerLens means: (tokens, heads) for ``attn.hook_z``,
    (tokens, neurons) for ``mlp.hook_post``, (tokens,) for the residual stream (``hook_resid_pre``, ``_mid``, ``_post``)
    and for what a block adds to it (``hook_attn_out``, ``hook_mlp_out``). Of an encoder or a decoder names begin with
    ``encoder`` or ``decoder`` in place of ``blocks``; a decoder has ``cross_attn.hook_z`` too.

    Attributes:
        amounts: all of these, by name.
        tokens: the tokens that the model, or this part of it, was given, in words.
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
    def cross_heads(self) -> Tensor:
        """(layers, heads, tokens): the same of the heads of a decoder that look at the tokens of the encoder.

        Raises:
            InputError: there are none.
        """
        found = self._of("cross_attn.hook_z")
        if not found:
            raise InputError("no head looks at the tokens of an encoder: those of a decoder do")
        return torch.stack([amount.T for _, amount in found])

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
        """The heads with the largest sums over tokens by magnitude, as ``("L5H3", relevance)``.

        The letters are ``L``, of a decoder ``D``, of an encoder ``E``; heads that look at the encoder are ``"D5X3"``.
        """
        both = self._top("attn", count, None) + self._top("cross_attn", count, None)
        return sorted(both, key=lambda pair: -abs(pair[1]))[:count]

    def top_neurons(self, count: int = 10, token: int | None = None) -> list[tuple[str, float]]:
        """The neurons with the largest relevance by magnitude, at one token or summed, as ``("L7N120", relevance)``."""
        return self._top("mlp", count, token)

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

    def _top(self, kind: str, count: int, token: int | None) -> list[tuple[str, float]]:
        if token is not None and not -len(self.tokens) <= token < len(self.tokens):
            raise InputError(f"token={token}: there are {len(self.tokens)}")
        named = [
            (f"{_STACKS[name.split('.')[0]]}{_layer(name)}{_KINDS[kind]}{unit}", float(values[unit]))
            for name, amount in self._of(_HOOKS[kind])
            for values in [amount.sum(0) if token is None else amount[token]]
            for unit in values.abs().topk(min(count, len(values))).indices.tolist()
        ]
        return sorted(named, key=lambda pair: -abs(pair[1]))[:count]


def _layer(name: str) -> int:
    return int(name.split(".")[1])
