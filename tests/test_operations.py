"""Operations of every family between two layers: the model's function, conserved, items alone, captured either way."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_explains
from torch import nn
from torchvision.ops import roi_align, roi_pool

import fxlrp

SERIES, IMAGE, VECTOR = (3, 5, 6), (3, 2, 6, 6), (3, 6)
INDEX = torch.tensor([0, 1, 0, 2, 1])
POINTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
KERNELS = POINTS[:3, :, None] * POINTS[1:, None]


def spread(h):
    return INDEX[None, :, None].expand_as(h)


def standardised(h):
    var, mean = torch.var_mean(h, (1, 2), keepdim=True)
    return (h - mean) / (var + 0.1).sqrt()


def bilinear(h):
    return F.bilinear(h, h.relu(), POINTS[:3, :, None] * POINTS[1:, None, :].flip(2)[:3], POINTS[0, :3])


def blanked(h):
    h = h.clone()
    h[:, INDEX[:2]] = 0.5
    h[h < -1] = 0.0
    return h


def gram(h):
    return h @ h.mT + torch.eye(h.shape[-2], dtype=h.dtype)


def boxes(h):
    """Two for each item: (items, 2, number and corners)."""
    items = torch.arange(len(h), dtype=h.dtype)[:, None, None].expand(-1, 2, 1)
    return torch.cat([items, (POINTS[:2, :4].abs() * 3).expand(len(h), -1, -1)], 2)


def in_turns(h):
    found = roi_align(h, boxes(h).transpose(0, 1).flatten(0, 1), 2)
    return found.unflatten(0, (2, -1)).transpose(0, 1)


def attended_boxes(h):
    tokens = roi_align(h, boxes(h).flatten(0, 1), 2).flatten(1).unflatten(0, (-1, 2)).transpose(0, 1)
    heads = tokens.reshape(2, -1, 2, 4).flatten(1, 2).transpose(0, 1)
    mixed = ((heads @ heads.mT).softmax(-1) @ heads).transpose(0, 1).reshape(-1, 8)
    return mixed.relu().unflatten(0, (2, -1)).transpose(0, 1)


def overlapping(h):
    """Windows that overlap by half, by the strides of a value that lies in memory as it happens to."""
    windows = h.unflatten(1, (-1, 2)) if h.shape[1] % 2 == 0 else h[:, :-1].unflatten(1, (-1, 2))
    size, stride = list(windows.shape), list(windows.stride())
    size[1], stride[1] = 2 * size[1] - 1, stride[1] // 2
    return windows.as_strided(size, stride)


def first_of(result):
    return result[0] if isinstance(result, tuple) else result


def by_item(function):
    return lambda h: torch.stack([function(item) for item in h])


def grid(h):
    return (POINTS[:, :4].reshape(1, 2, 4, 2).tanh() * 1.1).expand(h.shape[0], -1, -1, -1)


FUNCTIONS = {
    "var, named and counted": (lambda h: torch.var(h, dim=(1, 2), correction=0, keepdim=True) * h, SERIES),
    "var_mean": (standardised, SERIES),
    "std_mean": (lambda h: torch.cat(torch.std_mean(h, 1, unbiased=False), 1), SERIES),
    "cosine similarity": (lambda h: F.cosine_similarity(h[:, :1], h[:, 1:], dim=-1), SERIES),
    "pairwise distance": (lambda h: F.pairwise_distance(h[:, 0], h[:, 1], p=1, keepdim=True), SERIES),
    "cdist": (lambda h: torch.cdist(h, POINTS), SERIES),
    "cdist, largest difference": (lambda h: torch.cdist(h, POINTS, p=float("inf")), SERIES),
    "distances to points": (lambda h: torch.cdist(POINTS, h).mT, VECTOR),
    "covariance": (lambda h: torch.vmap(torch.cov)(h), SERIES),
    "correlation": (lambda h: torch.vmap(torch.corrcoef)(h), SERIES),
    "bilinear": (bilinear, VECTOR),
    "cross": (lambda h: torch.linalg.cross(h[..., :3], h[..., 3:]), SERIES),
    "tensordot": (lambda h: torch.tensordot(h, POINTS.T, dims=1), SERIES),
    "einsum of three": (lambda h: torch.einsum("bti,ij,bsj->bts", h, POINTS.T @ POINTS, h.tanh()), SERIES),
    "einsum, a repeated axis": (lambda h: torch.einsum("bii->bi", h @ h.mT), SERIES),
    "einsum, an ellipsis": (lambda h: torch.einsum("...nd,...d->...n", h, h.sum(-2)), SERIES),
    "addmm with factors": (lambda h: torch.addmm(POINTS[:, 0], h, POINTS.T, beta=0.5, alpha=2.0), VECTOR),
    "diagonal": (lambda h: torch.diagonal(h @ h.mT, dim1=1, dim2=2), SERIES),
    "diag_embed": (lambda h: h @ torch.diag_embed(h[:, 0]), SERIES),
    "tril": (lambda h: torch.tril(h @ h.mT) @ h, SERIES),
    "rot90": (lambda h: torch.rot90(h, 3, (2, 3)) * torch.rot90(h, 1, (2, 3)).sigmoid(), IMAGE),
    "circular padding": (lambda h: F.pad(h, (1, 2, 0, 3), mode="circular"), IMAGE),
    "median": (lambda h: h.median(dim=1).values + h.median(dim=1, keepdim=True)[0][:, 0], SERIES),
    "kthvalue": (lambda h: h.kthvalue(2, dim=-1).values, SERIES),
    "quantile": (lambda h: torch.quantile(h, 0.3, dim=1, keepdim=True), SERIES),
    "quantiles": (lambda h: torch.quantile(h, torch.tensor([0.1, 0.5], dtype=torch.float64), dim=1)[0], SERIES),
    "prod": (lambda h: h.sigmoid().prod(1), SERIES),
    "cumprod": (lambda h: torch.cumprod(1 - h.sigmoid(), dim=1), SERIES),
    "cummax": (lambda h: torch.cummax(h, dim=1).values, SERIES),
    "logcumsumexp": (lambda h: torch.logcumsumexp(h, dim=1), SERIES),
    "logaddexp": (lambda h: torch.logaddexp(h[:, 0], h[:, 1]), SERIES),
    "diff": (lambda h: torch.diff(h, n=2, dim=1, prepend=h[:, :1]), SERIES),
    "lerp by a gate": (lambda h: torch.lerp(h.tanh(), h.flip(1), h.sigmoid()), SERIES),
    "trapezoid": (lambda h: torch.trapezoid(h, dx=0.5, dim=1), SERIES),
    "aminmax": (lambda h: torch.cat(torch.aminmax(h, dim=1), 1), SERIES),
    "scatter_add": (lambda h: torch.zeros_like(h).scatter_add(1, spread(h), h), SERIES),
    "scatter_add onto signal": (lambda h: h.tanh().scatter_add(1, spread(h), h), SERIES),
    **{
        f"scatter_reduce, {how}": (
            lambda h, how=how: torch.zeros_like(h).scatter_reduce(1, spread(h), h, how, include_self=how == "sum"),
            SERIES,
        )
        for how in ("sum", "mean", "amax", "amin", "prod")
    },
    "scatter": (lambda h: torch.zeros_like(h).scatter(-1, h.topk(2, -1).indices, h.topk(2, -1).values), SERIES),
    "scatter a number": (lambda h: h.scatter(1, INDEX[None, :1, None].expand(h.shape[0], 1, 6), 0.5), SERIES),
    "scatter, a number multiplied": (
        lambda h: h.scatter(1, INDEX[None, :1, None].expand(h.shape[0], 1, 6), 0.5, reduce="multiply"), SERIES
    ),
    "scatter, a signal added": (lambda h: h.scatter(1, spread(h), h.tanh(), reduce="add"), SERIES),
    "index_add": (lambda h: h.index_add(1, INDEX[:2], h[:, 3:], alpha=-0.5), SERIES),
    "index_copy": (lambda h: h.index_copy(1, INDEX[:2], h[:, 3:].relu()), SERIES),
    "index_fill": (lambda h: h.index_fill(1, INDEX[:2], 0.0), SERIES),
    "index_put, summed": (
        lambda h: h.new_zeros(h.shape).index_put((torch.arange(h.shape[0])[:, None], INDEX), h, accumulate=True), SERIES
    ),
    "places assigned": (blanked, SERIES),
    "masked_scatter": (lambda h: h.masked_scatter((INDEX == 1)[None, :, None].expand_as(h), h[:, :2].tanh()), SERIES),
    "addmv, item by item": (lambda h: torch.stack([torch.addmv(i[:, 0], i, POINTS[0], beta=0.5) for i in h]), SERIES),
    "addbmm": (by_item(lambda i: torch.addbmm(i[0, :, None], i[..., None], i[:, None, :1], alpha=2.0)), SERIES),
    "copysign": (lambda h: torch.copysign(h, h.flip(1)) + torch.copysign(h, -1.0), SERIES),
    "ldexp": (lambda h: torch.ldexp(h, INDEX[0] + 1), SERIES),
    "round to places": (lambda h: h.round(decimals=1), SERIES),
    "gamma functions": (lambda h: torch.lgamma(h.exp() + 1) + torch.digamma(h.exp() + 1), SERIES),
    "Bessel functions": (lambda h: torch.i0(h) + torch.special.i1(h) * torch.special.i1e(h), SERIES),
    "what returns a tuple, asked for its type": (lambda h: first_of(h.median(1)) + first_of(h.mode(1)), SERIES),
    "the largest magnitude": (lambda h: torch.linalg.vector_norm(h, float("inf"), dim=1), SERIES),
    "the smallest magnitude": (lambda h: torch.linalg.vector_norm(h, -float("inf"), dim=1), SERIES),
    "dist": (by_item(lambda i: torch.dist(i, torch.ones_like(i), 3).reshape(1)), SERIES),
    "diagonal_scatter": (lambda h: torch.diagonal_scatter(h, h[:, 0, :5].tanh(), 0, 1, 2), SERIES),
    "masked_scatter, item by item": (by_item(lambda i: i.masked_scatter(i > 0, i.tanh())), SERIES),
    "masked_select, item by item": (by_item(lambda i: torch.masked_select(i, (INDEX == 1)[:, None])), SERIES),
    "index_fill, item by item": (by_item(lambda i: i.index_fill(1, INDEX[:2], 2.0)), SERIES),
    "put, item by item": (by_item(lambda i: i.put(INDEX[:2], i[0, :2].tanh())), SERIES),
    "index_reduce": (lambda h: h.index_reduce(1, INDEX[:2], h[:, :2].tanh(), "mean"), SERIES),
    "repeated, item by item": (by_item(lambda i: i.repeat_interleave(2)), SERIES),
    "a softmax of nothing": (
        lambda h: torch.ops.aten._safe_softmax(h.masked_fill((INDEX == 1)[:, None], -torch.inf), -1), SERIES
    ),
    "written twice": (lambda h: h.new_zeros(h.shape).scatter(1, INDEX[None, :, None].expand_as(h) * 0, h), SERIES),
    "put twice": (by_item(lambda i: i.new_zeros(2, 6).index_put((INDEX[:2] * 0,), i[:2])), SERIES),
    "copied twice": (lambda h: h.index_copy(2, INDEX[:3] * 0, h[..., :3]), SERIES),
    "max_unpool2d, windows overlap": (
        lambda h: F.max_unpool2d(*F.max_pool2d(h, 3, 1, return_indices=True), 3, 1, output_size=h.shape[2:]), IMAGE
    ),
    "take_along_dim": (lambda h: torch.take_along_dim(h, h.argsort(1)[:, :2], dim=1), SERIES),
    "repeated by counts": (lambda h: torch.repeat_interleave(h, INDEX, dim=1), SERIES),
    "columns of a mask": (lambda h: h[:, INDEX == 1], SERIES),
    "grid_sample": (lambda h: F.grid_sample(h, grid(h), align_corners=False), IMAGE),
    "grid_sample, nearest": (lambda h: F.grid_sample(h, grid(h), "nearest", "border", align_corners=True), IMAGE),
    "max_unpool2d": (lambda h: F.max_unpool2d(*F.max_pool2d(h.relu(), 2, return_indices=True), 2), IMAGE),
    "resizing with antialiasing": (
        lambda h: F.interpolate(h, scale_factor=0.5, mode="bilinear", antialias=True), IMAGE
    ),
    "bicubic resizing with antialiasing": (
        lambda h: F.interpolate(h, size=(4, 3), mode="bicubic", antialias=True), IMAGE
    ),
    "max_pool2d, dilated windows that reach out": (
        lambda h: F.max_pool2d(h, 3, 2, padding=1, dilation=2, ceil_mode=True), IMAGE
    ),
    "conv_tbc": (lambda h: torch.conv_tbc(h.movedim(1, 0).contiguous(), KERNELS, POINTS[0], 1).transpose(0, 1), SERIES),
    "convolution": (lambda h: torch.convolution(h, POINTS[:, :5, None], None, [1], [0], [1], False, [0], 1), SERIES),
    "a chain of matrices": (lambda h: torch.linalg.multi_dot([h, POINTS.T, POINTS[:, :2], POINTS[:2, :4]]), VECTOR),
    "bucketize": (lambda h: h * torch.bucketize(h, POINTS[0].sort()[0]), VECTOR),
    "searchsorted, method of signs": (lambda h: h * torch.searchsorted(POINTS[0].sort()[0], h) + h.signbit(), VECTOR),
    "histc": (lambda h: h * torch.stack([torch.histc(item.detach(), 6, -2, 2) for item in h]), VECTOR),
    "rrelu": (lambda h: F.rrelu(h, 0.1, 0.3), VECTOR),
    "fmin": (lambda h: torch.fmin(h, h.flip(1)) + torch.fmax(h, POINTS[0]), VECTOR),
    "power by a tensor": (lambda h: (h.abs() + 0.1) ** POINTS[0].abs(), VECTOR),
    "power of a number": (lambda h: 2.0**h, VECTOR),
    "remainder": (lambda h: h + torch.remainder(h, 1.0) - torch.floor(h), VECTOR),
    "frames by as_strided": (lambda h: torch.as_strided(h.contiguous(), (len(h), 3, 2, 6), (30, 6, 12, 1)), SERIES),
    "frames by as_strided of what was transposed": (lambda h: overlapping(h.transpose(1, 2)), SERIES),
    "frames by as_strided of heads": (
        lambda h: overlapping(h.view(-1, 5, 2, 3).transpose(1, 2).reshape(-1, 5, 3)[:, :4].clone()).reshape(len(h), -1),
        SERIES,
    ),
    "a diagonal by as_strided": (lambda h: (h @ h.mT).contiguous().as_strided((len(h), 4), (25, 6), 1), SERIES),
    "roi_align": (lambda h: roi_align(h, [POINTS[:2, :4].abs() * 3] * len(h), 2).reshape(len(h), -1), IMAGE),
    "roi_align, the items in turns": (in_turns, IMAGE),
    "roi_align, attention over boxes": (attended_boxes, IMAGE),
    "roi_pool": (lambda h: roi_pool(h, [POINTS[:3, :4].abs() * 4] * len(h), 3).reshape(len(h), -1), IMAGE),
    "solve": (lambda h: torch.linalg.solve(gram(h), h), SERIES),
    "solve, the matrix alone": (lambda h: torch.linalg.solve(gram(h), POINTS[0, :5]), SERIES),
    "solve from the right, the matrix": (lambda h: torch.linalg.solve(gram(h), POINTS[:, :5], left=False), SERIES),
    "inverse": (lambda h: gram(h).inverse() @ h, SERIES),
    "pseudo-inverse": (lambda h: torch.linalg.pinv(h) @ POINTS[:, :5].T, SERIES),
    "least squares": (lambda h: torch.linalg.lstsq(POINTS.T, h.mT.flatten(1)[:, :6].mT).solution.mT, SERIES),
    "triangular solve": (lambda h: torch.linalg.solve_triangular(gram(POINTS), h[:, :4], upper=True), SERIES),
    "ranks as weights": (lambda h: h * h.argsort(1).argsort(1).to(h.dtype), SERIES),
    "places of the largest as weights": (lambda h: h * h.topk(2, 1).indices.to(h.dtype).sum(1, keepdim=True), SERIES),
    "place of the maximum as a weight": (lambda h: h * (h.max(1, keepdim=True)[1] + 1).double(), SERIES),
    "determinant": (lambda h: torch.linalg.det(gram(h))[:, None] * h[:, 0], SERIES),
    "logarithm of a determinant": (lambda h: torch.logdet(gram(h))[:, None].expand(-1, 2), SERIES),
    "logarithm of a determinant, by name": (lambda h: torch.linalg.slogdet(h[:, :, 1:]).logabsdet[:, None], SERIES),
    "polygamma": (lambda h: torch.polygamma(1, h.abs() + 1), VECTOR),
    "remainder of a number": (lambda h: h + 2.0 % (h.abs() + 1.0), VECTOR),
    "atan2": (lambda h: torch.atan2(h[:, :3], h[:, 3:]), VECTOR),
}
ABSORBS = ("bias", "constant", "padding", "stabilizer")


class Between(nn.Module):
    """A layer, a function, a layer; ``opened``: symbolic tracing cannot follow it."""

    def __init__(self, function, shape, opened):
        super().__init__()
        torch.manual_seed(0)
        self.function, self.opened = function, opened
        self.a = nn.Conv2d(2, 2, 1) if len(shape) == 4 else nn.Linear(6, 6)
        self.double()
        width = self.function(self.a(torch.randn(shape, dtype=torch.float64))).flatten(1).shape[1]
        self.b = nn.Linear(width, 3).double()

    def forward(self, x):
        if self.opened and x.shape[1] < 1:
            raise ValueError
        return self.b(self.function(self.a(x)).flatten(1))


@pytest.mark.parametrize("opened", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["symbolic", "export"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_between_two_layers_is_explained(name, opened):
    function, shape = FUNCTIONS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_explains(Between(function, shape, opened).eval(), x, absorbs=ABSORBS)


@pytest.mark.parametrize("name", ["var_mean", "cdist", "einsum of three", "scatter_reduce, amax", "places assigned",
                                  "quantiles", "determinant", "logarithm of a determinant",
                                  "logarithm of a determinant, by name", "polygamma", "remainder of a number",
                                  "ranks as weights", "places of the largest as weights",
                                  "place of the maximum as a weight"])
def test_export_explains_them_too(name):
    function, shape = FUNCTIONS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_explains(Between(function, shape, True).eval(), x, absorbs=ABSORBS)


def relevance_of(function, shape=VECTOR, **options):
    model = Between(function, shape, False).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return fxlrp.compile(model, **{"preset": "epsilon", "start": "logit", **options})(x, target=0).relevance


@pytest.mark.parametrize(
    ("one", "other", "shape"),
    [
        (lambda h: h.median(1).values, lambda h: h.sort(dim=1).values[:, 2], SERIES),
        (lambda h: torch.quantile(h, 0.25, dim=1), lambda h: h.sort(dim=1).values[:, 1], SERIES),
        (lambda h: torch.tensordot(h, POINTS.T, dims=1), lambda h: h @ POINTS.T, SERIES),
        (lambda h: torch.einsum("bti,ij->btj", h, POINTS.T), lambda h: F.linear(h, POINTS), SERIES),
        (lambda h: torch.addmm(POINTS[:, 0], h, POINTS.T, beta=1, alpha=1),
         lambda h: F.linear(h, POINTS, POINTS[:, 0]), VECTOR),
        (lambda h: torch.diff(h, dim=1), lambda h: h[:, 1:] - h[:, :-1], SERIES),
        (lambda h: torch.rot90(h, 2, (2, 3)), lambda h: h.flip((2, 3)), IMAGE),
        (lambda h: h.index_fill(1, INDEX[:1], 0.0), lambda h: torch.cat([0 * h[:, :1], h[:, 1:]], 1), SERIES),
        (lambda h: F.pad(h, (1, 1), mode="circular"), lambda h: torch.cat([h[..., -1:], h, h[..., :1]], -1), SERIES),
    ],
)  # fmt: skip
def test_two_spellings_of_one_function_get_the_same_relevance(one, other, shape):
    assert_close(relevance_of(one, shape), relevance_of(other, shape), limit=1e-4)


def test_every_factor_of_a_product_has_an_equal_part():
    x = torch.tensor([[2.0, 3.0, 5.0]], dtype=torch.float64)
    explanation = fxlrp.compile(Product().eval(), "epsilon", start="output")(x)
    assert_close(explanation.relevance, torch.full((1, 3), 10.0, dtype=torch.float64), limit=1e-6)


@pytest.mark.parametrize(
    ("function", "behind"),
    [(lambda x: torch.linalg.inv(x), None), (lambda x: torch.linalg.solve(x, POINTS[:, :2]), POINTS[:, :2])],
    ids=["inverse", "solve"],
)
def test_a_matrix_that_is_inverted_is_explained_by_its_inverse(function, behind):
    """``Y = A⁻¹ B = A⁻¹ A Y``: R_kl = A_kl Σ_ij A⁻¹_ik Y_lj R_ij / Y_ij."""
    x = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    explainer = fxlrp.compile(Applied(function).eval(), fxlrp.presets.epsilon(1e-14, 1e-14), start="output")
    inverse = torch.linalg.inv(x)
    y = inverse if behind is None else inverse @ behind
    assert_close(explainer(x).relevance, x * (inverse.mT @ torch.ones_like(y) @ y.mT), limit=1e-9)


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Product(nn.Module):
    def forward(self, x):
        return x.prod(1, keepdim=True)


def test_a_product_over_all_items_is_refused():
    model = Between(lambda h: h * h.prod(), VECTOR, False).eval()
    with pytest.raises(fxlrp.errors.FxlrpError, match="joins the items of a batch"):
        fxlrp.compile(model, "conserving")(torch.randn(VECTOR, dtype=torch.float64))


@pytest.mark.parametrize("name", ["max_unpool2d", "diag_embed", "grid_sample", "scatter", "tril"])
def test_zeros_beside_values_absorb_what_they_get(name):
    function, shape = FUNCTIONS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    explainer = fxlrp.compile(Between(function, shape, False).eval(), "evidence", start="logit")
    ledger = explainer.ledger(x)
    assert (ledger.error.abs() <= 1e-10 * ledger.start.abs().clamp(min=1)).all()


def test_a_rule_is_given_by_any_spelling_of_a_quotient():
    model = Between(lambda h: torch.div(h, 1 + h.sigmoid(), rounding_mode=None), VECTOR, False).eval()
    x = torch.randn(VECTOR, dtype=torch.float64)
    keys = (torch.ops.aten.div.Tensor, torch.div)
    found = [fxlrp.compile(model, "conserving", rules={key: fxlrp.rules.Halves()})(x).relevance for key in keys]
    assert_close(*found)


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
def test_distances_of_all_pairs_are_those_of_a_table_of_distances(p):
    upper = torch.triu_indices(4, 4, 1)
    pairs, table = Applied(lambda x: F.pdist(x, p)), Applied(lambda x: torch.cdist(x, x, p)[upper[0], upper[1]])
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ones = {"preset": "epsilon", "start": lambda output, target: torch.ones_like(output), "batch": None}
    one, other = (fxlrp.compile(model.eval(), **ones)(x) for model in (pairs, table))
    assert_close(one.relevance, other.relevance)
    assert_close(one.output, F.pdist(x, p))


@pytest.mark.parametrize("kernel", [4, 5])
def test_a_kernel_that_is_computed_may_be_padded_to_the_same_size(kernel):
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.pitch, self.head = nn.Parameter(torch.tensor([0.3, 0.7, 1.1])), nn.Linear(3, 2)

        def forward(self, x):
            filters = torch.sin(self.pitch[:, None] * torch.arange(1.0, kernel + 1, dtype=x.dtype))
            return self.head(F.conv1d(x, filters[:, None], padding="same").relu().mean(2))

    torch.manual_seed(0)
    assert_explains(Computed().double().eval(), torch.randn(2, 1, 9, dtype=torch.float64), absorbs=ABSORBS)


@pytest.mark.parametrize("pool", [lambda h: F.max_pool2d(h[:, 0], 3, 2), lambda h: F.adaptive_max_pool2d(h[:, 0], 2)])
def test_pools_of_values_without_channels_hand_on_to_their_winners(pool):
    model = Between(pool, IMAGE, False).eval()
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    explainer = fxlrp.compile(model, "attnlrp", start="logit")
    ledger = explainer.ledger(x, target=0)
    assert (ledger.error.abs() <= 1e-10 * ledger.start.abs().clamp(min=1)).all()
    assert explainer(x, target=0).relevance.any()
