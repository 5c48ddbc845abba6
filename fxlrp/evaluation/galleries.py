"""Maps for a gallery: some images, explained anew by every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fxlrp.common.errors import DataError
from fxlrp.evaluation.config import Config
from fxlrp.evaluation.items import load_item
from fxlrp.evaluation.measure import maps_of, prepare_all
from fxlrp.evaluation.runner import load_subject
from fxlrp.evaluation.statistics import Group

Shown = tuple[str, npt.NDArray[Any], dict[str, tuple[npt.NDArray[Any], str]]]

_MOST = 10
"""Methods that are shown side by side."""


class Gallery:
    """Explains images of a configuration for show; model and methods are made when they are first needed."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._samples: dict[int, Any] | None = None

    def images(self, indices: Sequence[int], found: Mapping[tuple[str, int], Group], tie: str) -> list[Shown]:
        """Caption, picture and maps of images.

        Raises:
            FxlrpError: model or data are not to be had any more.
        """
        config = self._config
        if self._samples is None:
            self._samples = {sample.index: sample for sample in config.samples()}
            self._model, self._preprocess = load_subject(config, "cpu")
            self._methods = None
        entries = [e for e in config.methods if found.get((e.spec.name, 0)) is not None][:_MOST]
        shown = []
        for index in indices:
            if index not in self._samples:
                raise DataError(f"image {index} of the results is not among the data any more")
            item = load_item(self._samples[index], self._preprocess)
            if self._methods is None:
                self._methods = prepare_all(entries, self._model, item.input, config.metrics)
            maps = maps_of(item, self._methods, self._model, config.metrics)
            captioned = {name: (heat, _score(found[name, 0], index, tie)) for name, heat in maps.items()}
            picture = item.image[0].permute(1, 2, 0).numpy()
            shown.append((_caption(item.sample.name), np.clip(picture, 0, 1), captioned))
        return shown


def _score(group: Group, index: int, tie: str) -> str:
    place = np.flatnonzero(group.index == index)
    return f"ID {100 * group.score(tie)[place[0]]:.1f}" if len(place) and group.measured(tie) else ""


def _caption(name: str) -> str:
    short = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return short if len(short) <= 24 else short[:23] + "…"
