"""A capture in a file: the same explanations of the same model, in another process, and nothing read anew."""

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch
from checks import assert_close
from torch import nn

import fxlrp
from fxlrp.errors import ExportError, TrainingModeError


class Opened(nn.Module):
    """Symbolic tracing cannot follow it; it reads a constant of its own, and the size of the batch."""

    def __init__(self, features=6):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, features), nn.LayerNorm(features), nn.Linear(features, 3)

    def forward(self, x):
        if x.shape[1] < 1:
            raise ValueError
        h = self.norm(self.first(x)).relu() * torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0, 0.5])
        h = h.reshape(x.shape[0], 2, 3).transpose(1, 2).reshape(-1, 6)
        return {"features": h, "scores": self.head(h)}


@pytest.fixture
def saved(tmp_path):
    """A model, its inputs, and the file of its capture."""
    model, x = Opened().eval(), torch.randn(3, 4)
    return model, x, fxlrp.capture(model, x, output="scores").save(tmp_path / "opened.capture")


@pytest.mark.parametrize("preset", ["conserving", "attnlrp"])
@pytest.mark.parametrize("output", [None, "features", lambda out: out["scores"][:, 1:] * 2])
def test_what_is_read_back_explains_the_same_to_the_bit(saved, preset, output, counted):
    model, x, path = saved
    captured = fxlrp.CapturedModel.load(path, model)
    options = {"preset": preset, "output": output, "start": "logit"}
    for batch in (x, torch.randn(5, 4)):
        found = fxlrp.compile(captured, **options)(batch, target=1)
        assert not counted
        expected = fxlrp.compile(model, **{**options, "output": output or "scores"})(batch, target=1)
        assert torch.equal(found.relevance, expected.relevance)
        counted.clear()


def test_the_weights_are_those_of_the_model(saved, counted):
    model, x, path = saved
    nn.init.normal_(model.head.weight)
    explanation = fxlrp.compile(fxlrp.CapturedModel.load(path, model), "conserving", start="logit")(x, target=0)
    assert_close(explanation.output["scores"], model(x)["scores"])
    assert not counted


def test_another_process_reads_it(saved, tmp_path):
    model, x, path = saved
    expected = fxlrp.compile(model, "conserving", output="scores", start="logit")(x, target=1).relevance
    torch.save((model.state_dict(), x), tmp_path / "weights.pt")
    code = f"""
        import torch, fxlrp
        from fxlrp.runtime import captures
        from test_saved_captures import Opened

        captures.export = None
        model = Opened().eval()
        weights, x = torch.load({str(tmp_path / "weights.pt")!r})
        model.load_state_dict(weights)
        captured = fxlrp.CapturedModel.load({str(path)!r}, model)
        found = fxlrp.compile(captured, "conserving", start="logit")(x, target=1).relevance
        torch.save(found, {str(tmp_path / "found.pt")!r})
    """
    places = os.pathsep.join([str(Path(__file__).parent), str(Path(fxlrp.__file__).parents[1])])
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env={**os.environ, "PYTHONPATH": places})
    assert torch.equal(torch.load(tmp_path / "found.pt"), expected)


def test_a_chosen_function_is_given_again(tmp_path):
    model, x = Opened().eval(), torch.randn(3, 4)

    def chosen(out):
        return out["features"][:, :2]

    path = fxlrp.capture(model, x, output=chosen).save(tmp_path / "a.capture")
    given = fxlrp.CapturedModel.load(path, model, output=chosen)
    found = fxlrp.compile(given, "conserving", start="logit")(x, target=1)
    expected = fxlrp.compile(model, "conserving", output=chosen, start="logit")(x, target=1)
    assert torch.equal(found.relevance, expected.relevance)


def test_a_traced_model_has_nothing_to_save_but_loads(tmp_path):
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.randn(2, 4)
    captured = fxlrp.CapturedModel.load(fxlrp.capture(model).save(tmp_path / "a.capture"), model)
    assert_close(fxlrp.compile(captured, "conserving")(x).output, model(x))


def other_epsilon(model):
    model.norm.eps = 1e-3


def other_module(model):
    model.norm = nn.Identity().eval()


def other_type(model):
    model.double()


@pytest.mark.parametrize(
    ("change", "told"),
    [(other_epsilon, "'norm.eps'"), (other_module, "'norm' is Identity"), (other_type, "torch.float64")],
)
def test_another_model_is_told_before_anything_is_read(saved, change, told, counted):
    model, _, path = saved
    change(model)
    with pytest.raises(ExportError, match=f"captured of another model: .*{told}"):
        fxlrp.CapturedModel.load(path, model)
    assert not counted


def test_a_model_in_training_is_told(saved):
    model, _, path = saved
    with pytest.raises(TrainingModeError):
        fxlrp.CapturedModel.load(path, model.train())


def test_a_damaged_file_is_one_error(saved, tmp_path):
    model, x, path = saved
    whole = path.read_bytes()
    damaged = [b"", b"hello", bytes(5000), *(whole[: int(share * len(whole))] for share in (0.1, 0.5, 0.99))]
    for place in range(len(whole) // 9, len(whole), len(whole) // 9):
        damaged.append(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    expected = fxlrp.compile(model, "conserving", output="scores", start="logit")(x, target=1).relevance
    for data in damaged:
        broken = tmp_path / "broken.capture"
        broken.write_bytes(data)
        try:
            captured = fxlrp.CapturedModel.load(broken, model)
        except ExportError:
            continue
        assert torch.equal(fxlrp.compile(captured, "conserving", start="logit")(x, target=1).relevance, expected)


def changed(path, change):
    """The file with its text changed."""
    with zipfile.ZipFile(path) as archive:
        data, tensors = json.loads(archive.read("fxlrp_capture.json")), archive.read("constants.pt")
    change(data)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fxlrp_capture.json", json.dumps(data))
        archive.writestr("constants.pt", tensors)


def set_of(kind, field, value):
    def change(data):
        node = next(node for node in data["graphs"][0]["nodes"] if node["op"] == kind)
        node[field] = value

    return change


FORGED = {
    "a call of anything": (set_of("call_function", "target", "os.system"), "no operation"),
    "a file that is read": (set_of("call_function", "target", "aten.from_file.default"), "no operation"),
    "code as a name": (set_of("placeholder", "target", "x=print(1)"), "no name"),
    "code as an argument": (set_of("call_function", "kwargs", {"dict": [["a=print(1), b", 1]]}), "no names"),
    "a tensor that is not there": (set_of("get_attr", "target", "nowhere.weight"), "no tensor"),
    "another kind of node": (set_of("call_function", "op", "call_module"), "kind of node"),
    "another format": (lambda data: data.update(format=99), "another format"),
    "a class that is imported": (
        lambda data: data["graphs"][0].update(returns='[1, {"type": {"__enum__": true, "fqn": "os"}}]'), "of its own"
    ),
    "nothing": (lambda data: data.clear(), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_what_fxlrp_does_not_write_is_not_run(name, saved):
    model, _, path = saved
    change, told = FORGED[name]
    changed(path, change)
    with pytest.raises(ExportError, match=told):
        fxlrp.CapturedModel.load(path, model)


def test_a_file_is_written_whole_or_not_at_all(saved, tmp_path, monkeypatch):
    model, x, path = saved
    before = path.read_bytes()
    captured = fxlrp.capture(model, x, output="features")

    def fails(*args):
        raise OSError("no space left")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fails)
    with pytest.raises(ExportError, match="is as it was: no space left"):
        captured.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("path", [None, 3, "a\0b"])
def test_what_names_no_file_is_told(path):
    captured = fxlrp.capture(nn.Linear(2, 2).eval())
    with pytest.raises(ExportError, match="a file is named by"):
        captured.save(path)
    with pytest.raises(ExportError, match="a file is named by"):
        fxlrp.CapturedModel.load(path, captured.model)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ExportError, match="no such file"):
        fxlrp.CapturedModel.load(tmp_path / "none", nn.Linear(2, 2).eval())


def test_what_was_read_back_is_saved_again(saved, tmp_path, counted):
    model, x, path = saved
    again = fxlrp.CapturedModel.load(path, model).save(tmp_path / "again.capture")
    found, expected = (
        fxlrp.compile(fxlrp.CapturedModel.load(file, model), "conserving", output=lambda out: -out["scores"],
                      start="logit")(x, target=1) for file in (again, path)
    )  # fmt: skip
    assert torch.equal(found.relevance, expected.relevance)
    assert not counted


def test_the_axis_of_the_batch_is_kept(tmp_path, counted):
    model, x = Opened().eval(), torch.randn(3, 4)
    captured = fxlrp.capture(model, x, output="scores")
    fxlrp.compile(captured, "conserving", batch=None, start="logit")(x)
    reads = len(counted)
    loaded = fxlrp.CapturedModel.load(captured.save(tmp_path / "a.capture"), model)
    for batch in (0, None):
        fxlrp.compile(loaded, "conserving", batch=batch, start="output")(x)
    assert len(counted) == reads


class Tables(nn.Module):
    """A buffer of the name of an input, and a table that forward() makes, looked up along its second axis."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(2, 5, 4)), nn.Linear(4, 3)
        self.register_buffer("mask", torch.randn(1, 4))

    def forward(self, x, mask, ids):
        for _ in range(int(x.shape[1]) - 3):
            x = x * mask + self.mask
        return self.head((x + (self.table * 2)[:, ids].sum((0, 2))).tanh())


def test_the_size_of_what_is_made_of_weights_is_kept(tmp_path, counted):
    torch.manual_seed(0)
    model, given = Tables().eval(), (torch.randn(3, 4), torch.randn(3, 4), torch.tensor([[1, 2], [0, 4], [3, 3]]))
    path = fxlrp.capture(model, *given).save(tmp_path / "tables.capture")
    counted.clear()
    captured = fxlrp.CapturedModel.load(path, model)
    found, ledger = (call(*given, target=1) for call in (fxlrp.compile(captured), fxlrp.compile(captured).ledger))
    assert not counted
    assert_close(found.output, model(*given))
    assert ledger.error.abs().max() < 1e-5 * ledger.start.abs().max()
