"""Models and checkpoints: what matches is loaded, differences are named. Nothing is downloaded."""

import argparse
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import fxlrp
from fxlrp.checkpoints import class_count, read_checkpoint
from fxlrp.errors import MissingExtraError, WeightsError
from fxlrp.extras import require
from fxlrp.images import read_image, to_input
from fxlrp.models import LoadedModel, ModelWarning, imagenet_classes, load_model

TINY = """
import torch
from torch import nn
from torchvision import transforms
from fxlrp.models import LoadedModel

def net():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*layers)

def pair():
    return net(), transforms.ToTensor()

def named():
    return LoadedModel(net(), transforms.ToTensor(), ["cat", "dog"])

def nothing():
    return "a model"

def odd():
    return net(), 3

def fails():
    raise ValueError("no luck")

class Holder:
    build = staticmethod(net)

value = 3
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A module in the current folder, of a name that nothing else has."""
    (tmp_path / "tiny_models.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    yield "python:tiny_models"
    sys.modules.pop("tiny_models", None)


def quiet(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        return load_model(*args, **kwargs)


def test_untrained_torchvision_model_gives_a_warning_and_is_always_the_same():
    before = torch.get_rng_state()
    with pytest.warns(ModelWarning, match="untrained"):
        one = load_model("torchvision:resnet18")
    assert torch.equal(torch.get_rng_state(), before)
    other = quiet("torchvision:resnet18")
    assert not one.model.training
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_googlenet_converts_the_normalisation_for_its_trained_weights():
    assert quiet("torchvision:googlenet").model.transform_input


@pytest.mark.parametrize(
    ("source", "name", "size"), [("torchvision", "mobilenet_v3_small", 224), ("timm", "resnet10t", 176)]
)
def test_model_has_its_preprocessing_and_class_names(source, name, size):
    pytest.importorskip(source, reason=f"the extra {source} is not installed")
    with pytest.warns(ModelWarning, match=f"{source}:{name} has random weights"):
        loaded = load_model(f"{source}:{name}")
    assert to_input(Image.new("RGB", (300, 280)), loaded.preprocess).shape == (3, size, size)
    assert loaded.classes == imagenet_classes()
    assert loaded.classes[282] == "tiger cat"
    assert len(loaded.classes) == 1000
    assert not loaded.model.training


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "is none of torchvision:NAME, timm:NAME, python:"),
        ("keras:resnet18", "is none of"),
        ("torchvision:", "is none of"),
        ("torchvision:resnet19", "did you mean resnet18"),
        ("torchvision:zzzzzzzzzz", "it has alexnet"),
        ("torchvision:fcn_resnet50", "no classifier"),
        ("timm:resnet19", "did you mean resnet18"),
        ("timm:hf-hub:timm/resnet18", "has no model"),
        ("python:json", "write python:package.module:callable"),
        ("python:no_such_module:load", "cannot be imported from here: No module named 'no_such_module'"),
        ("python:json:no_such_thing", "'json' has no 'no_such_thing'"),
    ],
)
def test_unknown_specification_is_an_error_with_a_hint(spec, message):
    if spec.startswith("timm"):
        pytest.importorskip("timm", reason="the extra timm is not installed")
    with pytest.raises(WeightsError, match=message):
        load_model(spec)


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("resnet18", "torchvision:resnet18"), ("tim:resnet19", "timm:resnet19"), ("net.onnx", "onnx:net.onnx"),
        ("tiny_models:pair", "python:tiny_models:pair"), ("tiny_models.py:pair", "python:tiny_models:pair"),
        ("a_folder", "transformers:a_folder"), ("inner/nets.py:net", "python:inner.nets:net"),
    ],
)  # fmt: skip
def test_a_specification_without_its_source_is_an_error_that_writes_it_out(tiny, tmp_path, spec, meant):
    for file in ("a_folder/config.json", "inner/nets.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(WeightsError, match=f"did you mean {meant}\\?$"):
        load_model(spec)


def test_a_callable_that_is_not_there_is_an_error_with_what_may_be_meant(tiny):
    with pytest.raises(WeightsError, match=r"has no 'pari': did you mean pair\?"):
        load_model(f"{tiny}:pari")
    with pytest.raises(WeightsError, match=r"tiny_models.py is a file: name the module, python:tiny_models:pair"):
        load_model("python:tiny_models.py:pair")


def test_missing_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"needs timm.*pip install 'fxlrp\[timm\]'"):
        load_model("timm:resnet18")


def test_callable_may_return_a_module_a_pair_or_a_loaded_model(tiny):
    with pytest.warns(ModelWarning, match="taken as ImageNet's"):
        bare = load_model(f"{tiny}:net")
    assert to_input(Image.new("RGB", (300, 280)), bare.preprocess).shape == (3, 224, 224)
    assert bare.classes is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair, named = load_model(f"{tiny}:pair"), load_model(f"{tiny}:named")
    assert to_input(Image.new("RGB", (30, 28)), pair.preprocess).shape == (3, 28, 30)
    assert isinstance(named, LoadedModel)
    assert list(named.classes) == ["cat", "dog"]
    assert not any(loaded.model.training for loaded in (bare, pair, named))
    assert isinstance(quiet(f"{tiny}:Holder.build").model, nn.Sequential)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "returned str; it must return a module"),
        ("odd", "its preprocessing is int"),
        ("fails", "failed: ValueError: no luck"),
        ("value", "name a function"),
    ],
)
def test_callable_that_returns_no_model_is_an_error(tiny, name, message):
    with pytest.raises(WeightsError, match=message):
        load_model(f"{tiny}:{name}")


def test_loading_leaves_the_import_path_unchanged(tiny):
    before = list(sys.path)
    quiet(f"{tiny}:net")
    with pytest.raises(WeightsError):
        load_model(f"{tiny}:fails")
    assert sys.path == before


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(7)
    return torchvision.models.resnet18()


WRAPPERS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "parallel": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "student": lambda state: {"student": state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "options": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "old": lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_checkpoint_is_read_in_every_usual_wrapper(tmp_path, resnet, wrap):
    torch.save(wrap(resnet.state_dict()), tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        loaded = load_model("torchvision:resnet18", tmp_path / "a.pt")
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), resnet.parameters(), strict=True))


def test_safetensors_checkpoint_is_read(tmp_path, resnet):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    safetensors.save_file(resnet.state_dict(), tmp_path / "a.safetensors")
    loaded = load_model("torchvision:resnet18", tmp_path / "a.safetensors")
    assert torch.equal(loaded.model.fc.weight, resnet.fc.weight)
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_model("torchvision:resnet18", tmp_path / "b.safetensors")


def test_model_has_the_number_of_classes_of_the_checkpoint(tmp_path):
    torch.save(torchvision.models.mobilenet_v3_small(num_classes=7).state_dict(), tmp_path / "a.pt")
    loaded = load_model("torchvision:mobilenet_v3_small", tmp_path / "a.pt")
    assert class_count(loaded.model) == 7
    assert loaded.classes is None


def test_error_for_a_checkpoint_of_another_model_names_the_differences(tmp_path, resnet):
    state = resnet.state_dict()
    state["extra.weight"] = state.pop("conv1.weight")
    state["bn1.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(WeightsError) as error:
        load_model("torchvision:resnet18", tmp_path / "a.pt")
    assert "missing: conv1.weight" in str(error.value)
    assert "unexpected: extra.weight" in str(error.value)
    assert "bn1.weight ((3,) in the file, (64,) in the model)" in str(error.value)


def test_error_for_many_differences_names_a_few_and_counts_the_rest(tmp_path, resnet):
    torch.save(resnet.state_dict(), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"missing: .* and \d+ more; unexpected: .* and \d+ more"):
        load_model("torchvision:mobilenet_v3_small", tmp_path / "a.pt")


def test_checkpoint_is_loaded_into_the_model_of_a_callable(tiny, tmp_path):
    state = quiet(f"{tiny}:net").model.state_dict()
    state["0.bias"] = torch.full((4,), 5.0)
    torch.save(state, tmp_path / "a.pt")
    assert quiet(f"{tiny}:net", tmp_path / "a.pt").model[0].bias.tolist() == [5, 5, 5, 5]


class Stranger:
    """Something that reading a checkpoint must not build."""


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no weights file"),
        (lambda path: path.mkdir(), "are a folder"),
        (lambda path: path.touch(), "cannot be read as a checkpoint"),
        (lambda path: path.write_bytes(b"PK\x03\x04 and then nothing"), "cannot be read as a checkpoint"),
        (lambda path: path.write_text("text"), "nothing but tensors|cannot be read"),
        (lambda path: torch.save({"state_dict": Stranger()}, path), "nothing but tensors"),
        (lambda path: torch.save([torch.zeros(2)], path), "an object of type list, not a state dict"),
        (lambda path: torch.save({}, path), "an empty dict"),
        (lambda path: torch.save({"epoch": 3}, path), "epoch is no tensor"),
        (lambda path: torch.save({"state_dict": Stranger()}, path), r"\(it holds a test_models\.Stranger\)"),
        (lambda path: torch.save({name: {"w": torch.ones(1)} for name in ("ema", "raw")}, path),
         r"holds 2 state dicts, ema, raw: .*\['ema'\], 'weights.pt'\)"),
        (lambda path: torch.jit.script(nn.Linear(2, 2)).save(path), "is a program of TorchScript"),
    ],
)
def test_file_that_is_no_checkpoint_is_an_error(tmp_path, write, message):
    write(tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(tmp_path / "a.pt")


def test_old_densenet_names_are_read(tmp_path):
    torch.save({f"features.denselayer1.norm.1.{name}": torch.ones(1) for name in ("weight", "bias")}, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert list(read) == ["features.denselayer1.norm1.weight", "features.denselayer1.norm1.bias"]


def test_require_imports_a_package_and_tells_missing_from_broken(tmp_path, monkeypatch):
    assert require("os.path", "draw") is __import__("os").path
    with pytest.raises(MissingExtraError, match=r"no_such_package.*pip install 'fxlrp\[draw\]'"):
        require("no_such_package.part", "draw")
    (tmp_path / "broken_package.py").write_text("import another_missing_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_missing_package") as error:
        require("broken_package", "draw")
    assert not isinstance(error.value, MissingExtraError)


def test_efficientnet_lite0_recognises_photographs_and_conserves_relevance(shared, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra demo is not installed")
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    loaded = load_model("python:examples.efficientnet_lite0:load")
    files = sorted((shared / "images" / "imagenet_1000").iterdir())
    chosen = list(range(0, 1000, 25))
    images = torch.stack([to_input(read_image(files[i]), loaded.preprocess) for i in chosen])
    with torch.no_grad():
        right = loaded.model(images).argmax(1) == torch.tensor(chosen)
    # 87 % of all 1,000; the wrong normalisation gives 77 %.
    assert right.double().mean() >= 0.8
    explanation = fxlrp.compile(loaded.model, "conserving")(images[:2])
    assert torch.allclose(fxlrp.heatmap(explanation.relevance).sum((1, 2)), explanation.start, rtol=1e-4)


def test_a_checkpoint_that_was_damaged_is_an_error(tmp_path, resnet):
    path = tmp_path / "weights.pt"
    torch.save(resnet.state_dict(), path)
    read_checkpoint(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="is damaged"):
        read_checkpoint(path)
