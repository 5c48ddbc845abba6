"""What is explained is the model, every item as if it were alone; or the first call says what is wrong."""

import array
import contextlib
import copy
import dataclasses
import functools
import random
import types
import unittest.mock
import weakref
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from torch import nn
from torch.nn.utils import prune

import fxlrp
from fxlrp.capture import Snapshot
from fxlrp.errors import CaptureError, FxlrpError, RuleError, TrainingModeError


class Between(nn.Module):
    """Two layers, and a function of the module and a value between them."""

    def __init__(self, between, width=8, into=None):
        super().__init__()
        self.first, self.between, self.last = nn.Linear(4, width), between, nn.Linear(into or width, 3)

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def plain():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def assert_explains(model, *batches, explainer=None):
    """The output is the model's, relevance adds up, and item 0 is explained as if alone."""
    explainer = explainer or fxlrp.compile(model, "conserving")
    for x in batches:
        explanation = explainer(x)
        with torch.no_grad():
            assert_close(explanation.output, model(x), 1e-6)
        assert_close(explanation.relevance.flatten(1).sum(1), explanation.start, 1e-4)
        alone = explainer(x[:1], target=explanation.target[:1])
        assert_close(alone.relevance, explanation.relevance[:1], 1e-4)
    return explainer


def assert_refused(model, x, word, **options):
    with pytest.raises(CaptureError, match=word):
        fxlrp.compile(model.eval(), **options)(x)


# What a value is ----------------------------------------------------------------------------------


def swallowed(self, h):
    with contextlib.suppress(TypeError):
        h = h * (int(h.shape[1]) / 4)
    return h.relu()


@pytest.mark.parametrize(
    "between",
    [
        lambda self, h: h.relu() if isinstance(h, torch.Tensor) else h,
        lambda self, h: h.relu() if torch.is_tensor(h) else h,
        lambda self, h: (h.last_hidden_state if hasattr(h, "last_hidden_state") else h).relu(),
        lambda self, h: h.relu() if h.dtype is torch.float32 else h,
        lambda self, h: h.relu().reshape(len(h), -1),
        swallowed,
    ],
    ids=["isinstance", "is_tensor", "hasattr", "dtype is", "len", "a swallowed TypeError"],
)
def test_the_branch_that_the_model_takes_is_explained(between):
    assert_explains(Between(between).eval(), torch.randn(3, 4), torch.randn(1, 4))


def test_a_branch_that_no_capture_takes_is_refused_and_the_module_named():
    model = nn.Sequential(nn.Linear(4, 4), Between(lambda self, h: h.relu() if type(h) is torch.Tensor else h))
    assert_refused(model, torch.randn(3, 4), "first difference is in '1' .Between.")


def test_a_call_in_vain_leaves_nothing_behind():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)])

        def forward(self, x):
            for block in self.blocks:
                try:
                    x = block(x, lengths=None)
                except TypeError:
                    x = block(x)
            return x

    explainer = assert_explains(Tries().eval(), torch.randn(3, 4))
    assert [row.path for row in explainer.summary()] == ["blocks.0", "blocks.1", "blocks.2"]


# How many items there are -------------------------------------------------------------------------


def test_a_branch_on_the_batch_that_changes_the_function_is_refused():
    model = Between(lambda self, h: h * 2 if h.shape[0] > 2 else h).eval()
    explainer = fxlrp.compile(model, "conserving")
    for size in (3, 1, 2):
        with pytest.raises(CaptureError, match="batch"):
            [explainer(torch.randn(count, 4)) for count in (size, 1)]


def test_a_branch_on_the_batch_that_changes_nothing_leads_to_another_capture():
    model = Between(lambda self, h: (h.contiguous() if h.shape[0] >= 64 else h).relu()).eval()
    assert_explains(model, torch.randn(3, 4), torch.randn(66, 4), torch.randn(1, 4))


IN_TWO_WAYS = {
    "two branches": lambda self, h: h.relu() if h.shape[0] > 2 else h.clamp(min=0),
    "halves": lambda self, h: torch.cat([half.relu() for half in h.chunk(2)]) if h.shape[0] > 2 else h.relu(),
    "one item after the other": lambda self, h: torch.stack([h[i].relu() for i in range(h.shape[0])]),
}


@pytest.mark.parametrize("way", IN_TWO_WAYS)
@pytest.mark.parametrize("sizes", [(4, 1, 2), (1, 4), (2, 1, 3)], ids=str)
def test_batches_that_take_two_ways_to_one_function_are_explained_in_any_order(way, sizes):
    model = Between(IN_TWO_WAYS[way]).eval()
    assert_explains(model, *(torch.randn(size, 4) for size in sizes))


def limited(self, h):
    if h.shape[0] > 4:
        raise ValueError("too many items")
    return h.relu()


def kept_in_a_cache(self, h):
    cache = torch.zeros(4, h.shape[1])
    cache[: h.shape[0]] = h
    return cache[: h.shape[0]].relu()


PADDED = {
    "a limit": limited,
    "a cache": kept_in_a_cache,
    "padding by size": lambda self, h: F.pad(h, (0, 0, 0, 4 - h.shape[0] % 4))[: h.shape[0]].relu(),
    "padding by zeros": lambda self, h: torch.cat([h, h.new_zeros(8 - h.shape[0], 8)])[: h.shape[0]].relu(),
    "padding in front": lambda self, h: torch.cat([h.new_zeros(3, 8), h])[3:].relu(),
}


@pytest.mark.parametrize("way", PADDED)
def test_batches_that_forward_limits_or_pads_are_explained_item_by_item(way):
    model = Between(PADDED[way]).eval()
    explainer = fxlrp.compile(model, "conserving")
    for size in (3, 1, 2, 4):
        x = torch.randn(size, 4)
        assert_explains(model, x, explainer=explainer)
        assert_close(explainer.ledger(x).error + 1, torch.ones(size, dtype=torch.float64), 1e-5)


def test_one_item_of_a_model_that_mixes_larger_batches_is_refused():
    model = Between(lambda self, h: h.relu() if h.shape[0] > 2 else h.tanh()).eval()
    assert_refused(model, torch.randn(1, 4), "one batch size only")


def test_another_size_than_the_captured_one_leads_to_another_capture():
    class Grid(nn.Module):
        shape = None

        def __init__(self):
            super().__init__()
            self.layer, self.grid = nn.Conv2d(3, 4, 3, padding=1), torch.empty(0)

        def forward(self, x):
            h = self.layer(x)
            if self.shape != h.shape:
                self.shape, self.grid = h.shape, torch.arange(h.shape[-1]).float()
            return (h + self.grid).mean((2, 3))

    model = Grid().eval()
    explainer = assert_explains(model, torch.randn(2, 3, 8, 8), torch.randn(2, 3, 6, 10))
    assert model.shape is not None  # by the model's own call
    assert explainer.capture == "export"


@pytest.mark.parametrize(
    "between",
    [
        lambda self, h: h.flip(0),
        lambda self, h: h + h.roll(1, 0),
        lambda self, h: h.softmax(0),
        lambda self, h: h.relu() - h.relu().mean(0),
        lambda self, h: h.relu() / h.relu().max(),
        lambda self, h: h[:1].expand(h.shape[0], -1),
    ],
    ids=["flip", "roll", "softmax", "mean", "max", "the first for all"],
)
def test_items_that_look_at_each_other_are_refused(between):
    assert_refused(Between(between), torch.randn(3, 4), "batch")


@pytest.mark.parametrize(
    "reduced", [lambda x: x.sum(), lambda x: x[: x.shape[0] - 1], lambda x: x.mean((0, 1), keepdim=True)]
)
def test_an_output_without_the_axis_of_the_batch_is_refused(reduced):
    class Whole(nn.Module):
        def forward(self, x):
            return reduced(x)

    assert_refused(Whole(), torch.rand(3, 4), "batch", start="output")


def test_a_transformer_that_takes_steps_first_is_refused():
    class StepsFirst(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16)
            self.body, self.last = nn.TransformerEncoder(layer, 1, None, False), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(self.body(x).mean(0))

    for steps in (5, 4):
        assert_refused(StepsFirst(), torch.randn(steps, 4, 8), "batch")


def test_token_numbers_that_are_transposed_before_they_are_looked_up_are_explained():
    class StepsFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.last = nn.Embedding(20, 8), nn.Linear(8, 3)

        def forward(self, tokens):
            return self.last(self.embedding(tokens.t()).relu().sum(0))

    for shape in ((3, 5), (4, 4)):
        explanation = fxlrp.compile(StepsFirst().eval(), "conserving")(torch.randint(0, 20, shape))
        assert explanation.relevance.shape == (*shape, 8)
        assert_close(explanation.relevance.sum((1, 2)), explanation.start, 1e-5)


# Randomness and state -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "between",
    [
        lambda self, h: h * torch.rand(8),
        lambda self, h: h * torch.rand(h.shape),
        lambda self, h: h + torch.randn_like(h),
        lambda self, h: h * torch.bernoulli(torch.full((8,), 0.5)),
        lambda self, h: h[:, torch.randperm(8)],
        lambda self, h: F.gumbel_softmax(h),
        lambda self, h: h * (0.5 + random.random()),
    ],
    ids=["rand", "rand of a shape", "randn_like", "bernoulli", "randperm", "gumbel_softmax", "Python's random"],
)
def test_randomness_in_eval_mode_is_refused(between):
    assert_refused(Between(between), torch.randn(3, 4), "random")


def test_verification_leaves_the_random_numbers_as_they_were():
    torch.manual_seed(7), random.seed(7)
    expected = torch.rand(3), random.random()
    torch.manual_seed(7), random.seed(7)
    model, x = plain(), None
    torch.manual_seed(7), random.seed(7)
    x = torch.zeros(2, 4)
    fxlrp.compile(model, "conserving")(x)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


def test_a_state_of_earlier_calls_is_refused():
    class Counter(Between):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return self.last(self.first(x).relu() * self.calls)

    class Remembers(Between):
        kept = None

        def forward(self, x):
            self.kept = x if self.kept is None else self.kept
            return self.last(self.first(self.kept).relu())

    for kind in (Counter, Remembers):
        model = kind(None)
        assert_refused(model, torch.randn(3, 4), "keeps a state")
        assert not vars(model).get("calls")
        assert model.__dict__.get("kept") is None


def test_complex_values_are_never_taken_for_constants():
    class Beside(nn.Module):
        def __init__(self, path):
            super().__init__()
            self.path, self.layer, self.last = path, nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.last((self.path(x[:, :8]) + 0.01 * self.layer(x[:, 8:])).relu())

    for path in (
        lambda x: torch.fft.irfft(torch.fft.rfft(x), 8),
        lambda x: torch.fft.fft(x).real,
        lambda x: torch.complex(x[:, :4], x[:, 4:]).real.repeat(1, 2),
        lambda x: torch.view_as_complex(x.reshape(-1, 4, 2)).abs().repeat(1, 2),
        lambda x: torch.fft.ifft(x.type(torch.complex64)).real * 8,
    ):
        x = torch.rand(2, 16)
        relevance = assert_explains(Beside(path).eval(), x)(x).relevance
        assert relevance[:, :8].abs().sum() > 0.05 * relevance.abs().sum()
    assert_refused(Beside(lambda x: torch.fft.fft(x).tanh().real), torch.rand(2, 16), "complex")


def test_a_cast_by_type_carries_signal():
    class Typed(Between):
        def forward(self, x):
            return self.last(self.first(x).type(torch.float64).float())

    assert_explains(Typed(None).eval(), torch.randn(3, 4))


# Following the model ------------------------------------------------------------------------------


class Kept(nn.Module):
    """A tensor in a dict, a number, and a norm: what a model may be changed in."""

    def __init__(self):
        super().__init__()
        self.kept, self.scale = {"w": torch.randn(4, 4)}, 2.0
        self.norm, self.a, self.b, self.last = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.last(self.b(self.a(self.norm(x @ self.kept["w"])).relu()).relu()) * self.scale


CHANGES = {
    "a module replaced": lambda m: setattr(m, "last", nn.Linear(4, 3).eval()),
    "a head of another size": lambda m: setattr(m, "last", nn.Linear(4, 7).eval()),
    "weights untied": lambda m: setattr(m.b, "weight", nn.Parameter(torch.randn(4, 4))),
    "a tensor in a dict": lambda m: m.kept.update(w=torch.randn(4, 4)),
    "a number": lambda m: setattr(m, "scale", -3.0),
    "a setting of a layer": lambda m: setattr(m.norm, "eps", 10.0),
    "pruning": lambda m: prune.l1_unstructured(m.last, "weight", amount=0.5),
    "pruning, then training": lambda m: prune.l1_unstructured(m.last, "weight", amount=0.5).weight_orig.data.mul_(-3),
    "a parametrisation": lambda m: nn.utils.parametrizations.weight_norm(m.last).eval(),
    "weights through .data": lambda m: m.last.weight.data.mul_(-2),
    "one element through .data": lambda m: m.last.weight.data[1, 1].add_(30),
    "forward() set": lambda m: setattr(m, "forward", types.MethodType(lambda self, x: self.last(self.a(x)), m)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model_is_followed_at_the_next_call(change):
    model, x = Kept().eval(), torch.rand(3, 4)
    explainer = fxlrp.compile(model, "conserving")
    explainer(x)
    with torch.no_grad():
        change(model)
        assert_close(explainer(x).output, model(x), 1e-6)
        assert_close(explainer(x).relevance, fxlrp.compile(model, "conserving")(x).relevance, 1e-5)
        assert_close(explainer.ledger(x).start, fxlrp.compile(model, "conserving").ledger(x).start, 1e-5)


def test_train_after_compile_is_an_error_at_the_next_call():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).eval(), torch.rand(3, 4)
    explainer = fxlrp.compile(model, "conserving")
    before = explainer(x).relevance
    model.train()
    with pytest.raises(TrainingModeError, match="eval"):
        explainer(x)
    model.eval()
    assert torch.equal(explainer(x).relevance, before)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hook_that_changes_the_output_is_an_error_that_names_it(when):
    model, x = plain(), torch.rand(3, 4)
    explainer = fxlrp.compile(model, "conserving") if when == "after" else None
    if explainer is not None:
        explainer(x)
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.warns(UserWarning, match="hook"), pytest.raises(CaptureError, match="hook of '0'"):
        (explainer or fxlrp.compile(model, "conserving"))(x)


def test_a_hook_that_only_looks_is_no_error():
    model, seen = plain(), []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with pytest.warns(UserWarning, match="hook"):
        assert_explains(model, torch.rand(3, 4))
    assert all(type(value) is torch.Tensor for value in seen)


def test_a_hook_of_all_modules_is_seen():
    model, x = plain(), torch.rand(3, 4)
    explainer = fxlrp.compile(model, "conserving")
    before = explainer(x)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output * 2 if isinstance(module, nn.Linear) else None
    )
    try:
        for each in (explainer, fxlrp.compile(model, "conserving")):
            with contextlib.suppress(CaptureError):  # refused, or explained
                assert_close(each(x).output, model(x), 1e-6)
    finally:
        handle.remove()
    assert torch.equal(explainer(x).relevance, before.relevance)


def test_a_copy_of_a_value_is_the_value():
    for copied in (copy.copy, copy.deepcopy):
        assert_explains(Between(lambda self, h, copied=copied: copied(h).relu()).eval(), torch.randn(3, 4))


def test_a_forward_that_was_set_and_a_call_of_the_classs_own_are_explained():
    class Doubles(Between):
        def __call__(self, x):
            return super().__call__(x * 2)

    assert_explains(Doubles(lambda self, h: h.relu()).eval(), torch.randn(3, 4))
    model = plain()
    inner = model.forward
    model.forward = types.MethodType(lambda self, x: inner(x) * 3, model)
    assert_explains(model, torch.randn(3, 4))
    model = plain()
    model[2].forward = types.MethodType(lambda self, x: F.linear(x, self.weight * 2), model[2])
    assert_explains(model, torch.randn(3, 4))


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda m: torch.compile(m, backend="eager"), torch.optim.swa_utils.AveragedModel],
    ids=["DataParallel", "torch.compile", "AveragedModel"],
)
def test_wrappers_are_looked_through(wrap):
    model = plain()
    explainer = fxlrp.compile(wrap(model).eval(), "conserving")
    assert [row.path for row in explainer.summary()] == ["0", "1", "2"]
    x = torch.rand(3, 4)
    assert torch.equal(explainer(x).relevance, fxlrp.compile(model, "conserving")(x).relevance)


def wrapped(model):
    inner = model.forward

    @functools.wraps(inner)
    def forward(*args, **kwargs):
        return inner(*args, **kwargs)

    model.forward = forward


def wrapped_as_a_method(model):
    inner = model.forward
    model.forward = types.MethodType(lambda self, x: inner(x), model)


def written_anew(model):
    model.forward = lambda x: model[2](model[1](model[0](x)))


@pytest.mark.parametrize("change", [wrapped, wrapped_as_a_method, written_anew])
def test_a_forward_that_wraps_the_first_one_keeps_the_names_of_modules(change):
    model = plain()
    change(model)
    kept = dict(vars(model))
    explainer = assert_explains(model, torch.randn(3, 4))
    assert [row.path for row in explainer.summary()] == ["0", "1", "2"]
    assert all(vars(model)[name] is value for name, value in kept.items())


class Trainer:
    """What a Lightning module knows by a weak proxy."""


@pytest.mark.parametrize("alive", [True, False])
def test_weak_references_of_a_model_are_followed_or_left_alone(alive):
    model, trainer, other = plain(), Trainer(), nn.Linear(2, 2)
    model.trainer, model.reference, model[0].parent = weakref.proxy(trainer), weakref.ref(trainer), weakref.ref(model)
    vars(model)["other"] = weakref.proxy(other)  # which passes for a module
    vars(model[2])["parent"] = weakref.proxy(model)
    explainer = fxlrp.compile(model, "conserving")
    if not alive:
        del trainer, other
        assert model.reference() is None
    assert_explains(model, torch.randn(3, 4), explainer=explainer)
    assert_explains(model, torch.randn(3, 4))
    model[2].forward = lambda x: F.linear(x, model[0].parent()[2].weight)
    assert_explains(model, torch.randn(3, 4))


@pytest.mark.parametrize(
    "value",
    [functools.lru_cache(lambda name: name), unittest.mock.Mock(spec=nn.Module), torch.jit.script(nn.ReLU())],
    ids=["a cache", "a mock of a module", "a scripted module"],
)
def test_objects_that_cannot_be_doubled_are_left_alone(value):
    model = plain()
    model.kept = [value]
    assert_explains(model, torch.randn(3, 4))


class Offloaded(nn.Module):
    """A model that takes another way by its input's length, with weights that were moved out of memory."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3).to("meta")

    def forward(self, x):
        return self.layer(x).relu() if len(x) else x


def test_weights_without_values_are_told():
    with pytest.raises(FxlrpError, match="meta"):
        fxlrp.compile(Offloaded().eval(), "conserving")(torch.randn(3, 4))
    assert fxlrp.compile(nn.Sequential(nn.Linear(4, 3)).to("meta").eval(), "conserving").joins == []


def test_a_model_in_shards_is_refused_with_the_way_out():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        from torch.distributed.fsdp import fully_shard

        model = plain()
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        assert_refused(model, torch.randn(3, 4), "full_state_dict")
    finally:
        torch.distributed.destroy_process_group()


class Settings:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale


class Options(dict):
    pass


class Held(nn.Module):
    """What forward() may read from a model, in many places."""

    shift = 0.5

    def __init__(self):
        super().__init__()
        self.hidden, self.last = [nn.Linear(4, 4), nn.LayerNorm(4).eval()], nn.Linear(4, 3)
        self.nested, self.slots, self.options = ({"scale": 2.0}, [3.0]), Settings(1.5), Options(scale=1.25)
        self.order, self.array, self.number = {"a": 1.0, "b": 2.0}, np.array([1.0, 2.0]), torch.tensor(1.5)
        self.partial = functools.partial(lambda h, by: h * by["scale"], by={"scale": 1.5})
        by = {"scale": 0.5}
        self.by, self.closure = by, lambda h: h * by["scale"]

    def scaled(self, h):
        return h * self.nested[0]["scale"] * self.nested[1][0] * self.slots.scale * self.options["scale"]

    def forward(self, x):
        h = self.scaled(self.hidden[1](self.hidden[0](x)))
        h = h * next(iter(self.order.values())) * float(self.array[0]) * self.number.item() + self.shift
        return self.last(self.closure(self.partial(h)).relu())


HELD = {
    "a weight of a module in a list": lambda m: setattr(m.hidden[0], "weight", nn.Parameter(torch.randn(4, 4))),
    "a setting of a module in a list": lambda m: setattr(m.hidden[1], "eps", 10.0),
    "a dict in a tuple": lambda m: m.nested[0].update(scale=-1.0),
    "a list in a tuple": lambda m: m.nested[1].__setitem__(0, -1.0),
    "a slot": lambda m: setattr(m.slots, "scale", -2.0),
    "a dict of a class of its own": lambda m: m.options.update(scale=-2.0),
    "the order of a dict": lambda m: m.order.__setitem__("a", m.order.pop("a")),
    "an array in place": lambda m: m.array.__setitem__(0, -3.0),
    "a tensor that is read as a number": lambda m: m.number.fill_(-3),
    "what a partial holds": lambda m: m.partial.keywords["by"].update(scale=-1.0),
    "what a closure holds": lambda m: m.by.update(scale=-1.0),
    "an attribute of the class": lambda m: setattr(type(m), "shift", -5.0),
    "a method of the class": lambda m: setattr(type(m), "scaled", lambda self, h: -h),
}


def assert_follows(model, change):
    """A change of a model that gives it another output is a change of its explanation."""
    x = torch.rand(3, 4)
    explainer = fxlrp.compile(model, "conserving")
    explainer(x)
    with torch.no_grad():
        before = model(x)
        change(model)
        assert not torch.allclose(model(x), before)
        assert_close(explainer(x).output, model(x), 1e-6)
    assert_close(explainer(x).relevance, fxlrp.compile(model, "conserving")(x).relevance, 1e-5)


@pytest.mark.parametrize("change", HELD.values(), ids=HELD)
def test_a_change_of_what_a_model_holds_is_followed(monkeypatch, change):
    class Own(Held):
        shift, scaled = Held.shift, Held.scaled

    assert_follows(Own().eval(), change)


def _of_classes():
    """A model of classes that nobody else has, which reads them, objects, functions and plain memory."""

    class Factor:
        factor = 1.5

        def __call__(self, h):
            return h * self.factor

    class Power:
        def __init__(self):
            self.base = 2.0

        def times(self, h):
            return h * self.base

    class Base(nn.Module):
        TABLE, MASK = {"scale": [2.0]}, torch.tensor([1.0, 2.0, 3.0, 4.0])
        FIXED = types.MappingProxyType({"by": [1.25]})

        @staticmethod
        def shifted(h, by=[0.5]):  # noqa: B006
            return h + by[0]

    class Sub(nn.Linear):
        SCALES = [1.5]  # noqa: RUF012

        def forward(self, x):
            return super().forward(x) * self.SCALES[0]

    def by_attribute(h):
        return h * by_attribute.scale

    by_attribute.scale = 1.5

    class Model(Base):
        def __init__(self):
            super().__init__()
            self.first, self.last = Sub(4, 4), nn.Linear(4, 3)
            self.helper, self.bound, self.of_list = Factor(), Power().times, [2.0].__getitem__
            self.partial, self.kind = functools.partial(Power().times), Factor
            self.by_attribute, self.by_default = by_attribute, lambda h, by={"scale": 2.0}: h * by["scale"]
            self.large, self.strided = np.ones(50_000), np.ones((6, 6))[:, ::2]
            self.bytes, self.array = bytearray(b"\x01\x02"), array.array("d", [1.5, 2.5])

        def forward(self, x):
            h = self.first(x) * self.TABLE["scale"][0] * self.MASK * self.FIXED["by"][0]
            h = self.partial(self.bound(self.helper(self.shifted(h)))) * self.of_list(0) * self.kind.factor
            h = self.by_default(self.by_attribute(h)) * float(self.large[-1]) * float(self.strided[1, 1])
            return self.last(h * self.bytes[1] * self.array[1])

    return Model()


OF_CLASSES = {
    "a list in a dict of a base": lambda m: m.TABLE["scale"].__setitem__(0, -1.0),
    "a tensor of the class": lambda m: m.MASK.fill_(-1),
    "what a view of a dict shows": lambda m: m.FIXED["by"].__setitem__(0, -1.0),
    "a default of a method": lambda m: m.shifted.__defaults__[0].__setitem__(0, 5.0),
    "other defaults of a method": lambda m: setattr(m.shifted, "__defaults__", ([5.0],)),
    "a list of the class of a submodule": lambda m: m.first.SCALES.__setitem__(0, -1.0),
    "the class of a helper": lambda m: setattr(type(m.helper), "factor", -1.0),
    "a first attribute of a helper": lambda m: setattr(m.helper, "factor", -1.0),
    "the object of a bound method": lambda m: setattr(m.bound.__self__, "base", -1.0),
    "the object of a method in a partial": lambda m: setattr(m.partial.func.__self__, "base", -1.0),
    "the list of a method of lists": lambda m: m.of_list.__self__.__setitem__(0, -1.0),
    "an attribute of a function": lambda m: setattr(m.by_attribute, "scale", -1.0),
    "a default of a function": lambda m: m.by_default.__defaults__[0].update(scale=-1.0),
    "a large array": lambda m: m.large.__setitem__(-1, -1.0),
    "an array with gaps": lambda m: m.strided.__setitem__((1, 1), -1.0),
    "bytes": lambda m: m.bytes.__setitem__(1, 5),
    "an array of Python": lambda m: m.array.__setitem__(1, -1.0),
}


@pytest.mark.parametrize("change", OF_CLASSES.values(), ids=OF_CLASSES)
def test_a_change_of_classes_functions_and_memory_is_followed(change):
    assert_follows(_of_classes().eval(), change)


def test_what_forward_itself_writes_to_its_class_is_no_change_or_a_state():
    class Logs(Between):
        log, count = [], {"n": 0}

        def forward(self, x):
            self.log.append(type(x))
            return self.last(self.first(x).relu())

    class Scales(Logs):
        def forward(self, x):
            if type(x) is torch.Tensor:
                self.count["n"] += 1
            return self.last(self.first(x).relu() * self.count["n"])

    for exported in (False, True):
        x = torch.rand(3, 4)
        explainer = fxlrp.compile(Logs(None).eval(), "conserving", example_inputs=x if exported else None)
        explainer(x)
        before = len(Logs.log)
        explainer(x)
        assert len(Logs.log) == before
    assert_refused(Scales(None).eval(), torch.rand(3, 4), "keeps a state")


@pytest.mark.parametrize("largest", [1 << 20, 0], ids=["copy", "checksum"])
def test_any_edit_of_an_array_is_seen(monkeypatch, largest):
    monkeypatch.setattr("fxlrp.capture.memory.LARGEST_COPY", largest)
    edits = [
        (np.array([np.nan, 0.0]), lambda a: a.__setitem__(1, -0.0)),
        (np.zeros((2, 3)), lambda a: setattr(a, "shape", (3, 2))),
        (np.ones(1001, np.uint8), lambda a: a.__setitem__(1000, 2)),
        (np.array([None, "a"], object), lambda a: a.__setitem__(1, "b")),
        (np.zeros(3, "i4,f8"), lambda a: a["f1"].fill(1)),
        (np.broadcast_to(np.ones(1).copy(), (3, 4)), lambda a: a.base.fill(2)),
        (bytearray(), lambda a: a.append(1)),
        (array.array("d"), lambda a: a.append(1)),
    ]
    for value, edit in edits:
        holder = nn.Identity()
        holder.held = value
        snapshot = Snapshot(holder)
        assert not snapshot.change()
        assert not snapshot.touched()
        edit(value)
        assert snapshot.touched(), value
        assert snapshot.change(), value


def test_a_parameter_or_buffer_that_becomes_none_is_followed():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval(), torch.rand(3, 4)
    explainer = fxlrp.compile(model, "conserving")
    explainer(x)
    model[0].bias = None
    assert_close(explainer(x).output, model(x).detach(), 1e-6)


def test_a_state_inside_an_object_or_a_dict_is_refused():
    class Counts(Between):
        def __init__(self, count):
            super().__init__(None)
            self.state, self.previous, self.count = types.SimpleNamespace(n=0), {"h": None}, count

        def forward(self, x):
            h = self.first(x)
            if self.count:
                self.state.n += 1
                return self.last(h.relu() * self.state.n)
            h = h if self.previous["h"] is None else h + self.previous["h"]
            self.previous["h"] = h.detach()
            return self.last(h)

    for count in (True, False):
        model = Counts(count)
        assert_refused(model, torch.randn(3, 4), "keeps a state")
        assert model.state.n == 0
        assert model.previous["h"] is None


def test_what_forward_writes_to_in_place_is_not_the_models():
    class Writes(Between):
        def __init__(self):
            super().__init__(None)
            self.kept, self.listed = torch.zeros(3), [torch.zeros(3)]

        def forward(self, x):
            self.kept += 1
            self.listed[0].add_(1)
            return self.last(self.first(x).relu())

    model = Writes().eval()
    explanation = fxlrp.compile(model, "conserving")(torch.randn(3, 4))
    assert explanation.output.shape == (3, 3)
    assert not model.kept.any()
    assert not model.listed[0].any()


def test_a_model_that_writes_to_its_parameters_is_refused_and_stays_as_it_is():
    class Trains(Between):
        def forward(self, x):
            with torch.no_grad():
                self.last.bias.add_(1)
            return self.last(self.first(x).relu())

    for exported in (False, True):
        model = Trains(None).eval()
        before = copy.deepcopy(model.state_dict())
        example = torch.randn(3, 4) if exported else None
        with pytest.raises(FxlrpError):
            fxlrp.compile(model, "conserving", example_inputs=example)(torch.randn(3, 4))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_function_is_told_from_rounding_in_half_precision(dtype):
    right = Between(lambda self, h: h.relu()).to(dtype).eval()
    fxlrp.compile(right, "conserving")(torch.randn(3, 4, dtype=dtype))
    wrong = Between(lambda self, h: h.relu() * (1.3 if type(h) is torch.Tensor else 1.0)).to(dtype)
    assert_refused(wrong, torch.randn(3, 4, dtype=dtype), "computes something else")
    mixing = Between(lambda self, h: h + 0.3 * h.roll(1, 0)).to(dtype)
    assert_refused(mixing, torch.randn(3, 4, dtype=dtype), "batch")


def test_an_output_of_a_finer_type_than_what_computes_it_is_no_error():
    class Widened(Between):
        def forward(self, x):
            return self.last(self.first(x).relu()).double().softmax(1)

    explanation = fxlrp.compile(Widened(None).eval(), "conserving")(torch.randn(3, 4))
    assert explanation.output.dtype == torch.float64
    halves = nn.Sequential(*[nn.Linear(16, 16) for _ in range(4)]).bfloat16()

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last = halves, nn.Linear(16, 3)

        def forward(self, x):
            return self.last(self.body(x).float())

    fxlrp.compile(Mixed().eval(), "conserving")(torch.randn(3, 16, dtype=torch.bfloat16))


def test_branches_on_many_batch_sizes_are_refused_or_right():
    for between in (
        lambda self, h: h.relu() * 2 if h.shape[0] % 2 == 0 else h,
        lambda self, h: h.relu() if h.shape[0] == 5 else h,
        lambda self, h: h * (1 + float(h.shape[0] % 2)),
    ):
        model = Between(between).eval()
        explainer = fxlrp.compile(model, "conserving")
        for size in (3, 1, 2, 5, 4):
            x = torch.randn(size, 4)
            with contextlib.suppress(CaptureError):
                assert_close(explainer(x).output, model(x).detach(), 1e-6)


def test_optional_inputs_may_be_of_several_types():
    class Optional(Between):
        def forward(self, x, y=None):
            h = self.first(x)
            if y is not None:
                h = torch.where(y, h, 0.0) if y.dtype == torch.bool else h + y
            return self.last(h.relu())

    model, x = Optional(None).eval(), torch.randn(3, 4)
    explainer = fxlrp.compile(model, "conserving")
    for y in (torch.randn(3, 8), torch.randn(3, 8) > 0, torch.randn(3, 8)):
        assert_close(explainer(x, y).output, model(x, y).detach(), 1e-6)


def test_an_explainer_is_converted_before_its_first_call():
    class Exported(Between):
        def forward(self, x):
            return super().forward(x * 2 if x.shape[1] > 100 else x)

    model, x = Exported(lambda self, h: h.relu()).eval(), torch.randn(3, 4)
    explainer = fxlrp.compile(model, "conserving").to(torch.float64)
    explanation = explainer(x.double())
    assert explanation.relevance.dtype == torch.float64
    assert_close(explanation.output, copy.deepcopy(model).double()(x.double()).detach(), 1e-12)


def test_a_squeeze_without_an_axis_keeps_the_batch():
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.fc = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.pool(self.conv(x).relu()).squeeze())

    model = Squeezed().eval()
    explainer = fxlrp.compile(model, "conserving")
    explanation = explainer(torch.randn(3, 3, 8, 8))
    assert_close(explanation.relevance.sum((1, 2, 3)), explanation.start, 1e-5)
    with pytest.raises(CaptureError, match="batch"):
        explainer(torch.randn(1, 3, 8, 8))


@dataclasses.dataclass
class Returned:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


def test_outputs_with_names_are_picked_by_them():
    class Names(Between):
        def __init__(self, kind):
            super().__init__(None)
            self.kind = kind

        def forward(self, x):
            h = self.first(x)
            return self.kind(self.last(h.relu()), h)

    pair = namedtuple("pair", ["logits", "hidden"])
    for kind in (Returned, pair):
        model, x = Names(kind).eval(), torch.randn(3, 4)
        for output in ("logits", lambda returned: returned.logits):
            explanation = fxlrp.compile(model, "conserving", output=output)(x)
            assert_close(explanation.relevance.sum(1), explanation.start, 1e-5)
        assert explanation.output is not None
    model = Names(lambda logits, hidden: (logits, None)).eval()
    assert fxlrp.compile(model, "conserving")(x).relevance.shape == x.shape


def test_inputs_may_have_any_name():
    class Target(Between):
        def forward(self, target):
            return self.last(self.first(target).relu())

    class Torch(Between):
        def forward(self, torch):
            return self.last(self.first(torch).relu())

    assert_explains(Target(None).eval(), torch.randn(3, 4))
    assert_refused(Torch(None), torch.randn(3, 4), "named 'torch'")


def test_numbers_of_numpy_and_buffers_made_in_forward_are_constants():
    class Made(Between):
        def __init__(self):
            super().__init__(None)
            self.scale = np.float64(2.0)

        def forward(self, x):
            if not hasattr(self, "offset"):
                self.register_buffer("offset", torch.arange(8.0))
            return self.last((self.first(x) * self.scale + self.offset).relu())

    model = Made().eval()
    explainer = fxlrp.compile(model, "conserving")
    explainer(torch.randn(3, 4))
    assert not hasattr(model, "offset")


def test_torchs_own_containers_may_be_in_training_mode():
    model = plain()
    nn.utils.parametrizations.weight_norm(model[0])
    model[0].parametrizations.weight.eval()
    assert model[0].parametrizations.training
    assert_explains(model, torch.rand(3, 4))


# verify= ------------------------------------------------------------------------------------------


RUNS = []


class Counts(nn.Module):
    """Counts how often it is run, where neither a trace nor a copy can, nor is it a state of the model."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        if type(x) is torch.Tensor and not isinstance(x, torch._subclasses.FakeTensor):
            RUNS.append(len(x))
        return self.layer(x)


@pytest.mark.parametrize(
    ("verify", "runs"), [("first", [3, 1, 1, 1]), ("always", [3, 1, 1, 3, 1, 1, 1]), ("never", [])]
)
def test_the_model_is_run_as_often_as_asked(verify, runs):
    RUNS.clear()
    explainer = fxlrp.compile(Counts().eval(), "conserving", verify=verify)
    for size in (3, 3, 1):
        explainer(torch.rand(size, 4))
    assert runs == RUNS
    with pytest.raises(RuleError, match="verify='often': choose one of 'first', 'always', 'never'"):
        fxlrp.compile(plain(), "conserving", verify="often")


# Starts -------------------------------------------------------------------------------------------


class Ended(nn.Module):
    def __init__(self, end, classes=3):
        super().__init__()
        self.end, self.layers = end, nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, classes))

    def forward(self, x):
        return self.end(self.layers(x))


@pytest.mark.parametrize(
    ("end", "classes", "wanted", "told"),
    [
        (lambda h: h, 3, lambda o: o.softmax(1), "probability"),
        (lambda h: h.softmax(1), 3, lambda o: o, "the model itself"),
        (lambda h: F.softmax(h, dim=-1), 3, lambda o: o, "the model itself"),
        (lambda h: h.log_softmax(1), 3, torch.exp, "probability"),
        (torch.sigmoid, 3, lambda o: o, "the model itself"),
        (torch.sigmoid, 1, lambda o: o, "the model itself"),
        (lambda h: (h.softmax(1) + (2 * h).softmax(1)) / 2, 3, lambda o: o, "the model itself"),
        (lambda h: h.softmax(1) - (2 * h).softmax(1), 3, lambda o: o, "of probabilities"),
        (lambda h: h.log_softmax(1).exp(), 3, lambda o: o, "the model itself"),
        (lambda h: h.exp() / h.exp().sum(1, keepdim=True), 3, lambda o: o, "the model itself"),
        (lambda h: torch.cat([h.sigmoid(), 1 - h.sigmoid()], 1), 1, lambda o: o, "the model itself"),
        (lambda h: 5 * h.softmax(1), 3, lambda o: o, "of probabilities"),
        (lambda h: h, 1, lambda o: o, "value itself"),
        (lambda h: h.squeeze(1), 1, lambda o: o[:, None], "value itself"),
        (lambda h: h.sigmoid().squeeze(1), 1, lambda o: o[:, None], "the model itself"),
    ],
)
def test_the_start_fits_the_end_of_the_model(end, classes, wanted, told):
    model, x = Ended(end, classes).eval(), torch.randn(4, 4) * 3
    explainer = fxlrp.compile(model, "conserving")
    explanation = explainer(x)
    with torch.no_grad():
        values = wanted(model(x))
    target = torch.zeros(4, dtype=torch.long) if explanation.target is None else explanation.target
    assert_close(explanation.start, values.gather(1, target[:, None])[:, 0], 1e-5)
    assert told in explanation.start_name
    assert explainer.summary().start == explanation.start_name
    assert_close(explanation.relevance.sum(1), explanation.start, 1e-4)


def test_an_embedding_asks_for_a_word_and_says_which_line_to_write():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x)

    with pytest.raises(FxlrpError, match="output=lambda output: output"):
        fxlrp.compile(Sequence().eval(), "conserving")(torch.rand(2, 5, 4))


class Masked(nn.Module):
    """Has a buffer of the name of an input, and a loop that only an export follows."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.register_buffer("mask", torch.randn(1, 4))

    def forward(self, x, mask):
        for _ in range(int(x.shape[1]) - 3):
            x = x * mask + self.mask
        return self.head(x.tanh())


@pytest.mark.parametrize("preset", ["conserving", "evidence"])
def test_an_input_may_have_the_name_of_a_buffer(preset):
    torch.manual_seed(0)
    model, given = Masked().eval(), (torch.randn(3, 4), torch.randn(3, 4))
    explainer = fxlrp.compile(model, preset)
    for size in (3, 1, 2):
        cut = [value[:size] for value in given]
        assert_close(explainer(*cut, target=0).output, model(*cut))
        ledger = explainer.ledger(*cut, target=0)
        assert ledger.error.abs().max() < 1e-5 * ledger.start.abs().max()
