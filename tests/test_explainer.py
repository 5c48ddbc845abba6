"""The public face: targets, starts, checkpoints, overrides, conversion, and following the model."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves
from nets import BlockPlan, NetPlan, RandomNet
from torch import nn

import fxlrp
from fxlrp.errors import CaptureError, InputError, PatternError, RuleError, StartError, TargetError
from fxlrp.rules import Absolute, Epsilon, Pass, RatioSplit, SymmetricSplit, WPlus

PLAN = NetPlan([BlockPlan(), BlockPlan(skip="projection", stride=2, squeeze=True), BlockPlan(skip="dense")])


@pytest.fixture
def model():
    return RandomNet(PLAN).double().eval()


@pytest.fixture
def x():
    return torch.randn(3, 3, 12, 12, dtype=torch.float64)


# Targets and starts ---------------------------------------------------------------------------------


def test_the_predicted_class_is_explained_by_default(model, x):
    explanation = fxlrp.compile(model, "conserving")(x)
    probabilities = model(x).softmax(1)
    assert torch.equal(explanation.target, probabilities.argmax(1))
    assert_close(explanation.start, probabilities.amax(1).detach())
    assert_close(explanation.relevance.sum((1, 2, 3)), explanation.start)


def test_targets_are_numbers_or_tensors(model, x):
    explainer = fxlrp.compile(model, "conserving")
    by_int = explainer(x, 2)
    assert by_int.target.tolist() == [2, 2, 2]
    numbers = (explainer(x, target=2), explainer(x, np.int64(2)))
    for same in (*numbers, explainer(x, torch.tensor([2, 2, 2])), explainer(x, torch.tensor(2))):
        assert torch.equal(same.relevance, by_int.relevance)
    mixed = explainer(x, torch.tensor([4, 2, 0]))
    assert torch.equal(mixed.relevance[1], by_int.relevance[1])
    assert_close(mixed.start, model(x).softmax(1).detach()[range(3), [4, 2, 0]])


def test_starts(model, x):
    logits = model(x).detach()
    assert_close(fxlrp.compile(model, "conserving", start="logit")(x, 1).start, logits[:, 1])
    assert fxlrp.compile(model, "conserving", start="one")(x, 1).start.tolist() == [1, 1, 1]

    def contrast(output, target):
        relevance = -torch.ones_like(output) / (output.shape[1] - 1)
        return relevance.scatter(1, target[:, None], 1.0)

    explainer = fxlrp.compile(model, "conserving", start=contrast)
    assert_close(explainer(x).relevance.sum((1, 2, 3)) + 1, torch.ones(3, dtype=torch.float64))
    assert explainer(x).target.tolist() == logits.argmax(1).tolist()


def test_signed_relevance_conserves(model, x):
    assert_conserves(fxlrp.compile(model, "conserving", start=lambda output, target: torch.randn_like(output)), x[:1])


@pytest.mark.parametrize("scale", [1e-25, 1e10])
def test_relevance_is_linear_in_its_start(scale):
    model, x = RandomNet(PLAN).eval(), torch.randn(2, 3, 12, 12)
    x[1] = 0
    unit, scaled = (fxlrp.compile(model, "conserving", start=lambda o, t, s=s: s * o.softmax(1)) for s in (1.0, scale))
    assert_close(scaled(x).relevance / scale, unit(x).relevance)
    assert_conserves(scaled, x)


def test_dense_outputs_take_a_callable_start():
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1)).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    explainer = fxlrp.compile(model, "conserving", start=lambda output, target: output.relu())
    explanation = explainer(x)
    assert explanation.target is None
    assert_conserves(explainer, x)
    with pytest.raises(StartError, match=r"needs \(batch, classes\).*give start="):
        fxlrp.compile(model, "conserving")(x)
    with pytest.raises(StartError, match="must return relevance like the output"):
        fxlrp.compile(model, "conserving", start=lambda output, target: output.sum())(x)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return {"main": self.a(x), "rest": [self.b(x), x.shape]}


def test_one_of_several_outputs():
    model, x = Several().eval(), torch.randn(2, 4)
    explanation = fxlrp.compile(model, "conserving", output="main")(x)
    assert torch.equal(explanation.output["main"], model(x)["main"])
    assert_close(explanation.start, model(x)["main"].softmax(1).amax(1).detach())
    picked = fxlrp.compile(model, "conserving", output=lambda outputs: outputs["rest"][0])(x)
    assert_close(picked.start, model(x)["rest"][0].softmax(1).amax(1).detach())
    with pytest.raises(CaptureError, match=r"a dict with the keys 'main', 'rest': say with output="):
        fxlrp.compile(model, "conserving")
    with pytest.raises(CaptureError, match="output='man' is not in what the model returns"):
        fxlrp.compile(model, "conserving", output="man")


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, left, right):
            return self.a(left) + self.b(right)

    model = Two().double().eval()
    left, right = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    explainer = fxlrp.compile(model, "conserving")
    explanation = explainer(left, right)
    assert [r.shape for r in explanation.relevance] == [left.shape, right.shape]
    assert_close(sum(r.sum(1) for r in explanation.relevance), explanation.start)
    assert torch.equal(explainer(left, right, 1).relevance[0], explainer(left, right, target=1).relevance[0])
    assert explainer.ledger(left, right).error.abs().max() < 1e-12
    with pytest.raises(InputError, match=r"takes 2 input\(s\) \(left, right\)"):
        explainer(left)


def test_an_input_that_only_opens_a_gate_receives_nothing():
    class GatedInput(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x, gate):
            return self.fc(x * gate.sigmoid())

    explainer = fxlrp.compile(GatedInput().double().eval(), "conserving")
    x, gate = torch.randn(2, 2, 4, dtype=torch.float64)
    explanation = explainer(x, gate)
    assert_close(explanation.relevance[0].sum(1), explanation.start)
    assert torch.equal(explanation.relevance[1], torch.zeros_like(gate))
    assert explainer.ledger(x, gate).error.abs().max() < 1e-12


# Checkpoints ----------------------------------------------------------------------------------------


def test_checkpoints_are_relevance_at_a_modules_input(model, x):
    explanation = fxlrp.compile(model, "conserving", checkpoints=["blocks.0", "blocks.1", "head"])(x)
    assert list(explanation.checkpoints) == ["blocks.0", "blocks.1", "head"]
    for name, relevance in explanation.checkpoints.items():
        assert_close(relevance.flatten(1).sum(1), explanation.start), name
    assert explanation.checkpoints["head"].shape == (3, model.head.in_features)


def test_a_checkpoint_inside_a_block_is_that_modules_part_alone(model, x):
    explainer = fxlrp.compile(model, "conserving", checkpoints=["blocks.0", "blocks.0.conv1"])
    explanation = explainer(x)
    (row,) = [row for row in explainer.ledger(x) if row.node == "blocks_0_conv1"]
    branch = explanation.checkpoints["blocks.0.conv1"]
    assert_close(branch.flatten(1).sum(1), row.handed_on)
    assert branch.shape == explanation.checkpoints["blocks.0"].shape
    assert (branch.flatten(1).sum(1) < explanation.start).all()


def test_a_checkpoint_of_a_module_called_twice_has_both_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(self.fc(x).relu())

    both = fxlrp.compile(Twice().eval(), "conserving", checkpoints=["fc"])(torch.randn(2, 3)).checkpoints["fc"]
    assert [r.shape for r in both] == [(2, 3), (2, 3)]


@pytest.mark.parametrize("name", ["blocks.7", "blocks.0.squeeze"])
def test_unknown_checkpoints_are_refused(model, name):
    with pytest.raises(PatternError, match=f"checkpoint '{name}' is no module"):
        fxlrp.compile(model, "conserving", checkpoints=[name])


# Overrides ------------------------------------------------------------------------------------------


def rules_of(model, **options):
    explainer = fxlrp.compile(model, **options)
    ledger = explainer.ledger(torch.randn(1, 3, 12, 12, dtype=torch.float64))
    return {row.node: row.rule for row in ledger}


def test_the_most_specific_override_wins(model):
    exact, pattern, operation, kind = (Epsilon(e) for e in (1e-1, 1e-2, 1e-3, 1e-4))
    rules = rules_of(
        model, rules={nn.Module: kind, torch.conv2d: operation, "blocks.1*": pattern, "blocks.1.conv1": exact}
    )
    assert rules["blocks_1_conv1"] == repr(exact)
    assert rules["blocks_1_conv2"] == repr(pattern)
    assert rules["blocks_0_conv1"] == repr(operation)
    assert rules["head"] == repr(kind)


def test_a_module_name_means_all_that_is_in_it(model):
    rules = rules_of(model, rules={"blocks.1": Epsilon(1e-2)})
    assert {r for n, r in rules.items() if n.startswith("blocks_1_") and "conv" in n} == {repr(Epsilon(1e-2))}
    assert rules["blocks_0_conv1"] == repr(Absolute())
    assert rules["stem"] == repr(WPlus())


def test_joins_take_splits(model):
    (first, second) = [join.name for join in fxlrp.compile(model, "conserving").joins]
    rules = rules_of(model, rules={first: SymmetricSplit()})
    assert (rules[first], rules[second]) == (repr(SymmetricSplit()), repr(RatioSplit()))
    assert rules_of(model, split="symmetric")[second] == repr(SymmetricSplit())
    assert rules_of(model, split=SymmetricSplit())[second] == repr(SymmetricSplit())


def test_identity_skips_can_be_left_out(model, x):
    explainer = fxlrp.compile(model, "conserving", identity_skips=False)
    rules = {row.node: row.rule for row in explainer.ledger(x)}
    kinds = {join.name: join.kind for join in explainer.joins}
    assert {kinds[name]: rules[name] for name in kinds} == {
        "identity": "ResidualOnly()", "projection": "RatioSplit()",
    }  # fmt: skip
    assert_conserves(explainer, x)


@pytest.mark.parametrize("key", ["layer9.*", "layer9", nn.LSTM, torch.conv3d])
def test_an_override_that_matches_nothing_is_refused(model, key):
    with pytest.raises(PatternError, match=r"matches nothing in the model; its modules are 'stem', 'blocks'"):
        fxlrp.compile(model, "conserving", rules={key: Epsilon()})


def test_a_name_that_matches_nothing_says_which_may_be_meant(model):
    with pytest.raises(PatternError, match=r"; did you mean 'stem'\?$"):
        fxlrp.compile(model, "conserving", rules={"stems": Epsilon()})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({nn.ReLU: Epsilon()}, r"cannot be taken by what it matches \(pointwise\).*pointwise takes a Pass"),
        ({"head": SymmetricSplit()}, "linear takes a LinearRule"),
        ({"head": Pass()}, "cannot be taken"),
        ({"head": 0.5}, "must be a rule of"),
    ],
)
def test_a_rule_that_a_kind_cannot_take_is_refused(model, rules, message):
    with pytest.raises(RuleError, match=message):
        fxlrp.compile(model, "conserving", rules=rules)


def test_names_that_do_not_exist_list_those_that_do(model):
    with pytest.raises(RuleError, match="choose one of 'conserving', 'conserving_gamma', 'otsuki2024'"):
        fxlrp.compile(model, "conserve")
    with pytest.raises(RuleError, match="'ratio', 'symmetric', 'signed'"):
        fxlrp.compile(model, "conserving", split="equal")
    with pytest.raises(StartError, match="'probability', 'logit', 'one'"):
        fxlrp.compile(model, "conserving", start="softmax")
    with pytest.raises(StartError, match="a name or a callable"):
        fxlrp.compile(model, "conserving", start=1.0)
    with pytest.raises(PatternError, match="a module type, a known operation, or a kind of join"):
        fxlrp.compile(model, "conserving", rules={3: Epsilon()})


# Following the model ----------------------------------------------------------------------------------


def changed(model):
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.mul_(1.1).add_(0.05)
    return other


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_later_weights_are_followed(model, x, converted, assign):
    explainer = fxlrp.compile(model, "conserving")
    if converted:
        explainer, x = explainer.float(), x.float()
    explainer(x)
    other = changed(model)
    model.load_state_dict(other.state_dict(), assign=assign)
    expected = fxlrp.compile(other.to(x.dtype), "conserving")
    assert torch.equal(explainer(x).output, expected(x).output)
    assert_close(explainer(x).relevance, expected(x).relevance)
    assert_close(explainer.ledger(x).relevance, expected.ledger(x).relevance)


def test_replaced_and_in_place_updates_are_followed(model, x):
    explainer = fxlrp.compile(model, "conserving")
    with torch.no_grad():
        model.head.weight.mul_(-1)
    assert torch.equal(explainer(x).output, model(x))
    model.stem.weight = nn.Parameter(torch.randn_like(model.stem.weight))
    model.blocks[0].norm1.running_mean = torch.randn_like(model.blocks[0].norm1.running_mean)
    assert torch.equal(explainer(x).output, model(x))


def test_converting_the_explainer_leaves_the_model(model, x):
    explainer = fxlrp.compile(model, "conserving")
    reference = explainer(x).relevance
    assert explainer.to(torch.float32) is explainer
    assert all(p.dtype == torch.float64 for p in model.parameters())
    explanation = explainer(x.float())
    assert explanation.relevance.dtype == torch.float32
    assert_close(explanation.relevance.double(), reference, 1e-4)
    explainer.double()
    assert torch.equal(explainer(x).relevance, reference)
    assert explainer.graph_module.stem.weight is model.stem.weight


def test_converting_the_model_takes_the_explainer_along(model, x):
    explainer = fxlrp.compile(model, "conserving")
    model.float()
    assert explainer(x.float()).relevance.dtype == torch.float32


def test_an_explainer_shares_the_models_memory(model):
    explainer = fxlrp.compile(model, "conserving")
    theirs = {id(p) for p in model.parameters()}
    assert all(id(p) in theirs for p in explainer.parameters())


# How it runs -------------------------------------------------------------------------------------------


def test_nothing_is_recorded_unless_asked(model, x):
    explanation = fxlrp.compile(model, "conserving")(x.requires_grad_())
    assert not explanation.relevance.requires_grad
    assert not explanation.output.requires_grad
    differentiable = fxlrp.compile(model, "conserving", differentiable=True)(x).relevance
    (gradient,) = torch.autograd.grad(differentiable.square().sum(), x)
    assert torch.isfinite(gradient).all()
    assert gradient.any()


def test_it_runs_under_inference_mode(model, x):
    explainer = fxlrp.compile(model, "conserving")
    with torch.inference_mode():
        inside = explainer(x).relevance
    assert torch.equal(inside, explainer(x).relevance)


def test_the_graph_module_is_plain_and_code_is_readable(model, x):
    explainer = fxlrp.compile(model, "conserving")
    assert type(explainer.graph_module).__mro__[1] is torch.fx.GraphModule
    with torch.no_grad():  # as the explainer runs it
        results = explainer.graph_module(x, None)
    assert torch.equal(results["relevance"][0], explainer(x).relevance)
    code = explainer.code
    assert "# blocks_0_conv1: ZPlus" in code
    assert "# blocks_0_add: RatioSplit" in code
    assert "relevance_x = " in code
    lines = code.splitlines()
    assert code.index("# head: ZPlus") < code.index("# stem: WPlus")
    assert len(lines) == len(explainer.graph_module.code.strip().splitlines()) + code.count("\n    # ")


def test_every_forward_value_is_freed_after_its_last_use(model):
    explainer = fxlrp.compile(model, "conserving")
    code = explainer.graph_module.code
    for node in explainer.graph_module.graph.nodes:
        returned = any(user.op == "output" for user in node.users)
        if node.op in ("call_function", "get_attr") and node.users and not returned:
            assert re.search(rf"\b{node.name} = (?:\w+ = )*None", code), node


def test_forward_values_do_not_outlive_their_use(model, x):
    """Counted at run time: what is alive at once is less than all that is made."""
    explainer = fxlrp.compile(model, "conserving")
    alive, most, made = {}, 0, 0

    class Count(torch.fx.Interpreter):
        def run_node(self, n):
            nonlocal most, made
            value = super().run_node(n)
            alive[n] = value
            made += 1
            for done in [node for node in alive if node not in self.env and node is not n]:
                del alive[done]
            most = max(most, len(alive))
            return value

    Count(explainer.graph_module).run(x, None)
    assert most < made / 3


def test_shapes_do_not_keep_values(model):
    """A value that relevance needs for its shape alone is freed in the forward pass."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 2)

        def forward(self, x):
            return self.fc(F.relu(x * 2).view(x.shape[0], -1))

    graph = fxlrp.compile(Flat().eval(), "conserving").graph_module.graph
    (relu,) = [n for n in graph.nodes if n.name == "relu"]
    assert [str(user.target) for user in relu.users] == ["aten.reshape.default", "<built-in function getattr>"]


def test_explainers_can_be_copied_and_pickled(x):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2)).double().eval()
    explainer = fxlrp.compile(model, "conserving")
    expected = explainer(x).relevance
    assert torch.equal(copy.deepcopy(explainer)(x).relevance, expected)
    assert torch.equal(pickle.loads(pickle.dumps(explainer))(x).relevance, expected)


def test_two_explainers_of_one_model_do_not_meet(model, x):
    first = fxlrp.compile(model, "conserving")
    expected = first(x).relevance
    second = fxlrp.compile(model, "otsuki2024", rules={"head": Epsilon(1.0)}).float()
    second(x.float())
    assert torch.equal(first(x).relevance, expected)


# Inputs that do not fit --------------------------------------------------------------------------------

BAD_INPUTS = {
    "rank": (lambda x: x[0], r"has shape \(3, 12, 12\), and the model takes 4 axes; give a batch of one"),
    "channels": (lambda x: x[:, :1], "the model takes 3 channels, not 1"),
    "dtype": (lambda x: x.float(), "is float32 and the model is float64"),
    "integers": (lambda x: x.byte(), "is uint8; the model takes floating point"),
    "nan": (lambda x: x.masked_fill(x == x.max(), float("nan")), "holds NaN or infinity"),
    "infinity": (lambda x: x.masked_fill(x == x.max(), float("-inf")), "holds NaN or infinity"),
    "no tensor": (lambda x: x.tolist(), "must be a tensor, not list"),
    "empty": (lambda x: x[:0], "is empty"),
    "device": (lambda x: x.to("meta"), "is on meta and the model on cpu"),
    "too small": (lambda x: x[:, :, :1, :1], None),
}


@pytest.mark.parametrize("name", [n for n in BAD_INPUTS if n != "too small"])
def test_bad_inputs_are_refused_before_any_work(model, x, name):
    change, message = BAD_INPUTS[name]
    explainer = fxlrp.compile(model, "conserving")
    explainer.graph_module.forward = None  # no work may be done
    with pytest.raises(InputError, match=message):
        explainer(change(x))
    with pytest.raises(InputError, match=message):
        explainer.ledger(change(x))


def test_a_shape_that_a_layer_cannot_take_names_the_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    explainer = fxlrp.compile(model, "conserving")
    with pytest.raises(InputError, match=r"cannot take an input of this shape: at '2', on \(1, 196\)"):
        explainer(torch.randn(1, 3, 9, 9))
    with pytest.raises(InputError, match="at '0'"):
        explainer(torch.randn(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, "class 5 is out of range: the model has 5 classes, 0 to 4"),
        (-1, "class -1 is out of range"),
        (torch.tensor([0, 1, 7]), "class 7 is out of range"),
        (torch.tensor([0, 1]), r"shape \(3,\), or several, \(3, targets\), not \(2,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "as integers, not float32"),
        (True, "not bool"),
        ("cat", "not str"),
    ],
)
def test_bad_targets_are_refused_before_any_work(model, x, target, message):
    explainer = fxlrp.compile(model, "conserving")
    explainer.graph_module.forward = None
    with pytest.raises(TargetError, match=message):
        explainer(x, target=target)
