"""The passes one by one: what each requires, finds and ensures."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from fxlrp.capture import trace
from fxlrp.passes.annotate import Annotate
from fxlrp.passes.assign import Assign
from fxlrp.passes.base import Pass, PassError
from fxlrp.passes.canonicalize import canonicalize
from fxlrp.passes.emit import emit
from fxlrp.passes.facts import KEY, Emitted, Facts, facts, has_facts
from fxlrp.passes.joins import FindJoins
from fxlrp.passes.request import Request
from fxlrp.presets import PRESETS
from fxlrp.rules.starts import STARTS


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        h = F.relu(self.stem(x))
        h = h + self.conv(h)
        return self.fc(h.mean((2, 3)))


def canonical(model=None):
    return canonicalize(trace((model or Net()).eval()))


def annotated(function, **modules):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            for name, module in modules.items():
                setattr(self, name, module)

        def forward(self, x):
            return function(self, x)

    module = Annotate()(canonical(Model()))
    return {node.name: facts(node) for node in module.graph.nodes if has_facts(node)}


def test_the_pipeline_is_run_in_order():
    traced = fx.symbolic_trace(Net())
    with pytest.raises(PassError, match="canonicalise first"):
        Annotate()(traced)
    module = canonical()
    with pytest.raises(PassError, match="annotate first"):
        FindJoins()(module)
    Annotate()(module)
    with pytest.raises(PassError, match="find joins first"):
        Assign(PRESETS["conserving"])(module)
    FindJoins()(module)
    Assign(PRESETS["conserving"])(module)
    output = next(node for node in module.graph.nodes if node.op == "output").args[0][0]
    program = emit(module, output, STARTS["probability"], Request())
    program.module.graph.lint()


def test_a_pass_that_breaks_its_promise_is_caught():
    class Lazy(Pass):
        def run(self, module):
            return module

        def ensures(self, module):
            raise PassError("nothing was done")

    with pytest.raises(PassError, match="nothing was done"):
        Lazy()(canonical())


def test_running_a_pass_twice_changes_nothing():
    module = FindJoins()(Annotate()(canonical()))
    before = {node.name: repr(facts(node).join) + str(facts(node).kind) for node in module.graph.nodes}
    FindJoins()(Annotate()(module))
    assert before == {node.name: repr(facts(node).join) + str(facts(node).kind) for node in module.graph.nodes}


SIGNS = {
    "relu": (lambda m, x: x.relu(), True),
    "sigmoid": (lambda m, x: x.sigmoid(), True),
    "clamp from zero": (lambda m, x: x.clamp(0, 1), True),
    "clamp from below": (lambda m, x: x.clamp(-1, 1), False),
    "clamp of a relu": (lambda m, x: x.relu().clamp(-1, 1), True),
    "clamp below zero": (lambda m, x: x.relu().clamp_max(-1.0), False),
    "clamp to a negative bound": (lambda m, x: x.clamp(0, -1), False),
    "hardtanh below zero": (lambda m, x: F.hardtanh(x.relu(), -2.0, -1.0), False),
    "gelu": (lambda m, x: F.gelu(x), False),
    "gelu of relu": (lambda m, x: F.gelu(x.relu()), True),
    "square": (lambda m, x: x**2, True),
    "cube": (lambda m, x: x**3, False),
    "pooled relu": (lambda m, x: F.max_pool2d(F.avg_pool2d(x.relu(), 2), 2), True),
    "sum of relus": (lambda m, x: x.relu() + (-x).relu(), True),
    "difference of relus": (lambda m, x: x.relu() - (-x).relu(), False),
    "relu plus a number": (lambda m, x: x.relu() + 1, True),
    "relu minus a number": (lambda m, x: x.relu() + -1, False),
    "relu times a parameter": (lambda m, x: x.relu() * m.conv.bias[0], False),
    "half a relu": (lambda m, x: x.relu() / 2, True),
    "cat of relus": (lambda m, x: torch.cat([x.relu(), x.sigmoid()], 1), True),
    "cat with a signed one": (lambda m, x: torch.cat([x.relu(), x], 1), False),
    "moved relu": (lambda m, x: x.relu().permute(0, 2, 3, 1)[:, ::2].flatten(1), True),
    "part of a split": (lambda m, x: x.relu().chunk(3, 1)[1], True),
    "relu padded with zeros": (lambda m, x: F.pad(x.relu(), (1, 1)), True),
    "relu padded with less": (lambda m, x: F.pad(x.relu(), (1, 1), value=-1.0), False),
    "convolved relu": (lambda m, x: m.conv(x.relu()), False),
}


@pytest.mark.parametrize("name", SIGNS)
def test_signs(name):
    function, nonnegative = SIGNS[name]
    known = annotated(function, conv=nn.Conv2d(3, 3, 1))
    *_, last = [f for n, f in known.items() if n != "output" and f.signal]
    assert last.nonnegative is nonnegative


def test_a_sign_that_is_claimed_is_true():
    for function, claimed in SIGNS.values():
        if claimed:
            conv = nn.Conv2d(3, 3, 1)
            assert (function(nn.ModuleDict({"conv": conv}), torch.randn(2, 3, 8, 8)) >= 0).all()


def test_first_layers():
    known = annotated(
        lambda m, x: m.c(F.relu(m.a(x / 255 - 0.5)) + m.b(F.avg_pool2d(x, 1))),
        a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1), c=nn.Conv2d(3, 3, 1),
    )  # fmt: skip
    assert {name for name, f in known.items() if f.first} == {"a", "b"}


def test_padding_is_followed():
    known = annotated(lambda m, x: F.pad(x.relu(), (1, 0)).relu().flatten(1).sigmoid() + 1)
    assert [(n, f.padded, f.filled) for n, f in known.items() if f.signal and n != "output"][1:] == [
        ("relu", False, False), ("constant_pad_nd", True, False), ("relu_1", True, False), ("flatten", True, False),
        ("sigmoid", True, True), ("add", True, True),
    ]  # fmt: skip


def test_joins_before_a_node_are_counted():
    known = FindJoins()(Annotate()(canonical()))
    count = {node.name: facts(node).after_joins for node in known.graph.nodes}
    assert (count["stem"], count["conv"], count["add"], count["fc"]) == (0, 0, 1, 1)


def test_emitted_nodes_say_what_they_belong_to():
    import fxlrp

    graph = fxlrp.compile(Net().eval(), "conserving").graph_module.graph
    emitted = {node.name: node.meta[KEY] for node in graph.nodes if isinstance(node.meta.get(KEY), Emitted)}
    known = [node.name for node in graph.nodes if isinstance(node.meta.get(KEY), Facts)]
    assert "conv" in known
    assert len(emitted) + len(known) == len(graph.nodes) - 1  # all but the output
    relevance = emitted["relevance_relu_from_conv"]
    assert (relevance.node, relevance.rule, relevance.role, relevance.value) == ("conv", "ZPlus", "relevance", "relu")
    assert emitted["conv_positive"].role == "step"
    assert emitted["fc_resolve_target"].role == "start"


def test_names_say_where_nodes_come_from():
    names = [node.name for node in canonical().graph.nodes]
    assert [n for n in names if "_" not in n] == ["x", "stem", "relu", "conv", "add", "mean", "fc", "output"]
    assert "conv_weight" in names
