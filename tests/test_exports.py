"""Exported explanations give what the explainer gives, without the model's code."""

import subprocess
import sys

import pytest
import torch
from checks import assert_close
from nets import calibrated
from test_backends import Small
from torch import nn
from torchvision import models

import fxlrp
from fxlrp.errors import ExportError, InputError, MissingExtraError, TargetError


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def explainer(x):
    torch.manual_seed(0)
    return fxlrp.compile(calibrated(Small(), x), "conserving", checkpoints=("conv",))


def assert_same(saved, explainer, *inputs, limit=1e-5, outputs=1e-5):
    for target in (None, 1, torch.arange(len(inputs[0])) % 3):
        explanation, expected = saved(*inputs, target=target), explainer(*inputs, target=target)
        assert_close(explanation.relevance, expected.relevance, limit)
        assert_close(explanation.output, expected.output, outputs)
        assert_close(explanation.start, expected.start, limit)
        assert torch.equal(explanation.target, expected.target)
        assert explanation.checkpoints.keys() == expected.checkpoints.keys()
        for name, relevance in expected.checkpoints.items():
            assert_close(explanation.checkpoints[name], relevance, limit)
        assert explanation.by_input.keys() == expected.by_input.keys()


# torch.export ---------------------------------------------------------------------------------------


def test_torch_export_takes_an_explainer_and_gives_explanations(explainer, x):
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(explainer, (x,), dynamic_shapes=(({0: batch},),))
    for images in (x, x[:1], torch.cat([x, x])):
        explanation = program.module()(images)
        assert isinstance(explanation, fxlrp.Explanation)
        assert_close(explanation.relevance, explainer(images).relevance, 1e-5)


# Files ----------------------------------------------------------------------------------------------


def test_a_saved_explanation_is_the_explainers(explainer, x, tmp_path):
    path = explainer.save(tmp_path / "net.pt2", x)
    saved = fxlrp.load(path)
    for images in (x, x[:1], torch.cat([x, x])):
        assert_same(saved, explainer, images)
    assert_close(saved.heatmap(x), explainer.heatmap(x), 1e-5)
    assert_close(saved.attribute(x, target=1), explainer.attribute(x, target=1), 1e-5)
    assert saved.signature.about["preset"] == "conserving"
    assert (saved(x).start_name, saved(x).unit) == (explainer(x).start_name, explainer(x).unit)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.pt2"]


def test_the_last_call_says_what_the_inputs_look_like(explainer, x, tmp_path):
    with pytest.raises(ExportError, match="call the explainer once before"):
        explainer.save(tmp_path / "net.pt2")
    explainer(x)
    assert_same(fxlrp.load(explainer.save(tmp_path / "net.pt2")), explainer, x)


def test_a_saved_explanation_runs_where_the_models_code_is_not(explainer, x, tmp_path):
    explainer.save(tmp_path / "net.pt2", x)
    torch.save(x, tmp_path / "x.pt")
    torch.save(explainer(x).relevance, tmp_path / "relevance.pt")
    code = (
        "import fxlrp, sys, torch\n"
        "x, expected = torch.load('x.pt'), torch.load('relevance.pt')\n"
        "found = fxlrp.load('net.pt2')(x).relevance\n"
        "assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()\n"
        "assert 'test_backends' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_a_saved_explanation_keeps_the_weights_that_it_was_saved_with(explainer, x, tmp_path):
    expected = explainer(x).relevance.clone()
    saved = fxlrp.load(explainer.save(tmp_path / "net.pt2"))
    with torch.no_grad():
        explainer.forward_func.fc.weight.mul_(-1)
    assert_close(saved(x).relevance, expected, 1e-5)


@pytest.mark.parametrize("start", ["logit", "contrastive", fxlrp.starts.against(2), lambda output, target: output * 2])
def test_starts_are_exported(x, tmp_path, start):
    torch.manual_seed(0)
    explainer = fxlrp.compile(calibrated(Small(), x), "conserving", start=start)
    assert_same(fxlrp.load(explainer.save(tmp_path / "net.pt2", x)), explainer, x)


class Two(nn.Module):
    """Token numbers and features in, a dict out."""

    def __init__(self):
        super().__init__()
        self.embedding, self.other, self.fc = nn.Embedding(7, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, tokens, features):
        hidden = (self.embedding(tokens).mean(1) + self.other(features)).relu()
        return {"logits": self.fc(hidden), "hidden": [hidden]}


def test_several_inputs_and_outputs_are_exported_by_name(tmp_path):
    torch.manual_seed(0)
    explainer = fxlrp.compile(Two().eval(), "conserving", output="logits")
    tokens, features = torch.randint(7, (2, 5)), torch.randn(2, 3)
    saved = fxlrp.load(explainer.save(tmp_path / "two.pt2", (tokens, features)))
    expected, explanation = explainer(tokens, features), saved(features=features, tokens=tokens)
    for name, relevance in expected.by_input.items():
        assert_close(explanation.by_input[name], relevance, 1e-5)
    assert_close(explanation.output["hidden"][0], expected.output["hidden"][0], 1e-5)
    with pytest.raises(InputError, match="entries 0 to 6"):
        saved(tokens + 7, features)


def test_an_explanation_without_a_class_is_exported(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    explainer, x = fxlrp.compile(model, "conserving", start="output"), torch.randn(2, 3, 6, 6)
    saved = fxlrp.load(explainer.save(tmp_path / "map.pt2", x))
    assert saved(x).target is None
    assert_close(saved(x).relevance, explainer(x).relevance, 1e-5)
    with pytest.raises(TargetError, match="give none"):
        saved(x, target=1)


# What cannot be is told -----------------------------------------------------------------------------


def test_bad_input_of_a_saved_explanation_is_told(explainer, x, tmp_path):
    saved = fxlrp.load(explainer.save(tmp_path / "net.pt2", x))
    with pytest.raises(InputError, match="axis 2 is fixed"):
        saved(torch.randn(1, 3, 9, 8))
    with pytest.raises(InputError, match=r"exported for torch\.float32"):
        saved(x.double())
    with pytest.raises(InputError, match="NaN"):
        saved(x / 0 * 0)
    with pytest.raises(InputError, match=r"takes 1 input\(s\), x"):
        saved(x, y=x)
    with pytest.raises(TargetError, match="class 9 is out of range"):
        saved(x, target=9)
    with pytest.raises(TargetError, match="one target per item"):
        saved(x, target=[0, 1])


def test_bad_places_are_told_and_nothing_is_left(explainer, x, tmp_path):
    explainer(x)
    for write, name in ((explainer.save, "a.onnx"), (explainer.export_aot, "a.so"), (explainer.export_onnx, "a.pt2")):
        with pytest.raises(ExportError, match="must end in"):
            write(tmp_path / name)
    with pytest.raises(ExportError, match="there is no folder"):
        explainer.save(tmp_path / "missing" / "a.pt2")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ExportError, match="is a folder"):
        explainer.save(tmp_path / "folder.pt2")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.pt2"]


def test_files_that_hold_no_explanation_are_told(tmp_path):
    with pytest.raises(ExportError, match="no such file"):
        fxlrp.load(tmp_path / "missing.pt2")
    (tmp_path / "text.pt2").write_text("no archive")
    with pytest.raises(ExportError, match="is no saved explanation"):
        fxlrp.load(tmp_path / "text.pt2")
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pt2")
    with pytest.raises(ExportError, match="is no explanation that fxlrp saved"):
        fxlrp.load(tmp_path / "weights.pt2")


def test_a_result_that_differs_is_not_written(explainer, x, tmp_path, monkeypatch):
    monkeypatch.setattr("fxlrp.exports.saved.like", lambda results, expected: 2e-3)
    with pytest.raises(ExportError, match=r"differs from the explainer's by 2\.0e-03"):
        explainer.save(tmp_path / "net.pt2", x)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_their_extra(explainer, x, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match="onnx"):
        explainer.export_onnx(tmp_path / "net.onnx", x)


# ONNX -----------------------------------------------------------------------------------------------


def run_onnx(path, x, target):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path))
    name = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs()]
    given = {name: x.numpy(), "target": torch.full((len(x),), target).numpy()}
    return dict(zip(names, map(torch.tensor, session.run(None, given)), strict=True))


def assert_onnx_agrees(path, explainer, x, limit=1e-5, outputs=1e-5):
    for images in (x, x[:1]):
        for target in (1, -1):
            expected = explainer(images, target=None if target < 0 else target)
            found = run_onnx(path, images, target)
            assert_close(found["relevance"], expected.relevance, limit)
            assert_close(found["output"], expected.output, outputs)
            assert torch.equal(found["explained_class"], expected.target)


class Pooled(nn.Module):
    """Every pool, and an upsampling: what torch goes back through by operations that ONNX has not."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(16, 3)
        self.pools = nn.Sequential(
            nn.MaxPool2d(3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), nn.AdaptiveAvgPool2d(2),
        )  # fmt: skip

    def forward(self, x):
        return self.fc(self.pools(self.stem(x).relu()).flatten(1))


def test_onnx_gives_what_the_explainer_gives(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    explainer, x = fxlrp.compile(Pooled().eval(), "conserving"), torch.randn(2, 3, 11, 11)
    path = explainer.export_onnx(tmp_path / "pooled.onnx", x)
    assert_onnx_agrees(path, explainer, x)
    import onnx

    model = onnx.load(str(path))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [entry.name for entry in tmp_path.iterdir()] == ["pooled.onnx"]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    explainer, x = fxlrp.compile(net), torch.randn(3, 1, 8, 8)
    return explainer.export_onnx(tmp_path_factory.mktemp("onnx") / "net.onnx", x), explainer, x


def test_a_file_of_onnx_is_loaded_as_a_saved_explanation_is(onnx_file):
    path, explainer, x = onnx_file
    loaded = fxlrp.load(path)
    for target in (None, 2, torch.tensor([0, 4, 1])):
        expected, found = explainer(x, target=target), loaded(x, target=target)
        assert_close(found.relevance, expected.relevance, 1e-5)
        assert torch.equal(found.target, expected.target)
        assert found.start_name == expected.start_name
    assert_close(loaded(input=x[:1]).relevance, explainer(x[:1]).relevance, 1e-5)


@pytest.mark.parametrize("target", [5, -2, torch.tensor([0, 5, 1]), 1.0, True, [1, 2], torch.tensor([0, 1])], ids=str)
def test_a_target_that_is_no_class_is_refused_by_a_loaded_file_of_onnx(onnx_file, target):
    path, _, x = onnx_file
    with pytest.raises(TargetError):
        fxlrp.load(path)(x, target=target)


@pytest.mark.parametrize("target", [5, -2])
def test_onnxruntime_itself_says_which_targets_there_are(onnx_file, target):
    path, _, x = onnx_file
    with pytest.raises(Exception, match="target is -1, the predicted class, or a class from 0 to 4"):
        run_onnx(path, x, target)


def test_damaged_files_of_onnx_are_one_error(onnx_file, tmp_path):
    onnx = pytest.importorskip("onnx")
    path, _, _ = onnx_file
    half, foreign, wrong = tmp_path / "half.onnx", tmp_path / "foreign.onnx", tmp_path / "wrong.onnx"
    half.write_bytes(path.read_bytes()[:2000])
    model = onnx.load(str(path))
    del model.metadata_props[:]
    onnx.save(model, str(foreign))
    model.metadata_props.add(key="fxlrp", value='{"inputs": [], "dtypes": []}')
    onnx.save(model, str(wrong))
    for damaged in (half, foreign, wrong):
        with pytest.raises(ExportError, match="no explanation that fxlrp wrote, or it is damaged"):
            fxlrp.load(damaged)
    with pytest.raises(ExportError, match="there is no such file"):
        fxlrp.load(tmp_path / "none.onnx")
    with pytest.raises(ExportError, match="cannot run on cuda"):
        fxlrp.load(path, device="cuda")


# Compiled packages ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_package_is_the_explainers(explainer, x, tmp_path):
    saved = fxlrp.load(explainer.export_aot(tmp_path / "net.pt2", x))
    for images in (x, x[:1], torch.cat([x, x])):
        assert_same(saved, explainer, images)
    with pytest.raises(ExportError, match="cannot run on cuda"):
        fxlrp.load(tmp_path / "net.pt2", device="cuda")


# Whole networks -------------------------------------------------------------------------------------

NETS = ("resnet50", "efficientnet_b0", "convnext_tiny", "vit_b_16")
# The last digits of a deep network's output, and so of its probabilities, are those of its own rounding, which a
# compiler changes: float32 lies up to 2e-5 from float64 here. Maps are compared that start with one.
OUTPUTS = 5e-5


@pytest.fixture(scope="module", params=NETS)
def network(request):
    from benchmarks.models import noise, usable

    torch.manual_seed(0)
    model = usable(models.get_model(request.param, weights=None), 3, 224, 224)
    size = 224 if request.param == "vit_b_16" else 96
    return fxlrp.compile(model, "conserving", start="one"), noise(3, size, size)


@pytest.mark.slow
def test_whole_networks_are_saved(network, tmp_path):
    explainer, x = network
    assert_same(fxlrp.load(explainer.save(tmp_path / "net.pt2", x)), explainer, x, outputs=OUTPUTS)


@pytest.mark.slow
def test_whole_networks_become_onnx(network, tmp_path):
    pytest.importorskip("onnxruntime")
    explainer, x = network
    assert_onnx_agrees(explainer.export_onnx(tmp_path / "net.onnx", x), explainer, x, outputs=OUTPUTS)


@pytest.mark.slow
def test_whole_networks_are_compiled_ahead(network, tmp_path):
    explainer, x = network
    assert_same(fxlrp.load(explainer.export_aot(tmp_path / "net.pt2", x)), explainer, x, outputs=OUTPUTS)


@pytest.mark.slow
def test_whole_networks_run_on_inductor(network):
    explainer, x = network
    compiled = fxlrp.compile(explainer.forward_func, "conserving", backend="inductor", start="one")
    assert_same(compiled, explainer, x, outputs=OUTPUTS)
