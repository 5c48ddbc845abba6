"""Operations that move values: their transposes, against the definition <T r, x> = <r, f(x)>."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_conserves
from torch import nn

import fxlrp

MOVES = {
    "view": (lambda x: x.view(x.size(0), -1), (2, 3, 4)),
    "reshape": (lambda x: torch.reshape(x, (2, 12)), (2, 3, 4)),
    "reshape with -1": (lambda x: x.reshape(-1, 6, 2), (2, 3, 4)),
    "flatten": (lambda x: torch.flatten(x, 1), (2, 3, 4)),
    "flatten method": (lambda x: x.flatten(start_dim=1, end_dim=2), (2, 3, 4, 2)),
    "unflatten": (lambda x: x.unflatten(1, (2, 3)), (2, 6)),
    "squeeze": (lambda x: x.squeeze(-1).squeeze(2), (2, 3, 1, 1)),
    "unsqueeze": (lambda x: x.unsqueeze(1), (2, 3)),
    "permute": (lambda x: x.permute(0, 3, 1, 2), (2, 3, 4, 5)),
    "permute function": (lambda x: torch.permute(x, [0, -1, 1]), (2, 3, 4)),
    "transpose": (lambda x: x.transpose(1, 2), (2, 3, 4)),
    "swapaxes": (lambda x: torch.swapaxes(x, -1, -2), (2, 3, 4)),
    "mT": (lambda x: x.mT, (2, 3, 4)),
    "flip": (lambda x: torch.flip(x, [1]), (2, 3, 4)),
    "roll": (lambda x: torch.roll(x, shifts=(1, -2), dims=(1, 2)), (2, 3, 4)),
    "slice": (lambda x: x[:, :, ::2, 1:], (2, 3, 5, 4)),
    "slice to a size": (lambda x: x[:, : x.shape[1] // 2], (2, 6)),
    "slice behind an ellipsis": (lambda x: x[..., 1:3], (2, 3, 5)),
    "select": (lambda x: x[:, 1], (2, 3, 4)),
    "select behind an ellipsis": (lambda x: x[..., 0, 1:], (2, 3, 4, 5)),
    "two selects behind an ellipsis": (lambda x: x[..., -1, 2], (2, 3, 4, 5)),
    "new axes": (lambda x: x[:, None, :, None], (2, 3)),
    "new axis behind an ellipsis": (lambda x: x[..., None], (2, 3)),
    "narrow": (lambda x: x.narrow(1, 1, 2), (2, 5)),
    "split, a part unused": (lambda x: x.split(2, dim=1)[1], (2, 5, 3)),
    "split with sizes": (lambda x: torch.split(x, [1, 3], 1)[1], (2, 4)),
    "chunk, counted from the end": (lambda x: x.chunk(3, 1)[-1], (2, 7)),
    "unbind": (lambda x: x.unbind(1)[2], (2, 3, 4)),
    "a part used twice": (lambda x: torch.cat([x.chunk(2, 1)[0], x.chunk(2, 1)[0]], 1), (2, 4)),
    "one part under two indices": (lambda x: (lambda p: torch.cat([p[1], p[-1], p[1]], 1))(x.chunk(2, 1)), (2, 4)),
    "cat with itself": (lambda x: torch.cat([x, x], dim=1), (2, 3)),
    "cat in another order": (lambda x: torch.concat([x[:, 2:], x[:, :2]], 1), (2, 5)),
    "stack": (lambda x: torch.stack([x[:, 0], x[:, 1]], -1), (2, 2, 3)),
    "expand": (lambda x: x.expand(-1, 4, 3), (2, 1, 3)),
    "repeat": (lambda x: x.repeat(1, 2, 3), (2, 2, 3)),
    "constant pad": (lambda x: F.pad(x, (1, 2, 0, 1)), (2, 3, 4)),
    "negative pad": (lambda x: F.pad(x, (-1, 2)), (2, 3, 4)),
    "reflecting pad": (lambda x: F.pad(x, (1, 2), mode="reflect"), (2, 3, 4)),
    "reflecting pad of two axes": (lambda x: F.pad(x, (1, 2, 2, 0), mode="reflect"), (2, 3, 4, 5)),
    "replicating pad": (lambda x: F.pad(x, (1, 0, 0, 2), mode="replicate"), (2, 3, 4, 5)),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), (2, 8, 2, 3)),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), (2, 2, 4, 6)),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 3), (2, 6, 2, 2)),
    "contiguous, clone, detach": (lambda x: x.transpose(1, 2).contiguous().clone().detach(), (2, 3, 4)),
}


class Move(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", MOVES)
def test_relevance_moves_back_by_the_transpose(name):
    function, shape = MOVES[name]
    x = torch.randn(shape, dtype=torch.float64)
    y = function(x)
    relevance = torch.randn_like(y)
    explanation = fxlrp.compile(Move(function).eval(), start=lambda output, target: relevance)(x)
    assert torch.equal(explanation.output, y)
    assert explanation.relevance.shape == x.shape
    # <T r, v> = <r, f(v)> for any v: the definition of the transpose.
    v = torch.randn_like(x)
    assert torch.allclose((explanation.relevance * v).sum(), (relevance * function(v)).sum(), atol=1e-12)


@pytest.mark.parametrize("name", [n for n in MOVES if n not in ("constant pad", "negative pad")])
def test_moving_keeps_all_relevance(name):
    function, shape = MOVES[name]
    x = torch.randn(shape, dtype=torch.float64)
    relevance = torch.rand_like(function(x))
    assert_conserves(fxlrp.compile(Move(function).eval(), start=lambda output, target: relevance), x)


def test_what_falls_into_padding_is_told():
    relevance = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    explainer = fxlrp.compile(Move(lambda x: F.pad(x, (1, 1))).eval(), start=lambda output, target: relevance)
    x = torch.ones(1, 2)
    assert explainer(x).relevance.tolist() == [[2.0, 4.0]]
    assert explainer.ledger(x).absorbed["padding"].tolist() == [9.0]
    assert [row.reason for row in explainer.ledger(x)] == ["padding"]


def test_what_falls_to_a_constant_is_told():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.ones(1, 1, 2))

        def forward(self, x):
            return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)

    relevance = torch.tensor([[[1.0, 2.0], [4.0, 8.0]]])
    explainer = fxlrp.compile(Token().eval(), start=lambda output, target: relevance)
    x = torch.ones(1, 1, 2)
    assert explainer(x).relevance.tolist() == [[[4.0, 8.0]]]
    assert explainer.ledger(x).absorbed["constant"].tolist() == [3.0]
