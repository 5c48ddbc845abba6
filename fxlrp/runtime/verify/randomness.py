"""The generators that a forward() may draw from: torch's, numpy's and Python's."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def seed_all(seed: int) -> None:
    """Seed all generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(seed)


def random_state() -> tuple[Any, ...]:
    """The states of all generators, to be compared."""
    state: list[Any] = [torch.get_rng_state().numpy().tobytes(), random.getstate()]
    if "numpy.random" in sys.modules:
        kind, keys, *rest = sys.modules["numpy.random"].get_state()
        state += [kind, keys.tobytes(), *rest]
    return tuple(state)


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Let code within draw: afterwards all generators are where they were."""
    python, numpy = random.getstate(), sys.modules.get("numpy.random")
    kept = numpy.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(kept)
