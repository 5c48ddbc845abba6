"""Products of two signals, attention, norms and softmax against naive formulas in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from torch import nn

import fxlrp
from fxlrp.rules import Bilinear, Epsilon, Halves, NormEpsilon, SignedSplit, SoftmaxTaylor, ThroughValues, ZPlus
from fxlrp.steps.attention import WeightedSum
from fxlrp.steps.matrix_product import EinsteinSum, MatrixProduct
from fxlrp.steps.pooling import Fold, Upsample
from fxlrp.steps.reduction import CumulativeSum, Reduction

DOUBLE = torch.float64


def randn(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


# Linear operations: an operand's shape, and that of the weights ------------------------------

OPERATIONS = {
    "matrix product": (MatrixProduct(), (2, 3, 5), (5, 4)),
    "matrix product from the left": (MatrixProduct(left=True), (2, 5, 3), (4, 5)),
    "matrix product, a matrix an item": (MatrixProduct(), (2, 6, 3, 5), (2, 6, 5, 4)),
    "matrix product, one row for many matrices": (MatrixProduct(), (2, 1, 3, 5), (6, 5, 4)),
    "matrix product from the left, one for many": (MatrixProduct(left=True), (2, 1, 5, 3), (2, 6, 4, 5)),
    "matrix times vector": (MatrixProduct(), (2, 3, 5), (5,)),
    "attention": (WeightedSum(), (2, 4, 6, 3), (2, 4, 5, 6)),
    "attention, grouped heads": (WeightedSum(), (2, 2, 6, 3), (2, 4, 5, 6)),
    "attention, one head for all": (WeightedSum(), (2, 1, 6, 3), (2, 4, 5, 6)),
    "attention without heads": (WeightedSum(), (2, 6, 3), (2, 5, 6)),
    "einsum": (EinsteinSum("bij,bjk->bik", 0), (2, 3, 4), (2, 4, 5)),
    "einsum, second operand": (EinsteinSum("bij,bjk->bik", 1), (2, 4, 5), (2, 3, 4)),
    "einsum, axes in another order": (EinsteinSum("bhid,bjhd->bjih", 1), (2, 5, 4, 3), (2, 4, 6, 3)),
    "einsum, a letter of its own summed out": (EinsteinSum("bijl,bjk->bik", 0), (2, 3, 4, 5), (2, 4, 6)),
    "einsum, a letter in the middle summed out": (EinsteinSum("blj,bj->b", 0), (2, 5, 4), (2, 4)),
    "einsum, an outer product": (EinsteinSum("bi,bj->bij", 1), (2, 4), (2, 3)),
    "einsum, the other one's letter summed out": (EinsteinSum("bi,bjl->bij", 0), (2, 4), (2, 3, 5)),
    "einsum of one tensor": (EinsteinSum("bijk->bki", 0), (2, 3, 4, 5), None),
    "fold": (Fold([4, 5], [2, 3], [1, 1], [0, 1], [2, 1]), (2, 18, 10), None),
    "fold, dilated": (Fold([5, 5], [2, 2], [2, 2], [1, 1], [1, 1]), (2, 8, 25), None),
    "cumulative sum": (CumulativeSum(1), (2, 5, 3), None),
    "cumulative sum, axis from the end": (CumulativeSum(-1), (2, 3, 5), None),
    "mean": (Reduction([-1], keepdim=True), (2, 3, 5), None),
    "sum": (Reduction([1, 2], power=0), (2, 3, 5), None),
    "bicubic": (Upsample("bicubic2d", [7, 5], False, None), (2, 3, 4, 3), None),
    "bicubic, corners": (Upsample("bicubic2d", None, True, [2.0, 2.0]), (2, 3, 3, 3), None),
}


def drawn(name):
    operation, shape, weight_shape = OPERATIONS[name]
    return operation, randn(*shape), None if weight_shape is None else randn(*weight_shape)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_linear_and_its_transpose_is_the_adjoint(name):
    operation, x, weight = drawn(name)
    other = torch.randn_like(x)
    z = operation.apply(x, weight)
    assert_close(operation.apply(2 * x - 3 * other, weight), 2 * z - 3 * operation.apply(other, weight))
    s = torch.randn_like(z)
    c = operation.transpose(s, weight, x)
    assert c.shape == x.shape
    assert_close((c * x).sum(), (s * z).sum(), 1e-11)
    assert_close((c * other).sum(), (s * operation.apply(other, weight)).sum(), 1e-11)


def matrix(operation, x, weight):
    """The operation as a matrix (outputs, inputs) over all elements of ``x``."""
    basis = torch.eye(x.numel(), dtype=DOUBLE).reshape(-1, *x.shape)
    return torch.stack([operation.apply(e, weight).flatten() for e in basis], dim=1)


def signs(z):
    return torch.where(z < 0, -1.0, 1.0).to(z.dtype)


def naive_epsilon(W, x, relevance, epsilon):
    z = W @ x
    return x * (W.T @ (relevance / (z + epsilon * signs(z))))


def naive_zplus(W, x, relevance):
    c = (W * x).clamp(min=0)
    z = c.sum(1)
    return c.T @ torch.where(z == 0, 0, relevance / torch.where(z == 0, 1, z))


@pytest.mark.parametrize("name", OPERATIONS)
def test_rules_over_an_operation_are_their_dense_formulas(name):
    operation, x, weight = drawn(name)
    W = matrix(operation, x, weight)
    relevance = torch.randn_like(operation.apply(x, weight))
    epsilon = Epsilon(1e-2)(operation, x, weight, None, relevance).only
    assert_close(epsilon.flatten(), naive_epsilon(W, x.flatten(), relevance.flatten(), 1e-2))
    parallel = "other one's letter" in name  # several weights from one element to another, each with a sign
    if not parallel:
        zplus = ZPlus(vanishing="absorb")(operation, x, weight, None, relevance).only
        assert_close(zplus.flatten(), naive_zplus(W, x.flatten(), relevance.flatten()))


# Products of two signals ---------------------------------------------------------------------


class Function(nn.Module):
    """A function as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function


class One(Function):
    def forward(self, x):
        return self.function(x)


class Two(Function):
    def forward(self, a, b):
        return self.function(a, b)


class Three(Function):
    def forward(self, query, key, value):
        return self.function(query, key, value)


def explained(model, relevance, *inputs, **rules):
    preset = fxlrp.Preset("under test", **rules)
    # A mask of two items stands in the model: an item alone is another function.
    explainer = fxlrp.compile(model.eval(), preset, start=lambda output, target: relevance, verify="never")
    return explainer(*inputs).relevance


PRODUCTS = {
    "matmul": (torch.matmul, (2, 3, 4), (2, 4, 5), MatrixProduct(left=True)),
    "operator, broadcasting": (lambda a, b: a @ b, (2, 1, 3, 4), (2, 6, 4, 5), MatrixProduct(left=True)),
    "bmm": (torch.bmm, (2, 3, 4), (2, 4, 5), MatrixProduct(left=True)),
    "einsum": (
        lambda a, b: torch.einsum("bhid,bjhd->bhij", a, b), (2, 4, 3, 5), (2, 6, 4, 5),
        EinsteinSum("bhid,bjhd->bhij", 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_of_two_signals_each_takes_half_by_its_own_linear_map(name):
    function, first, second, right = PRODUCTS[name]
    left = EinsteinSum(right.equation, 0) if isinstance(right, EinsteinSum) else MatrixProduct()
    a, b = randn(*first), randn(*second)
    relevance = torch.randn_like(function(a, b))
    to_a, to_b = explained(Two(function), relevance, a, b, product=Bilinear(Epsilon(1e-2)))
    half = 0.5 * relevance.flatten()
    assert_close(to_a.flatten(), naive_epsilon(matrix(left, a, b), a.flatten(), half, 1e-2))
    assert_close(to_b.flatten(), naive_epsilon(matrix(right, b, a), b.flatten(), half, 1e-2))


def test_through_values_halves_where_no_factor_can_be_told_to_be_weights():
    a, b = randn(2, 3, 4), randn(2, 4, 5)
    relevance = randn(2, 3, 5)
    half = 0.5 * relevance.flatten()
    got = explained(Two(torch.matmul), relevance, a, b, product=ThroughValues(ZPlus(vanishing="absorb")))
    assert_close(got[0].flatten(), naive_zplus(matrix(MatrixProduct(), a, b), a.flatten(), half))
    assert_close(got[1].flatten(), naive_zplus(matrix(MatrixProduct(left=True), b, a), b.flatten(), half))


@pytest.mark.parametrize("flipped", [False, True])
def test_a_factor_that_is_never_negative_is_the_weights(flipped):
    a, b = randn(2, 4, 4), randn(2, 4, 4)
    function = (lambda a, b: b @ F.relu(a)) if flipped else (lambda a, b: F.relu(a) @ b)
    relevance = randn(2, 4, 4)
    to_a, to_b = explained(Two(function), relevance, a, b, product=ThroughValues(Epsilon(1e-2)))
    assert not to_a.any()
    W = matrix(MatrixProduct(left=not flipped), b, a.relu())
    assert_close(to_b.flatten(), naive_epsilon(W, b.flatten(), relevance.flatten(), 1e-2))


# Attention -----------------------------------------------------------------------------------

BATCH, HEADS, QUERIES, KEYS, FEATURES = 2, 4, 3, 5, 2


def additive_mask():
    mask = randn(QUERIES, KEYS)
    mask[0, 1:] = mask[1, 3] = float("-inf")
    return mask


def boolean_mask():
    mask = torch.rand(BATCH, 1, QUERIES, KEYS) < 0.6
    mask[..., 0] = True
    return mask


ATTENTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean mask": {"attn_mask": boolean_mask()},
    "additive mask": {"attn_mask": additive_mask()},
    "grouped heads": {"enable_gqa": True},
    "grouped heads, causal": {"enable_gqa": True, "is_causal": True},
    "scale": {"scale": 0.3},
}


def operands(name):
    heads = 2 if "grouped" in name else HEADS
    return (
        randn(BATCH, HEADS, QUERIES, FEATURES), randn(BATCH, heads, KEYS, FEATURES), randn(BATCH, heads, KEYS, FEATURES)
    )  # fmt: skip


def allowed(options, b, i, j):
    """What is added to the score of query ``i`` and key ``j``: −∞ where it must not look."""
    if options.get("is_causal") and j > i:
        return -math.inf
    mask = options.get("attn_mask")
    if mask is None:
        return 0.0
    entry = mask.expand(BATCH, 1, QUERIES, KEYS)[b, 0, i, j].item()
    return entry if mask.dtype != torch.bool else 0.0 if entry else -math.inf


def scores_and_weights(query, key, options):
    """Scores and their softmax, one number at a time: dicts by (item, head, query, key)."""
    scale = options.get("scale", FEATURES**-0.5)
    group = HEADS // key.shape[1]
    scores, weights = {}, {}
    for b in range(BATCH):
        for h in range(HEADS):
            for i in range(QUERIES):
                for j in range(KEYS):
                    dot = sum(query[b, h, i, c].item() * key[b, h // group, j, c].item() for c in range(FEATURES))
                    scores[b, h, i, j] = scale * dot + allowed(options, b, i, j)
                total = sum(math.exp(scores[b, h, i, j]) for j in range(KEYS))
                for j in range(KEYS):
                    weights[b, h, i, j] = math.exp(scores[b, h, i, j]) / total
    return scores, weights


def stable(z, epsilon):
    return z - epsilon if z < 0 else z + epsilon


def naive_values(weights, value, relevance, contribution, epsilon):
    """Relevance of values and of weights by a rule that divides ``contribution`` by its sum over keys."""
    group = HEADS // value.shape[1]
    to_value, to_weights = torch.zeros_like(value), dict.fromkeys(weights, 0.0)
    for b in range(BATCH):
        for h in range(HEADS):
            for i in range(QUERIES):
                for c in range(FEATURES):
                    terms = [contribution(weights[b, h, i, j], value[b, h // group, j, c].item()) for j in range(KEYS)]
                    z = stable(sum(terms), epsilon)
                    for j in range(KEYS):
                        part = terms[j] * relevance[b, h, i, c].item() / z
                        to_value[b, h // group, j, c] += part
                        to_weights[b, h, i, j] += part
    return to_value, to_weights


@pytest.mark.parametrize("name", ATTENTIONS)
def test_through_values_is_a_linear_rule_with_the_attention_as_weights(name):
    options = ATTENTIONS[name]
    query, key, value = operands(name)
    attention = Three(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options))
    relevance = randn(BATCH, HEADS, QUERIES, FEATURES)
    _, weights = scores_and_weights(query, key, options)

    rule = ThroughValues(Epsilon(1e-6))
    to_query, to_key, to_value = explained(attention, relevance, query, key, value, product=rule)
    expected, _ = naive_values(weights, value, relevance, lambda a, v: a * v, 1e-6)
    assert_close(to_value, expected, 1e-9)
    assert not to_query.any()
    assert not to_key.any()

    rule = ThroughValues(ZPlus(stabilizer=1e-6))
    _, _, to_value = explained(attention, relevance, query, key, value, product=rule)
    expected, _ = naive_values(weights, value, relevance, lambda a, v: a * max(v, 0.0), 1e-6)
    assert_close(to_value, expected, 1e-9)


def naive_attnlrp(query, key, value, relevance, options, epsilon):
    scores, weights = scores_and_weights(query, key, options)
    to_value, to_weights = naive_values(weights, value, 0.5 * relevance, lambda a, v: a * v, epsilon)
    group = HEADS // key.shape[1]
    to_query, to_key = torch.zeros_like(query), torch.zeros_like(key)
    for b in range(BATCH):
        for h in range(HEADS):
            for i in range(QUERIES):
                total = sum(to_weights[b, h, i, j] for j in range(KEYS))
                for j in range(KEYS):
                    score = scores[b, h, i, j]
                    if score == -math.inf:
                        continue
                    r = score * (to_weights[b, h, i, j] - weights[b, h, i, j] * total)
                    products = [query[b, h, i, c].item() * key[b, h // group, j, c].item() for c in range(FEATURES)]
                    for c in range(FEATURES):
                        part = products[c] * 0.5 * r / stable(sum(products), epsilon)
                        to_query[b, h, i, c] += part
                        to_key[b, h // group, j, c] += part
    return to_query, to_key, to_value


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attnlrp_through_an_attention_is_its_naive_formula(name):
    options = ATTENTIONS[name]
    inputs = operands(name)
    attention = Three(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options))
    relevance = randn(BATCH, HEADS, QUERIES, FEATURES)
    got = explained(attention, relevance, *inputs, product=Bilinear(Epsilon(1e-6)))
    for share, expected in zip(got, naive_attnlrp(*inputs, relevance, options, 1e-6), strict=True):
        assert_close(share, expected, 1e-9)


def hidden_from_all(kind):
    """A mask that hides the last key from every query."""
    mask = torch.ones(QUERIES, KEYS, dtype=torch.bool)
    mask[:, -1] = False
    return mask if kind == "boolean" else torch.zeros(QUERIES, KEYS, dtype=DOUBLE).masked_fill(~mask, -math.inf)


@pytest.mark.parametrize("kind", ["boolean", "additive"])
@pytest.mark.parametrize("rule", [ThroughValues(), ThroughValues(Epsilon()), Bilinear()])
def test_what_no_query_may_look_at_receives_nothing(rule, kind):
    mask = hidden_from_all(kind)
    attention = Three(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask))
    got = explained(attention, randn(BATCH, HEADS, QUERIES, FEATURES), *operands(""), product=rule)
    assert all(torch.isfinite(share).all() for share in got)
    assert not got[1][:, :, -1].any()
    assert not got[2][:, :, -1].any()
    assert got[2][:, :, :-1].any()


@pytest.mark.parametrize("rule", [ThroughValues(), ThroughValues(Epsilon()), Bilinear()])
def test_a_query_that_may_look_at_nothing_brings_no_nan(rule):
    mask = torch.ones(QUERIES, KEYS, dtype=torch.bool)
    mask[1] = False
    attention = Three(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask))
    got = explained(attention, randn(BATCH, HEADS, QUERIES, FEATURES), *operands(""), product=rule)
    assert all(torch.isfinite(share).all() for share in got)
    assert not got[0][:, :, 1].any()


@pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS)
def test_the_step_by_step_spelling_of_an_attention_is_the_whole_one(options):
    """AttnLRP of matmul, mask, softmax and matmul, one after the other."""
    inputs = operands("grouped" if options.get("enable_gqa") else "")
    group = HEADS // inputs[1].shape[1]
    mask = options.get("attn_mask")
    if options.get("is_causal"):
        mask = torch.ones(QUERIES, KEYS, dtype=torch.bool).tril()

    def by_hand(query, key, value):
        if group > 1:
            key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        scores = query @ key.transpose(-2, -1) * options.get("scale", FEATURES**-0.5)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(-1) @ value

    def whole(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, **options)

    relevance = randn(BATCH, HEADS, QUERIES, FEATURES)
    rules = {"product": Bilinear(Epsilon(1e-9)), "softmax": SoftmaxTaylor()}
    steps = explained(Three(by_hand), relevance, *inputs, **rules)
    for a, b in zip(explained(Three(whole), relevance, *inputs, **rules), steps, strict=True):
        assert_close(a, b, 1e-5)


# Softmax and norms ---------------------------------------------------------------------------


def test_softmax_taylor_is_its_formula():
    x, relevance = randn(2, 3, 5), randn(2, 3, 5)
    got = explained(One(lambda x: F.softmax(x, 1)), relevance, x, softmax=SoftmaxTaylor())
    expected = torch.zeros_like(x)
    for b in range(2):
        for column in range(5):
            s = x[b, :, column].exp() / x[b, :, column].exp().sum()
            r = relevance[b, :, column]
            for i in range(3):
                expected[b, i, column] = x[b, i, column] * (r[i] - s[i] * sum(r))
    assert_close(got, expected)


NORMS = {
    "layer norm": (nn.LayerNorm(6), (2, 3, 6)),
    "layer norm of two axes": (nn.LayerNorm((3, 4)), (2, 3, 4)),
    "layer norm without weights": (nn.LayerNorm(6, elementwise_affine=False), (2, 6)),
    "layer norm without bias": (nn.LayerNorm(6, bias=False), (2, 6)),
    "RMS norm": (nn.RMSNorm(6, eps=1e-3), (2, 3, 6)),
    "RMS norm with torch's own epsilon": (nn.RMSNorm(6), (2, 6)),
    "RMS norm without weights": (nn.RMSNorm(6, elementwise_affine=False), (2, 6)),
    "group norm": (nn.GroupNorm(2, 4), (2, 4, 3, 3)),
    "group norm of one group": (nn.GroupNorm(1, 4), (2, 4, 5)),
    "group norm without weights": (nn.GroupNorm(2, 4, affine=False), (2, 4, 3)),
}


def held(norm, x):
    """The norm as a linear map of ``x``, its deviation held constant."""
    parts, axes = x, -1
    if isinstance(norm, nn.GroupNorm):
        parts = x.unflatten(1, (norm.num_groups, -1)).flatten(2)
    elif isinstance(norm, nn.LayerNorm):
        axes = tuple(range(-len(norm.normalized_shape), 0))
    if isinstance(norm, nn.RMSNorm):
        eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
        deviation = (parts.square().mean(axes, keepdim=True) + eps).sqrt()
    else:
        parts = parts - parts.mean(axes, keepdim=True)
        deviation = (parts.square().mean(axes, keepdim=True) + norm.eps).sqrt()
    y = (parts / deviation.detach()).reshape(x.shape)
    for name, parameter in norm.named_parameters():
        if isinstance(norm, nn.GroupNorm):
            parameter = parameter.reshape(-1, *[1] * (x.dim() - 2))
        y = y * parameter if name == "weight" else y + parameter
    return y


@pytest.mark.parametrize("name", NORMS)
def test_the_epsilon_rule_of_a_norm_is_that_of_its_jacobian_with_the_deviation_held(name):
    norm, shape = NORMS[name]
    norm = norm.double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = randn(*shape)
    y = norm(x)
    assert_close(held(norm, x).detach(), y.detach())
    J = torch.autograd.functional.jacobian(lambda v: held(norm, v), x).reshape(y.numel(), x.numel())
    relevance = torch.randn_like(y)
    s = (relevance / (y + 1e-3 * signs(y))).flatten()
    expected = x.flatten() * (J.T @ s)
    got = explained(nn.Sequential(norm), relevance, x, norm=NormEpsilon(1e-3))
    assert_close(got.flatten(), expected.detach())


def test_norms_without_such_a_rule_pass_relevance_on():
    x = randn(2, 4, 5)
    relevance = torch.randn_like(x)
    got = explained(nn.Sequential(nn.BatchNorm1d(4)).double(), relevance, x, norm=NormEpsilon())
    assert torch.equal(got, relevance)


# Against the authors' own code ---------------------------------------------------------------


@pytest.fixture
def lxt():
    return pytest.importorskip("lxt.explicit.functional")


def backward(function, relevance, *inputs):
    """The relevance that functions of lxt propagate as gradients."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves, relevance)


EPSILON = 1e-12
"""lxt adds ε without a sign: both sides differ by 2ε over the smallest denominator."""
NEAR = 1e-7


def test_softmax_agrees_with_lxt(lxt):
    x, relevance = randn(2, 3, 5), randn(2, 3, 5)
    x[0, 0, 2:] = float("-inf")
    (expected,) = backward(lambda x: lxt.softmax(x, -1), relevance, x)
    got = SoftmaxTaylor()(relevance, x, x.softmax(-1), dim=-1).only
    assert_close(got, expected)


def test_linear_layers_agree_with_lxt(lxt):
    layer = nn.Linear(5, 4).double()
    x, relevance = randn(2, 3, 5), randn(2, 3, 4)
    (expected,) = backward(lambda x: lxt.linear_epsilon(x, layer.weight, layer.bias, EPSILON), relevance, x)
    got = explained(nn.Sequential(layer), relevance, x, linear=Epsilon(EPSILON, bias="absorb"))
    assert_close(got, expected, NEAR)


def test_matrix_products_agree_with_lxt(lxt):
    a, b, relevance = randn(2, 3, 4), randn(2, 4, 5), randn(2, 3, 5)
    expected = backward(lambda a, b: lxt.matmul(a, b, False, EPSILON), relevance, a, b)
    got = explained(Two(torch.matmul), relevance, a, b, product=Bilinear(Epsilon(EPSILON)))
    for share, wanted in zip(got, expected, strict=True):
        assert_close(share, wanted, NEAR)


def test_layer_norms_agree_with_lxt(lxt):
    norm = nn.LayerNorm(6).double()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x, relevance = randn(2, 3, 6), randn(2, 3, 6)
    function = lambda x: lxt.layer_norm_grad_fn.apply(x, norm.weight, norm.bias, norm.eps, EPSILON)  # noqa: E731
    (expected,) = backward(function, relevance, x)
    got = explained(nn.Sequential(norm), relevance, x, norm=NormEpsilon(EPSILON))
    assert_close(got, expected, NEAR)


def test_sums_and_gates_agree_with_lxt(lxt):
    a, b, relevance = randn(2, 3, 4), randn(2, 3, 4), randn(2, 3, 4)
    expected = backward(lambda a, b: lxt.add2(a, b, False, EPSILON), relevance, a, b)
    for share, wanted in zip(SignedSplit(EPSILON)(relevance, a, b).operands, expected, strict=True):
        assert_close(share, wanted, NEAR)
    for share, wanted in zip(Halves()(relevance, gate=None).operands, backward(lxt.mul2, relevance, a, b), strict=True):
        assert_close(share, wanted)


@pytest.mark.parametrize("causal", [False, True])
def test_an_attention_agrees_with_lxt(lxt, causal):
    query, key, value = (randn(BATCH, HEADS, KEYS, FEATURES) for _ in range(3))
    relevance = randn(BATCH, HEADS, KEYS, FEATURES)
    hidden = ~torch.ones(KEYS, KEYS, dtype=torch.bool).tril()

    def theirs(query, key, value):
        scores = lxt.matmul(query * FEATURES**-0.5, key.mT, False, EPSILON)
        scores = scores.masked_fill(hidden, float("-inf")) if causal else scores
        return lxt.matmul(lxt.softmax(scores, -1), value, False, EPSILON)

    to_query, to_key, to_value = backward(theirs, relevance, query, key, value)
    to_query = to_query / FEATURES**-0.5  # autograd scales the relevance of a scaled query, and lxt leaves that to it
    model = Three(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal))
    got = explained(model, relevance, query, key, value, product=Bilinear(Epsilon(EPSILON)))
    for share, wanted in zip(got, (to_query, to_key, to_value), strict=True):
        assert_close(share, wanted, NEAR)
