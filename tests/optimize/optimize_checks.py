"""What the tests of the optimiser compare: explanations with and without it, the steps written, the operations run."""

from __future__ import annotations

import torch
from checks import assert_close, tolerance
from hypothesis import strategies as st
from hypothesis_profiles import by_profile
from token_nets import Attention, Block, Fused, Tokens
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

import fxlrp
from fxlrp.passes.facts import KEY, Emitted
from fxlrp.passes.optimize import NAMES

DOUBLE = torch.float64

ALONE = {f"{name} alone": (name,) for name in NAMES}
LEFT_OUT = {f"all but {name}": tuple(other for other in NAMES if other != name) for name in NAMES}
CHOICES = {**ALONE, **LEFT_OUT, "all": NAMES, "the default": True}
"""What is asked for of the optimiser."""

PRESETS = {
    "conserving": "conserving", "otsuki2024": "otsuki2024", "epsilon_plus": "epsilon_plus",
    "epsilon_gamma_box": fxlrp.presets.epsilon_gamma_box(-8, 8),  # a box must hold the input
}  # fmt: skip

SEEDS = by_profile(fast=st.just(0), slow=st.integers(0, 5))
ANY_CHOICE = st.sampled_from(
    [*CHOICES.values(), *by_profile(fast=(), slow=[(a, b) for a in NAMES for b in NAMES if a < b])]
)
TOKEN_PRESETS = st.sampled_from(["conserving", "attnlrp", "cp_lrp"])


def presets_beside(*fast, slow_without=()):
    """``fast`` in the default run; in the slow one every preset but those that need more than a network."""
    left_out = {"epsilon_gamma_box", "otsuki2024_mixture", *slow_without}
    return st.sampled_from(by_profile(fast=fast, slow=sorted(set(fxlrp.PRESETS) - left_out)))


def chosen_preset(preset):
    """A preset by its name here, or one as it is."""
    return PRESETS.get(preset, preset) if isinstance(preset, str) else preset


def explained(model, *inputs, optimize, preset="conserving", **options):
    """The explanation that is optimised as asked."""
    return fxlrp.compile(model, chosen_preset(preset), optimize=optimize, **options)(*inputs)


def assert_same(explanation, plain, limit=None):
    """Relevance, start and checkpoints are those of the graph as the rules wrote it, to rounding."""
    for name, relevance in plain.by_input.items():
        limit = limit or tolerance(relevance.dtype)
        assert_close(explanation.by_input[name], relevance, limit)
    # What starts may sum to zero.
    largest = max(relevance.abs().max() for relevance in (plain.start, *plain.by_input.values()))
    assert ((explanation.start - plain.start).abs() <= limit * largest).all()
    assert explanation.checkpoints.keys() == plain.checkpoints.keys()
    for name, relevance in plain.checkpoints.items():
        assert_close(explanation.checkpoints[name], relevance, limit)


def assert_changes_nothing(model, *inputs, optimize, preset="conserving", limit=None, **options):
    """What is explained is the same with and without; also at the second call, which runs on what the first kept."""
    plain = explained(model, *inputs, optimize=False, preset=preset, **options)
    explainer = fxlrp.compile(model, chosen_preset(preset), optimize=optimize, **options)
    for _ in range(2):
        assert_same(explainer(*inputs), plain, limit)
    return explainer


def limit_of(preset):
    """How far rounding may lead: ε rules and ε splits are steep, and carry it on."""
    return 1e-12 if preset in ("conserving", "otsuki2024") else 1e-10


def steps(graph):
    """Every step of a graph as text."""
    return [node.format_node() for node in graph.nodes]


def written(explainer, *targets, layer=None):
    """The steps of rules that call one of ``targets``, of ``layer`` alone where it is given."""
    graphs = [explainer.graph]
    if hasattr(explainer.graph_module, "derived"):
        graphs.append(explainer.graph_module.derived.program.graph)
    found = [node for graph in graphs for node in graph.nodes if node.target in targets]
    known = [(node, node.meta.get(KEY)) for node in found]
    return [node for node, of in known if isinstance(of, Emitted) and layer in (None, of.node)]


class _Values(fx.Interpreter):
    """Runs a program and keeps the value of every node."""

    def __init__(self, module):
        super().__init__(module, garbage_collect_values=False)


def values_of(explainer, *inputs):
    """The value of every node of a program."""
    run = _Values(explainer.graph_module)
    with torch.no_grad():
        run.run(*inputs, None)
    return run.env


def assert_leaves_tokens_alone(name):
    """A network that gives a pass nothing to do has the same graph after it."""
    model = Tokens(Block(Attention()), Block(Fused())).double().eval()
    plain, passed = (fxlrp.compile(model, "cp_lrp", start="logit", optimize=o) for o in (False, (name,)))
    assert steps(passed.graph) == steps(plain.graph)


class Calls(TorchDispatchMode):
    """Counts the calls of ATen operations, with the shape of their first argument: ``(name, shape)``."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        first = args[0] if args else None
        self.seen.append((function.overloadpacket.__name__, first.shape if isinstance(first, torch.Tensor) else None))
        return function(*args, **(kwargs or {}))

    def of(self, *names, shapes=None):
        """The shapes that these operations were called with, of ``shapes`` alone where they are given."""
        return [shape for name, shape in self.seen if name in names and (shapes is None or shape in shapes)]


def calls(function, *arguments, **options):
    """The operations that a call runs."""
    with Calls() as seen:
        function(*arguments, **options)
    return seen
