"""What the workers of tests/test_speed_benchmark.py time: found here by name, with no more imports than it needs."""

from benchmarks.methods import Method


def once(trial):
    trial.facts["extra"] = 7
    yield
    yield lambda: trial.model(trial.images)


def in_parts(trial):
    yield
    yield lambda: {"left": 1.0, "right": 2.0}


def broken(trial):
    yield
    raise ValueError("no rule for this layer")


METHODS = {"yard": Method(once), "broken": Method(broken), "parts": Method(in_parts, parts=True)}
