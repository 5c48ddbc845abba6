"""The command line where something outside goes wrong: Ctrl-C, permissions, links; one line, and nothing is lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import MODEL
from test_cli_many import OWN

import fxlrp
from fxlrp.cli import folder as many
from fxlrp.cli import sources
from fxlrp.errors import ImageError


def test_what_was_done_before_ctrl_c_is_kept(run, photos, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    draw, drawn = many.draw, []
    with monkeypatch.context() as patched:
        patched.setattr(many, "draw", lambda *a: interrupted() if drawn else drawn.append(draw(*a)))
        code, out, err = run("explain", photos, *MODEL, "--out", "found")
    assert (code, out) == (130, "")
    assert err == "error: stopped with 1 of 4 files done: the same command goes on from there\n"
    assert "explained     4 of 4 files, 1 of them before" in run("explain", photos, *MODEL, "--out", "found")[1]


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_too(photos):
    """The terminal tells it to every process; one line says what was done, and nothing half written is left."""
    for number in range(40):
        Image.effect_noise((400, 300), 50).save(photos / f"{number}.png")
    root = str(Path(fxlrp.__file__).parents[1])
    command = [sys.executable, "-m", "fxlrp", "explain", "photos", *MODEL, "--out", "found", "--workers", "2"]
    with subprocess.Popen(
        [*command, "--batch-size", "1"], env={**os.environ, "PYTHONPATH": root}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        while not [*Path("found").glob("records/*.json")]:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    done = len([*Path("found/records").glob("*.json")])
    assert (process.returncode, out) == (130, "")
    assert err == f"error: stopped with {done} of 44 files done: the same command goes on from there\n"
    assert [*Path("found").glob("*/.*")] == []


def test_what_workers_warn_of_is_told_once(run, photos):
    Path("own_models.py").write_text(OWN)
    code, out, err = run("explain", photos, "--model", "python:own_models:grey", "--out", "found", "--workers", 2)
    assert code == 0, err
    assert "explained     4 of 4 files" in out
    assert err.count("does not say how its input is made") == 1
    assert err.startswith("warning: python:own_models:grey")
    assert err.count("\n") == 1


@pytest.fixture
def not_root(monkeypatch):
    """Root may write everywhere: it is told that it may not."""
    real = os.access
    denied = Path("denied").resolve()
    denied.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).resolve() != denied and real(path, mode))


@pytest.mark.parametrize(("files", "option", "name"), [
    ("a.png", "--out", "denied/x.png"), ("a.png", "--json", "denied/x.json"), ("a.png", "--save", "denied/new/x.npz"),
    ("a.png", "--report", "denied/x.html"), ("photos", "--out", "denied/found"),
])  # fmt: skip
def test_where_nothing_may_be_written_is_told_before_the_model_is_built(run, photos, not_root, files, option, name):
    code, out, err = run("explain", files, "--model", "python:tiny_cli_models:no_such_function", option, name)
    assert (code, out) == (1, "")
    assert err == f"error: {option} {name}: nothing may be written in the folder denied\n"


def test_a_folder_that_cannot_be_made_is_one_line(run, photos, monkeypatch):
    def refused(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    code, out, err = run("explain", photos, *MODEL, "--out", "found")
    assert (code, out, err) == (1, "", "error: the folder found/pictures cannot be made: Permission denied\n")
    code, out, err = run("graph", *MODEL, "--out", "found/graph.dot")
    assert (code, out, err) == (1, "", "error: the folder found cannot be made: Permission denied\n")


def test_a_folder_is_looked_through_with_what_is_linked_there(run, photos):
    """Folders of data are often made of links; one that leads back to itself ends."""
    Path("elsewhere").mkdir()
    shutil.copy("c.png", "elsewhere/linked.png")
    (photos / "link").symlink_to(Path("elsewhere").resolve())
    (photos / "loop").symlink_to(photos.resolve())
    (photos / ".hidden").mkdir()
    shutil.copy("c.png", photos / ".hidden" / "d.png")
    found = sources.found([photos]).files
    assert len(found) == 5
    assert photos / "link" / "linked.png" in found


def test_a_folder_that_may_not_be_read_is_an_error(photos, monkeypatch):
    """Nothing is left out unseen."""
    real = os.scandir

    def scandir(path):
        if str(path).endswith("two"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ImageError, match=r"the folder .*two cannot be read: Permission denied"):
        sources.found([photos])


def test_an_array_that_the_model_does_not_take_does_not_stop_the_others(run, folder):
    Path("own_models.py").write_text(OWN)
    Path("arrays").mkdir()
    good = np.random.default_rng(0).normal(size=(2, 50))
    for name, array in {"a": good, "b": good * np.nan, "c": good[:1], "d": good + 1}.items():
        np.save(f"arrays/{name}.npy", array)
    model = ("--model", "python:own_models:signal")
    code, out, _ = run("explain", "arrays/*.npy", *model, "--out", "found")
    assert (code, "explained     2 of 4 files" in out) == (3, True)
    assert re.search(r"failed +arrays/b.npy: input \w+ holds NaN", out)
    assert re.search(r"failed +arrays/c.npy: input \w+ has shape \(1, 1, 50\)", out)
    code, _, err = run("explain", "arrays/c.npy", *model)
    assert (code, "error: arrays/c.npy, an item of shape (1, 50) without the batch: input" in err) == (1, True)
    code, _, err = run("explain", "arrays", *model)
    assert (code, err) == (1, "error: arrays holds no images, but 4 .npy files; a pattern names them: 'arrays/*.npy'\n")
