"""What methods cost: in every round they take turns, each between two forward passes."""

import pytest
import torch

from fxlrp.evaluation.costs import SLOW_ROUNDS, Cost, costs_of, measure_costs, told

CPU = torch.device("cpu")
SQUARE = torch.ones(256, 256)


def test_methods_take_turns_between_forward_passes():
    calls = []

    def forward():
        calls.append("forward")
        return SQUARE @ SQUARE

    methods = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    found = measure_costs(methods, forward, CPU, rounds=2)
    assert calls == ["forward"] + ["forward", "a", "forward", "b", "forward"] * 3  # the first round warms up
    assert list(found) == ["a", "b"]
    assert all(len(cost["turns"]) == len(cost["placebo"]) == 2 for cost in found.values())
    assert all(ratio > 0 for cost in found.values() for ratio in cost["placebo"])


def test_a_cost_is_a_multiple_of_a_forward_pass():
    large = torch.ones(700, 700)

    def times(count):
        return lambda: [large @ large for _ in range(count)]

    found = costs_of(measure_costs({"eight": times(8), "one": times(1)}, times(1), CPU, rounds=5))
    assert found["eight"].median > 2 * found["one"].median  # processor time: eight in truth


def test_slow_methods_take_fewer_turns():
    calls = []

    def slow():
        calls.append(None)
        for _ in range(1000):
            SQUARE @ SQUARE

    found = measure_costs({"slow": slow, "fast": lambda: None}, lambda: SQUARE @ SQUARE, CPU, rounds=9)
    assert len(calls) == len(found["slow"]["turns"]) == SLOW_ROUNDS
    assert len(found["fast"]["turns"]) == 9


def test_a_method_that_fails_costs_nothing_and_the_others_go_on():
    def fails():
        raise RuntimeError("no")

    assert list(measure_costs({"fails": fails, "works": lambda: None}, lambda: SQUARE @ SQUARE, CPU, 2)) == ["works"]


@pytest.mark.parametrize(
    ("values", "text"), [([], "–"), ([3.14], "3.1"), ([3.0, 1.0, 2.0], "2.0 (1.0 to 3.0)")]
)  # fmt: skip
def test_what_is_told_of_turns(values, text):
    assert told(values) == text


def test_earlier_results_hold_a_median():
    assert costs_of({"a": 2.5, "b": {"turns": [1.0, 3.0], "placebo": [1.0, 1.0]}}) == {
        "a": Cost([2.5], []), "b": Cost([1.0, 3.0], [1.0, 1.0])
    }  # fmt: skip
