"""``one_part``: a layer whose output receives relevance in one part alone computes that part."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from optimize_checks import DOUBLE, assert_changes_nothing, explained
from torch import nn

import fxlrp
from fxlrp.passes.optimize import parts
from fxlrp.steps import routing

WIDTH, HEADS = 12, 3


def heads_behind(parts):
    """Each of the three with its heads as an axis of their own."""
    return (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)


def threes(qkv):
    """The three and their heads as axes: (3, batch, heads, tokens, width)."""
    return qkv.reshape(*qkv.shape[:2], 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)


def heads_first(qkv):
    """The parts are not the first of the axes that features are parted into: no part of the weights is one of them."""
    return qkv.reshape(*qkv.shape[:2], HEADS, 3, WIDTH // HEADS).permute(3, 0, 2, 1, 4).unbind(0)


WAYS = {
    "by_chunk": lambda qkv: heads_behind(qkv.chunk(3, dim=-1)),
    "by_sizes": lambda qkv: heads_behind(qkv.split([WIDTH, WIDTH, WIDTH], dim=-1)),
    "by_size": lambda qkv: heads_behind(qkv.split(WIDTH, dim=-1)),
    "by_select": lambda qkv: (threes(qkv)[0], threes(qkv)[1], threes(qkv)[-1]),
    "by_unbind": lambda qkv: threes(qkv).unbind(0),
}


class Net(nn.Module):
    """Self-attention whose queries, keys and values are one product, with a skip, and a head.

    Args:
        way: how the three are told apart.
        bias: of that product.
    """

    def __init__(self, way, bias=True):
        super().__init__()
        self.way = way
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=bias)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = self.way(self.qkv(self.norm(x)))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.proj(mixed)).mean(1))


def net(way, dtype=DOUBLE, **options):
    torch.manual_seed(0)
    return Net(way, **options).to(dtype).eval(), torch.randn(2, 5, WIDTH, dtype=dtype)


def program(model, x, **options):
    explainer = fxlrp.compile(model, **{"preset": "conserving", **options})
    explainer(x)
    return explainer.graph


def narrowed(model, x, **options):
    """Which parts of weights the relevance program takes."""
    return [node.args[1:] for node in program(model, x, **options).nodes if node.target is parts.outputs_of]


def sampled(way, preset, bias):
    """Every way under the default, without bias too; the other presets in two ways. The rest is for the long run."""
    marks = [] if preset == "conserving" or (bias and way in ("by_chunk", "by_unbind")) else [pytest.mark.slow]
    return pytest.param(way, preset, bias, marks=marks)


@pytest.mark.parametrize(("way", "preset", "bias"), [
    sampled(*run) for run in product(
        WAYS, ["conserving", "cp_lrp", "epsilon_plus", "otsuki2024", "evidence"], [True, False]
    )
])  # fmt: skip
def test_attention_is_explained_the_same(way, preset, bias):
    model, x = net(WAYS[way], bias=bias)
    for optimize in (("one_part",), ("one_part", "reuse_forward"), True):
        assert_changes_nothing(model, x, optimize=optimize, preset=preset)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_zeros_are_made_for_the_other_parts(way):
    model, x = net(way)
    with_zeros = {routing.unsplit, routing.unselect, routing.rebind}
    for optimize, made in ((False, True), (("one_part",), False)):
        targets = {node.target for node in program(model, x, optimize=optimize).nodes}
        assert bool(targets & with_zeros) is made


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_other_parts_are_not_computed(way):
    model, x = net(way)
    assert narrowed(model, x, optimize=("one_part",)) == [(2 * WIDTH, WIDTH)] * 4  # z⁺: two products each way
    assert narrowed(model, x, preset="cp_lrp", optimize=("one_part", "reuse_forward")) == [(2 * WIDTH, WIDTH)]
    # γ beside the forward pass: the weights, their magnitudes and those of the bias.
    gamma = narrowed(model, x, preset="evidence", optimize=("one_part", "reuse_forward"))
    assert gamma == [(2 * WIDTH, WIDTH)] * 3


def test_values_between_others_keep_the_whole_layer():
    model, x = net(heads_first)
    assert_changes_nothing(model, x, optimize=("one_part",))
    assert not narrowed(model, x, optimize=("one_part",))


def test_relevance_in_all_parts_keeps_the_whole_layer():
    model, x = net(WAYS["by_chunk"])
    assert not narrowed(model, x, preset="attnlrp", optimize=("one_part",))


def test_several_targets_checkpoints_and_conditions_are_explained_the_same():
    model, x = net(WAYS["by_unbind"])
    assert_changes_nothing(model, x, optimize=("one_part",), checkpoints=("qkv", "norm"))
    plain, small = (fxlrp.compile(model, "conserving", optimize=optimize) for optimize in (False, True))
    for options in ({"target": range(4)}, {"target": 1, "conditions": [{"qkv": [26]}, {"proj": [3]}]}):
        expected = plain(x, **options).relevance
        assert (small(x, **options).relevance - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_weights_that_change_are_followed():
    model, x = net(WAYS["by_chunk"])
    explainer = fxlrp.compile(model, "conserving")
    explainer(x)
    with torch.no_grad():
        model.qkv.weight.add_(0.1)
    expected = explained(model, x, optimize=False).relevance
    assert (explainer(x).relevance - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_a_part_whose_number_is_a_tensor_is_left_alone():
    class Chosen(Net):
        def __init__(self):
            super().__init__(threes)
            self.register_buffer("which", torch.tensor(1))

        def forward(self, x):
            return self.head(threes(self.qkv(self.norm(self.embed(x))))[self.which].mean(1).flatten(1)[:, :WIDTH])

    x = torch.randn(2, HEADS, WIDTH, dtype=DOUBLE)
    assert narrowed(Chosen().double().eval(), x) == []
