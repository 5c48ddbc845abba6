"""The command line: what it prints and writes; every mistake is one line and exit code 1."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import fxlrp
from fxlrp.cli.arguments import class_number
from fxlrp.cli.picture_paths import picture_paths
from fxlrp.errors import ImageError, MissingExtraError, TargetError, install_command

MODEL = ("--model", "python:tiny_cli_models:load")
ANY_SIZE = ("--model", "python:tiny_cli_models:any_size")
FILES = {"tiny_cli_models.py", "a.png", "b.jpg", "c.png"}


def test_explain_prints_sums_and_writes_a_picture(run):
    code, out, err = run("explain", "a.png", *MODEL, "--out", "map.png")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "a.png"
    shares = [float(line.split("%")[0]) for line in lines[1:4]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.02)
    explained = re.search(r"explained +(\w+) \((\d)\), probability ([\d.]+)\n  start +log_odds ([-\d.]+)", out)
    relevance = re.search(r"Σ relevance ([-\d.]+), ([\d.]+) % of what entered", out)
    assert f"{explained[1]} ({explained[2]})" in lines[1]
    assert float(relevance[1]) == pytest.approx(float(explained[4]), abs=2e-6)
    assert re.search(r"absorbed    -?0\.0000\d\d", out)
    assert "picture     map.png" in out
    assert Image.open("map.png").size == (600, 480)  # the photograph's shape, enlarged
    assert run("explain", "a.png", *MODEL, "--out", "map.png", "--view", "crop")[0] == 0
    assert Image.open("map.png").size == (448, 448)


def explanation_of(name, target=None, **options):
    loaded = fxlrp.models.load_model("python:tiny_cli_models:load")
    image = loaded.preprocess(Image.open(name).convert("RGB")).unsqueeze(0)
    return fxlrp.compile(loaded.model, **options)(image, target=target)


def test_printed_probability_is_that_of_the_explainer(run):
    _, out, _ = run("explain", "a.png", *MODEL, "--target", "Crane")
    assert f"Crane (2), probability {float(explanation_of('a.png', target=2).output.softmax(1)[0, 2]):.6f}" in out


def test_rules_and_start_reach_the_explainer(run):
    asked = ("--start", "logit", "--rule", "0=ZPlus(stabilizer=1e-1)", "--rule", "[2-9]=epsilon(.1)")
    _, out, _ = run("explain", "a.png", *MODEL, *asked)
    rules = {"0": fxlrp.rules.ZPlus(stabilizer=0.1), "[2-9]": fxlrp.rules.Epsilon(0.1)}
    explanation = explanation_of("a.png", start="logit", rules=rules)
    total, start = float(explanation.relevance.double().sum()), float(explanation.start)
    assert abs(1 - total / start) > 0.01
    assert f"Σ relevance {total:.6f}, {100 * total / start:.2f} % of what entered" in out
    assert f"probability {float(explanation.output.softmax(1).max()):.6f}" in out


def test_checkpoints_have_a_sum_and_a_picture(run):
    code, out, _ = run(
        "explain", "a.png", "c.png", *MODEL, "--out", "maps", "--checkpoint", "2", "--checkpoint", "6",
        "--preset", "conserving", "--rule", "0=Epsilon(1)", "--view", "crop",
    )  # fmt: skip
    assert code == 0
    assert sorted(p.name for p in Path("maps").iterdir()) == [
        "a_relevance.png", "a_relevance_2.png", "c_relevance.png", "c_relevance_2.png",
    ]  # fmt: skip
    explanation = explanation_of("c.png", preset="conserving", checkpoints=["2", "6"])
    shown = [line.strip() for line in out.strip().splitlines()]
    total = f"Σ relevance {float(explanation.start):.6f}, 100.00 % of what entered"
    assert shown[-4:] == [
        f"checkpoint  2: {total}", "picture     maps/c_relevance_2.png",
        f"checkpoint  6: {total}", "no picture  6: relevance of shape (8,) is no map of the image",
    ]  # fmt: skip
    main, inner = (np.asarray(Image.open(f"maps/c_relevance{end}.png")) for end in ("", "_2"))
    assert main.shape == inner.shape
    assert not np.array_equal(main, inner)


def test_picture_of_a_checkpoint_never_replaces_another_file(run):
    Image.open("a.png").save("a_relevance_0.png")
    before = Path("a_relevance_0.png").read_bytes()
    code, out, _ = run("explain", "a.png", "a_relevance_0.png", *MODEL, "--checkpoint", "0")
    assert code == 0
    assert Path("a_relevance_0.png").read_bytes() == before
    pictures = re.findall(r"picture     (\S+)", out)
    assert pictures == [
        "a_relevance.png", "a_relevance_0-2.png", "a_relevance_0_relevance.png", "a_relevance_0_relevance_0.png"
    ]  # fmt: skip
    assert all(Path(picture).exists() for picture in pictures)


def test_module_that_is_called_twice_has_two_pictures(run):
    code, out, _ = run("explain", "a.png", "--model", "python:tiny_cli_models:twice", "--checkpoint", "again.conv")
    assert code == 0
    assert re.findall(r"checkpoint  (\S+):", out) == ["again.conv[0]", "again.conv[1]"]
    assert {p.name for p in Path().glob("a_relevance_*")} == {
        "a_relevance_again.conv.png", "a_relevance_again.conv-2.png"
    }  # fmt: skip


def test_absorbed_relevance_is_printed_by_reason(run):
    _, out, _ = run("explain", "a.png", *MODEL, "--preset", "otsuki2024")
    assert re.search(r"absorbed    0\.\d{6} \(stabilizer 0\.\d{6}\)", out)
    _, out, _ = run("explain", "a.png", *MODEL, "--preset", "otsuki2024", "--no-ledger")
    assert "absorbed" not in out


def test_each_of_several_images_has_its_picture(run):
    Path("d").mkdir()
    Image.open("a.png").save("d/a.png")
    code, out, _ = run("explain", "a.png", "b.jpg", "d/a.png", *MODEL, "--out", "maps", "--batch-size", 2)
    assert code == 0
    assert sorted(p.name for p in Path("maps").iterdir()) == ["a_relevance-2.png", "a_relevance.png", "b_relevance.png"]
    assert [line for line in out.splitlines() if re.fullmatch(r"\S+", line)] == ["a.png", "b.jpg", "d/a.png"]


def test_images_of_different_sizes_are_explained_one_by_one(run):
    names = ("a.png", "b.jpg", "c.png")
    together = run("explain", *names, *ANY_SIZE, "--out", "maps")
    alone = [run("explain", name, *ANY_SIZE, "--out", "maps") for name in names]
    assert together[0] == 0
    assert together[1] == "".join(out for _, out, _ in alone)


def test_pictures_are_in_the_current_folder_by_default(run):
    assert run("explain", "a.png", *MODEL)[0] == 0
    assert Path("a_relevance.png").exists()


def test_options_of_the_picture_change_only_the_picture(run):
    plain = run("explain", "a.png", *MODEL, "--out", "plain.png")[1]
    for number, options in enumerate((
        ("--colors", "positive"), ("--quantize", 4), ("--smooth", 0), ("--percentile", 50), ("--bar",)
    )):  # fmt: skip
        code, out, _ = run("explain", "a.png", *MODEL, *options, "--out", f"{number}.png")
        assert code == 0
        assert out.splitlines()[:-2] == plain.splitlines()[:-2]
        assert not np.array_equal(np.asarray(Image.open(f"{number}.png")), np.asarray(Image.open("plain.png")))


def test_a_model_that_reads_patches_is_shown_by_patch(run):
    model = ("--model", "python:tiny_cli_models:patches", "--view", "crop")
    arguments = ("explain", "a.png", *model, "--smooth", 0, "--no-ledger")
    pictures = []
    for number, options in enumerate(((), ("--pixels",), ("--view", "tiles"), ("--view", "tiles", "--pixels"))):
        code, _, err = run(*arguments, *options, "--save", f"{number}.npz", "--out", f"{number}.png")
        assert code == 0, err
        pictures.append(np.asarray(Image.open(f"{number}.png")).astype(int))
    numbers = [np.load(f"{number}.npz")["relevance"] for number in range(4)]
    assert np.array_equal(*numbers[:2])  # numbers are those of pixels
    assert np.array_equal(*numbers[2:])
    for shown, single in (pictures[:2], pictures[2:]):
        assert np.abs(np.diff(shown, axis=1)).mean() < np.abs(np.diff(single, axis=1)).mean() * 0.75


def test_random_weights_give_a_warning(run):
    code, _, err = run("explain", "a.png", "--model", "torchvision:resnet18", "--no-ledger")
    assert code == 0
    assert err.startswith("warning: torchvision:resnet18 has random weights: what is explained is an untrained network")


def test_weights_are_loaded(run):
    loaded = fxlrp.models.load_model("python:tiny_cli_models:load")
    state = {key: torch.zeros_like(value) for key, value in loaded.model.state_dict().items()}
    torch.save({"state_dict": state}, "zeros.pt")
    code, out, _ = run("explain", "a.png", *MODEL, "--weights", "zeros.pt", "--preset", "conserving")
    assert code == 0
    assert "probability 0.333333" in out
    # No layer has weights to hand relevance on by, and none of it is lost.
    assert "100.00 % of what entered" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.png", *MODEL), "there is no file gone.png"),
        (("a.png", "tiny_cli_models.py", *MODEL), "tiny_cli_models.py is not an image"),
        (("no*.png", *MODEL), "no file fits no*.png"),
        (("a.png", "--model", "resnet18"), "is none of torchvision:NAME"),
        (("a.png", "--model", "torchvision:resnet19"), "did you mean resnet18"),
        *(
            (("a.png", *MODEL, *options), message)
            for options, message in (
                (("--weights", "gone.pt"), "there is no weights file gone.pt"),
                (("--weights", "a.png"), "a.png"),
                (("--target", "3"), "--target 3 is no class: there are 3 classes, 0 to 2"),
                (("--target=-1",), "--target -1 is no class"),
                (("--target", "cran"), "did you mean Crane?"),
                (("--preset", "best"), "preset='best': choose one of 'conserving'"),
                (("--split", "fair"), "split='fair': choose one of 'ratio'"),
                (("--start", "output"), "--start output: choose one of probability, logit, one"),
                (("--rule", "0"), "--rule 0: write PATTERN=RULE, such as 'layer4.*=Epsilon(1e-6)'"),
                (("--rule", "0=Epsilo(1)"), "--rule 0=Epsilo(1): 'Epsilo' is no rule: choose one of "),
                (("--rule", "9=Epsilon"), "rules['9'] matches nothing in the model"),
                (("--rule", "1=Epsilon"), "cannot be taken by what it matches (pointwise)"),
                (("--checkpoint", "layer4"), "checkpoint 'layer4' is no module of this model"),
                (("--colors", "jet"), "--colors jet: choose symmetric or positive"),
                (("--percentile", "0"), "--percentile 0.0: it must lie above 0"),
                (("--device", "toaster"), "--device toaster cannot be used here"),
                (("--device", "meta"), "holds no numbers"),
                (("--out", "a.png"), "would overwrite the image itself"),
                (("--out", "map.jpg"), "written as PNG"),
                (("--out", "b.jpg/maps"), "a file is in the place of the folder"),
                (("--report", "flow.txt"), "must end in .html"),
            )
        ),
        (("a.png", "b.jpg", *MODEL, "--out", "map.png"), "map.png is one file, and there are 2 images"),
        (("a.png", "b.jpg", *ANY_SIZE, "--report", "flow.html"), "equally large"),
    ],
)
def test_mistake_is_one_line_on_stderr_and_writes_no_file(run, arguments, message):
    check_mistake(run("explain", *arguments), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "."), "is a folder: name a file"),
        (("--out", "graph.dot", "--target", "Crane"), "--target is the class of an image"),
    ],
)
def test_mistake_in_graph_is_one_line_on_stderr_and_writes_no_file(run, options, message):
    check_mistake(run("graph", *MODEL, *options), message)


def check_mistake(result, message):
    code, out, err = result
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert {path.name for path in Path().iterdir()} - {"__pycache__"} == FILES


def test_debug_raises_the_error(run):
    with pytest.raises(ImageError, match=r"gone\.png"):
        run("explain", "gone.png", *MODEL, "--debug")


def test_images_are_checked_before_the_model_is_built(run):
    _, _, err = run("explain", "a.png", "gone.png", "--model", "python:tiny_cli_models:no_such_function")
    assert "gone.png" in err


def test_rules_are_checked_before_images_and_models(run):
    _, _, err = run("explain", "gone.png", *MODEL, "--rule", "0=open('x')")
    assert "--rule 0=open('x'): 'open' is no rule" in err
    _, _, err = run("graph", "--model", "torchvision:gone", "--rule", "0=Epsilon(1+1)")
    assert "'1+1' is neither a literal nor a rule" in err


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_missing_extra_cli_is_named_in_one_line(run, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = run("--version")
    assert (code, out) == (1, "")
    assert err == f"fxlrp: {MissingExtraError(package, 'cli')}\n"


def test_missing_extra_draw_is_named_in_one_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run("explain", "a.png", *MODEL)
    assert code == 1
    assert err == f"error: {MissingExtraError('matplotlib', 'draw')}\n"


@pytest.mark.parametrize(("source", "command"), [
    (None, "pip install 'fxlrp[cli]'"),
    ({"url": "https://example.org/fxlrp.whl", "archive_info": {}}, "pip install 'fxlrp[cli]'"),
    ({"url": "file:///gone/away", "dir_info": {}}, "pip install 'fxlrp[cli]'"),
    ({"url": "HERE", "dir_info": {}}, "pip install 'fxlrp[cli]', or as it was installed here: pip install 'HERE[cli]'"),
])  # fmt: skip
def test_the_install_command_fits_how_fxlrp_was_installed(tmp_path, monkeypatch, source, command):
    checkout = tmp_path / "my clone"
    installed = checkout / "fxlrp" / "common" / "errors.py"
    installed.parent.mkdir(parents=True)
    (checkout / "pyproject.toml").write_text("")
    text = source and json.dumps(source).replace("HERE", checkout.as_uri())
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: SimpleNamespace(read_text=lambda file: text))
    elsewhere = tmp_path / "site-packages" / "fxlrp" / "common" / "errors.py"
    assert install_command("cli", elsewhere) == command.replace("HERE", str(checkout))
    # A link to the checkout:
    assert install_command("cli", installed).endswith(f"as it was installed here: pip install -e '{checkout}[cli]'")


def test_core_needs_no_extra():
    script = (
        "import sys\n"
        "for name in ('typer', 'rich', 'matplotlib', 'graphviz', 'timm', 'safetensors', 'skimage'):\n"
        "    sys.modules[name] = None\n"
        "import fxlrp, fxlrp.cli, fxlrp.models, fxlrp.images, fxlrp.render, torch\n"
        "model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()\n"
        "print(fxlrp.heatmap(fxlrp.compile(model)(torch.rand(1, 3, 2, 2)).relevance).shape)\n"
        "fxlrp.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "torch.Size([1, 2, 2])\n"
    assert done.stderr.endswith(f"{install_command('cli')}\n")
    assert "Traceback" not in done.stderr


def test_graph_is_written_as_dot(run):
    drawn = run("graph", *MODEL, "--out", "graph.dot")
    assert drawn == (0, "graph.dot\n", "")
    assert Path("graph.dot").read_text().lstrip().startswith("digraph")


def test_graph_shows_the_rules_that_were_given(run):
    assert run("graph", *MODEL, "--out", "graph.dot", "--rule", "2=Epsilon(0.125)")[0] == 0
    assert "Epsilon(0.125)" in Path("graph.dot").read_text()


def test_class_is_found_by_number_or_by_name_in_any_case():
    names = ["tabby", "crane", "Persian cat", "crane"]
    assert class_number(None, names) is None
    assert class_number("TABBY", names) == 0
    assert class_number("persian cat", names) == 2
    assert class_number("3", names) == 3
    assert class_number("3", None) == 3
    with pytest.raises(TargetError, match="classes 1, 3 all have this name"):
        class_number("crane", names)
    with pytest.raises(TargetError, match="did you mean Persian cat"):
        class_number("cat", names)
    with pytest.raises(TargetError, match="have no names"):
        class_number("cat", None)


def test_picture_paths_differ_from_each_other_and_from_the_images(tmp_path):
    images = [tmp_path / name for name in ("a.png", "a.jpg", "A.bmp", "a_relevance.png", "x/a.png")]
    pictures = picture_paths(images, tmp_path)
    assert len({str(path).casefold() for path in [*pictures, *images]}) == 10
    assert pictures[0].name == "a_relevance-2.png"


def test_existing_folder_may_have_the_name_of_a_picture(tmp_path):
    (tmp_path / "maps.png").mkdir()
    assert picture_paths([tmp_path / "a.png"], tmp_path / "maps.png") == [tmp_path / "maps.png" / "a_relevance.png"]


def test_graph_of_an_image_shows_its_relevance(run):
    asked = ("--out", "flow.dot", "--flow", "a.png", "--view", "relevance", "--target", "Crane")
    assert run("graph", *MODEL, *asked)[0] == 0
    assert "100.00 %" in Path("flow.dot").read_text()


def test_explain_writes_a_report_of_all_images(run):
    code, out, _ = run("explain", "a.png", "a.png", *MODEL, "--report", "pages/flow.html")
    assert code == 0
    assert "report        pages/flow.html" in out
    assert Path("pages/flow.html").read_text().count('class="map"') == 2
