"""Operations that move values: their transposes, against the definition <T r, x> = <r, f(x)>."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves
from torch import nn

import fxlrp
from fxlrp.rules import Winner

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
    "index": (lambda x: x[:, INDEX], (2, 3, 4)),
    "index of two axes": (lambda x: x[:, INDEX, INDEX.flip(0)], (2, 3, 4)),
    "index of axes apart": (lambda x: x[:, INDEX, :, INDEX.flip(0)], (2, 3, 4, 5)),
    "index with truths": (lambda x: x[:, MASK], (2, 3, 4)),
    "index by a list": (lambda x: x[:, [2, 0]], (2, 3, 4)),
    "index select": (lambda x: torch.index_select(x, 1, INDEX), (2, 3, 4)),
    "index select method": (lambda x: x.index_select(-1, INDEX), (2, 3, 4)),
    "gather": (lambda x: x.gather(1, PLACES), (2, 3, 4)),
    "gather function": (lambda x: torch.gather(x, -1, PLACES), (2, 5, 4)),
    "repeat, element by element": (lambda x: x.repeat_interleave(3, dim=1), (2, 3, 4)),
    "repeat, from the end": (lambda x: torch.repeat_interleave(x, 2, dim=-1), (2, 3, 4)),
    "windows of an axis": (lambda x: x.unfold(2, 3, 2), (2, 3, 8)),
    "windows of an axis that leave a rest": (lambda x: x.unfold(-1, 2, 3), (2, 3, 7)),
    "patches": (lambda x: F.unfold(x, (2, 3), padding=(0, 1), stride=(2, 1)), (2, 3, 4, 5)),
    "patches, dilated": (lambda x: F.unfold(x, 2, dilation=2), (2, 3, 4, 5)),
    "a slice written over": (lambda x: written(x, (slice(None), slice(1, 3)), x[:, :2]), (2, 5)),
    "every other written over": (lambda x: written(x, (slice(None), slice(0, None, 2)), x[:, 1::2]), (2, 6, 3)),
    "an entry written over": (lambda x: written(x, (slice(None), -1), x[:, 0]), (2, 4, 3)),
    "slice scatter": (lambda x: torch.slice_scatter(x, x[:, :1], 1, 2, 3), (2, 4)),
    "choice by a constant": (lambda x: torch.where(MASK[:, None], x, x.flip(1)), (2, 3, 4)),
    "choice by a constant, broadcasting": (lambda x: torch.where(MASK, x, x[:, :1]), (2, 3)),
    "contiguous, clone, detach": (lambda x: x.transpose(1, 2).contiguous().clone().detach(), (2, 3, 4)),
}
INDEX = torch.tensor([2, 0, 2])
MASK = torch.tensor([True, False, True])
PLACES = torch.tensor([[[2, 0, 1, 1], [0, 0, 2, 1]], [[1, 1, 1, 1], [2, 0, 0, 2]]])


def written(x, where, value):
    y = x.clone()
    y[where] = value
    return y


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
    assert_adjoint(function, compiled(Move(function), relevance), x, relevance)


def compiled(model, relevance):
    """Some moves put the batch elsewhere at the end, which models do only in between."""
    return fxlrp.compile(model.eval(), "conserving", start=lambda output, target: relevance, verify="never")


def assert_adjoint(function, explainer, x, relevance):
    explanation = explainer(x)
    assert torch.equal(explanation.output, function(x))
    assert explanation.relevance.shape == x.shape
    # <T r, v> = <r, f(v)> for any v: the definition of the transpose.
    v = torch.randn_like(x)
    assert torch.allclose((explanation.relevance * v).sum(), (relevance * function(v)).sum(), atol=1e-12)


class Exported(Move):
    """The same where symbolic tracing cannot follow."""

    def forward(self, x):
        assert isinstance(x, torch.Tensor)
        return super().forward(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MOVES if n != "reshape"])  # that one fixes the batch
def test_relevance_moves_back_alike_by_export(name):
    function, shape = MOVES[name]
    x = torch.randn(shape, dtype=torch.float64)
    relevance = torch.randn_like(function(x))
    model, start = Exported(function).eval(), lambda output, target: relevance
    explainer = fxlrp.compile(model, "conserving", start=start, example_inputs=x, verify="never")
    assert explainer.capture == "export"
    assert_adjoint(function, explainer, x, relevance)


CHOICES = {
    "topk": (lambda x: x.topk(2, dim=1)[0], (2, 5, 3)),
    "topk, the smallest": (lambda x: torch.topk(x, 2, -1, largest=False)[0], (2, 5)),
    "sort, stable": (lambda x: torch.sort(x, dim=1, descending=True, stable=True)[0], (2, 5, 3)),
    "topk by name": (lambda x: x.topk(2).values, (2, 5)),
    "sort": (lambda x: torch.sort(x, dim=1)[0], (2, 5, 3)),
    "sort, descending": (lambda x: x.sort(1, True)[0][:, :2], (2, 5, 3)),
    "larger of two": (lambda x: torch.maximum(x, x.flip(1)), (2, 4, 3)),
    "larger of two, broadcasting": (lambda x: torch.max(x, x[:, :1]), (2, 4, 3)),
    "smaller of two": (lambda x: torch.minimum(x, x.roll(1, 1)), (2, 5)),
    "largest": (lambda x: x.max(1)[0], (2, 5, 3)),
    "largest by name": (lambda x: x.max(dim=1, keepdim=True).values, (2, 5, 3)),
    "smallest": (lambda x: torch.min(x, -1)[0], (2, 5, 3)),
    "largest over axes": (lambda x: x.amax((1, 2)), (2, 5, 3)),
    "largest, keeping axes": (lambda x: torch.amax(x, -1, True), (2, 5, 3)),
    "smallest over axes": (lambda x: x.amin(dim=(-1, -2)), (2, 5, 3)),
    "choice by a comparison": (lambda x: torch.where(x > 0.1, x, x.flip(1)), (2, 4)),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_was_chosen_receives_as_its_gradient_does(name):
    function, shape = CHOICES[name]
    x = torch.randn(shape, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    relevance = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, leaf, relevance)
    preset = fxlrp.Preset("winners", selection=Winner())
    explainer = fxlrp.compile(Move(function).eval(), preset, start=lambda output, target: relevance)
    explanation = explainer(x)
    assert torch.equal(explanation.output, y.detach())
    assert_close(explanation.relevance, gradient)
    assert_conserves(explainer, x)


HIDDEN = {
    "masked fill": lambda x: x.masked_fill(MASK, 3.0),
    "masked fill with minus infinity": lambda x: x.masked_fill(MASK, float("-inf")).exp(),
    "choice of a number": lambda x: torch.where(MASK, 3.0, x),
    "choice of a constant": lambda x: torch.where(MASK, torch.ones(3, dtype=torch.float64), x),
    "a number written over": lambda x: written(x, (slice(None), slice(0, None, 2)), 1.0),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_falls_to_numbers_in_the_place_of_values_is_told(name):
    relevance = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    explainer = fxlrp.compile(Move(HIDDEN[name]).eval(), "conserving", start=lambda output, target: relevance)
    x = torch.ones(1, 3, dtype=torch.float64)
    ledger = assert_conserves(explainer, x, absorbs=("constant",))
    assert explainer(x).relevance.tolist() == [[0.0, 2.0, 0.0]]
    assert ledger.absorbed["constant"].tolist() == [5.0]


@pytest.mark.parametrize("name", [n for n in MOVES if n not in ("constant pad", "negative pad", "patches")])
def test_moving_keeps_all_relevance(name):
    function, shape = MOVES[name]
    x = torch.randn(shape, dtype=torch.float64)
    relevance = torch.rand_like(function(x))
    assert_conserves(compiled(Move(function), relevance), x)


def test_what_falls_into_padding_is_told():
    relevance = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    padded = Move(lambda x: F.pad(x, (1, 1))).eval()
    explainer = fxlrp.compile(padded, "conserving", start=lambda output, target: relevance)
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
    explainer = fxlrp.compile(Token().eval(), "conserving", start=lambda output, target: relevance)
    x = torch.ones(1, 1, 2)
    assert explainer(x).relevance.tolist() == [[[4.0, 8.0]]]
    assert explainer.ledger(x).absorbed["constant"].tolist() == [3.0]


def test_the_padding_of_patches_carries_no_signal():
    class Patches(nn.Module):
        """A convolution as a product with patches."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 18))

        def forward(self, x):
            return (self.weight @ F.unfold(x, 3, padding=1)).mean(-1)

    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    x[1] = 0
    assert_conserves(fxlrp.compile(Patches().double().eval(), "conserving"), x)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_what_falls_to_a_stacked_constant_is_told_wherever_the_batch_is(dim):
    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 4))

        def forward(self, x):
            return torch.stack([self.token.expand(x.shape[0], -1), x], dim).movedim(dim, 1)

    relevance = torch.rand(3, 2, 4, dtype=torch.float64)
    explainer = fxlrp.compile(Stacked().double().eval(), "conserving", start=lambda output, target: relevance)
    x = torch.randn(3, 4, dtype=torch.float64)
    ledger = assert_conserves(explainer, x, absorbs=("constant",))
    assert_close(ledger.absorbed["constant"], relevance[:, 0].sum(1))


def test_tokens_that_a_score_picks_receive_what_is_made_of_them():
    class Picking(nn.Module):
        """Token pruning: the indices of the largest, then what stands there."""

        def __init__(self, *, by_name):
            super().__init__()
            self.score, self.head, self.by_name = nn.Linear(4, 1), nn.Linear(4, 3), by_name

        def forward(self, x):
            picked = self.score(x).squeeze(-1).topk(2, dim=1)
            index = picked.indices if self.by_name else picked[1]
            return self.head(x.gather(1, index.unsqueeze(-1).expand(-1, -1, 4)).mean(1))

    x = torch.randn(3, 5, 4, dtype=torch.float64)
    for by_name in (False, True):
        model = Picking(by_name=by_name).double().eval()
        explainer = fxlrp.compile(model, "conserving")
        assert_conserves(explainer, x)
        index = model.score(x).squeeze(-1).topk(2, dim=1).indices
        touched = explainer(x).relevance.abs().sum(-1) > 0
        picked = torch.zeros(3, 5).scatter(1, index, 1) > 0
        assert touched.any(1).all()
        assert not (touched & ~picked).any()


# Moves with memory of their own ------------------------------------------------------------------

COPIES = {
    "view": lambda y: torch.view_copy(y, (y.shape[0], 18)), "slice": lambda y: torch.slice_copy(y, 2, 1, 4),
    "select": lambda y: torch.select_copy(y, 1, 1), "permute": lambda y: torch.permute_copy(y, (0, 2, 1)),
    "transpose": lambda y: torch.transpose_copy(y, 1, 2), "unsqueeze": lambda y: torch.unsqueeze_copy(y, 1),
    "squeeze": lambda y: torch.squeeze_copy(y[:, :1], 1), "expand": lambda y: torch.expand_copy(y[:, :1], (-1, 3, -1)),
    "split": lambda y: torch.split_copy(y, 2, 2)[1], "unbind": lambda y: torch.unbind_copy(y, 1)[2],
    "diagonal": lambda y: torch.diagonal_copy(y, 0, 1, 2), "narrow": lambda y: torch.narrow_copy(y, 2, 1, 2),
    "unfold": lambda y: torch.unfold_copy(y, 2, 2, 1), "alias": torch.alias_copy,
}  # fmt: skip


@pytest.mark.parametrize("way", ["symbolic", "export"])
@pytest.mark.parametrize("name", COPIES)
def test_the_copying_form_of_a_move_is_the_move(name, way):
    class Copies(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.LazyLinear(3)

        def forward(self, x):
            return self.head(COPIES[name](self.body(x).relu()).flatten(1))

    torch.manual_seed(0)
    model, x = Copies(), torch.randn(4, 3, 6, dtype=torch.float64)
    model(x.float())
    model = model.double().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    given = model if way == "symbolic" else torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    explainer = fxlrp.compile(given, "conserving")
    explanation = explainer(x, target=1)
    torch.testing.assert_close(explanation.output, model(x))
    torch.testing.assert_close(explanation.relevance.sum((1, 2)), explanation.start)
    assert float(explainer.ledger(x, target=1).error.abs().max()) < 1e-12
