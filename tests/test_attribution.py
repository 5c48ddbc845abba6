"""The face of Captum's attribution methods: alone, and inside what Captum builds around a method."""

import pytest
import torch
from checks import assert_close
from nets import BlockPlan, NetPlan, RandomNet
from torch import nn

import fxlrp
from fxlrp.errors import InputError, TargetError


@pytest.fixture
def model():
    return RandomNet(NetPlan([BlockPlan(), BlockPlan(skip="projection", stride=2)])).double().eval()


@pytest.fixture
def x():
    return torch.randn(3, 3, 10, 10, dtype=torch.float64)


class Bag(nn.Module):
    """Words and their weights, an optional scale, and a switch that is no tensor."""

    def __init__(self):
        super().__init__()
        self.words, self.side, self.head = nn.Embedding(9, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, ids, side, lengths=None, power=1):
        x = self.words(ids).sum(1)
        if lengths is not None:
            x = x / lengths.unsqueeze(1)
        return self.head((x + self.side(side)) ** power)


@pytest.fixture
def bag():
    torch.manual_seed(1)
    inputs = torch.randint(0, 9, (4, 5)), torch.randn(4, 4, dtype=torch.float64)
    return Bag().double().eval(), inputs


def test_a_tensor_gives_a_tensor_and_a_tuple_a_tuple(model, x):
    explainer = fxlrp.compile(model, "conserving")
    expected = explainer(x).relevance
    assert torch.equal(explainer.attribute(x), expected)
    (only,) = explainer.attribute((x,))
    assert torch.equal(only, expected)


def test_targets_are_captums(model, x):
    explainer = fxlrp.compile(model, "conserving")
    mixed = explainer(x, target=torch.tensor([4, 2, 0])).relevance
    assert torch.equal(explainer.attribute(x, [4, 2, 0]), mixed)
    assert torch.equal(explainer.attribute(x, torch.tensor([4, 2, 0])), mixed)
    same = explainer(x, target=2).relevance
    for one in (2, torch.tensor(2), torch.tensor([2])):
        assert torch.equal(explainer.attribute(x, target=one), same)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([0, 1], r"shape \(3,\), or several, \(3, targets\), not \(2,\)"),
        ([0, 1, 5], "class 5 is out of range"),
        ([(0, 1)] * 3, "a list of targets holds one class number per item"),
        ((0, 1), r"target=\(0, 1\) is a place in an output of several axes"),
        (torch.zeros(3, 2, dtype=torch.long), r"shape \(batch,\), not \(3, 2\)"),
        (torch.zeros(3), "integers, not float32"),
        ("cat", "not str"),
    ],
)
def test_targets_that_are_none_are_refused(model, x, target, message):
    with pytest.raises(TargetError, match=message):
        fxlrp.compile(model, "conserving").attribute(x, target)


def test_an_output_without_classes_needs_no_target():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1), nn.Flatten(0)).double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    relevance = fxlrp.compile(model, "conserving", start="output").attribute(x)
    assert_close(relevance.sum(1), model(x).detach())


def test_further_arguments_are_passed_on_and_get_nothing_back(bag):
    model, (ids, side) = bag
    lengths = torch.tensor([5, 4, 3, 2])
    explainer = fxlrp.compile(model, "cp_lrp", start="logit")
    expected = explainer(ids, side, lengths, target=1)
    both = explainer.attribute((ids, side), 1, lengths)
    assert [r.shape for r in both] == [(4, 5, 6), (4, 4)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(both, expected.relevance, strict=False))
    assert torch.equal(explainer.attribute(ids, 1, (side, lengths)), both[0])
    squared = explainer.attribute(ids, 1, (side, None, 2))
    assert torch.equal(squared, explainer(ids, side, power=2, target=1).relevance[0])


def test_the_last_further_argument_is_never_taken_for_the_target(bag):
    model, (ids, side) = bag
    explainer = fxlrp.compile(model, "cp_lrp", start="logit")
    lengths = torch.tensor([2, 1, 2, 1])
    for further in ((side, lengths), (side, None, 2)):
        named = dict(zip(("side", "lengths", "power"), further, strict=False))
        assert torch.equal(explainer.attribute(ids, None, further), explainer(ids, **named).relevance[0])


def test_the_delta_is_what_did_not_arrive(model, x, bag):
    relevance, delta = fxlrp.compile(model, "conserving").attribute(x, return_convergence_delta=True)
    assert relevance.shape == x.shape
    assert delta.abs().max() < 1e-12
    absorbing = fxlrp.compile(model, "cp_lrp", start="logit")
    _, delta = absorbing.attribute((x,), 1, return_convergence_delta=True)
    absorbed = sum(absorbing.ledger(x, target=1).absorbed.values())
    assert absorbed.abs().max() > 1e-3
    assert_close(delta, absorbed, 1e-9)
    # What a further argument received did not arrive at the inputs either.
    net, (ids, side) = bag
    explainer = fxlrp.compile(net, "conserving")
    _, delta = explainer.attribute(ids, 0, side, return_convergence_delta=True)
    assert_close(delta, explainer(ids, side, target=0).relevance[1].sum(1))


@pytest.mark.parametrize(("inputs", "kind"), [([1, 2], "list"), ((), "an empty tuple"), (3.0, "float")])
def test_inputs_are_tensors(model, inputs, kind):
    with pytest.raises(InputError, match=rf"a tuple of tensors, not {kind}.*additional_forward_args="):
        fxlrp.compile(model, "conserving").attribute(inputs)


# Inside Captum --------------------------------------------------------------------------------------


@pytest.fixture
def captum():
    return pytest.importorskip("captum.attr")


def by_hand(explainer, x, samples, stdev, **options):
    """What NoiseTunnel averages: ``samples`` noisy copies of each item, side by side in the batch."""
    torch.manual_seed(7)
    noisy = x.repeat_interleave(samples, dim=0)
    noisy = noisy + torch.normal(0, torch.tensor(stdev).repeat(noisy.shape))
    relevance = explainer(noisy, **options).relevance
    return relevance.view(len(x), samples, *x.shape[1:])


@pytest.mark.parametrize("target", [2, [4, 2, 0], torch.tensor([4, 2, 0]), torch.tensor([1]), None])
def test_noise_tunnel_averages_explanations(captum, model, x, target):
    explainer = fxlrp.compile(model, "conserving")
    wanted = torch.tensor(target).expand(3).repeat_interleave(4) if isinstance(target, list) else target
    if isinstance(target, torch.Tensor):
        wanted = target.expand(3).repeat_interleave(4)
    expected = by_hand(explainer, x, 4, 0.1, target=wanted)
    torch.manual_seed(7)
    smooth = captum.NoiseTunnel(explainer).attribute(x, nt_samples=4, stdevs=0.1, target=target)
    assert_close(smooth, expected.mean(1))
    torch.manual_seed(7)
    variance = captum.NoiseTunnel(explainer).attribute(x, "vargrad", nt_samples=4, stdevs=0.1, target=target)
    assert_close(variance, expected.var(1, unbiased=False), 1e-9)


def test_noise_tunnel_takes_parts_of_its_samples_at_once_and_gives_the_delta(captum, model, x):
    tunnel = captum.NoiseTunnel(fxlrp.compile(model, "conserving", start="logit"))
    (relevance,), delta = tunnel.attribute(
        (x,), nt_samples=5, nt_samples_batch_size=2, stdevs=0.05, target=[4, 2, 0], return_convergence_delta=True
    )
    assert relevance.shape == x.shape
    assert delta.shape == (15,)
    assert delta.abs().max() < 1e-12
    assert tunnel.has_convergence_delta()
    assert tunnel.multiplies_by_inputs
    assert tunnel.forward_func is model


def test_noise_tunnel_repeats_further_arguments(captum, bag):
    model, (ids, side) = bag

    class SideFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = model

        def forward(self, side, ids, power=1):
            return self.bag(ids, side, None, power)

    explainer = fxlrp.compile(SideFirst().eval(), "cp_lrp", start="logit")
    still = captum.NoiseTunnel(explainer).attribute(
        side, nt_samples=3, stdevs=0.0, target=1, additional_forward_args=(ids, 2)
    )
    assert_close(still, explainer(side, ids, power=2, target=1).relevance[0])


def test_noise_on_token_numbers_is_refused(captum, bag):
    model, (ids, side) = bag
    with pytest.raises(InputError, match="the model takes integers, such as tokens"):
        captum.NoiseTunnel(fxlrp.compile(model, "conserving")).attribute((ids, side), nt_samples=2, target=0)


def test_captums_metrics_take_it(captum, model, x):
    from captum.metrics import infidelity, sensitivity_max

    explainer = fxlrp.compile(model, "conserving", start="logit")
    still = sensitivity_max(explainer.attribute, x, perturb_radius=0.0, target=[4, 2, 0], n_perturb_samples=3)
    assert torch.equal(still, torch.zeros(3, dtype=still.dtype))
    assert (sensitivity_max(explainer.attribute, x, perturb_radius=0.1, target=2, n_perturb_samples=3) > 0).all()

    def occlude(inputs):
        noise = torch.rand_like(inputs)
        return noise, inputs - noise

    assert infidelity(model, occlude, x, explainer.attribute(x, 1), target=1).isfinite().all()
