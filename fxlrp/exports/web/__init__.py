"""A folder that explains photographs in a browser, on the visitor's machine: the ONNX explainer and a page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch

from fxlrp.common.atomic_files import made_folder
from fxlrp.common.errors import ExportError
from fxlrp.common.version import __version__
from fxlrp.exports.onnx import export_onnx
from fxlrp.loading.preprocessing import InputFormat
from fxlrp.runtime.engine import Engine

RUNTIME = "onnxruntime-web@1.22.0"
"""What runs ONNX in the browser: a package of npm, MIT."""
FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Those of its files that are needed."""
_PAGE = ("index.html", "explain.js", "picture.js")


def export_web(
    engine: Engine, folder: str | os.PathLike[str], input_format: InputFormat, classes: Sequence[str] | None = None,
    *, title: str = "", runtime: str | os.PathLike[str] | None = None,
) -> Path:  # fmt: skip
    """Write a folder for any static server; it works without a network, and no picture leaves the visitor's machine.

    Args:
        engine: of the explainer, of a model of photographs.
        folder: what is written: ``index.html``, its scripts, ``explainer.onnx``, ``about.json``, and the runtime.
        input_format: how the model's input is made of a photograph.
        classes: the classes' names.
        title: of the page; empty: the name of the model.
        runtime: a folder with the files of onnxruntime-web; ``None``: npm fetches them once, and they are kept in
            the user's cache.

    Raises:
        ExportError: the explanation cannot be written as ONNX, or the runtime is missing.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed (extra ``onnx``).
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file: name a folder")
    files = _runtime_files(runtime)
    made_folder(folder, ExportError)
    example = torch.zeros(1, input_format.channels, *input_format.size)
    export_onnx(engine, folder / "explainer.onnx", example)
    about = {
        "title": title or type(engine.model).__name__, "fxlrp": __version__, "classes": classes,
        "height": input_format.size[0], "width": input_format.size[1],
        "resize": input_format.resize or min(input_format.size), "interpolation": input_format.interpolation,
        "mean": input_format.mean, "std": input_format.std, "channels": input_format.channels,
        "patch": engine.example(example).plan.inputs[0].patch,
    }  # fmt: skip
    (folder / "about.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
    for name in _PAGE:
        text = resources.files("fxlrp.exports.web").joinpath(name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8")
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return folder


def _runtime_files(runtime: str | os.PathLike[str] | None) -> list[Path]:
    """The files of the runtime, from a folder or from the cache, which npm fills.

    Raises:
        ExportError: they are not there.
    """
    if runtime is not None:
        found = [_inside(Path(runtime), name) for name in FILES]
        if missing := [name for name, file in zip(FILES, found, strict=True) if file is None]:
            raise ExportError(f"{runtime} lacks {', '.join(missing)} of {RUNTIME}")
        return [file for file in found if file is not None]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fxlrp" / RUNTIME
    if not all((cache / name).is_file() for name in FILES):
        _fetch(cache)
    return [cache / name for name in FILES]


def _inside(folder: Path, name: str) -> Path | None:
    return next((place for place in (folder / name, folder / "dist" / name) if place.is_file()), None)


def _fetch(cache: Path) -> None:
    """Let npm fetch the package, which checks what it fetched, and keep the files that are needed.

    Raises:
        ExportError: there is no npm, or it fails.
    """
    if shutil.which("npm") is None:
        raise ExportError(f"npm is needed to fetch {RUNTIME}, once: install it, or give a folder of the package")
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(["npm", "pack", RUNTIME, "--silent"], cwd=scratch, capture_output=True, text=True)
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not archives:
            reason = (done.stderr or done.stdout).strip().partition("\n")[0]
            raise ExportError(f"npm cannot fetch {RUNTIME}: {reason or 'it says nothing'}")
        made_folder(cache, ExportError)
        with tarfile.open(archives[0]) as archive:
            for name in FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                (cache / f"{name}.partial").write_bytes(member.read())
                (cache / f"{name}.partial").replace(cache / name)
