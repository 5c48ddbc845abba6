"""The command line on folders, several classes, arrays, other inputs; and its results as JSON and numbers."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import ANY_SIZE, MODEL, explanation_of

import fxlrp
from fxlrp.cli import drawing
from fxlrp.cli.work import Work

polars = pytest.importorskip("polars")


# JSON and numbers --------------------------------------------------------------------------------


def test_json_holds_what_is_printed(run):
    code, out, _ = run("explain", "a.png", "b.jpg", *MODEL, "--json", "found.json", "--out", "maps")
    assert code == 0
    content = json.loads(Path("found.json").read_text())
    assert (content["format"], content["version"], content["preset"]) == ("fxlrp.findings", 1, "evidence")
    assert content["preprocessing_from"] == "model"
    first, second = content["findings"]
    assert (first["file"], second["picture"]) == ("a.png", "maps/b_relevance.png")
    (reason,) = first["reasons"]
    assert f"start       log_odds {reason['start']:.6f}" in out
    explanation = explanation_of("a.png")
    assert reason["arrived"] == pytest.approx(float(explanation.relevance.double().sum()), rel=1e-5)
    assert reason["target"]["number"] == int(explanation.target)
    assert sum(each["probability"] for each in first["top"]) == pytest.approx(1)


def test_json_on_the_standard_output_is_all_that_is_there(run):
    code, out, err = run("explain", "a.png", *MODEL, "--json", "-")
    assert code == 0
    assert json.loads(out)["findings"][0]["file"] == "a.png"
    assert "Σ relevance" in err


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_numbers_are_saved_and_read_back(run, suffix):
    assert run("explain", "a.png", "c.png", *MODEL, "--save", f"x{suffix}", "--target", "dog")[0] == 0
    read = fxlrp.Explanation.read(f"x{suffix}")
    assert read.relevance.shape == (2, 3, 32, 32)
    torch.testing.assert_close(read.relevance[1:], explanation_of("c.png", target=1).relevance, rtol=1e-4, atol=1e-8)


def test_a_table_names_the_files(run):
    assert run("explain", "a.png", "c.png", *MODEL, "--save", "x.parquet", "--target", "0", "--target", "1")[0] == 0
    table = polars.read_parquet("x.parquet")
    assert table["file"].to_list() == ["a.png"] * 3 + ["c.png"] * 3
    assert table["target"].to_list() == [0, 1, 0] * 2
    assert table["start_name"][0].startswith("log_odds")


def test_too_many_classes_are_told_before_all_that_there_are_have_been_explained(run, monkeypatch):
    explained, real = [], Work._explained
    monkeypatch.setattr(Work, "_explained", lambda *a: explained.append(1) or real(*a))
    assert "--top 400: the model tells 3 classes apart" in run("explain", "a.png", *MODEL, "--top", 400)[2]
    assert len(explained) == 1


# Several classes ---------------------------------------------------------------------------------


def test_two_classes_are_compared_in_one_picture(run):
    asked = ("--target", "cat", "--target", "dog", "--out", "two.png", "--json", "x.json")
    code, out, _ = run("explain", "a.png", *MODEL, *asked)
    assert code == 0
    assert "explained   cat (0), not dog (1)" in out
    reasons = json.loads(Path("x.json").read_text())["findings"][0]["reasons"]
    assert [(r["target"]["name"], [c["name"] for c in r["against"]]) for r in reasons] == [
        ("cat", []), ("dog", []), ("cat", ["dog"])
    ]  # fmt: skip
    loaded = fxlrp.models.load_model("python:tiny_cli_models:load")
    image = loaded.preprocess(Image.open("a.png").convert("RGB")).unsqueeze(0)
    contrast = fxlrp.compile(loaded.model)(image, target=0, against=1)
    assert reasons[2]["start"] == pytest.approx(float(contrast.start), rel=1e-5)
    width, height = Image.open("two.png").size
    assert width > 3 * height


def test_maps_that_are_compared_share_a_range_that_is_told(run, monkeypatch):
    """How much speaks for one class can be compared with what speaks for another, in the bar's unit."""
    ranges, scales = [], []
    real = drawing.overlay, drawing.sheet
    monkeypatch.setattr(drawing, "overlay", lambda *a, **k: ranges.append(k["limit"]) or real[0](*a, **k))
    monkeypatch.setattr(drawing, "sheet", lambda lines, **k: scales.append(lines[-1].scale) or real[1](lines, **k))
    assert run("explain", "a.png", *MODEL, "--target", "cat", "--target", "dog", "--out", "two.png")[0] == 0
    assert len(ranges) == 3
    assert len(set(ranges)) == 1
    assert (scales[0].limit, scales[0].unit) == (ranges[0], "logits")


def test_classes_are_explained_against_others(run):
    _, out, _ = run("explain", "a.png", *MODEL, "--target", "cat", "--against", "dog", "--against", "crane")
    assert "explained   cat (0), not dog (1), Crane (2)" in out
    code, _, err = run("explain", "a.png", *MODEL, "--target", "cat", "--against", "0")
    assert code == 1
    assert "--against 0 is also a --target" in err


def test_the_most_probable_classes_are_explained(run):
    asked = ("--top", 2, "--json", "x.json", "--save", "x.npz", "--report", "x.html")
    assert run("explain", "a.png", "c.png", *MODEL, *asked)[0] == 0
    for finding in json.loads(Path("x.json").read_text())["findings"]:
        assert [r["target"] for r in finding["reasons"]] == finding["top"][:2]
    read = fxlrp.Explanation.read("x.npz")
    assert torch.equal(read.target, read.output.topk(2).indices)
    torch.testing.assert_close(
        read.relevance[1, 1:], explanation_of("c.png", int(read.target[1, 1])).relevance, rtol=1e-4, atol=1e-8
    )
    assert Path("x.html").read_text().count('type="radio"') == 4
    code, _, err = run("explain", "a.png", *MODEL, "--top", 4)
    assert (code, "--top 4: the model tells 3 classes apart" in err) == (1, True)
    code, _, err = run("explain", "a.png", *MODEL, "--top", 2, "--target", "cat")
    assert (code, "leave out --target, or --top" in err) == (1, True)


# Folders -----------------------------------------------------------------------------------------


def test_a_folder_has_pictures_a_table_and_a_page(run, photos):
    code, out, _ = run("explain", photos, *MODEL, "--out", "found")
    assert code == 0
    assert "explained     4 of 4 files" in out
    table = polars.read_parquet("found/explanations.parquet")
    assert sorted(table["file"]) == ["photos/one/a.png", "photos/one/b.jpg", "photos/two/a.png", "photos/two/c.png"]
    assert {path.name for path in Path("found/pictures").iterdir()} == {
        "one__a.png", "one__b.png", "two__a.png", "two__c.png"
    }  # fmt: skip
    row = table.filter(polars.col("file") == "photos/one/b.jpg")
    expected = explanation_of("b.jpg").relevance.numpy()
    np.testing.assert_allclose(row["relevance"].to_numpy(), expected, rtol=1e-4, atol=1e-6)
    page = Path("found/index.html").read_text()
    assert page.count('<article class="entry"') == 4
    assert "Nothing was absorbed" in page
    assert page.count('type="range"') == 4
    assert "http" not in page.replace("http://www.w3.org", "")
    assert len(json.loads(Path("found/findings.json").read_text())["findings"]) == 4


def test_an_image_of_a_rival_is_explained_without_it(run, photos):
    _, out, _ = run("explain", "a.png", *MODEL)
    predicted = re.search(r"explained   (\w+)", out)[1]
    asked = ("--top", 2, "--against", predicted)
    assert run("explain", photos, *MODEL, *asked, "--out", "found")[0] == 0
    for finding in json.loads(Path("found/findings.json").read_text())["findings"]:
        told = [(r["target"]["name"], [c["name"] for c in r["against"]]) for r in finding["reasons"]]
        first, second = (each["name"] for each in finding["top"][:2])
        expected = [(name, [predicted]) for name in (first, second) if name != predicted]
        assert told == [(first, []), (second, []), *expected]
    code, _, _ = run("explain", "a.png", *MODEL, *asked, "--report", "x.html")
    assert code == 0
    assert Path("x.html").read_text().count('type="radio"') == 3


def test_a_run_goes_on_where_it_was_stopped(run, photos):
    assert run("explain", photos / "one", *MODEL, "--out", "found")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path("found/pictures").iterdir()}
    shutil.copy("c.png", photos / "one" / "new.png")
    code, out, _ = run("explain", photos / "one", *MODEL, "--out", "found")
    assert code == 0
    assert "explained     3 of 3 files, 2 of them before" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert polars.read_parquet("found/explanations.parquet").shape[0] == 3
    # Other options, or another image, are other results.
    assert "before" not in run("explain", photos / "one", *MODEL, "--target", "1", "--out", "found")[1]
    Image.open("c.png").resize((20, 20)).save(photos / "one" / "a.png")
    assert "2 of them before" in run("explain", photos / "one", *MODEL, "--target", "1", "--out", "found")[1]
    assert "before" not in run("explain", photos / "one", *MODEL, "--target", "1", "--out", "found", "--fresh")[1]


def test_what_cannot_be_read_does_not_stop_the_others(run, photos):
    (photos / "two" / "a.png").write_bytes(b"\x89PNG damaged")
    code, out, err = run("explain", photos, *MODEL, "--out", "found", "--json", "x.json")
    assert code == 3
    assert "explained     3 of 4 files" in out
    assert "failed        photos/two/a.png: photos/two/a.png is not an image that Pillow can read" in out
    assert "1 of 4 files could not be explained" in err
    content = json.loads(Path("x.json").read_text())
    assert len(content["findings"]) == 3
    assert content["failed"][0]["file"] == "photos/two/a.png"
    page = Path("found/index.html").read_text()
    assert "<h1>3 of 4 files explained</h1>" in page
    assert "<li>photos/two/a.png: photos/two/a.png is not an image that Pillow can read</li>" in page


def test_a_model_or_names_that_were_changed_make_other_results(run, photos):
    Path("names.txt").write_text("a\nb\nc\n")
    asked = ("explain", photos / "one", *MODEL, "--classes", "names.txt", "--out", "found", "--no-ledger")
    assert run(*asked)[0] == 0
    assert "2 of them before" in run(*asked)[1]
    for name, added in (("tiny_cli_models.py", "\n# another model\n"), ("names.txt", "\n")):
        Path(name).write_text(Path(name).read_text() + added)
        assert "before" not in run(*asked)[1]
        assert "2 of them before" in run(*asked)[1]


def test_patterns_and_lists_name_files(run, photos):
    code, out, _ = run("explain", "photos/*/a.png", *MODEL, "--out", "found")
    assert (code, "2 of 2 files" in out) == (0, True)
    Path("list.txt").write_text("# mine\na.png\nphotos/one/b.jpg\n\na.png\n")
    code, out, _ = run("explain", "list.txt", *MODEL, "--out", "listed")
    assert (code, "2 of 2 files" in out) == (0, True)


@pytest.mark.parametrize(("arguments", "message"), [
    (("empty",), "empty holds no images"), (("nothing*.png",), "no file fits nothing*.png"),
    (("photos", "--out", "x.png"), "results of many files go to a folder"),
    (("photos", "--report", "x.html"), "--report is for files that are named one by one"),
    (("photos", "--save", "x.npz"), "--save is for files that are named one by one: numbers of many are in explanatio"),
    (("photos", "--view", "all"), "--view all: choose one of whole, crop, tiles"),
    (("photos", "--json", "x.txt"), "must end in .json"), (("a.png", "--save", "x.txt"), "must end in .npz"),
    (("a.png", "--contour", "2"), "--contour 2.0: a share"), (("a.png", "--mean", "a,b"), "numbers with commas"),
    (("a.png", "--size", "16", "--mean", "0.1,0.2"), "--mean has 2 numbers, and the model's input 3 channels"),
    (("a.png", "--classes", "two.txt"), "has 2 names, and the model 3 classes"),
    (("a.png", "--channels", "2"), "--channels 2: pictures have 1 or 3"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_makes_no_folder(run, photos, arguments, message):
    Path("empty").mkdir()
    Path("two.txt").write_text("a\nb\n")
    code, _, err = run("explain", *arguments, *MODEL)
    assert code == 1
    assert message in err
    assert err.count("\n") == 1
    assert not Path("explained").exists()


@pytest.mark.slow
def test_workers_give_the_same_results(run, photos):
    assert run("explain", photos, *MODEL, "--out", "alone")[0] == 0
    assert run("explain", photos, *MODEL, "--out", "shared", "--workers", 2)[0] == 0
    alone, shared = (polars.read_parquet(f"{name}/explanations.parquet") for name in ("alone", "shared"))
    assert alone.drop("relevance", "output").equals(shared.drop("relevance", "output"))
    np.testing.assert_allclose(alone["relevance"].to_numpy(), shared["relevance"].to_numpy(), rtol=1e-5, atol=1e-7)


# The whole photograph ----------------------------------------------------------------------------

CROPPED = """
from torchvision import transforms
from tiny_cli_models import net
from fxlrp.models import LoadedModel

def load():
    steps = [transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()]
    return LoadedModel(net(), transforms.Compose(steps), ["cat", "dog", "Crane"])
"""


@pytest.fixture
def wide(folder):
    """A photograph that is three times as wide as high, and a model that sees its middle."""
    Path("cropped_models.py").write_text(CROPPED)
    pixels = np.random.default_rng(1).integers(0, 256, (100, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("wide.png")
    return ("wide.png", "--model", "python:cropped_models:load")


def test_the_whole_photograph_is_shown_with_the_part_that_the_model_sees(run, wide):
    assert run("explain", *wide, "--out", "whole.png")[0] == 0
    whole = Image.open("whole.png")
    assert whole.width == 3 * whole.height
    assert run("explain", *wide, "--view", "crop", "--out", "crop.png")[0] == 0
    crop = Image.open("crop.png")
    assert crop.width == crop.height
    Image.open("wide.png").resize((1800, 600)).save("large.png")
    large = ("large.png", *wide[1:])
    assert run("explain", *large, "--target", "cat", "--target", "dog", "--out", "rows.png")[0] == 0
    rows = Image.open("rows.png")  # the photograph, and three maps, at its own resolution
    assert rows.width >= 1800
    assert rows.height >= 4 * 600


def test_the_report_of_the_command_line_shows_the_whole_photograph_and_the_frame(run, wide):
    assert run("explain", *wide, "--target", "cat", "--target", "dog", "--report", "x.html")[0] == 0
    page = Path("x.html").read_text()
    assert re.findall(r'data-question="([^"]+)"', page) == ["cat", "dog", "cat, not dog"]
    assert "wide.png" in page
    left, width = re.search(r'class="frame".*style="left:([\d.]+)%;top:[\d.]+%;width:([\d.]+)%', page).groups()
    assert [float(left), float(width)] == pytest.approx([100 / 3, 100 / 3], abs=1)
    assert run("explain", *wide, "--view", "crop", "--report", "x.html")[0] == 0
    assert 'class="frame"' not in Path("x.html").read_text()


def test_tiles_cover_the_whole_photograph_and_keep_the_sum(run, wide):
    code, out, _ = run("explain", *wide, "--view", "tiles", "--target", "dog", "--out", "x.png", "--json", "x.json")
    assert code == 0
    assert re.search(r"windows     5 of (99|100|101) × (99|100|101) pixels; sums are over all", out)
    assert run("explain", ".", *wide[1:], "--view", "tiles", "--out", "all")[0] == 0
    page = Path("all/index.html").read_text()
    assert re.search('faint">windows: 5 of .* pixels; sums are over all', page)
    assert "explained   dog (1)\n" in out  # no probability: each window has its own
    reason = json.loads(Path("x.json").read_text())["findings"][0]["reasons"][0]
    assert reason["arrived"] == pytest.approx(reason["start"], rel=1e-4)


def test_numbers_of_tiles_are_those_of_the_whole_photograph(run, wide):
    """What is drawn over all of the photograph can be read back, as large as it, with the sum that is told."""
    asked = ("--view", "tiles", "--target", "cat", "--target", "dog", "--checkpoint", "2", "--no-ledger")
    code, out, _ = run("explain", *wide, *asked, "--json", "x.json", "--save", "x.npz", "--smooth", "3")
    assert code == 0
    assert "checkpoint  2:" in out  # that of what the model sees
    read = fxlrp.Explanation.read("x.npz")
    assert (read.relevance.shape, read.inputs) == ((1, 3, 1, 100, 300), ("photograph",))
    reasons = json.loads(Path("x.json").read_text())["findings"][0]["reasons"]
    assert read.start[0].tolist() == pytest.approx([reason["start"] for reason in reasons])
    sums = read.relevance.double().sum((0, 2, 3, 4))
    assert sums.tolist() == pytest.approx([reason["arrived"] for reason in reasons], rel=1e-4)
    assert run("explain", *wide, *asked, "--save", "sharp.npz", "--smooth", "0")[0] == 0
    assert torch.equal(fxlrp.Explanation.read("sharp.npz").relevance, read.relevance)  # nothing is blurred in it
    code, _, err = run("explain", *wide, "a.png", "--view", "tiles", "--save", "x.npz")
    assert code == 1
    assert "--save with --view tiles has a map as large as the photograph" in err


# Models of one's own -----------------------------------------------------------------------------

OWN = """
import torch
from torch import nn

def grey():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def single():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))

def signal():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))
"""


def test_a_model_of_one_channel_is_explained_and_the_guess_is_told(run):
    Path("own_models.py").write_text(OWN)
    model = ("--model", "python:own_models:grey")
    code, out, err = run("explain", "a.png", *model, "--json", "x.json")
    assert code == 0
    assert "does not say how its input is made: taken as short side 256, middle 224 × 224, grey, mean 0" in err
    assert "input       a guess: short side 256" in out
    assert json.loads(Path("x.json").read_text())["preprocessing_from"] == "guess"
    options = ("--size", "20", "--channels", "1", "--mean", "0.3", "--std", "0.2", "--save", "x.npz")
    code, out, err = run("explain", "a.png", *model, *options, "--json", "x.json")
    assert (code, err) == (0, "")
    assert "guess" not in out
    assert json.loads(Path("x.json").read_text())["preprocessing_from"] == "user"
    assert fxlrp.Explanation.read("x.npz").relevance.shape == (1, 1, 20, 20)


def test_of_a_single_output_the_value_itself_is_told(run):
    Path("own_models.py").write_text(OWN)
    code, out, _ = run("explain", "a.png", "--model", "python:own_models:single", "--size", "20")
    assert (code, bool(re.search(r"\n  start       the value itself -?\d", out))) == (0, True)


def test_an_array_is_explained_as_it_is(run):
    Path("own_models.py").write_text(OWN)
    np.save("ecg.npy", np.random.default_rng(0).normal(size=(2, 50)))
    Path("names.json").write_text('{"0": "normal", "1": "flutter"}')
    code, out, err = run("explain", "ecg.npy", "--model", "python:own_models:signal", "--classes", "names.json",
                         "--save", "x.npz", "--out", "ecg.png")  # fmt: skip
    assert code == 0
    assert err == ""
    assert "normal (0)" in out
    assert Image.open("ecg.png").width > 300
    assert fxlrp.Explanation.read("x.npz").relevance.shape == (1, 2, 50)


def test_presets_and_starts_may_be_written_with_dashes(run):
    assert run("explain", "a.png", *MODEL, "--preset", "epsilon-plus", "--json", "x.json")[0] == 0
    assert json.loads(Path("x.json").read_text())["preset"] == "epsilon_plus"
    assert run("explain", "a.png", *MODEL, "--start", "Log-Odds", "--json", "x.json")[0] == 0
    assert json.loads(Path("x.json").read_text())["findings"][0]["reasons"][0]["start_name"] == "log_odds"
    assert "did you mean log_odds?" in run("explain", "a.png", *MODEL, "--start", "logodds")[2]
    _, _, err = run("explain", "a.png", *MODEL, "--preset", "conservng")
    assert "did you mean 'conserving'" in err


def test_a_lightning_checkpoint_brings_its_prefix_and_its_preprocessing(run):
    Path("own_models.py").write_text(OWN)
    sys.path.insert(0, ".")
    try:
        from own_models import grey
    finally:
        sys.path.remove(".")
    state = {f"net.model.{name}": torch.zeros_like(value) for name, value in grey().state_dict().items()}
    state["loss.weight"] = torch.ones(2)
    hyperparameters = {"image_size": 24, "mean": [0.5], "std": [0.25], "class_names": ["no", "yes"], "in_channels": 1}
    torch.save({"state_dict": state, "hyper_parameters": hyperparameters}, "last.ckpt")
    code, out, err = run("explain", "a.png", "--model", "python:own_models:grey", "--weights", "last.ckpt",
                         "--preset", "conserving", "--json", "x.json")  # fmt: skip
    assert (code, err) == (0, "")
    assert "probability 0.500000" in out
    assert "no (0)" in out
    content = json.loads(Path("x.json").read_text())
    assert content["preprocessing"] == "short side 24, middle 24 × 24, grey, mean 0.5, standard deviation 0.25"


def test_a_pickled_model_is_refused_with_the_way_out(run):
    Path("own_models.py").write_text(OWN)
    torch.save(torch.nn.Linear(2, 2), "whole.pt")
    code, _, err = run("explain", "a.png", *ANY_SIZE, "--weights", "whole.pt")
    assert code == 1
    assert "torch.save(model.state_dict(), 'weights.pt')" in err


def test_a_folder_of_transformers_brings_its_preprocessing_and_classes(run):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=32, patch_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        id2label={0: "cat", 1: "dog", 2: "crane"}, label2id={"cat": 0, "dog": 1, "crane": 2},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained("vit")
    run("--version")  # what transformers said until here is no longer captured
    # Without a file on preprocessing, the size is that of the configuration, and the rest a guess.
    code, out, err = run("explain", "a.png", "--model", "transformers:vit")
    assert (code, "middle 32 × 32" in out) == (0, True)
    assert err.startswith("warning: transformers:vit does not say")
    assert err.count("\n") == 1  # no bar of transformers' own
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained("vit")
    run("--version")
    code, out, err = run("explain", "a.png", "--model", "transformers:vit", "--target", "crane", "--save", "x.npz")
    assert (code, err) == (0, "")
    assert "crane (2)" in out
    assert fxlrp.Explanation.read("x.npz").relevance.shape == (1, 3, 32, 32)
    code, _, err = run("explain", "a.png", "--model", "transformers:photos")
    assert code == 1
    assert "photos holds no config.json" in err


@pytest.mark.slow
def test_torchrun_gives_the_same_results(run, photos):
    assert run("explain", photos, *MODEL, "--out", "alone")[0] == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fxlrp"]
    root = str(Path(fxlrp.__file__).parents[1])
    done = subprocess.run([*command, "explain", str(photos), *MODEL, "--out", "shared"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": root})  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone, shared = (polars.read_parquet(f"{name}/explanations.parquet") for name in ("alone", "shared"))
    assert alone.drop("relevance", "output").equals(shared.drop("relevance", "output"))
