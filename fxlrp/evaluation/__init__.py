"""Evaluation of explanation methods: metrics, methods, data, runs and reports."""

from fxlrp.evaluation.agreement import Randomized, randomization_check, rank_correlation
from fxlrp.evaluation.config import Config
from fxlrp.evaluation.conservation import conservation
from fxlrp.evaluation.insertion import Curves, InsertionDeletion, PlateauWarning, insertion_deletion
from fxlrp.evaluation.methods import KINDS, Attribution, MethodSpec, prepare
from fxlrp.evaluation.quantus import quantus_scores
from fxlrp.evaluation.reading import parse_config, read_config
from fxlrp.evaluation.report import write_report
from fxlrp.evaluation.runner import Finished, Progress, evaluate

__all__ = [
    "KINDS", "Attribution", "Config", "Curves", "Finished", "InsertionDeletion", "MethodSpec", "PlateauWarning",
    "Progress", "Randomized", "conservation", "evaluate", "insertion_deletion", "parse_config", "prepare",
    "quantus_scores", "randomization_check", "rank_correlation", "read_config", "write_report",
]  # fmt: skip
