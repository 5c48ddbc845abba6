"""Results are data: arrays, tables and files hold the numbers of tensors, and files are read back without loss."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import fxlrp
from fxlrp.errors import InputError

polars = pytest.importorskip("polars")


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, left, right):
        return {"scores": self.left(left) + self.right(right), "count": 2}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(2, 3, 6, 8)


def check_same(read, explanation):
    found, wanted = read.to_numpy(), explanation.to_numpy()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert found[name].dtype == value.dtype
    assert read.inputs == explanation.inputs
    assert read.start_name == explanation.start_name


@pytest.mark.parametrize("suffix", [".npz", ".json"])
@pytest.mark.parametrize("target", [None, [0, 2]])
def test_an_explanation_is_read_back_to_the_bit(net, images, tmp_path, suffix, target):
    explanation = fxlrp.compile(net, checkpoints=["1"])(images, target=target)
    path = explanation.save(tmp_path / "new folder" / f"x{suffix}", file=["a.png", "b.png"])
    read = fxlrp.Explanation.read(path)
    check_same(read, explanation)
    assert torch.equal(read.checkpoints["1"], explanation.checkpoints["1"])
    if suffix == ".json":
        content = json.loads(path.read_text())
        assert (content["format"], content["version"], content["file"]) == ("fxlrp.explanation", 1, ["a.png", "b.png"])
        assert content["unit"] == "logits"


def test_several_inputs_and_outputs_have_names(tmp_path):
    torch.manual_seed(0)
    explainer = fxlrp.compile(TwoInputs().eval(), output="scores")
    explanation = explainer(torch.randn(2, 3), torch.randn(2, 5))
    arrays = explanation.to_numpy()
    assert arrays.keys() == {"relevance.left", "relevance.right", "output.scores", "target", "start"}
    read = fxlrp.Explanation.read(explanation.save(tmp_path / "x.npz"))
    check_same(read, explanation)
    assert [tuple(part.shape) for part in read.relevance] == [(2, 3), (2, 5)]
    frame = explanation.to_frame()
    assert frame["relevance.right"].to_numpy().shape == (2, 5)


def test_half_precision_becomes_float32(net, images):
    explanation = fxlrp.compile(net.bfloat16())(images.bfloat16())
    assert explanation.to_numpy()["relevance"].dtype == np.float32


def test_the_table_has_a_row_per_item_and_target(net, images, tmp_path):
    explanation = fxlrp.compile(net)(images, target=[0, 2])
    frame = explanation.to_frame()
    assert frame.shape[0] == 4
    assert frame["item"].to_list() == [0, 0, 1, 1]
    assert frame["explanation"].to_list() == [0, 1, 0, 1]
    assert frame["target"].to_list() == [0, 2, 0, 2]
    np.testing.assert_allclose(frame["sum"].to_numpy(), explanation.relevance.double().sum((2, 3, 4)).flatten())
    np.testing.assert_array_equal(frame["relevance"].to_numpy(), explanation.relevance.flatten(0, 1).numpy())
    path = explanation.save(tmp_path / "x.parquet", file=["a", "b"])
    read = polars.read_parquet(path)
    assert read["file"].to_list() == ["a", "a", "b", "b"]
    np.testing.assert_array_equal(read["relevance"].to_numpy(), frame["relevance"].to_numpy())


def test_without_a_target_the_table_has_no_such_column():
    explanation = fxlrp.compile(nn.Conv1d(2, 3, 1).eval(), start=lambda output, target: output)(torch.rand(2, 2, 5))
    assert explanation.target is None
    assert "target" not in explanation.to_frame().columns


@pytest.mark.parametrize("name", ["x.txt", "x"])
def test_an_unknown_suffix_writes_nothing(net, images, tmp_path, name):
    explanation = fxlrp.compile(net)(images)
    with pytest.raises(InputError, match=r"must end in \.npz"):
        explanation.save(tmp_path / name)
    with pytest.raises(InputError, match="has 1 texts, and the explanation 2 items"):
        explanation.save(tmp_path / "x.npz", file=["a"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}", b'{"format": "fxlrp.ledger"}', b"[1]", b"\x80\x04"])
@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_other_and_damaged_files_are_one_error(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"holds no explanation|cannot be read"):
        fxlrp.Explanation.read(path)
    with pytest.raises(InputError, match="there is no file"):
        fxlrp.Explanation.read(tmp_path / "gone.npz")


def test_a_file_of_pickled_objects_is_not_opened(tmp_path):
    np.savez(tmp_path / "x.npz", about=np.array([object()], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        fxlrp.Explanation.read(tmp_path / "x.npz")


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    explanation = fxlrp.compile(nn.Linear(4, 3).eval())(torch.rand(1, 4))
    explanation.output[0, 2] = -torch.inf
    path = explanation.save(tmp_path / "x.json")
    assert json.loads(path.read_text())["output"][0][2] is None
    assert np.isnan(fxlrp.Explanation.read(path).output[0, 2])


# Ledger and summary ------------------------------------------------------------------------------


def test_a_ledger_is_arrays_and_a_table(net, images, tmp_path):
    ledger = fxlrp.compile(net, "otsuki2024").ledger(images)
    arrays, frame = ledger.to_numpy(), ledger.to_frame()
    assert arrays["received"].shape == (len(ledger), 2)
    np.testing.assert_array_equal(arrays["absorbed.stabilizer"], ledger.absorbed["stabilizer"].numpy())
    assert frame.shape[0] == 2 * len(ledger)
    assert frame["node"].to_list()[:2] == [ledger.rows[0].node] * 2
    np.testing.assert_array_equal(frame["received"].to_numpy(), arrays["received"].flatten())
    for suffix in (".json", ".npz", ".parquet", ".csv"):
        assert ledger.save(tmp_path / f"ledger{suffix}").stat().st_size > 0
    content = json.loads((tmp_path / "ledger.json").read_text())
    assert content["format"] == "fxlrp.ledger"
    assert content["rows"][0]["node"] == ledger.rows[0].node
    assert content["rows"][0]["received"] == ledger.rows[0].received.tolist()
    with np.load(tmp_path / "ledger.npz") as archive:
        np.testing.assert_array_equal(archive["received"], arrays["received"])
    assert polars.read_csv(tmp_path / "ledger.csv").shape == frame.shape


def test_a_summary_is_a_table(net, tmp_path, capsys):
    summary = fxlrp.compile(net).summary()
    assert summary.to_frame()["node"].to_list() == [row.node for row in summary]
    content = json.loads(summary.save(tmp_path / "summary.json").read_text())
    assert (content["format"], content["start"]) == ("fxlrp.summary", summary.start)
    assert len(content["rows"]) == len(summary)


# For eyes ----------------------------------------------------------------------------------------


def test_a_repr_is_a_few_lines_without_numbers_of_tensors(net, images):
    explainer = fxlrp.compile(net)
    explanation, ledger = explainer(images), explainer.ledger(images)
    text = repr(explanation)
    assert "tensor(" not in text
    assert len(text.splitlines()) == 4
    assert "relevance: input (2, 3, 6, 8)" in text
    assert f"Σ relevance {float(explanation.relevance[0].double().sum()):.4g}" in text
    many = repr(explainer(torch.randn(50, 3, 6, 8)))
    assert len(many.splitlines()) == 7
    assert "and 46 more" in many
    assert len(repr(ledger).splitlines()) == 1
    assert "arrived" in repr(ledger)
    assert len(repr(explainer).splitlines()) <= 3


def test_a_notebook_gets_tables_and_a_picture(net, images):
    explainer = fxlrp.compile(net)
    assert explainer(images).plot()._repr_png_().startswith(b"\x89PNG")
    shown = explainer(images)._repr_html_()
    assert "data:image/png;base64," in shown
    assert "&lt;" not in shown
    assert "<table>" in explainer.ledger(images)._repr_html_()
    assert "<table>" in explainer.summary()._repr_html_()


KINDS = {
    "picture": ((3, 6, 8), nn.Conv2d(3, 2, 3)), "grey": ((1, 6, 8), nn.Conv2d(1, 2, 3)),
    "many channels": ((7, 6, 8), nn.Conv2d(7, 2, 3)), "signal": ((2, 20), nn.Conv1d(2, 2, 3)),
    "volume": ((1, 5, 6, 7), nn.Conv3d(1, 2, 3)), "table": ((9,), nn.Identity()),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_has_a_plot(kind, tmp_path):
    shape, layer = KINDS[kind]
    torch.manual_seed(0)
    x = torch.randn(2, *shape)
    head = nn.Linear(layer(x).flatten(1).shape[1], 3)
    explanation = fxlrp.compile(nn.Sequential(layer, nn.Flatten(), head).eval())(x)
    figure = explanation.plot()
    *panels, bar = figure.axes
    assert len(panels) == 2
    assert bar.get_ylabel() == "logits"
    assert panels[0].get_title() == f"class {int(explanation.target[0])}, {float(explanation.start[0]):.4g} logits"
    assert explanation.save(tmp_path / "x.png").stat().st_size > 1000


def test_bars_of_a_table_have_names_and_the_length_of_relevance():
    explanation = fxlrp.compile(nn.Linear(3, 2).eval())(torch.tensor([[1.0, -2.0, 0.5]]))
    axis, _ = explanation.plot(labels=["age", "weight", "height"]).axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    lengths = {name: bar.get_width() for name, bar in zip(names, axis.patches, strict=True)}
    assert lengths.keys() == {"age", "weight", "height"}
    assert lengths["weight"] == pytest.approx(float(explanation.relevance[0, 1]))


def test_tokens_are_bars_in_their_order():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    explanation = fxlrp.compile(model)(torch.tensor([[1, 7, 3]]))
    axis, _ = explanation.plot(labels=["a", "b", "c"]).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(explanation.relevance[0].sum(1).tolist())


def test_several_targets_stand_side_by_side_with_titles(net, images):
    explanation = fxlrp.compile(net)(images, target=[0, 2])
    figure = explanation.plot(titles=["cat", "dog"])
    assert [axis.get_title() for axis in figure.axes[:4]] == ["cat", "dog", "cat", "dog"]
    with pytest.raises(InputError, match="3 titles for 2 maps"):
        explanation.plot(titles=["a", "b", "c"])
    with pytest.raises(InputError, match="there is no item 2"):
        explanation.plot([2])
