"""What is imported when: the command line answers without torch, and names are imported at their first use."""

import importlib
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import fxlrp
from fxlrp.common.module_alias import ModuleAlias

PACKAGE = Path(fxlrp.__file__).parent
STUBS = sorted(".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.pyi"))


def run(code, *arguments):
    """Run Python code in a process of its own; gives its exit code, its output and the modules at its end."""
    at_end = "import atexit, sys; atexit.register(lambda: print('\\nALL MODULES', *sys.modules))\n"
    command = [sys.executable, "-c", at_end + code, *arguments]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    output, _, modules = done.stdout.partition("\nALL MODULES ")
    assert modules, done.stderr
    return done.returncode, output + done.stderr, set(modules.split())


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        (["--help"], 0, "Layer-wise Relevance Propagation"),
        (["--version"], 0, f"fxlrp {fxlrp.__version__}\n"),
        (["explain", "--help"], 0, "--preset"),
        (["graph", "--help"], 0, "--view"),
        (["export", "--help"], 0, "--compiled"),
        (["evaluate", "--help"], 0, "--retry-failed"),
        (["report", "--help"], 0, "--gallery"),
        (["explian"], 2, "explian"),
        (["explain", "a.png", "--modle", "x"], 2, "--modle"),
        (["explain", "a.png"], 2, "--model"),
    ],
)
def test_help_version_and_mistakes_are_answered_without_torch(monkeypatch, arguments, code, answer):
    monkeypatch.setenv("TERM", "dumb")  # no colours between the letters of an option
    returned, output, modules = run("import fxlrp.cli; fxlrp.cli.main()", *arguments)
    assert returned == code
    assert answer in output
    assert "torch" not in modules


@pytest.mark.parametrize(
    "code", ["import fxlrp", "import fxlrp.render, fxlrp.models", "import fxlrp; fxlrp.errors.FxlrpError; dir(fxlrp)"]
)
def test_importing_fxlrp_imports_no_dependency(code):
    returned, output, modules = run(code)
    assert returned == 0, output
    assert not {"torch", "torchvision", "numpy", "networkx", "PIL"} & modules


def test_compiling_imports_no_compiler_and_no_drawing():
    model = "torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()"
    code = f"import torch, torchvision, sys; before = {{*sys.modules}}; import fxlrp; fxlrp.compile({model})"
    returned, output, _ = run(f"{code}; print(*{{*sys.modules}} - before)")
    assert returned == 0, output
    imported = {".".join(name.split(".")[:2]) for name in output.split()}
    assert "fxlrp.passes" in imported
    assert not {"torch._dynamo", "torch._inductor", "torch.export", "matplotlib", "typer", "rich"} & imported


def test_every_public_name_is_imported_when_it_is_used():
    names = {}
    exec("from fxlrp import *", names)
    assert set(fxlrp.__all__) <= names.keys() & set(dir(fxlrp))
    assert all(names[name] is getattr(fxlrp, name) for name in fxlrp.__all__)
    with pytest.raises(AttributeError, match="module 'fxlrp' has no attribute 'explain'"):
        _ = fxlrp.explain


def test_importing_from_the_heatmap_module_keeps_the_function():
    from fxlrp.heatmap import stage_map

    assert stage_map is fxlrp.stage_map
    assert inspect.isfunction(fxlrp.heatmap)


@pytest.mark.parametrize("path", STUBS)
def test_a_documented_path_gives_the_module_that_its_stub_names(path):
    (home,) = re.fullmatch(r"from (\S+) import \*\n", (PACKAGE / f"{path.replace('.', '/')}.pyi").read_text()).groups()
    module, alias = importlib.import_module(home), importlib.import_module(f"fxlrp.{path}")
    public = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    assert public
    assert all(getattr(alias, name) is getattr(module, name) for name in public)
    assert dir(alias) == dir(module)
    with pytest.raises(AttributeError):
        _ = alias.no_such_name


def test_every_documented_path_has_a_stub():
    assert sorted(fxlrp._ALIASES) == STUBS


def test_a_class_is_pickled_under_any_of_its_paths():
    kept = pickle.loads(pickle.dumps(fxlrp.ledger.Ledger))
    assert kept is fxlrp.Ledger
    assert pickle.loads(b"cfxlrp.ledger\nLedger\n.") is fxlrp.Ledger


def test_a_documented_path_is_the_module_itself_once_it_is_used():
    from fxlrp.maps import rendering

    assert fxlrp.render is rendering
    assert importlib.import_module("fxlrp.render") is rendering


def test_what_is_set_on_a_path_before_its_use_is_set_on_the_module():
    from fxlrp.maps import rendering

    alias = ModuleAlias("fxlrp.another_path", "fxlrp.maps.rendering")
    alias.mark = "set"
    assert rendering.mark == "set"
    del alias.mark
    assert not hasattr(rendering, "mark")
    assert sys.modules.pop("fxlrp.another_path") is rendering


def test_the_help_names_the_defaults_of_compile():
    from fxlrp.cli.options import ExportOptions

    parameters = inspect.signature(fxlrp.compile).parameters
    hints = get_type_hints(ExportOptions, include_extras=True)
    for name in ("preset", "start"):
        (option,) = hints[name].__metadata__
        assert option.help.endswith(f"else {parameters[name].default}.")
