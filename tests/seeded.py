"""Weights and inputs that are the same on every machine, for reference maps.

Drawn from numpy's legacy generator, whose stream is frozen, in the order of the ``state_dict``.
"""

import numpy as np
import torch


def seeded(model, seed=0):
    """``model`` in float64 and eval mode, every parameter and statistic drawn from ``seed``."""
    random = np.random.RandomState(seed)
    state = model.double().eval().state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(np.asarray(_draw(random, name, tuple(tensor.shape)))))
    return model


def _draw(random, name, shape):
    if name.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape)
    if len(shape) > 1:
        return random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    # Scales of norms are near one, and now and then negative.
    return random.normal(1 if name.endswith("weight") else 0, 0.3, shape)


def seeded_pixels(*shape, seed=0):
    """Pixels as ImageNet models take them, (batch, 3, height, width)."""
    mean, std = (np.array(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return torch.from_numpy((np.random.RandomState(seed).uniform(size=shape) - mean) / std)


def seeded_normal(*shape, seed=0):
    """Standard normal values."""
    return torch.from_numpy(np.random.RandomState(seed).normal(size=shape))
