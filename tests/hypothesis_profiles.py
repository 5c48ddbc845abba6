"""Hypothesis profiles: a property has one body, with few examples in the default run and many in the slow run.

``pytest`` runs under the profile ``fast``; ``pytest -m slow``, or any ``-m`` that lets slow tests in, under ``slow``.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings

_SHARED = {
    "deadline": None,
    "derandomize": True,
    "phases": [Phase.explicit, Phase.generate, Phase.shrink],
    "suppress_health_check": [HealthCheck.too_slow],
}

settings.register_profile("fast", max_examples=10, **_SHARED)
settings.register_profile("slow", max_examples=200, **_SHARED)


def load_for(mark_expression: str) -> None:
    """Load the profile that suits a run that selects tests by this ``-m``; before test modules are imported."""
    settings.load_profile("fast" if "not slow" in mark_expression else "slow")


def is_slow() -> bool:
    """Whether this run takes the long form of properties."""
    return settings.default == settings.get_profile("slow")


def by_profile(fast, slow):
    """What a property draws from: ``fast`` in the default run, ``slow``, which holds more, in the slow one."""
    return slow if is_slow() else fast


def examples(*, fast, slow):
    """Run a property with ``fast`` examples by default; with ``slow`` ones, and marked as slow, in the slow run."""

    def decorate(test):
        return pytest.mark.slow(settings(max_examples=slow)(test)) if is_slow() else settings(max_examples=fast)(test)

    return decorate
