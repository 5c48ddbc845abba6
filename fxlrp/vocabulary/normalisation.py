"""Normalisations in eval mode: relevance passes them unchanged (the LN rule)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fxlrp.steps.norm_transposes import batch_norm_back, group_norm_back, layer_norm_back, rms_norm_back
from fxlrp.vocabulary.channel_moves import behind_batch, last
from fxlrp.vocabulary.operation import Arguments, Composed, Kind, Operation, Unsupported

aten = torch.ops.aten


def cudnn() -> bool:
    """Whether torch would use cuDNN: what its own functions pass on."""
    return bool(torch.backends.cudnn.enabled)


def lower_batch_norm(input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
                     training: bool = False, momentum: float | None = 0.1, eps: float = 1e-5) -> Any:
    if training or running_mean is None:
        reason = "batch statistics in eval mode (track_running_stats=False): items would depend on each other"
        raise Unsupported(reason, final=True)
    # Without momentum, torch averages; in eval mode it is not used at all.
    return aten.batch_norm.default(
        input, weight, bias, running_mean, running_var, False, momentum or 0.0, eps, cudnn()
    )


def lower_native_batch_norm(input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float,
                            eps: float) -> tuple[Any, None, None]:
    normed = aten.batch_norm.default(input, weight, bias, running_mean, running_var, False, momentum, eps, cudnn())
    return normed, None, None


def lower_batch_norm_module(module: Any, input: Any) -> Any:
    return lower_batch_norm(
        input, module.running_mean, module.running_var, module.weight, module.bias,
        False, module.momentum, module.eps,
    )


def lower_instance_norm(input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None,
                        bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1,
                        eps: float = 1e-5) -> Any:
    return aten.instance_norm.default(
        input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn()
    )


def lower_instance_norm_module(module: Any, input: Any) -> Any:
    return lower_instance_norm(
        input, module.running_mean, module.running_var, module.weight, module.bias,
        not module.track_running_stats, module.momentum, module.eps,
    )


def lower_group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    return aten.group_norm.default(input, num_groups, weight, bias, eps, cudnn())


def lower_layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None,
                     eps: float = 1e-5) -> Any:
    return aten.layer_norm.default(input, list(normalized_shape), weight, bias, eps, cudnn())


def lower_rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    return aten.rms_norm.default(input, list(normalized_shape), weight, eps)


def bind_instance_norm(a: Arguments, x: Any) -> Any:
    if not a["use_input_stats"]:
        return lambda s: batch_norm_back(s, a["weight"], a["running_var"], a["eps"])
    return lambda s: group_norm_back(s, x, x.shape[1], a["weight"], a["eps"])


OPERATIONS = [
    Operation(
        aten.batch_norm.default, Kind.NORMALISATION,
        channels=behind_batch, functions=(F.batch_norm,), lower=lower_batch_norm,
        aten={aten._native_batch_norm_legit_no_training.default: lower_native_batch_norm},
        bind=lambda a, x: lambda s: batch_norm_back(s, a["weight"], a["running_var"], a["eps"]),
    ),
    Operation(
        aten.instance_norm.default, Kind.NORMALISATION,
        channels=behind_batch, functions=(F.instance_norm,), lower=lower_instance_norm,
        bind=bind_instance_norm,
    ),
    Operation(
        aten.group_norm.default, Kind.NORMALISATION,
        channels=behind_batch, functions=(F.group_norm,), lower=lower_group_norm,
        bind=lambda a, x: lambda s: group_norm_back(s, x, a["num_groups"], a["weight"], a["eps"]),
    ),
    Operation(
        aten.layer_norm.default, Kind.NORMALISATION, channels=last, functions=(F.layer_norm,), lower=lower_layer_norm,
        bind=lambda a, x: lambda s: layer_norm_back(s, x, a["normalized_shape"], a["weight"], a["eps"]),
    ),
    Operation(
        aten.rms_norm.default, Kind.NORMALISATION, channels=last, functions=(F.rms_norm,), lower=lower_rms_norm,
        bind=lambda a, x: lambda s: rms_norm_back(s, x, a["normalized_shape"], a["weight"], a["eps"]),
    ),
]

def lower_native_layer_norm(input: Any, normalized_shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    return lower_layer_norm(input, normalized_shape, weight, bias, eps), None, None


def lower_native_group_norm(input: Any, weight: Any, bias: Any, N: Any, C: Any, HxW: Any, group: int,
                            eps: float) -> Any:
    return lower_group_norm(input, group, weight, bias, eps), None, None


def lower_batch_statistics(input: Any, weight: Any, bias: Any, *more: Any) -> Any:
    raise Unsupported("batch statistics in eval mode: items would depend on each other", final=True)


COMPOSED = [
    Composed(lower_native_layer_norm, (torch.native_layer_norm,), (), {aten.native_layer_norm.default: None}),
    Composed(lower_native_group_norm, (torch.native_group_norm,), (), {aten.native_group_norm.default: None}),
    Composed(lower_batch_statistics, (), (), dict.fromkeys(
        (aten._native_batch_norm_legit.default, aten._native_batch_norm_legit.no_stats)
    )),
]

MODULES = {
    _BatchNorm: lower_batch_norm_module,
    nn.SyncBatchNorm: lower_batch_norm_module,
    _InstanceNorm: lower_instance_norm_module,
}
"""Modules that tracing does not open (they look at the rank of their input), and how each is lowered."""
