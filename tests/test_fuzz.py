"""Random modules and random misuse: explained and equal to the model, or one of our errors; never anything else."""

import math
import warnings

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from torch import nn

import fxlrp
from fxlrp.errors import FxlrpError

FEATURES, ITEMS = 6, 3

STEPS = {
    # between two values (batch, 6)
    "relu": lambda m, h: h.relu(),
    "gelu": lambda m, h: F.gelu(h),
    "linear": lambda m, h: m.dense(h),
    "layer norm": lambda m, h: m.norm(h),
    "batch norm": lambda m, h: m.batch_norm(h),
    "skip": lambda m, h: h + m.dense(h),
    "gate": lambda m, h: h * m.dense(h).sigmoid(),
    "softmax": lambda m, h: h.softmax(-1),
    "isinstance": lambda m, h: h.relu() if isinstance(h, torch.Tensor) else h,
    "type is": lambda m, h: h.relu() if type(h) is torch.Tensor else h.tanh(),
    "dtype is": lambda m, h: h.relu() if h.dtype is torch.float32 else h.tanh(),
    "sign of a value": lambda m, h: h.relu() if h.sum() > 0 else h.tanh(),
    "sign of a sum, where": lambda m, h: torch.where(h.sum(1, keepdim=True) > 0, h, h.tanh()),
    "len": lambda m, h: h.reshape(len(h), 2, 3).flatten(1),
    "one batch size": lambda m, h: h.reshape(ITEMS, 2, 3).flatten(1),
    "batch branch": lambda m, h: h.relu() if h.shape[0] > 1 else h.tanh(),
    "batch mean": lambda m, h: h - h.mean(0),
    "batch order": lambda m, h: h.flip(0),
    "batch softmax": lambda m, h: h.softmax(0),
    "rand": lambda m, h: h + torch.rand(FEATURES),
    "dropout": lambda m, h: F.dropout(h, 0.5, training=True),
    "counter": lambda m, h: h * m.count(),
    "fft": lambda m, h: torch.fft.fft(h).real,
    "complex": lambda m, h: torch.view_as_complex(h.reshape(-1, 3, 2)).abs().repeat(1, 2),
    "cumsum": lambda m, h: h.cumsum(1),
    "sort": lambda m, h: h.sort(1)[0],
    "topk": lambda m, h: h.topk(3, 1)[0].repeat(1, 2),
    "gather": lambda m, h: h.gather(1, torch.arange(5, -1, -1).expand(h.shape[0], -1)),
    "unbind": lambda m, h: torch.stack(h.unbind(1)[::-1], 1),
    "roll": lambda m, h: h.roll(1, 1),
    "transposed twice": lambda m, h: m.dense(h.t().contiguous().t()),
    "in place": lambda m, h: h.clone().mul_(2).add_(1),
    "alpha": lambda m, h: torch.add(h, 1, alpha=2),
    "constant beside": lambda m, h: torch.cat([h[:, :4], torch.ones(h.shape[0], 2)], 1),
    "cond": lambda m, h: torch.cond(h.shape[1] > 3, lambda v: v * 2, lambda v: -v, [h]),
    "log": lambda m, h: h.abs().log(),
    "log of nothing": lambda m, h: (h * 0).log(),
    "divided by nothing": lambda m, h: h / (h - h),
    "math": lambda m, h: h / math.sqrt(h.shape[-1]),
    "item": lambda m, h: h * h.max().item(),
    "numpy": lambda m, h: torch.from_numpy(h.detach().numpy() * 2),
    "detach": lambda m, h: h.detach(),
    "nonzero": lambda m, h: h[:, h[0].abs() > -1],
    "raises": lambda m, h: h.no_such_method(),
    "swallowed": lambda m, h: m.tried(h),
    "list": lambda m, h: m.kept[0] * h,
    "einsum": lambda m, h: torch.einsum("bi,ij->bj", h, m.dense.weight),
    "outer": lambda m, h: torch.einsum("bi,bj->bij", h, h).flatten(1)[:, :6],
    "double": lambda m, h: h.double().float(),
    "no_grad": lambda m, h: m.without_grad(h),
}

INPUTS = {
    "batch": lambda: (torch.randn(ITEMS, 4),),
    "one": lambda: (torch.randn(1, 4),),
    "none": lambda: (torch.randn(0, 4),),
    "no batch": lambda: (torch.randn(4),),
    "too wide": lambda: (torch.randn(ITEMS, 5),),
    "integers": lambda: (torch.randint(0, 9, (ITEMS, 4)),),
    "double": lambda: (torch.randn(ITEMS, 4, dtype=torch.float64),),
    "nan": lambda: (torch.full((ITEMS, 4), float("nan")),),
    "a list": lambda: ([[1.0, 2.0, 3.0, 4.0]],),
    "two": lambda: (torch.randn(ITEMS, 4), torch.randn(ITEMS, 4)),
    "nothing": lambda: (),
    "sparse": lambda: (torch.randn(ITEMS, 4).to_sparse(),),
}
TARGETS = [None, 0, 2, 3, -1, 2**70, 1.5, True, "cat", [0, 1], [], torch.tensor([0, 1, 2]), torch.tensor([0.5])]
OPTIONS = [
    {}, {"start": "logit"}, {"start": "output"}, {"start": "nonsense"}, {"output": lambda o: o[0]},
    {"output": lambda o: o[:, :2]}, {"output": "logits"}, {"output": 7}, {"split": "symmetric"},
    {"rules": {"nowhere": None}},
    {"checkpoints": ["dense"]}, {"checkpoints": ["nowhere"]}, {"optimize": False}, {"optimize": ["nonsense"]},
    {"start": lambda output, target: output}, {"start": lambda output, target: output[:1]},
]  # fmt: skip


class Random(nn.Module):
    """A layer, some steps, and a layer."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.calls, self.kept = [STEPS[name] for name in steps], 0, [torch.rand(FEATURES)]
        self.first, self.dense = nn.Linear(4, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.last = nn.Linear(FEATURES, 3)
        self.norm, self.batch_norm = nn.LayerNorm(FEATURES), nn.BatchNorm1d(FEATURES)

    def forward(self, x):
        h = self.first(x)
        for step in self.steps:
            h = step(self, h)
        return self.last(h)

    def count(self):
        self.calls += 1
        return self.calls

    def tried(self, h):
        try:
            return h * int(h.shape[1])
        except TypeError:
            return h

    def without_grad(self, h):
        with torch.no_grad():
            return h * 2


def outcome(steps, preset, options, inputs, target):
    """``"refused"``, ``"explained"``, or what is wrong."""
    torch.manual_seed(0)
    model = Random(steps).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            explanation = fxlrp.compile(model, preset, **options)(*inputs, target=target)
        except FxlrpError:
            return "refused"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            assert model.calls == 0
        with torch.no_grad():
            expected = model(*inputs)
    return "explained" if torch.allclose(explanation.output, expected, rtol=1e-4, atol=1e-5) else "another function"


@examples(fast=20, slow=1000)
@given(
    st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=3),
    st.sampled_from(["conserving", "attnlrp", "epsilon"]),
    st.sampled_from(["batch", "one"]),
)
def test_a_random_model_is_explained_as_it_is_or_refused(steps, preset, inputs):
    assert outcome(steps, preset, {}, INPUTS[inputs](), None) in ("explained", "refused")


@examples(fast=20, slow=1000)
@given(
    st.lists(st.sampled_from(["relu", "skip", "layer norm", "isinstance", "batch branch"]), max_size=2),
    st.sampled_from(OPTIONS), st.sampled_from(sorted(INPUTS)), st.sampled_from(TARGETS),
)  # fmt: skip
def test_misuse_is_one_of_our_errors(steps, options, inputs, target):
    assert outcome(steps, "conserving", options, INPUTS[inputs](), target) in ("explained", "refused")
