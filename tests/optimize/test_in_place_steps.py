"""The steps that ``reuse_memory`` puts in: each gives what the plain one gives, and writes only where it may."""

import operator

import pytest
import torch
from checks import assert_close
from optimize_checks import DOUBLE

from fxlrp.steps import memory
from fxlrp.steps.addition import ratio_split, ratio_split_into, signed_split, signed_split_into
from fxlrp.steps.batch_axis import rescale_into, rescale_signed_into, rescale_signed_to, rescale_to, sum_items
from fxlrp.steps.declaration import facts_of
from fxlrp.steps.primitives import divide, divide_into
from fxlrp.steps.torch_functions import ACTIVATIONS, add_into, multiply_into, subtract_into

aten = torch.ops.aten


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
    "rescale either sign": (rescale_signed_to, rescale_signed_into, lambda a, b, c: (a, b.flatten(1).sum(1)), 0),
    "rescale either sign, what is nothing": (
        rescale_signed_to, rescale_signed_into, lambda a, b, c: (a * (c[:, :1] > 5), b.flatten(1).sum(1)), None
    ),
    "rescale either sign to nothing": (
        rescale_signed_to, rescale_signed_into,
        lambda a, b, c: (a, b.flatten(1).sum(1) * (c.flatten(1)[:, 0] > 0)), 0
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
def test_a_writing_step_gives_what_the_plain_step_gives(monkeypatch, name, together, dtype):
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
def test_a_writing_step_leaves_its_other_operands(name):
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
def test_a_broadcast_operand_is_not_written_to(name):
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
def test_an_operand_of_full_shape_is_written_to(name):
    plain, into, _, _ = PLAIN[name]
    for shape in ((4, 1), (3, 1, 1), (5,), ()):
        target, other = values(3, 4, 5), values(*shape)
        expected, mine = plain(target, other), target.clone()
        assert torch.equal(into(mine, other), expected)
        assert torch.equal(mine, expected)


@torch.no_grad()
def test_spare_relevance_of_several_targets_takes_the_quotient():
    relevance, z = values(4, 3, 5), values(3, 5)
    for signed, epsilon in ((True, 0.0), (True, 0.1), (False, 0.1)):
        mine, denominator = relevance.clone(), z.clone() if signed else z.relu()

        def into(r, z, signed=signed, epsilon=epsilon):
            return divide_into(r, z, signed, epsilon, spare=True)

        expected = divide(relevance, denominator, signed, epsilon)
        assert torch.equal(torch.vmap(into, in_dims=(0, None))(mine, denominator), expected)
        assert torch.equal(mine, expected)


@torch.no_grad()
def test_a_vmapped_step_writes_into_its_vmapped_operand():
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
def test_an_operand_of_another_precision_is_not_written_to(name):
    plain, into, _, _ = PLAIN[name]
    for dtypes in ((torch.float32, DOUBLE), (DOUBLE, torch.float32)):
        given = [values(3, 4, dtype=dtype) for dtype in dtypes]
        mine = [value.clone() for value in given]
        assert torch.equal(into(*mine), plain(*given))
        assert all(map(torch.equal, mine, given))


@torch.no_grad()
def test_a_split_does_not_write_to_broadcast_operands():
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
def test_a_differentiated_step_writes_nothing(name):
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
def test_a_vmapped_step_does_not_write_to_shared_operands(name):
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


def test_a_sum_per_item_is_new_memory():
    # It is taken for a step that keeps no hold of its operand; one number per item leaves nothing to sum.
    relevance = torch.rand(5, dtype=DOUBLE)
    received = sum_items(relevance)
    expected = received.clone()
    relevance.mul_(2)
    assert torch.equal(received, expected)


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
def test_a_step_that_changes_nothing_still_makes_new_memory(step):
    assert facts_of(step).fresh
    for shape in ((2, 4, 6, 6), (1, 4, 1, 6), (1, 4, 6, 6)):
        if shape[2] == 1 and step is aten.adaptive_avg_pool2d.default:
            continue
        x = torch.rand(shape, dtype=DOUBLE)
        before = x.clone()
        step(*FRESH[step](x)).fill_(7)
        assert torch.equal(x, before)


def test_every_activation_has_a_writing_step():
    x = torch.randn(3, 4, dtype=DOUBLE)
    for name in ACTIVATIONS:
        plain = getattr(aten, name).default
        mine = x.clone()
        with torch.no_grad():
            made = facts_of(plain).writes_into.step(mine)
        assert torch.equal(made, plain(x))
        assert made.data_ptr() == mine.data_ptr()
