"""Hypothesis strategies for random residual networks."""

from hypothesis import strategies as st
from nets import BlockPlan, NetPlan


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
