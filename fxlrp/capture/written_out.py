"""Functions of torch that ask for values while they compute, written out in operations that an export can follow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxlrp.capture.recurrent import of_thread

Function = Callable[..., Any]


def written_out() -> dict[Function, Function]:
    """The functions, and what stands in their place in the thread that captures."""
    ours: dict[Function, Function] = {
        torch.cov: _covariance, torch.corrcoef: _correlation, torch.linalg.lstsq: _least_squares,
    }  # fmt: skip
    thread = threading.get_ident()
    return {function: of_thread(function, partial(own, function), thread) for function, own in ours.items()}


def _covariance(function: Function, input: Tensor, *, correction: int = 1, **weights: Any) -> Tensor:
    if any(weight is not None for weight in weights.values()) or input.dim() != 2:
        covariance: Tensor = function(input, correction=correction, **weights)
        return covariance
    return covariance_of(input, correction)


def covariance_of(input: Tensor, correction: int = 1) -> Tensor:
    """That of the rows of a matrix."""
    centred = input - input.mean(1, keepdim=True)
    return centred @ centred.mT / max(input.shape[1] - correction, 0)


def _correlation(function: Function, input: Tensor) -> Tensor:
    if input.dim() != 2:
        correlation: Tensor = function(input)
        return correlation
    covariance = covariance_of(input)
    deviation = covariance.diagonal().sqrt()
    return (covariance / deviation[:, None] / deviation).clamp(-1, 1)


def _least_squares(function: Function, A: Tensor, B: Tensor, rcond: Any = None, *, driver: Any = None) -> Any:
    """Of a matrix of full rank, by its pseudo-inverse."""
    if rcond is not None or A.dim() != B.dim():
        return function(A, B, rcond, driver=driver)
    several: Any = torch.return_types
    return several.linalg_lstsq((torch.linalg.pinv(A) @ B, B[..., :0], A[..., 0, 0], A[..., :0, 0]))
