"""Networks in files of ONNX: what is explained is what the file computes."""

import sys

import pytest
import torch
from checks import assert_close, assert_conserves
from PIL import Image
from torch import nn

import fxlrp
from fxlrp.common.errors import CaptureError, InputError, MissingExtraError, WeightsError
from fxlrp.loading.models import ModelWarning, load_model

pytest.importorskip("onnxscript")
onnx2pytorch = pytest.importorskip("onnx2pytorch")


class Residual(nn.Module):
    """A convolutional network with a skip connection."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.norm(self.conv(x))).relu()
        return self.head(x.mean((2, 3)))


class Patches(nn.Module):
    """A small vision transformer: a class token for every item, attention written out, sizes taken from the input."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.patches, self.qkv, self.out = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.patches(x)
        x = x.reshape(x.shape[0], 8, -1).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        q, k, v = self.qkv(self.norm(x)).reshape(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return self.head((x + self.out(mixed.transpose(1, 2).flatten(2)))[:, 0])


class Recurrent(nn.Module):
    """A recurrent layer, which a file holds as one operation."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.GRU(48, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.layer(x.flatten(2).reshape(x.shape[0], 16, 48))[0][:, -1])


class TimeFirst(nn.Module):
    """An attention of torch's own, in which items are the second axis and are folded into the heads."""

    def __init__(self):
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


MODELS = {"residual": Residual, "transformer": Patches, "recurrent": Recurrent, "time first": TimeFirst}


READ = ("residual", "transformer", "recurrent")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each network, and a file that torch's exporter wrote of it."""
    folder, made = tmp_path_factory.mktemp("onnx"), {}
    for name in READ:
        kind = MODELS[name]
        torch.manual_seed(0)
        model, path, x = kind().eval(), folder / f"{name}.onnx", torch.randn(2, 3, 16, 16)
        free = ({0: torch.export.Dim("batch", min=1)},)
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=free, external_data=False, verbose=False)
        made[name] = model, path
    return made


@pytest.mark.parametrize("name", READ)
def test_a_network_in_a_file_is_explained_as_the_network(files, name):
    model, path = files[name]
    x = torch.randn(3, 3, 16, 16)
    explainer, wanted = fxlrp.compile(path, "conserving"), fxlrp.compile(model, "conserving")
    found, expected = explainer(x, target=1), wanted(x, target=1)
    assert_close(found.output, expected.output)
    assert_close(found.relevance, expected.relevance, 1e-4)
    assert_conserves(explainer, x, target=1, absorbs=("constant", "bias"))  # the class token is constant
    assert_close(explainer(x[:1], target=1).relevance, found.relevance[:1], 1e-4)


@pytest.mark.parametrize("dynamo", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("name", MODELS)
def test_a_file_for_one_item_is_explained_for_several(tmp_path, name, dynamo):
    torch.manual_seed(0)
    model, path, x = MODELS[name]().eval(), tmp_path / "one.onnx", torch.randn(3, 3, 16, 16)
    options = {"external_data": False, "verbose": False} if dynamo else {}
    torch.onnx.export(model, (x[:1],), path, dynamo=dynamo, **options)
    found, expected = (fxlrp.compile(each, "conserving")(x, target=1) for each in (path, model))
    assert_close(found.output, expected.output)
    assert_close(found.relevance, expected.relevance, 1e-4)


NUMBERS = {
    "resize by a factor": lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "resize to a size": lambda x: nn.functional.interpolate(x, size=(5, 7)),
    "flip": lambda x: x.flip(2),
    "topk": lambda x: x.flatten(1).topk(5, 1)[0],
    "smaller of two": lambda x: torch.minimum(x, x.mean(1, keepdim=True)),
    "split": lambda x: torch.cat(x.split([2, 6], 1)[::-1], 1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "largest": lambda x: x.amax(1),
    "add up": lambda x: x.cumsum(1),
    "axis of one": lambda x: x.unsqueeze(2).squeeze(2),
}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow if place % 2 else ()) for place, name in enumerate(NUMBERS)
])  # fmt: skip
def test_numbers_that_a_file_gives_as_tensors_are_read(tmp_path, name):
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.LazyLinear(4)

        def forward(self, x):
            return self.head(NUMBERS[name](self.conv(x)).flatten(1))

    torch.manual_seed(0)
    model, x = Between(), torch.randn(3, 3, 8, 8)
    model.eval()(x)
    torch.onnx.export(model, (x[:1],), tmp_path / "one.onnx", dynamo=False, opset_version=18)
    found, expected = (fxlrp.compile(each, "conserving")(x, target=1) for each in (tmp_path / "one.onnx", model))
    assert_close(found.relevance, expected.relevance, 1e-4)


def test_a_file_whose_items_are_seen_together_is_explained_for_one(tmp_path):
    class Together(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(12, 4)

        def forward(self, x):
            return self.head(x - x.mean(0))

    torch.onnx.export(Together().eval(), (torch.randn(1, 12),), tmp_path / "one.onnx", dynamo=False)
    assert fxlrp.compile(tmp_path / "one.onnx", batch=None)(torch.randn(1, 12), target=1).relevance.shape == (1, 12)
    with pytest.raises(CaptureError):
        fxlrp.compile(tmp_path / "one.onnx")(torch.randn(3, 12), target=1)


@pytest.mark.parametrize("dynamo", [True, False])
def test_axes_beside_the_batch_may_be_free(tmp_path, dynamo):
    torch.manual_seed(0)
    model, x, path = Residual().eval(), torch.randn(2, 3, 16, 16), tmp_path / "free.onnx"
    if dynamo:
        free = {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=(free,), external_data=False, verbose=False)
    else:
        axes = {"x": {0: "batch", 2: "h", 3: "w"}}
        torch.onnx.export(model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    x = torch.randn(2, 3, 24, 20)
    found, expected = (fxlrp.compile(each, "conserving")(x, target=1) for each in (path, model))
    assert_close(found.relevance, expected.relevance, 1e-4)


def test_a_file_is_read_once_for_several_presets(files, monkeypatch):
    captured = fxlrp.capture(str(files["residual"][1]), torch.randn(2, 3, 16, 16))
    monkeypatch.setattr(onnx2pytorch, "ConvertModel", None)
    for preset in ("evidence", "epsilon_plus"):
        assert fxlrp.compile(captured, preset)(torch.randn(1, 3, 16, 16)).relevance.isfinite().all()


def test_what_was_captured_of_a_file_is_loaded_with_its_path(files, tmp_path):
    (_, path), x = files["residual"], torch.randn(2, 3, 16, 16)
    captured = fxlrp.capture(path, x)
    captured.save(tmp_path / "net.capture")
    loaded = fxlrp.CapturedModel.load(tmp_path / "net.capture", path)
    wanted = fxlrp.compile(captured, "conserving")(x).relevance
    assert_close(fxlrp.compile(loaded, "conserving")(x).relevance, wanted, 1e-6)


def test_another_function_is_refused(files, monkeypatch):
    real = onnx2pytorch.ConvertModel

    class Wrong(real):
        def forward(self, *inputs):
            return 1.01 * super().forward(*inputs)

    monkeypatch.setattr(onnx2pytorch, "ConvertModel", Wrong)
    with pytest.raises(CaptureError, match="another function in onnx2pytorch than in onnxruntime"):
        fxlrp.compile(files["residual"][1])


def test_what_cannot_be_read_is_told(files, tmp_path, monkeypatch):
    model, path = files["residual"]
    with pytest.raises(CaptureError, match="there is no file"):
        fxlrp.compile(tmp_path / "none.onnx")
    (tmp_path / "damaged.onnx").write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CaptureError, match="damaged"):
        fxlrp.compile(tmp_path / "damaged.onnx")
    fxlrp.compile(model).export_onnx(tmp_path / "explainer.onnx", torch.randn(1, 3, 16, 16))
    with pytest.raises(CaptureError, match=r"holds an explanation, not a model: fxlrp\.load"):
        fxlrp.compile(tmp_path / "explainer.onnx")
    with pytest.raises(CaptureError, match=r"a path is that of an \.onnx file"):
        fxlrp.compile("model.pt")
    monkeypatch.setitem(sys.modules, "onnx2pytorch", None)
    with pytest.raises(MissingExtraError, match="onnx"):
        fxlrp.compile(path)


def test_an_operation_that_the_converter_does_not_know_is_told(tmp_path):
    import onnx

    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    node = onnx.helper.make_node("Unknown", ["x"], ["y"], domain="elsewhere")
    graph = onnx.helper.make_graph([node], "graph", value[:1], value[1:])
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("elsewhere", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), tmp_path / "unknown.onnx")
    with pytest.raises(CaptureError, match="cannot be made a module by onnx2pytorch"):
        fxlrp.compile(tmp_path / "unknown.onnx")


def file_of_pictures(path, size):
    """A classifier of pictures of one size in a file."""
    torch.onnx.export(Residual().eval(), (torch.randn(1, 3, *size),), str(path), dynamo=False)
    return path


def test_a_file_is_a_model_of_the_command_line_with_the_size_of_its_input(tmp_path):
    path = file_of_pictures(tmp_path / "net.onnx", (32, 48))
    with pytest.warns(ModelWarning, match="middle 32 × 48"):
        loaded = load_model(f"onnx:{path}")
    picture = Image.new("RGB", (60, 50), "orange")
    assert loaded.preprocess(picture).shape == (3, 32, 48)
    assert fxlrp.compile(loaded.model)(loaded.preprocess(picture)[None]).relevance.shape == (1, 3, 32, 48)


def test_a_file_with_weights_beside_it_and_one_of_other_inputs_are_errors(tmp_path):
    path = file_of_pictures(tmp_path / "net.onnx", (32, 32))
    torch.save(Residual().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="holds its weights"):
        load_model(f"onnx:{path}", tmp_path / "weights.pt")
    torch.onnx.export(nn.Linear(4, 3).eval(), (torch.randn(1, 4),), str(path), dynamo=False)
    with pytest.raises(WeightsError, match=r"inputs of shape \(1, 4\)"):
        load_model(f"onnx:{path}")


def written(path, nodes, inputs, *, opset=17, **weights):
    """A file made by hand, of nodes (operator, inputs, outputs, attributes), with an output ``y``, (batch, 4)."""
    import onnx
    from onnx import helper

    made = [helper.make_node(kind, given, results, **(options[0] if options else {}))
            for kind, given, results, *options in nodes]  # fmt: skip
    kinds = {torch.float32: onnx.TensorProto.FLOAT, torch.int64: onnx.TensorProto.INT64}
    infos = [helper.make_tensor_value_info(name, kinds[dtype], shape) for name, (dtype, shape) in inputs.items()]
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])
    constants = [onnx.numpy_helper.from_array(torch.as_tensor(value).numpy(), name) for name, value in weights.items()]
    graph = helper.make_graph(made, "net", infos, [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


ROW = {"x": (torch.float32, ["batch", 6])}


def test_inputs_have_the_names_of_the_file(tmp_path):
    nodes = [("MatMul", ["image", "w"], ["p"]), ("MatMul", ["age", "w"], ["q"]), ("Mul", ["p", "q"], ["y"])]
    inputs = dict.fromkeys(("image", "age"), ROW["x"])
    path = written(tmp_path / "two.onnx", nodes, inputs, w=torch.randn(6, 4))
    x, z = torch.randn(3, 6), torch.randn(3, 6)
    assert list(fxlrp.compile(path)(x, z).by_input) == ["image", "age"]
    assert_close(fxlrp.compile(path)(x, age=z).relevance[0], fxlrp.compile(path)(image=x, age=z).relevance[0])
    with pytest.raises(InputError, match=r"takes 2 input\(s\) \(image, age\)"):
        fxlrp.compile(path)(x)


def test_whole_numbers_in_the_last_place_are_an_input(tmp_path):
    nodes = [("MatMul", ["x", "w"], ["p"]), ("Gather", ["e", "kind"], ["g"]), ("Mul", ["p", "g"], ["y"])]
    inputs = {**ROW, "kind": (torch.int64, ["batch"])}
    w, e, x, kind = torch.randn(6, 4), torch.randn(4, 4), torch.randn(3, 6), torch.tensor([0, 3, 2])
    path = written(tmp_path / "kinds.onnx", nodes, inputs, w=w, e=e)
    assert_close(fxlrp.compile(path)(x, kind).output, (x @ w) * e[kind])


def test_sizes_that_depend_on_values_are_no_numbers(tmp_path):
    nodes = [
        ("Greater", ["x", "limit"], ["large"]), ("NonZero", ["large"], ["where"]), ("Shape", ["where"], ["shape"]),
        ("Slice", ["shape", "one", "two"], ["count"]), ("Cast", ["count"], ["number"], {"to": 1}),
        ("MatMul", ["x", "w"], ["h"]), ("Add", ["number", "unit"], ["more"]), ("Mul", ["h", "more"], ["y"]),
    ]  # fmt: skip
    w, x = torch.randn(6, 4), torch.zeros(1, 6)
    x[0, :3] = 5.0
    path = written(
        tmp_path / "count.onnx", nodes, ROW, w=w, limit=torch.tensor(4.0), one=torch.tensor([1]), two=torch.tensor([2]),
        unit=torch.tensor([1.0]),
    )  # fmt: skip
    assert_close(fxlrp.compile(path)(x).output, 4 * x @ w)


def test_a_batch_that_decides_is_refused(tmp_path):
    nodes = [
        ("Shape", ["x"], ["shape"]), ("Slice", ["shape", "zero", "one"], ["count"]),
        ("Max", ["count", "four"], ["most"]), ("Cast", ["most"], ["number"], {"to": 1}),
        ("MatMul", ["x", "w"], ["h"]), ("Mul", ["h", "number"], ["y"]),
    ]  # fmt: skip
    numbers = {"zero": torch.tensor([0]), "one": torch.tensor([1]), "four": torch.tensor([4])}
    path = written(tmp_path / "batch.onnx", nodes, ROW, w=torch.randn(6, 4), **numbers)
    with pytest.raises(CaptureError, match="the batch decides in it"):
        fxlrp.compile(path)


def test_what_is_no_number_in_both_is_no_difference(tmp_path):
    nodes = [("Log", ["x"], ["h"]), ("MatMul", ["h", "w"], ["y"])]
    path = written(tmp_path / "log.onnx", nodes, ROW, w=torch.ones(6, 4))
    x = torch.rand(2, 6) + 0.1
    assert_close(fxlrp.compile(path)(x).output, x.log() @ torch.ones(6, 4))


def test_a_masked_logit_hides_no_other_function(files, monkeypatch):
    real = onnx2pytorch.ConvertModel
    masked = torch.tensor([-1e9, 0, 0, 0])

    class Wrong(real):
        def forward(self, *inputs):
            return 1.01 * super().forward(*inputs) + masked

    monkeypatch.setattr(onnx2pytorch, "ConvertModel", Wrong)
    with pytest.raises(CaptureError, match="another function in onnx2pytorch than in onnxruntime"):
        fxlrp.compile(files["residual"][1])


PLAIN = {
    "a number around": ([("Pad", ["x", "pads", "value"], ["h"])], {"pads": [0, 1, 0, 2], "value": 0.5}, 9),
    "around one axis": ([("Pad", ["x", "pads", "", "axes"], ["h"])], {"pads": [1, 2], "axes": [1]}, 9),
    "reversed": (
        [("Slice", ["x", "first", "last", "axis", "step"], ["h"])],
        {"first": [-1], "last": [-100], "axis": [1], "step": [-1]}, 6,
    ),
    "every second, reversed": (
        [("Slice", ["x", "first", "last", "axis", "step"], ["h"])],
        {"first": [4], "last": [0], "axis": [-1], "step": [-2]}, 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_plain_operators_are_read(tmp_path, name):
    import onnxruntime

    nodes, numbers, width = PLAIN[name]
    numbers = {key: torch.tensor(value) for key, value in numbers.items()}
    nodes = [*nodes, ("MatMul", ["h", "w"], ["y"])]
    path = written(tmp_path / "plain.onnx", nodes, ROW, opset=18, w=torch.randn(width, 4), **numbers)
    x = torch.randn(3, 6)
    wanted = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})[0]
    explainer = fxlrp.compile(path, "conserving")
    assert_close(explainer(x).output, torch.from_numpy(wanted))
    assert_conserves(explainer, x, absorbs=("padding",))
