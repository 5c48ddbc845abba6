"""Compiling leaves no trace on the model or the process; threads and interrupts are safe; caches are bounded."""

import contextlib
import copy
import gc
import itertools
import sys
import threading
import types
from collections import deque

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor

import fxlrp
from fxlrp.errors import CaptureError, FxlrpError, InputError, NonFiniteError, TargetError
from fxlrp.runtime import plan, plans

CALL, GETATTR = nn.Module.__call__, nn.Module.__getattr__


def net(depth=6):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(4, 4), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(4, 3)).eval()


class Exported(nn.Module):
    """A model that symbolic tracing cannot follow."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.relu(x * 2 if x.shape[1] > 100 else x))


# The model ----------------------------------------------------------------------------------------

FOREIGN = fx.Proxy | fx.Node | fx.Tracer | FakeTensor | torch.SymInt | torch.SymFloat | torch.SymBool


def leftovers(value, seen=None):
    """What of a trace can be reached from a value."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return []
    seen.add(id(value))
    found = [value] if isinstance(value, FOREIGN) else []
    inside = []
    if isinstance(value, dict):
        inside = [*value, *value.values()]
    elif isinstance(value, list | tuple | set | deque):
        inside = list(value)
    elif isinstance(value, nn.Module | types.SimpleNamespace):
        inside = list(vars(value).values())
    return found + [each for entry in inside for each in leftovers(entry, seen)]


class Keeps(nn.Module):
    """What a notebook keeps to look at, and a running mean."""

    def __init__(self, exported):
        super().__init__()
        self.last, self.exported = nn.Linear(4, 3), exported
        self.acts, self.by_name, self.recent = [], {}, deque(maxlen=3)
        self.state = types.SimpleNamespace(shape=None, hidden=None)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        if self.exported and x.shape[1] > 100:
            raise ValueError
        h = self.last(x)
        if self.exported:
            self.seen = self.seen * 0.9 + x.mean(0) * 0.1
        self.acts.append(h)
        self.recent.append(h)
        self.by_name["h"], self.state.hidden, self.state.shape = h, h, x.shape
        return h


@pytest.mark.parametrize("exported", [False, True])
def test_nothing_of_a_trace_is_left_in_the_model(exported):
    model = Keeps(exported).eval()
    twin, x = copy.deepcopy(model), torch.rand(3, 4)
    fxlrp.compile(model)(x)
    assert not leftovers(model)
    assert not model.acts
    assert not model.by_name
    assert not model.recent
    assert model.state.hidden is None
    assert torch.equal(model.seen, torch.zeros(4))
    assert vars(model).keys() == vars(twin).keys()
    with torch.no_grad():
        assert torch.equal(model(x), twin(x))
    copy.deepcopy(model)


# The process --------------------------------------------------------------------------------------


@contextlib.contextmanager
def switching():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(*works):
    failed = []

    def guarded(work):
        try:
            work()
        except Exception as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    with switching():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return failed


def test_other_threads_run_models_while_one_is_compiled():
    model, x, done = net(), torch.randn(2, 4), threading.Event()
    with torch.no_grad():
        expected = model(x)

    def serve():
        while not done.is_set():
            with torch.no_grad():
                assert torch.equal(model(x), expected)

    def build():
        try:
            for _ in range(4):
                fxlrp.compile(net())(x)
        finally:
            done.set()

    assert not in_threads(serve, build)


@pytest.mark.parametrize("kind", [net, Exported])
def test_first_calls_of_several_threads_give_the_same(kind):
    model, x, found = kind().eval(), torch.randn(2, 4), []
    explainer = fxlrp.compile(model)
    assert not in_threads(*[lambda: found.append(explainer(x).relevance)] * 4)
    alone = fxlrp.compile(model)(x).relevance
    assert len(found) == 4
    assert all(torch.equal(each, alone) for each in found)


def test_threads_may_compile_at_once():
    assert not in_threads(*[lambda: [fxlrp.compile(net()) for _ in range(3)]] * 3)


def test_torch_is_in_order_after_an_interrupt_anywhere():
    import math

    functions = dict(vars(math))

    def compiled_until(stop):
        count = 0

        def watch(frame, event, argument):
            nonlocal count
            if event in ("call", "return") and "/fxlrp/capture/" in frame.f_code.co_filename:
                count += 1
                if count == stop:
                    raise KeyboardInterrupt

        sys.setprofile(watch)
        try:
            fxlrp.compile(net(1))
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        return count

    calls = compiled_until(-1)
    for stop in {*range(1, 6), *range(calls - 12, calls), *range(1, calls, max(1, calls // 25))}:
        compiled_until(stop)
        assert nn.Module.__call__ is CALL
        assert nn.Module.__getattr__ is GETATTR
    assert math.sqrt(4.0) == functions["sqrt"](4.0) == 2.0
    assert "len" not in globals()
    fxlrp.compile(net(1))(torch.randn(2, 4))


# Caches -------------------------------------------------------------------------------------------


def graphs():
    gc.collect()
    return sum(issubclass(type(each), fx.GraphModule) for each in gc.get_objects())


def test_programs_and_plans_that_are_kept_are_bounded():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 3)

        def forward(self, x, scale=1.0):
            return self.last(torch.relu(x * scale) if scale > 0 else x)

    explainer, x = fxlrp.compile(net(4)), torch.randn(2, 4)
    names = [row.node for row in explainer.ledger(x)]
    for two in itertools.islice(itertools.product(names, names), plan.MOST_PROGRAMS + 3):
        explainer.relevance_of(x, nodes=two)
    kept = explainer._engine.plan._programs
    assert len(kept) == plan.MOST_PROGRAMS
    before = graphs()
    for name in names[:8]:
        explainer.relevance_of(x, nodes=[name] * 3)
    assert graphs() <= before
    scaled = fxlrp.compile(Scaled().eval())
    for number in range(plans.MOST_PLANS + 3):
        explanation = scaled(x, scale=(number + 1) / 7)
        assert torch.equal(explanation.output, scaled._engine.model(x, (number + 1) / 7))
    assert len(scaled._engine._plans) == plans.MOST_PLANS


# Names are data -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["class", "None", 'a"b', "a\nb", "a\\", "a'b", "0", "größe", "import os", "fxlrp_name_61"]
)
def test_names_of_modules_may_be_any_text(name):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({name: nn.Linear(4, 3)})

        def forward(self, x):
            return self.heads[name](x.relu())

    model, x = Heads().eval(), torch.randn(2, 4)
    explainer = fxlrp.compile(model)
    explanation = explainer(x)
    assert torch.equal(explanation.output, model(x))
    assert f"heads.{name}" in {row.path for row in explainer.summary()}
    with torch.no_grad():
        model.heads[name].weight.mul_(2)
    assert torch.equal(explainer(x).output, model(x))


@pytest.mark.parametrize("name", ["graph", "code", "meta", "recompile", "_graph", "derived", "start"])
def test_a_child_may_be_called_as_what_a_graph_module_has(name):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, name, nn.Linear(4, 3))

        def forward(self, x):
            return getattr(self, name)(x)

    model, x = Named().eval(), torch.randn(2, 4)
    explainer = fxlrp.compile(model)
    assert torch.equal(explainer(x).output, model(x))
    assert explainer(x, target=[0, 2]).relevance.shape == (2, 2, 4)
    assert [row.path for row in explainer.ledger(x)] == [name]
    with torch.no_grad():
        getattr(model, name).weight.mul_(2)
    assert torch.equal(explainer(x).output, model(x))


@pytest.mark.parametrize("name", ["forward", "train", "half"])
def test_a_child_that_hides_behind_an_attribute_of_every_module_is_refused_by_name(name):
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    model[0]._modules[name] = nn.Linear(4, 3).eval()
    with pytest.raises(CaptureError, match=rf"'0' is a Linear with a child called '{name}'.*rename it"):
        fxlrp.compile(model)


def test_a_name_that_holds_code_is_not_run(tmp_path):
    proof = tmp_path / "ran"
    name = f'training"), open("{proof}", "w"), getattr(self, "training'

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({name: nn.Linear(4, 3)})

        def forward(self, x, more=None):
            return self.heads[name](x.relu()) + (0 if more is None else more['"] + open("x'])

    fxlrp.compile(Heads().eval())(torch.randn(2, 4))
    fxlrp.compile(Heads().eval())(torch.randn(2, 4), more={'"] + open("x': torch.randn(2, 3)})
    assert not proof.exists()


# Odd inputs, targets and outputs -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (lambda: torch.randn(2, 4).to_sparse(), "sparse"),
        (lambda: torch.nested.nested_tensor([torch.randn(4), torch.randn(4)]), "nested"),
        (lambda: torch.empty(2, 4, device="meta"), "meta"),
        (lambda: torch.randn(2, 4, dtype=torch.complex64), "complex"),
        (lambda: torch.quantize_per_tensor(torch.randn(2, 4), 0.1, 0, torch.qint8), "quantised"),
    ],
)
def test_inputs_of_other_kinds_are_rejected(x, word):
    for model in (net(1), Exported().eval()):
        with pytest.raises(InputError, match=word):
            fxlrp.compile(model)(x())


@pytest.mark.parametrize(
    "target",
    [2**70, [0, -(2**70)], -1, 3, 1.5, True, "cat", torch.tensor([0.0, 1.0]), torch.tensor([True, False]),
     torch.zeros(2, dtype=torch.long, device="meta")],
)  # fmt: skip
def test_targets_that_are_no_classes_are_rejected(target):
    with pytest.raises(TargetError):
        fxlrp.compile(net(1))(torch.randn(2, 4), target=target)


def test_an_output_that_is_no_number_is_an_error():
    model, x = net(1), torch.rand(2, 4)
    explainer = fxlrp.compile(model)
    explainer(x)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        explainer(x)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (lambda: nn.LazyLinear(3).eval(), "lazy"),
        (lambda: torch.jit.trace(net(1), torch.randn(2, 4)), "TorchScript"),
        (lambda: nn.Sequential(torch.jit.script(net(1))).eval(), "TorchScript"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_models_without_weights_or_code_are_rejected(model, word):
    with pytest.raises(FxlrpError, match=word):
        fxlrp.compile(model())(torch.randn(2, 4))


@pytest.mark.parametrize("output", [lambda o: o[5], lambda o: o.logits, lambda o: 1 / 0])
def test_an_output_that_cannot_be_picked_is_an_error_that_names_it(output):
    with pytest.raises(FxlrpError, match="output="):
        fxlrp.compile(net(1), output=output)(torch.randn(6, 4))


ODD = (3, 2.5, [0], [[0]], {}, {"a": 1}, set(), object(), b"a", np.array([0, 1]), torch.tensor(1), torch.tensor([0, 1]))


@pytest.mark.parametrize("option", ["preset", "split", "start", "backend", "verify", "memory", "checkpoints"])
def test_options_of_other_types_are_told(option):
    for value in ODD:
        if option == "checkpoints" and isinstance(value, dict | set) and not value:
            continue  # none is asked for
        with pytest.raises(FxlrpError, match=option.removesuffix("s")):
            fxlrp.compile(net(1), **{option: value})


def test_an_option_that_there_is_not_is_told_with_one_that_there_is():
    with pytest.raises(TypeError, match=r"compile\(\) takes no optimise= but .*did you mean optimize=\?"):
        fxlrp.compile(net(1), optimise=True)


def test_results_say_what_they_take():
    explainer, x = fxlrp.compile(net(1)), torch.randn(6, 4)
    explanation = explainer(x)
    for value in (3, None, [0], {}, torch.tensor([0, 1])):
        for use in (
            explanation.save, explainer.draw, lambda path: explainer.report(x, path),
            lambda titles: explanation.plot(titles=titles) if titles != {} else explanation.save(3),
            lambda nodes: explainer.relevance_of(x, nodes=nodes) if nodes != {} else explanation.save(3),
            lambda stages: fxlrp.stage_map(stages, 8, 8), lambda images: fxlrp.region_map(x, images),
        ):  # fmt: skip
            with pytest.raises(FxlrpError):
                use(value)
