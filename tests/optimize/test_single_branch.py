"""``single_branch``: z⁺ and its kin take one branch where the operand is never negative."""

import torch.nn.functional as F
from optimize_checks import written
from optimize_nets import signed

import fxlrp
from fxlrp.steps import convolution as convolutions


def test_an_operand_that_is_never_negative_takes_one_branch():
    model, _ = signed()
    plain = fxlrp.compile(model, "conserving", optimize=False)
    single = fxlrp.compile(model, "conserving", optimize=("single_branch",))
    assert len(written(plain, F.conv2d, layer="known")) == 2  # x⁺w⁺ and x⁻w⁻
    assert len(written(single, F.conv2d, layer="known")) == 1
    assert len(written(single, convolutions.convolution_transpose, layer="known")) == 1
    assert len(written(single, F.conv2d, layer="signed")) == 2  # which reads either sign
