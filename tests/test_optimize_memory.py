"""Memory that is used again: nothing is overwritten that is read later, or that is not the program's own."""

import operator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from fxlrp.rules.join import SplitRule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import RandomNet
from optimize_nets import (
    NAMES,
    SMALL,
    assert_changes_nothing,
    assert_same,
    attention,
    chosen_preset,
    explained,
    stack,
    stack_plans,
    tour,
)
from strategies import net_plans, token_net_plans
from token_nets import WIDTH, RandomTokens
from torch import fx, nn

import fxlrp
from fxlrp.passes.optimize import DEFAULT, REUSE_MEMORY, in_place
from fxlrp.rules import Shares
from fxlrp.steps import declaration, memory
from fxlrp.steps.addition import ratio, ratio_split, ratio_split_into, signed_split, signed_split_into
from fxlrp.steps.batch_axis import rescale_into, rescale_to, sum_items
from fxlrp.steps.declaration import declare, facts_of
from fxlrp.steps.primitives import divide, divide_into
from fxlrp.steps.torch_functions import ACTIVATIONS, add_into, multiply_into, subtract_into

DOUBLE = torch.float64
WRITING = (
    operator.mul, operator.add, operator.sub, divide, rescale_to, ratio_split, signed_split,
    *(getattr(torch.ops.aten, name).default for name in ACTIVATIONS),
)  # fmt: skip
INTO = {facts_of(step).writes_into.step for step in WRITING}


class Watched(fx.Interpreter):
    """Runs a program and fails where a step reads a value that was written to since it was made."""

    def __init__(self, module):
        super().__init__(module)
        self.made = {}

    def run_node(self, node):
        for read in node.all_input_nodes:
            assert _equal(self.env[read], self.made[read]), f"{node} reads {read}, which was overwritten"
        result = super().run_node(node)
        self.made[node] = _copied(result)
        return result


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    return [_copied(entry) for entry in value] if isinstance(value, list | tuple) else None


def _equal(value, known):
    if isinstance(value, torch.Tensor):
        return torch.equal(value.nan_to_num(), known.nan_to_num())
    return not isinstance(value, list | tuple) or all(map(_equal, value, known))


def assert_reads_what_was_made(explainer, *inputs):
    """No step of the program reads a value that another one has overwritten."""
    with torch.no_grad():
        for _ in range(2):
            Watched(explainer.graph_module).run(*inputs, None)


def writing(explainer):
    """The steps of a program that write into an operand."""
    return [node for node in explainer.graph.nodes if node.target in INTO]


def assert_same_to_the_bit(explanation, plain):
    for name, relevance in plain.by_input.items():
        assert torch.equal(explanation.by_input[name], relevance)
    assert torch.equal(explanation.start, plain.start)
    assert torch.equal(explanation.output, plain.output)
    for name, relevance in plain.checkpoints.items():
        assert torch.equal(explanation.checkpoints[name], relevance)


OTHERS = tuple(name for name in NAMES if name != REUSE_MEMORY)


def assert_memory_makes_no_difference(model, *inputs, exact=True, **options):
    """The same with and without; to the bit, unless values of several layouts meet, which add up in another order."""
    first = assert_same_to_the_bit if exact else assert_same
    for others, same in (((), first), (("known_sums",), first), (OTHERS, assert_same)):
        plain = explained(model, *inputs, optimize=others, **options)
        explainer = fxlrp.compile(
            model, chosen_preset(options.get("preset", "conserving")), optimize=(*others, REUSE_MEMORY),
            **{name: value for name, value in options.items() if name != "preset"},
        )  # fmt: skip
        assert_reads_what_was_made(explainer, *inputs)
        for _ in range(2):
            same(explainer(*inputs), plain)


def random_net(plan, zeros=True, seed=0):
    torch.manual_seed(seed)
    model, x = RandomNet(plan).double().eval(), torch.randn(2, 3, 12, 12, dtype=DOUBLE)
    x[1] *= not zeros
    return model, x


def random_tokens(plan, seed=0):
    torch.manual_seed(seed)
    return RandomTokens(plan).double().eval(), torch.randn(2, RandomTokens.LENGTH, WIDTH, dtype=DOUBLE)


# Results are the same to the bit --------------------------------------------------------------------


@settings(max_examples=2)
@given(net_plans(), st.sampled_from(["probability", "logit"]), st.booleans())
def test_random_residual_graphs(plan, start, zeros):
    assert_memory_makes_no_difference(*random_net(plan, zeros), start=start)


@settings(max_examples=4)
@given(stack_plans(), st.sampled_from(["conserving", "epsilon_plus_flat"]))
def test_random_convolutions(plan, preset):
    assert_memory_makes_no_difference(*stack(plan), preset=preset)


@settings(max_examples=1)
@given(token_net_plans(), st.sampled_from(["conserving", "attnlrp"]))
def test_random_networks_of_tokens(plan, preset):
    assert_memory_makes_no_difference(*random_tokens(plan), exact=False, preset=preset)


ANY_PRESET = st.sampled_from(sorted(set(fxlrp.PRESETS) - {"epsilon_gamma_box", "otsuki2024", "otsuki2024_mixture"}))


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(net_plans(), st.sampled_from(["probability", "logit"]), ANY_PRESET, st.booleans(), st.integers(0, 5))
def test_random_residual_graphs_at_length(plan, start, preset, zeros, seed):
    assert_memory_makes_no_difference(*random_net(plan, zeros, seed), start=start, preset=preset)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(stack_plans(), ANY_PRESET, st.integers(0, 5))
def test_random_convolutions_at_length(plan, preset, seed):
    assert_memory_makes_no_difference(*stack(plan, seed=seed), preset=preset)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(token_net_plans(), st.sampled_from(["conserving", "attnlrp", "cp_lrp"]), st.integers(0, 5))
def test_random_networks_of_tokens_at_length(plan, preset, seed):
    assert_memory_makes_no_difference(*random_tokens(plan, seed), exact=False, preset=preset)


SLOWLY = [pytest.param(split, marks=pytest.mark.slow) for split in ("signed", "residual", "skip")]


@pytest.mark.parametrize("split", ["ratio", "symmetric", *SLOWLY])
def test_every_split(split):
    model, x = tour()
    assert_memory_makes_no_difference(model, x, split=split, checkpoints=("up", "stem"))


@pytest.mark.parametrize("preset", [
    "conserving", "epsilon_plus", "attnlrp",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("otsuki2024", "epsilon_gamma_box")),
])  # fmt: skip
def test_every_preset(preset):
    model, x = attention() if preset == "attnlrp" else tour()
    assert_memory_makes_no_difference(model, x, preset=preset)


def test_images_in_channels_last():
    model, x = tour(torch.float32)
    x = x.to(memory_format=torch.channels_last)
    explainer, plain = fxlrp.compile(model), explained(model, x, optimize=OTHERS)
    assert_reads_what_was_made(explainer, x)
    assert_same(explainer(x), plain)


def test_memory_is_used_again():
    # Else all of the above says nothing.
    model, _ = tour()
    names = {node.target.__name__ for node in writing(fxlrp.compile(model))}
    assert {"divide_into", "rescale_into", "ratio_split_into", "multiply_into", "relu_into"} <= names
    assert not writing(fxlrp.compile(model, optimize=OTHERS))


# What is not the program's own ----------------------------------------------------------------------


class Several(nn.Module):
    """Returns what it computes on the way, its input and a weight, all of which are read by a step that could write."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.register_buffer("mask", torch.rand(4, 1, 1))

    def forward(self, x):
        early = F.relu(x)
        a = self.stem(x + early)
        b = F.relu(a)
        c = self.conv(b)
        d = F.relu(c * self.mask)
        logits = self.head((b + d).mean((2, 3)))
        return logits, a, b, c.flatten(1), d[:, 1:], x, early, self.conv.weight, self.mask


def test_what_is_returned_is_what_the_model_returns():
    model, x = Several().double().eval(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    explainer = fxlrp.compile(model, output=0)
    for _ in range(2):
        for got, expected in zip(explainer(x).output, model(x), strict=True):
            assert torch.equal(got, expected)
    assert_same(explainer(x), explained(model, x, optimize=False, output=0))


@pytest.mark.parametrize("network", [tour, attention])
@pytest.mark.parametrize("optimize", [NAMES, (REUSE_MEMORY,)], ids=len)
def test_nothing_is_written_to_inputs_weights_or_earlier_explanations(network, optimize):
    model, x = network()
    image, target = x.clone(), torch.tensor([0, 1, 2])[: len(x)]
    state = {name: (value.clone(), value._version) for name, value in model.state_dict(keep_vars=True).items()}
    checkpoints = ("down", "project", "head") if network is tour else ("blocks.0", "head")
    explainer = fxlrp.compile(model, optimize=optimize, checkpoints=checkpoints)
    explanations = [explainer(x, target=target) for _ in range(2)]
    kept = [_tensors(explanation) for explanation in explanations]
    before = [[tensor.clone() for tensor in tensors] for tensors in kept]
    for other in (x, 2 * x, x[:1], x.flip(0)):
        explainer(other)
        explainer(other, target=[0, 1])
        if other.dim() == 4:
            explainer.heatmap(other)
    assert torch.equal(x, image)
    assert x._version == 0 or network is tour  # where an item was set to zero
    assert torch.equal(target, torch.tensor([0, 1, 2])[: len(x)])
    for name, value in model.state_dict(keep_vars=True).items():
        assert torch.equal(value, state[name][0])
        assert value._version == state[name][1]
    for tensors, copies in zip(kept, before, strict=True):
        assert all(map(torch.equal, tensors, copies))


def _tensors(explanation):
    return [explanation.output, explanation.start, *explanation.by_input.values(), *explanation.checkpoints.values()]


def test_an_input_that_is_a_view_stays():
    model, x = tour()
    rows = x[:1].expand(3, -1, -1, -1)
    wide = torch.randn(3, 6, 16, 16, dtype=DOUBLE)
    for image in (rows, wide[:, ::2], x.transpose(2, 3)):
        before = image.clone()
        assert_same(explained(model, image, optimize=NAMES), explained(model, image.contiguous(), optimize=False))
        assert torch.equal(image, before)


def test_a_model_that_begins_with_an_activation():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(F.relu(self.stem(F.relu(x).sigmoid())).mean((2, 3)))

    model, x = Early().double().eval(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    before = x.clone()
    assert_memory_makes_no_difference(model, x)
    assert torch.equal(x, before)


def test_a_start_may_hand_the_output_itself_on():
    model, x = tour()
    assert_memory_makes_no_difference(model, x, start=lambda output, target: output[:])


def test_a_start_may_keep_what_it_returns():
    model, x = tour()
    ones = torch.ones(3, 5, dtype=DOUBLE)
    explainer = fxlrp.compile(model, start=lambda output, target: ones)
    first = explainer(x)
    assert torch.equal(ones, torch.ones_like(ones))
    assert_same_to_the_bit(explainer(x), first)


# Rules of one's own ---------------------------------------------------------------------------------


class Turned(SplitRule):
    """Looks at relevance with its axes swapped before and after relevance itself is read for the last time."""

    def __call__(self, relevance, skip, residual, **supports):
        part = relevance * ratio(skip, residual)
        turned = part.mT
        other = turned * ratio(skip, residual)
        return Shares([part + other, relevance - turned])


class Symmetrised(SplitRule):
    def __call__(self, relevance, skip, residual, **supports):
        part = relevance * ratio(skip, residual)
        half = 0.5 * (part + part.mT)
        return Shares([half, relevance - half])


class TurnedByMethod(SplitRule):
    """The same by a method."""

    def __call__(self, relevance, skip, residual, **supports):
        part = relevance * ratio(skip, residual)
        turned = part.transpose(-1, -2)
        other = turned * ratio(skip, residual)
        return Shares([part + other, relevance - turned])


@pytest.mark.parametrize("rule", [Turned, Symmetrised, TurnedByMethod])
def test_a_view_of_a_value_keeps_it(rule):
    model, x = random_net(SMALL, zeros=False)
    for optimize in ((REUSE_MEMORY,), DEFAULT):
        explainer = assert_changes_nothing(model, x, optimize=optimize, split=rule())
        assert_reads_what_was_made(explainer, x)


# The steps by themselves ----------------------------------------------------------------------------


def values(*shape, dtype=DOUBLE):
    """Numbers of either sign, some of them zero."""
    x = torch.randn(shape, dtype=dtype)
    return x.masked_fill(torch.rand(shape) < 0.2, 0)


PLAIN = {
    "divide": (divide, divide_into, lambda a, b, c: (a, b), 1),
    "divide by what is stabilised": (
        lambda r, z: divide(r, z, True, 0.1), lambda r, z: divide_into(r, z, True, 0.1), lambda a, b, c: (a, b), 1
    ),
    "divide by what is stabilised and not negative": (
        lambda r, z: divide(r, z, False, 0.1), lambda r, z: divide_into(r, z, False, 0.1),
        lambda a, b, c: (a, b.relu()), 1
    ),
    "divide by what is not negative": (
        lambda r, z: divide(r, z, False), lambda r, z: divide_into(r, z, False), lambda a, b, c: (a, b.relu()), 1
    ),
    "multiply": (operator.mul, multiply_into, lambda a, b, c: (a, b), 0),
    "add": (operator.add, add_into, lambda a, b, c: (a, b), 0),
    "subtract": (operator.sub, subtract_into, lambda a, b, c: (a, b), 0),
    "rescale": (rescale_to, rescale_into, lambda a, b, c: (a.abs() + 0.1, b.abs().flatten(1).sum(1)), 0),
    "rescale what is nothing": (
        rescale_to, rescale_into, lambda a, b, c: (a.abs() * (c[:, :1] > 5), b.abs().flatten(1).sum(1)), None
    ),
    "rescale to nothing": (
        rescale_to, rescale_into,
        lambda a, b, c: (a.abs() * (c[:, :1] > 0), b.abs().flatten(1).sum(1) * (c.flatten(1)[:, 0] > 0)), None
    ),
    "ratio split": (ratio_split, ratio_split_into, lambda a, b, c: (a, b, c), (0, 2)),
    "signed split": (
        lambda r, s, m: signed_split(r, s, m, 0.1), lambda r, s, m: signed_split_into(r, s, m, 0.1),
        lambda a, b, c: (a, b, c), (0,)
    ),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_a_step_gives_what_it_stands_for(monkeypatch, name, together, dtype):
    plain, into, arguments, written = PLAIN[name]
    if not together:
        monkeypatch.setattr(memory, "_CACHED", 0)  # as for large values: item by item
    for shape in ((3, 4, 5, 6), (3, 7), (1, 4, 5), (3, 2, 3, 2, 3)):
        given = arguments(*(values(*shape, dtype=dtype) for _ in range(3)))
        expected = plain(*given)
        mine = [value.clone() for value in given]
        results = into(*mine)
        if isinstance(expected, tuple):
            assert all(map(torch.equal, results, expected))
            assert {mine[i].data_ptr() for i in written} <= {result.data_ptr() for result in results}
            continue
        assert torch.equal(results, expected)
        if written is not None:
            assert results.data_ptr() == mine[written].data_ptr()


@torch.no_grad()
@pytest.mark.parametrize("name", PLAIN)
def test_a_step_reads_what_it_does_not_write(name):
    _, into, arguments, written = PLAIN[name]
    given = arguments(*(values(3, 4, 5) for _ in range(3)))
    mine = [value.clone() for value in given]
    into(*mine)
    writes = written if isinstance(written, tuple) else (written or 0,)  # None: it may write into the first
    kept = [i for i in range(len(given)) if i not in writes]
    assert kept
    assert all(torch.equal(mine[i], given[i]) for i in kept)


BROADCAST = {
    "divide": [((3, 4, 5), (1, 4, 5)), ((3, 4, 5), (4, 1))],
    "multiply": [((3, 4, 1), (3, 4, 5)), ((3, 4, 5), (5,))],
    "add": [((1, 4, 5), (3, 4, 5))],
    "subtract": [((3, 4, 5), (1, 1, 1))],
}


@torch.no_grad()
@pytest.mark.parametrize("name", BROADCAST)
def test_what_is_broadcast_is_not_written_to(name):
    plain, into, _, _ = PLAIN[name]
    for shapes in BROADCAST[name]:
        given = [values(*shape) for shape in shapes]
        mine = [value.clone() for value in given]
        result = into(*mine)
        assert torch.equal(result, plain(*given))
        for value, before in zip(mine, given, strict=True):
            assert torch.equal(value, before) or (value is result and value.shape == result.shape)


@torch.no_grad()
@pytest.mark.parametrize("name", ["multiply", "add", "subtract"])
def test_what_is_spread_over_a_step_s_own_memory_is_written_there(name):
    plain, into, _, _ = PLAIN[name]
    for shape in ((4, 1), (3, 1, 1), (5,), ()):
        target, other = values(3, 4, 5), values(*shape)
        expected, mine = plain(target, other), target.clone()
        assert torch.equal(into(mine, other), expected)
        assert torch.equal(mine, expected)


@torch.no_grad()
def test_relevance_with_rows_that_nobody_reads_again_takes_the_quotient():
    relevance, z = values(4, 3, 5), values(3, 5)
    for signed, epsilon in ((True, 0.0), (True, 0.1), (False, 0.1)):
        mine, denominator = relevance.clone(), z.clone() if signed else z.relu()

        def into(r, z, signed=signed, epsilon=epsilon):
            return divide_into(r, z, signed, epsilon, spare=True)

        expected = divide(relevance, denominator, signed, epsilon)
        assert torch.equal(torch.vmap(into, in_dims=(0, None))(mine, denominator), expected)
        assert torch.equal(mine, expected)


@torch.no_grad()
def test_a_step_with_rows_is_written_into_them():
    for name in ("multiply", "add", "subtract", "rescale"):
        plain, into, arguments, _ = PLAIN[name]
        rows = [arguments(*(values(3, 4, 5) for _ in range(3))) for _ in range(4)]
        mine, others = torch.stack([row[0] for row in rows]), rows[0][1:]
        in_dims = (0, *[None] * len(others))
        expected = torch.vmap(plain, in_dims=in_dims)(mine, *others)
        got = torch.vmap(into, in_dims=in_dims)(mine, *others)
        assert_close(got, expected, 1e-15)
        assert torch.equal(mine, got), name


@torch.no_grad()
@pytest.mark.parametrize("name", ["divide", "multiply", "add", "subtract"])
def test_what_is_of_another_precision_is_not_written_to(name):
    plain, into, _, _ = PLAIN[name]
    for dtypes in ((torch.float32, DOUBLE), (DOUBLE, torch.float32)):
        given = [values(3, 4, dtype=dtype) for dtype in dtypes]
        mine = [value.clone() for value in given]
        assert torch.equal(into(*mine), plain(*given))
        assert all(map(torch.equal, mine, given))


@torch.no_grad()
def test_a_split_of_broadcast_operands():
    relevance, skip, residual = values(3, 4, 5), values(1, 4, 5), values(3, 4, 5)
    expected = ratio_split(relevance, skip, residual)
    mine = [value.clone() for value in (relevance, skip, residual)]
    assert all(map(torch.equal, ratio_split_into(*mine), expected))
    assert all(map(torch.equal, mine, (relevance, skip, residual)))
    expected = signed_split(*mine, 0.1)
    assert all(map(torch.equal, signed_split_into(*mine, 0.1), expected))
    assert all(map(torch.equal, mine, (relevance, skip, residual)))
    support = (values(3, 4, 5) > 0).double()
    expected = ratio_split(*mine, support, None)
    assert all(map(torch.equal, ratio_split_into(*mine, support, None), expected))


@pytest.mark.parametrize("name", PLAIN)
def test_a_step_that_is_differentiated_writes_nothing(name):
    plain, into, arguments, _ = PLAIN[name]
    given = [value.detach().requires_grad_() for value in arguments(*(values(3, 4, 5) for _ in range(3)))]
    before = [value.detach().clone() for value in given]
    found = []
    for function in (plain, into):
        results = function(*given)
        results = results if isinstance(results, tuple) else (results,)
        found.append(torch.autograd.grad(sum((result**2).sum() for result in results), given))
        assert all(torch.equal(value.detach(), kept) for value, kept in zip(given, before, strict=True))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
@pytest.mark.parametrize("name", PLAIN)
def test_a_step_for_many_rows_writes_nothing_that_they_share(name):
    plain, into, arguments, _ = PLAIN[name]
    rows = [arguments(*(values(3, 4, 5) for _ in range(3))) for _ in range(4)]
    shared = range(1, len(rows[0]))
    for mapped in ([0], [len(rows[0]) - 1], range(len(rows[0]))):
        columns = enumerate(zip(*rows, strict=True))
        given = [torch.stack(column) if i in mapped else column[0].clone() for i, column in columns]
        before = [value.clone() for value in given]
        in_dims = tuple(0 if i in mapped else None for i in range(len(given)))
        expected = torch.vmap(plain, in_dims=in_dims)(*given)
        got = torch.vmap(into, in_dims=in_dims)(*given)
        pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
        for a, b in pairs:
            assert_close(a, b, 1e-15)
        assert all(torch.equal(given[i], before[i]) for i in shared if i not in mapped)


# What the pass takes for granted --------------------------------------------------------------------


def test_a_sum_over_items_is_memory_of_its_own():
    # It is taken for a step that keeps no hold of its operand; one number an item leaves nothing to sum.
    relevance = torch.rand(5, dtype=DOUBLE)
    received = sum_items(relevance)
    expected = received.clone()
    relevance.mul_(2)
    assert torch.equal(received, expected)


aten = torch.ops.aten

FRESH = {
    aten.conv2d.default: lambda x: (x, torch.eye(4, dtype=DOUBLE)[:, :, None, None]),
    aten.linear.default: lambda x: (x, torch.eye(6, dtype=DOUBLE)),
    torch.matmul: lambda x: (x, torch.eye(6, dtype=DOUBLE)),
    aten.batch_norm.default: lambda x: (
        x, None, None, torch.zeros(4, dtype=DOUBLE), torch.ones(4, dtype=DOUBLE), False, 0.1, 0.0, False
    ),
    aten.layer_norm.default: lambda x: (x, [6]),
    aten.group_norm.default: lambda x: (x, 2),
    aten.max_pool2d.default: lambda x: (x, [1, 1]),
    aten.avg_pool2d.default: lambda x: (x, [1, 1]),
    aten.adaptive_avg_pool2d.default: lambda x: (x, [6, 6]),
    aten.add.Tensor: lambda x: (x, 0),
    aten.sub.Tensor: lambda x: (x, 0),
    aten.mul.Tensor: lambda x: (x, 1),
    operator.add: lambda x: (x, 0),
    operator.mul: lambda x: (x, 1),
    operator.sub: lambda x: (x, 0),
    operator.truediv: lambda x: (x, 1),
}  # fmt: skip


@pytest.mark.parametrize("step", FRESH, ids=range(len(FRESH)).__iter__())
def test_what_a_step_makes_is_memory_of_its_own_where_it_changes_nothing(step):
    assert facts_of(step).fresh
    for shape in ((2, 4, 6, 6), (1, 4, 1, 6), (1, 4, 6, 6)):
        if shape[2] == 1 and step is aten.adaptive_avg_pool2d.default:
            continue
        x = torch.rand(shape, dtype=DOUBLE)
        before = x.clone()
        step(*FRESH[step](x)).fill_(7)
        assert torch.equal(x, before)


def test_every_activation_has_a_form_that_writes():
    x = torch.randn(3, 4, dtype=DOUBLE)
    for name in ACTIVATIONS:
        plain = getattr(aten, name).default
        mine = x.clone()
        with torch.no_grad():
            made = facts_of(plain).writes_into.step(mine)
        assert torch.equal(made, plain(x))
        assert made.data_ptr() == mine.data_ptr()


# The tests can fail ---------------------------------------------------------------------------------


def test_a_value_that_is_read_later_goes_red(monkeypatch):
    model, x = Several().double().eval(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    assert_reads_what_was_made(fxlrp.compile(model, output=0), x)
    monkeypatch.setattr(in_place, "_ends_at", lambda value, node, order: True)
    with pytest.raises(AssertionError, match="overwritten"):
        assert_reads_what_was_made(fxlrp.compile(model, output=0), x)


def test_a_view_taken_for_memory_of_its_own_goes_red(monkeypatch):
    from fxlrp.steps.routing import unreshape

    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = self.stem(x)
            rows = x.flatten(2)
            return self.head(F.relu(rows).mean(2) + x.mean((2, 3)))

    monkeypatch.setattr(unreshape, "step_facts", replace(unreshape.step_facts, fresh=True))
    monkeypatch.setattr(declaration, "_OF_OTHERS", dict(declaration._OF_OTHERS))
    declare([aten.flatten.using_ints], fresh=True)
    model, x = Viewed().double().eval(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    with pytest.raises(AssertionError):
        assert_memory_makes_no_difference(model, x)
