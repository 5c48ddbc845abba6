"""Every linear rule written out with dense matrices, as its paper has it: what the rules are tested against.

``W`` is (outputs, inputs), ``b`` (outputs,); ``looks`` is like ``W``: how often an output looks at an input.
"""

from dataclasses import dataclass

import torch

from fxlrp.rules import Absolute, AlphaBeta, Flat, Gamma, WPlus, WSquare, ZBox, ZPlus


@dataclass
class Quotient:
    """``factor · Σ_j c_ij R_j where_j / (Σ_i c_ij + bias_j)``; contributions c (batch, outputs, inputs)."""

    contributions: torch.Tensor
    bias: torch.Tensor
    factor: float = 1.0
    where: torch.Tensor | float = 1.0


def quotients(rule, W, b, x, looks):
    """What a rule is made of; ``x`` is (batch, inputs)."""
    each = W * x[:, None, :]
    if isinstance(rule, WPlus):
        return [Quotient(W.clamp(min=0).expand(len(x), *W.shape), b.clamp(min=0))]
    if isinstance(rule, ZPlus):
        return [Quotient(each.clamp(min=0), b.clamp(min=0))]
    if isinstance(rule, Absolute):
        return [Quotient(each.abs(), b.abs())]
    if isinstance(rule, AlphaBeta):
        up, down = Quotient(each.clamp(min=0), b.clamp(min=0)), Quotient(each.clamp(max=0), b.clamp(max=0))
        up.factor, down.factor = rule.alpha, -rule.beta
        return [up, down]
    if isinstance(rule, WSquare):
        # A weight that is a sum of equal looks counts once for each of them.
        squares = torch.where(looks > 1, W, W**2)
        return [Quotient(squares.expand(len(x), *W.shape), b**2)]
    if isinstance(rule, Flat):
        return [Quotient(looks.expand(len(x), *W.shape), (b != 0).to(b))]
    if isinstance(rule, ZBox):
        box = rule.low * W.clamp(min=0) + rule.high * W.clamp(max=0)
        return [Quotient(each - box, torch.zeros_like(b))]
    if isinstance(rule, Gamma):
        more, biased = each + rule.gamma * each.clamp(min=0), b + rule.gamma * b.clamp(min=0)
        if not rule.generalized:
            return [Quotient((W + rule.gamma * W.clamp(min=0)) * x[:, None, :], biased)]
        z = each.sum(2) + b
        less, less_biased = each + rule.gamma * each.clamp(max=0), b + rule.gamma * b.clamp(max=0)
        return [Quotient(more, biased, where=(z > 0).to(z)), Quotient(less, less_biased, where=(z < 0).to(z))]
    return [Quotient(each, b)]


def redistribute(rule, W, b, x, relevance, looks):
    """The relevance of the inputs: (batch, inputs)."""
    bias = torch.zeros_like(b) if rule.bias == "ignore" else b
    share, to_bias = torch.zeros_like(x), torch.zeros_like(relevance)
    for part in quotients(rule, W, bias, x, looks):
        z = part.contributions.sum(2) + part.bias
        if rule.stabilizer:
            z = z + rule.stabilizer * torch.where(z < 0, -1.0, 1.0).to(z)
        s = torch.where(z == 0, 0, part.factor * part.where * relevance / torch.where(z == 0, 1, z))
        share = share + torch.einsum("bji,bj->bi", part.contributions, s)
        to_bias = to_bias + s * part.bias
    received = relevance
    if rule.bias == "share":
        counts = looks.sum(1)
        share = share + torch.where(counts == 0, 0, to_bias / counts.clamp(min=1)) @ looks
    elif rule.bias == "absorb":
        received = relevance - to_bias
    return completed(share, received) if rule.vanishing == "rescale" and not rule.stabilizer else share


def completed(share, received):
    """What is missing, in proportion to the magnitude of what arrived; evenly where nothing did."""
    lost = received.sum(1, keepdim=True) - share.sum(1, keepdim=True)
    total = share.abs().sum(1, keepdim=True)
    even = torch.ones_like(share) / share.shape[1]
    return share + lost * torch.where(total == 0, even, share.abs() / torch.where(total == 0, 1, total))
