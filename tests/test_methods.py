"""The methods that evaluations compare: what each gives, and the errors where one cannot run."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_unchanged, snapshot
from evaluation_nets import Net
from torch import nn

import fxlrp
from fxlrp.errors import MethodError
from fxlrp.evaluation import KINDS, MethodSpec, conservation, prepare, quantus_scores
from fxlrp.evaluation.methods.cams import last_feature_map

LIBRARIES = {
    "captum_lrp": "captum", "integrated_gradients": "captum", "guided_backprop": "captum", "deep_lift": "captum",
    "input_x_gradient": "captum", "grad_cam": "pytorch_grad_cam", "score_cam": "pytorch_grad_cam",
    "layer_cam": "pytorch_grad_cam", "xrai": "saliency",
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(2, 3, 8, 8)


def explained(model, x, kind, targets=(0, 2), **options):
    return prepare(MethodSpec("m", kind, options), model, x[:1])(x, torch.tensor(targets))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "python"])
def test_every_kind_gives_one_map_per_image_and_does_not_change_the_model(model, x, kind):
    if kind in LIBRARIES:
        pytest.importorskip(LIBRARIES[kind])
    before = snapshot(model, x)
    found = explained(model, x, kind)
    assert found.heatmaps.shape == (2, 8, 8)
    assert torch.isfinite(found.heatmaps).all()
    assert not found.heatmaps.requires_grad
    assert_unchanged(before, snapshot(model, x))
    for i in range(2):
        alone = explained(model, x[i : i + 1], kind, targets=[(0, 2)[i]])
        assert_close(alone.heatmaps[0], found.heatmaps[i], 1e-3 if kind == "captum_lrp" else 1e-5)


def test_the_kind_fxlrp_gives_the_relevance_of_an_explainer(model, x):
    found = prepare(MethodSpec("m", "fxlrp", {"preset": "epsilon_plus", "start": "logit"}), model, x[:1], ("block",))(
        x, torch.tensor([0, 2])
    )
    explainer = fxlrp.compile(model, "epsilon_plus", start="logit", checkpoints=("block",))
    explanation = explainer(x, target=torch.tensor([0, 2]))
    assert_close(found.heatmaps, fxlrp.heatmap(explanation.relevance), 1e-6)
    assert_close(found.start, explanation.start)
    assert found.checkpoints.keys() == {"input", "block"}
    shares = conservation(explanation)
    for name, total in found.checkpoints.items():
        assert_close(total / explanation.start, shares[name], 1e-6)


def test_the_kind_fxlrp_takes_rules_stages_and_smoothing(model, x):
    options = {"rules": {"block": "Epsilon(1e-3)"}, "split": "symmetric", "identity_skips": False}
    found = explained(model, x, "fxlrp", preset="conserving", **options)
    rules = {"block": fxlrp.rules.Epsilon(1e-3)}
    explainer = fxlrp.compile(model, "conserving", rules=rules, split="symmetric", identity_skips=False)
    assert_close(found.heatmaps, fxlrp.heatmap(explainer(x, target=torch.tensor([0, 2])).relevance), 1e-6)
    at = explained(model, x, "fxlrp", preset="conserving", at="pool")
    explanation = fxlrp.compile(model, "conserving", checkpoints=("pool",))(x, target=torch.tensor([0, 2]))
    assert_close(at.heatmaps, explanation.checkpoints["pool"].sum(1), 1e-6)
    plain, smooth = (explained(model, x, "fxlrp", preset="conserving", smooth=s).heatmaps for s in (0.0, 40.0))
    assert smooth.std() < plain.std()


def test_maps_of_a_stage_are_enlarged(x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    found = explained(model.eval(), x, "fxlrp", preset="conserving", at="2").heatmaps
    explanation = fxlrp.compile(model, "conserving", checkpoints=("2",))(x, target=torch.tensor([0, 2]))
    small = explanation.checkpoints["2"].sum(1)
    large = F.interpolate(small[:, None], (8, 8), mode="bilinear")[:, 0] / 4  # a place's relevance, on four pixels
    assert_close(found, large, 1e-6)
    several = explained(model.eval(), x, "fxlrp", preset="conserving", at=["2", "input"]).heatmaps
    assert_close(several, (large + explanation.relevance.sum(1)) / 2, 1e-6)
    assert_close(several.sum((1, 2)), explanation.start, 1e-6)  # each conserves, and so does their mean


def test_baselines_of_captum_follow_their_definitions(model, x):
    pytest.importorskip("captum")
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).gather(1, torch.tensor([[0], [2]])).sum(), x)
    assert_close(explained(model, x, "input_x_gradient").heatmaps, (x * gradient).sum(1).detach(), 1e-5)
    completeness = explained(model, x, "integrated_gradients", steps=200).heatmaps.sum(dim=(1, 2))
    logits, base = model(x), model(torch.zeros_like(x))
    expected = (logits - base).gather(1, torch.tensor([[0], [2]]))[:, 0].detach()
    assert_close(completeness, expected, 2e-2)


def test_a_method_that_would_be_another_one_is_an_error(x):
    pytest.importorskip("captum")

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).mean(dim=(2, 3)))

    for kind in ("guided_backprop", "deep_lift"):
        with pytest.raises(MethodError, match="this model has none: it would be"):
            explained(Functional().eval(), x, kind)


def test_the_last_feature_map_is_found(model, x):
    assert last_feature_map(model, x) is model.relu2
    resnet = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert last_feature_map(resnet, x) is resnet[0]
    with pytest.raises(MethodError, match="no module gives a feature map"):
        last_feature_map(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), x)


class SharedReLU(nn.Module):
    """One ReLU behind both convolutions, as in implementations of EfficientNet."""

    def __init__(self, relus):
        super().__init__()
        self.relus = nn.ModuleList(relus)
        self.first, self.second, self.pool = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = self.relus[0](self.first(x))
        return self.fc(self.pool(self.relus[-1](self.second(x))).flatten(1))


def test_a_shared_relu_does_not_lead_to_the_first_feature_map(x):
    pytest.importorskip("pytorch_grad_cam")
    torch.manual_seed(0)
    apart = SharedReLU([nn.ReLU(), nn.ReLU()]).eval()
    shared = SharedReLU([nn.ReLU()]).eval()
    shared.load_state_dict(apart.state_dict())
    expected = explained(apart, x, "grad_cam").heatmaps
    assert float(expected.std()) > 0
    assert_close(explained(shared, x, "grad_cam").heatmaps, expected, 1e-6)
    assert isinstance(shared.pool, nn.AdaptiveAvgPool2d)  # the model is as it was
    with pytest.raises(MethodError, match=r"layer relus\.0 is called 2 times"):
        explained(shared, x, "grad_cam", layer="relus.0")


def test_grad_cam_of_the_log_odds_is_that_of_a_layer_that_gives_them(x):
    pytest.importorskip("pytorch_grad_cam")

    class Odds(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            output = self.model(x)
            classes = range(output.shape[1])
            others = [output[:, [n for n in classes if n != c]].logsumexp(1) for c in classes]
            return output - torch.stack(others, 1)

    torch.manual_seed(0)
    model = SharedReLU([nn.ReLU(), nn.ReLU()]).eval()
    found = explained(model, x, "grad_cam", layer="second", log_odds=True).heatmaps
    expected = explained(Odds(model), x, "grad_cam", layer="model.second").heatmaps
    assert float(expected.std()) > 0
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("kind", ["fxlrp", "grad_cam"])
def test_maps_of_regions_keep_their_sum_and_the_order_within(model, kind):
    pytest.importorskip("pytorch_grad_cam")
    pytest.importorskip("skimage")
    x = torch.zeros(1, 3, 40, 40)
    x[:, :, :, 20:] = 1
    options = {"preset": "conserving"} if kind == "fxlrp" else {}
    plain = explained(model, x, kind, targets=[2], **options).heatmaps
    regions = explained(model, x, kind, targets=[2], regions=True, **options).heatmaps
    assert_close(regions.sum(), plain.sum(), 1e-4)
    left, own = regions[0, :, :15].flatten(), plain[0, :, :15].flatten()
    assert float(left.std()) <= 0.01 * float(regions.abs().max())
    if kind == "fxlrp":
        assert left.argmax() == own.argmax()


def test_score_cam_runs_its_passes_by_the_given_model(model, x):
    pytest.importorskip("pytorch_grad_cam")

    class Counting(nn.Module):
        batch_size = 3

        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, inputs):
            self.seen.append(len(inputs))
            return model(inputs)

    spec, counting = MethodSpec("m", "score_cam"), Counting()
    explain = prepare(spec, model, x[:1], forward=counting)
    counting.seen.clear()
    found = explain(x, torch.tensor([0, 2]))
    channels = sum(counting.seen) // 2
    assert max(counting.seen) == 3
    assert channels > 3
    assert sum(counting.seen) == 2 * channels
    assert_close(found.heatmaps, explained(model, x, "score_cam").heatmaps, 1e-5)
    assert prepare(MethodSpec("m", "random"), model, x[:1], forward=counting) is not None  # others have no use for it


def test_libraries_explain_an_example_first_unless_trial_is_false(model, x):
    pytest.importorskip("captum")
    broken = nn.Sequential(model, nn.Softmax2d())  # a module that Captum's LRP has no rule for
    spec = MethodSpec("m", "captum_lrp")
    with pytest.raises(MethodError):
        prepare(spec, broken, x[:1])
    assert callable(prepare(spec, broken, x[:1], trial=False))


def test_a_method_that_cannot_be_prepared_is_an_error(model, x):
    for spec, message in (
        (MethodSpec("m", "lime"), "kind 'lime' is none of fxlrp"),
        (MethodSpec("m", "fxlrp", {"preset": "nothing"}), "nothing"),
        (MethodSpec("m", "random", {"seeds": 1}), "seeds"),
        (MethodSpec("m", "fxlrp", {"at": []}), "at names no module"),
        (MethodSpec("m", "grad_cam", {"layer": "nowhere"}), "nowhere"),
        (MethodSpec("m", "python", {"function": "evaluation_nets"}), "does not name a callable"),
    ):
        with pytest.raises(MethodError, match=message):
            prepare(spec, model, x[:1])


def test_a_missing_library_is_an_error_that_names_the_extra(model, x, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.delitem(sys.modules, "captum.attr", raising=False)
    with pytest.raises(MethodError, match=r"fxlrp\[evaluate\]"):
        explained(model, x, "captum_lrp")


def test_random_maps_depend_on_the_image_and_seed_alone(model, x):
    first, again = (explained(model, x, "random").heatmaps for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(explained(model, x.flip(0), "random").heatmaps, first.flip(0))
    assert not torch.equal(explained(model, x, "random", seed=1).heatmaps, first)


def test_edges_are_where_the_image_changes(model):
    x = torch.zeros(1, 3, 8, 8)
    x[..., 4:] = 1
    heat = explained(model, x, "edges", targets=[0]).heatmaps[0]
    assert (heat[:, 3:5] > 0).all()
    assert (heat[:, :3] == 0).all()
    assert (heat[:, 5:] == 0).all()


def test_metrics_of_quantus_score_maps(model, x):
    quantus = pytest.importorskip("quantus")
    found = explained(model, x, "fxlrp")
    metric = quantus.Sparseness(disable_warnings=True, abs=True)
    scores = quantus_scores(metric, model, x, found.heatmaps, torch.tensor([0, 2]))
    assert scores.shape == (2,)
    assert ((scores > 0) & (scores < 1)).all()
