"""Evaluation of explanation methods: metrics, methods, data, runs and reports.

Names are imported when they are first used, because configurations need pydantic and metrics do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fxlrp.common.extras import require

if TYPE_CHECKING:
    from fxlrp.evaluation.agreement import Randomized, randomization_check, rank_correlation
    from fxlrp.evaluation.config import Config
    from fxlrp.evaluation.config_file import parse_config, read_config
    from fxlrp.evaluation.insertion import Curves, InsertionDeletion, PlateauWarning, insertion_deletion
    from fxlrp.evaluation.markdown_report import write_report
    from fxlrp.evaluation.methods import KINDS, Attribution, MethodSpec, prepare
    from fxlrp.evaluation.quantus import quantus_scores
    from fxlrp.evaluation.relevance_sums import conservation
    from fxlrp.evaluation.result_frames import read_results
    from fxlrp.evaluation.runner import Finished, Progress, evaluate

__all__ = [
    "KINDS", "Attribution", "Config", "Curves", "Finished", "InsertionDeletion", "MethodSpec", "PlateauWarning",
    "Progress", "Randomized", "conservation", "evaluate", "insertion_deletion", "parse_config", "prepare",
    "quantus_scores", "randomization_check", "rank_correlation", "read_config", "read_results", "write_report",
]  # fmt: skip

_HOMES = {
    "agreement": ("Randomized", "randomization_check", "rank_correlation"),
    "config": ("Config",),
    "config_file": ("parse_config", "read_config"),
    "relevance_sums": ("conservation",),
    "insertion": ("Curves", "InsertionDeletion", "PlateauWarning", "insertion_deletion"),
    "markdown_report": ("write_report",),
    "methods": ("KINDS", "Attribution", "MethodSpec", "prepare"),
    "quantus": ("quantus_scores",),
    "result_frames": ("read_results",),
    "runner": ("Finished", "Progress", "evaluate"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_PACKAGES = {
    "config": ("pydantic",),
    "config_file": ("pydantic",),
    "markdown_report": ("pydantic", "pyarrow", "polars", "scipy", "jinja2", "matplotlib"),
    "result_frames": ("pydantic", "pyarrow", "polars", "scipy"),
    "runner": ("pydantic", "pyarrow"),
}
"""The packages of the extra ``evaluate`` that modules cannot do without."""


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME_OF[name]
    for package in _PACKAGES.get(home, ()):
        require(package, "evaluate")
    globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    return value
