"""Hypothesis strategies for random residual networks and random networks of tokens."""

from hypothesis import strategies as st
from nets import BlockPlan, NetPlan
from token_nets import FEEDS, MIXERS, NORMS, TokenBlockPlan, TokenNetPlan


@st.composite
def block_plans(draw, depth=1, strides=(1, 2)):
    skip = draw(st.sampled_from(["identity", "projection", "padded", "dense", "none"]))
    return BlockPlan(
        # Padding needs more channels than come in, so widths only grow there.
        planes=24 if skip == "padded" else draw(st.sampled_from([4, 6, 8])),
        stride=draw(st.sampled_from(strides)),
        dilation=draw(st.sampled_from([1, 2])),
        groups=draw(st.sampled_from([1, 2])),
        skip=skip,
        preactivation=draw(st.booleans()),
        activation=draw(st.sampled_from(["relu", "gelu", "silu", "none", "relu6"])),
        inplace=draw(st.booleans()),
        bias=draw(st.booleans()),
        norm=draw(st.booleans()),
        squeeze=draw(st.booleans()),
        shared=draw(st.booleans()),
        nested=draw(block_plans(depth=depth - 1, strides=(1,))) if depth and draw(st.booleans()) else None,
    )


@st.composite
def net_plans(draw):
    return NetPlan(
        blocks=draw(st.lists(block_plans(), min_size=1, max_size=3)),
        stem_bias=draw(st.booleans()),
        pool=draw(st.sampled_from(["max", "average", "none"])),
        head_bias=draw(st.booleans()),
    )


@st.composite
def token_block_plans(draw):
    windows = draw(st.sampled_from([1, 2, 4]))
    return TokenBlockPlan(
        mixer=draw(st.sampled_from(sorted(MIXERS))),
        feed=draw(st.sampled_from(sorted(FEEDS))),
        norm=draw(st.sampled_from(sorted(NORMS))),
        skips=draw(st.booleans()),
        post_norm=draw(st.booleans()),
        scaled=draw(st.booleans()),
        flipped=draw(st.booleans()),
        windows=windows,
        shift=draw(st.sampled_from([0, 1, 3])),
    )


@st.composite
def token_net_plans(draw):
    return TokenNetPlan(
        blocks=draw(st.lists(token_block_plans(), min_size=1, max_size=2)),
        tokens=draw(st.sampled_from([0, 1, 2])),
        sequence_first=draw(st.booleans()),
        pool=draw(st.sampled_from(["mean", "first", "flat", "largest"])),
    )
