"""``compile(optimize=…)``: what may be asked for, and what it leaves as it is."""

import copy
import pickle

import pytest
import torch
from optimize_checks import steps
from optimize_nets import signed, tour

import fxlrp
from fxlrp.errors import FxlrpError, OptimizeError
from fxlrp.passes.facts import KEY, Emitted
from fxlrp.passes.optimize import NAMES, chosen


@pytest.mark.parametrize("optimize", [None, 3])
def test_a_value_that_is_neither_boolean_nor_names_is_rejected(optimize):
    with pytest.raises(OptimizeError, match="give True, False, or some of 'single_branch'"):
        fxlrp.compile(tour()[0], "conserving", optimize=optimize)


@pytest.mark.parametrize("asked", ["fold", ["fold_weights", "unrolling"], ["single_branch", 3]])
def test_an_unknown_name_is_rejected_and_the_known_ones_are_listed(asked):
    model, _ = signed()
    with pytest.raises(OptimizeError) as error:
        fxlrp.compile(model, "conserving", optimize=asked)
    assert isinstance(error.value, FxlrpError)
    assert all(repr(name) in str(error.value) for name in NAMES)


def test_names_are_sorted_into_the_order_in_which_passes_run():
    assert chosen(reversed(NAMES)) == NAMES
    assert chosen("fold_weights") == chosen(["fold_weights", "fold_weights"]) == ("fold_weights",)
    assert chosen([]) == chosen(False) == ()
    assert chosen(True) == NAMES


def test_without_optimisation_the_graph_is_the_emitted_one():
    model, _ = tour()
    explainer = fxlrp.compile(model, "conserving", optimize=False)
    assert steps(explainer.graph) == steps(explainer.emitted)


def test_the_emitted_graph_is_kept_beside_the_optimised_one():
    model, _ = tour()
    rules = ("single_branch", "reuse_forward")  # what is known to rules while they write
    optimized, plain = fxlrp.compile(model, "conserving"), fxlrp.compile(model, "conserving", optimize=rules)
    assert [node.name for node in optimized.emitted.nodes] == [node.name for node in plain.graph.nodes]


@pytest.mark.parametrize("asked", [False, True, ("known_sums", "reuse_memory")])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda explainer: pickle.loads(pickle.dumps(explainer))])
def test_a_copy_of_an_explainer_has_the_same_optimised_graph(asked, copied):
    model, x = signed()
    explainer = fxlrp.compile(model, "conserving", optimize=asked)
    explanation = explainer(x)
    twin = copied(explainer)
    assert steps(twin.graph) == steps(explainer.graph)
    assert torch.equal(twin(x).relevance, explanation.relevance)


def test_passes_keep_the_names_of_nodes():
    # A picture, the code and what was noted of a node find it by its name.
    model, _ = tour()
    plain = fxlrp.compile(model, "conserving", optimize=("single_branch", "reuse_forward"))
    optimized = fxlrp.compile(model, "conserving")
    relevance = {node.name for node in plain.graph.nodes if node.name.startswith("relevance_")}
    assert relevance <= {node.name for node in optimized.graph.nodes}
    forward = [node.name for node in plain.graph.nodes if not isinstance(node.meta.get(KEY), Emitted)]
    assert [node.name for node in optimized.graph.nodes if node.name in forward] == forward
