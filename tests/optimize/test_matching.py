"""Patterns of steps: which calls they match, and what they capture."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from fxlrp.passes.optimize.matching import Capture, Step, arguments_of
from fxlrp.steps.convolution import convolution_transpose

aten = torch.ops.aten


def scaled(x, factor, *, offset=0):
    return factor * x + offset


def summed(value, axis=None):
    return value.sum(axis)


@pytest.fixture
def graph():
    return fx.Graph()


@pytest.fixture
def x(graph):
    return graph.placeholder("x")


@pytest.mark.parametrize(("args", "kwargs"), [((2,), {}), ((), {"factor": 2})], ids=["by position", "by name"])
def test_arguments_have_the_names_of_parameters(graph, x, args, kwargs):
    assert arguments_of(graph.call_function(scaled, (x, *args), kwargs)) == {"x": x, "factor": 2, "offset": 0}


def test_a_given_argument_takes_the_place_of_the_default(graph, x):
    assert arguments_of(graph.call_function(scaled, (x, 2), {"offset": 3}))["offset"] == 3
    assert arguments_of(graph.call_function(summed, (x, 1))) == {"value": x, "axis": 1}


def test_arguments_of_an_aten_operator_have_the_names_and_defaults_of_its_schema(graph, x):
    found = arguments_of(graph.call_function(aten.conv2d.default, (x, x), {"padding": [1, 1]}))
    assert found == {
        "input": x, "weight": x, "bias": None, "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1
    }  # fmt: skip


@pytest.mark.parametrize(("function", "operator_alike"), [
    (F.conv1d, aten.conv1d.default), (F.conv2d, aten.conv2d.default), (F.conv3d, aten.conv3d.default),
    (F.linear, aten.linear.default), (torch.matmul, aten.matmul.default),
])  # fmt: skip
def test_functions_without_a_python_signature_have_the_arguments_of_their_operator(graph, x, function, operator_alike):
    found, expected = (arguments_of(graph.call_function(f, (x, x))) for f in (function, operator_alike))
    assert found == expected
    assert [value for value in found.values() if value is x] == [x, x]


def test_getattr_has_an_object_and_a_name(graph, x):
    assert arguments_of(graph.call_function(getattr, (x, "shape"))) == {"object": x, "name": "shape"}


def test_a_step_of_the_rules_has_the_arguments_of_its_own_parameters(graph, x):
    found = arguments_of(graph.call_function(convolution_transpose, (x, x, x), {"groups": 2}))
    assert found["groups"] == 2
    assert list(found)[:3] == ["s", "weight", "x"]


def test_a_step_matches_a_call_of_any_of_its_functions(graph, x):
    pattern = Step(operator.add, operator.sub)
    assert pattern.match(graph.call_function(operator.sub, (x, 1))) == {}
    assert pattern.match(graph.call_function(operator.mul, (x, 1))) is None


@pytest.mark.parametrize("value", [None, 3, "x", [1], operator.add])
def test_a_step_does_not_match_what_is_no_node(value):
    assert Step(operator.add).match(value) is None


def test_a_step_does_not_match_an_input(x):
    assert Step(operator.add).match(x) is None


def test_arguments_that_the_pattern_leaves_out_may_be_anything(graph, x):
    assert Step(scaled, factor=2).match(graph.call_function(scaled, (x, 2), {"offset": 5})) == {}


@pytest.mark.parametrize("given", [{}, {"offset": 0}], ids=["by default", "given"])
def test_an_argument_of_the_pattern_may_be_a_default_of_the_call(graph, x, given):
    node = graph.call_function(scaled, (x, 2), given)
    assert Step(scaled, offset=0).match(node) == {}
    assert Step(scaled, offset=1).match(node) is None


@pytest.mark.parametrize("value", [1.0, True, [1], "1", None])
def test_an_equal_number_of_another_type_does_not_match(graph, x, value):
    assert Step(scaled, factor=1).match(graph.call_function(scaled, (x, 1))) == {}
    assert Step(scaled, factor=value).match(graph.call_function(scaled, (x, 1))) is None


def test_a_capture_takes_any_value_by_default(graph, x):
    node = graph.call_function(scaled, (x, None))
    assert Step(scaled, x=Capture("signal"), factor=Capture("by")).match(node) == {"signal": x, "by": None}


def test_a_capture_takes_only_what_its_test_accepts(graph, x):
    pattern = Step(scaled, factor=Capture("by", lambda value: value > 1))
    assert pattern.match(graph.call_function(scaled, (x, 2))) == {"by": 2}
    assert pattern.match(graph.call_function(scaled, (x, 1))) is None


def test_a_named_step_captures_its_node(graph, x):
    node = graph.call_function(scaled, (x, 2))
    assert Step(scaled, name="scaling", factor=Capture("by")).match(node) == {"scaling": node, "by": 2}


def test_a_nested_pattern_captures_on_every_level(graph, x):
    inner = graph.call_function(scaled, (x,), {"factor": 3})
    outer = graph.call_function(summed, (inner, 1))
    scaling = Step(scaled, name="scaling", x=Capture("x"), factor=Capture("by"))
    pattern = Step(summed, name="sum", value=scaling, axis=Capture("axis"))
    assert pattern.match(outer) == {"sum": outer, "scaling": inner, "x": x, "by": 3, "axis": 1}


def test_a_nested_pattern_that_does_not_match_captures_nothing(graph, x):
    pattern = Step(summed, axis=Capture("axis"), value=Step(scaled, factor=2))
    assert pattern.match(graph.call_function(summed, (x, 1))) is None
    assert pattern.match(graph.call_function(summed, (graph.call_function(scaled, (x, 3)), 1))) is None
    assert pattern.match(graph.call_function(summed, (graph.call_function(scaled, (x, 2)), 1))) == {"axis": 1}


def test_matching_leaves_the_graph_as_it_is(graph, x):
    node = graph.call_function(scaled, (x, 2))
    before = [n.format_node() for n in graph.nodes]
    Step(scaled, x=Capture("x")).match(node)
    assert [n.format_node() for n in graph.nodes] == before
