"""What all tests share: one thread per worker, fixed seeds, captures, and the optional data folder."""

import copy
import shutil
import sys
from pathlib import Path

import hypothesis_profiles
import numpy as np
import pytest
import torch
from cli_models import TINY
from PIL import Image

from fxlrp.runtime import captures

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config):
    hypothesis_profiles.load_for(config.option.markexpr)
    torch.set_num_threads(1 if hasattr(config, "workerinput") else 2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def exported_once(monkeypatch):
    """A model that is compiled several times is exported once: for tests of what comes after the capture."""
    captured = {}
    export = captures.export

    def once(model, call, tensors, output, *, fixed):
        forms = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        key = id(model), call.key, forms, str(output), fixed
        if key not in captured:  # the model is kept, so that its id is its own
            captured[key] = model, export(model, call, tensors, output, fixed=fixed)
        return copy.copy(captured[key][1])

    monkeypatch.setattr(captures, "export", once)


@pytest.fixture
def counted(monkeypatch):
    """How often torch.export read a model."""
    calls = []
    export = captures.export
    monkeypatch.setattr(captures, "export", lambda *a, **k: calls.append(1) or export(*a, **k))
    return calls


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a small model and three photographs of different sizes."""
    monkeypatch.chdir(tmp_path)
    Path("tiny_cli_models.py").write_text(TINY)
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (40, 50)), ("b.jpg", (60, 48)), ("c.png", (40, 50))):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(name)
    yield
    sys.modules.pop("tiny_cli_models", None)


@pytest.fixture
def photos(folder):
    """A folder of four images in two subfolders and a file that is no image."""
    for number, name in enumerate(("one/a.png", "one/b.jpg", "two/a.png", "two/c.png")):
        path = Path("photos") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(("a.png", "b.jpg", "c.png", "a.png")[number], path)
    Path("photos/notes.md").write_text("no image")
    return Path("photos")


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run the command line; gives exit code, stdout and stderr."""

    from fxlrp import cli

    def runner(*arguments):
        monkeypatch.setattr(sys, "argv", ["fxlrp", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return runner


@pytest.fixture
def no_vmap_loops():
    """An operation that ``vmap`` would run in a loop is an error."""
    torch._C._functorch._set_vmap_fallback_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)


@pytest.fixture
def evaluation_place(monkeypatch):
    """Evaluations find models and methods by name in the folder of the tests; threads are as before afterwards."""
    monkeypatch.chdir(Path(__file__).parent)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shared():
    """The optional data folder beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the optional data folder ../shared is not here")
    return SHARED
