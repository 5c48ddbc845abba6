"""Maps for a gallery: some images, explained anew by every method."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from fxlrp.common.errors import DataError
from fxlrp.evaluation.config import Config
from fxlrp.evaluation.data import Sample
from fxlrp.evaluation.evaluated_image import load_image
from fxlrp.evaluation.map_files import Maps
from fxlrp.evaluation.measure import Prepared, maps_of, prepare_all
from fxlrp.evaluation.runner import load_subject

_MOST = 10
"""Methods that are shown side by side."""


class Shown(NamedTuple):
    """An image of a gallery.

    Attributes:
        caption: its name.
        picture: (height, width, 3), in [0, 1].
        maps: by method, (height, width).
        captions: by method, what stands under its map.
    """

    caption: str
    picture: npt.NDArray[Any]
    maps: Maps
    captions: dict[str, str]


class Gallery:
    """Explains images of a configuration; model and methods are made when they are first needed.

    Attributes:
        methods: the names of those that are shown.
    """

    def __init__(self, config: Config, results: pl.DataFrame) -> None:
        tie = config.metrics.ties[0]
        plain = results.filter(levels=0)
        there = set(plain["method"])
        self._config = config
        self._entries = [entry for entry in config.methods if entry.spec.name in there][:_MOST]
        scores = plain.select("method", "index", f"id_{tie}").iter_rows()
        self._scores = {(method, index): score for method, index, score in scores}
        self._prepared: list[Prepared] | None = None
        self.methods = [entry.spec.name for entry in self._entries]

    @cached_property
    def _samples(self) -> dict[int, Sample]:
        return {sample.index: sample for sample in self._config.samples()}

    @cached_property
    def _subject(self) -> Any:
        return load_subject(self._config, "cpu")

    def images(self, indices: Sequence[int]) -> list[Shown]:
        """Images with their maps.

        Raises:
            FxlrpError: model or data are not to be had any more.
        """
        shown = []
        for index in indices:
            if index not in self._samples:
                raise DataError(f"image {index} of the results is not among the data any more")
            model, preprocess = self._subject
            image = load_image(self._samples[index], preprocess)
            if self._prepared is None:
                self._prepared = prepare_all(self._entries, model, image.input, self._config.metrics)
            maps = maps_of(image, self._prepared, model, self._config.metrics)
            captions = {method: f"{method}\n{self._score(method, index)}" for method in maps}
            picture = np.clip(image.image[0].permute(1, 2, 0).numpy(), 0, 1)
            shown.append(Shown(_caption(image.sample.name), picture, maps, captions))
        return shown

    def _score(self, method: str, index: int) -> str:
        score = self._scores.get((method, index))
        return "" if score is None else f"ID {100 * score:.1f}"


def _caption(name: str) -> str:
    short = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return short if len(short) <= 24 else short[:23] + "…"
