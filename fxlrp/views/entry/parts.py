"""An entry of a page, and what turns a template into a page that needs no other file and no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from fxlrp.common.extras import require
from fxlrp.common.version import __version__
from fxlrp.maps.placing import Box
from fxlrp.maps.rendering import COLORS, colorize
from fxlrp.results.words import short


@dataclass(frozen=True)
class Map:
    """One explanation of an entry.

    Attributes:
        question: what it answers, such as ``"tabby cat"`` or ``"tabby cat, not lynx"``.
        title: the same with its numbers.
        picture: relevance on the photograph, as a data URI.
        limit: the relevance at the end of the colours, in ``unit``; 0: it is not told.
        unit: such as ``"logits"``.
        ledger: what became of the relevance, in words.
        colors: ``"symmetric"`` or ``"positive"``.
    """

    question: str
    title: str
    picture: str
    limit: float
    unit: str
    ledger: str
    colors: str = "symmetric"


@dataclass(frozen=True)
class Entry:
    """One photograph, or another input.

    Attributes:
        title: its name.
        photo: as a data URI; empty: there is none.
        top: the most probable classes and their percentages.
        maps: the explanations; the first one is shown at first.
        frame: round what the model sees: left, top, width and height in percent of the photograph; empty: none.
        shape: width over height.
        notes: what else there is to tell, such as that the preprocessing is a guess.
    """

    title: str
    photo: str
    top: Sequence[tuple[str, float]]
    maps: Sequence[Map]
    frame: Sequence[float] = ()
    shape: float = 1.0
    notes: Sequence[str] = ()


def page(template: str, **values: Any) -> str:
    """A page as text.

    Args:
        template: its path in ``fxlrp/views``.
        values: what the template names.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed (extra ``draw``).
    """
    jinja2 = require("jinja2", "draw")
    files = resources.files("fxlrp.views")
    loader = jinja2.FunctionLoader(lambda name: files.joinpath(*name.split("/")).read_text(encoding="utf-8"))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    environment.filters["short"] = short
    environment.globals |= {"version": __version__, "gradients": {name: _gradient(name) for name in COLORS}}
    return str(environment.get_template(template).render(**values))


def data_uri(picture: Tensor, side: int, kind: str = "JPEG") -> str:
    """A picture, uint8 (height, width, 3), as a data URI: no side longer than ``side``, small ones enlarged twice."""
    from PIL import Image

    image, buffer = Image.fromarray(picture.numpy()), io.BytesIO()
    image.thumbnail((side, side))
    if max(image.size) < side // 2:
        image = image.resize((image.width * 2, image.height * 2))
    image.save(buffer, format=kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def frame_of(box: Box | None, size: tuple[int, int]) -> tuple[float, ...]:
    """The frame of an entry.

    Args:
        box: what the model sees; ``None``: there is nothing to frame.
        size: width and height of the photograph.
    """
    if box is None:
        return ()
    width, height = size
    left, top, right, bottom = box.within(size)
    if (left, top, right, bottom) == (0, 0, width, height):
        return ()
    return 100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height


def _gradient(colors: str) -> str:
    """The colour map as a gradient of CSS."""
    ramp = torch.linspace(-1 if colors == "symmetric" else 0, 1, 17)
    painted = colorize(ramp[None], colors, percentile=100)[0].tolist()
    return f"linear-gradient(to right, {', '.join(f'rgb({r} {g} {b})' for r, g, b in painted)})"
