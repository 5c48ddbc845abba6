"""Configurations: what they hold, and that every mistake in one is an error."""

import dataclasses
import re
from pathlib import Path

import pytest

from fxlrp.errors import ConfigError
from fxlrp.evaluation import parse_config, read_config
from fxlrp.evaluation.methods import options_of

GIVEN = {
    "model": {"spec": "torchvision:resnet18"},
    "data": {"kind": "npz", "path": "images.npz"},
    "methods": {"relevance": {"preset": "conserving"}},
}


def changed(**sections):
    table = {name: dict(section) for name, section in GIVEN.items()}
    for name, section in sections.items():
        whole = name in ("methods", "sweep") or not isinstance(section, dict)
        table[name] = section if whole else table.get(name, {}) | section
    return table


def test_a_configuration_has_what_its_file_says(tmp_path):
    (tmp_path / "all.toml").write_text(
        """
        [model]
        spec = "torchvision:resnet50"
        weights = "resnet50.pth"
        [data]
        kind = "imagenet"
        path = "imagenet"
        count = 1000
        seed = 3
        [metrics]
        step = 500
        ties = ["strict", "plateau"]
        baseline = 0.5
        checkpoints = ["layer1.0", "layer4.2"]
        [run]
        out = "results"
        device = "cuda"
        maps = true
        [methods."ratio, all skips"]
        preset = "otsuki2024"
        levels = [0, 8]
        paper = "iv"
        [methods.Grad-CAM]
        kind = "grad_cam"
        layer = "layer4"
        [sweep.gamma]
        rules = [{"layer4.*" = "Gamma(0.1)"}, {"layer4.*" = "Gamma(0.25)"}]
        split = ["ratio", "signed"]
        preset = "epsilon_plus"
        """
    )
    config = read_config(tmp_path / "all.toml")
    assert config.out == tmp_path / "results"
    assert config.metrics.ties == ("strict", "plateau")
    assert config.metrics.baseline == 0.5
    first, cam, *swept = config.methods
    assert (first.spec.name, first.spec.kind, first.levels, first.paper) == ("ratio, all skips", "fxlrp", (0, 8), "iv")
    assert cam.spec.options == {"layer": "layer4"}
    assert len(swept) == 4
    assert swept[0].spec.name == 'gamma: rules={"layer4.*": "Gamma(0.1)"}, split=ratio'
    assert all(entry.spec.options["preset"] == "epsilon_plus" and entry.group == "gamma" for entry in swept)


def test_swept_methods_are_called_by_what_varies_or_names_the_sweep(tmp_path):
    sweeps = {"split": {"split": "symmetric", "preset": "epsilon"}, "smooth": {"smooth": [4.0, 8.0]}, "best": {}}
    entries = parse_config(changed(sweep=sweeps), tmp_path).methods
    assert [entry.spec.name for entry in entries if entry.group] == [
        "split: split=symmetric", "smooth: smooth=4.0", "smooth: smooth=8.0", "best",
    ]  # fmt: skip


def test_a_key_that_is_left_out_has_a_default(tmp_path):
    config = parse_config(GIVEN, tmp_path)
    assert config.metrics.ties == ("strict",)
    assert config.metrics.step == 500
    assert config.run.threads == 1
    assert config.title == "torchvision:resnet18 on npz"


def test_the_fingerprint_depends_on_the_results_alone(tmp_path):
    plain = parse_config(GIVEN, tmp_path).fingerprint()
    assert plain == "3ab6b3afff2340ca"  # of earlier results, which are taken up
    for section in ({"run": {"out": "x", "device": "cuda", "title": "T", "against": "relevance"}},
                    {"metrics": {"failure": 0.2, "rounds": 9}}, {"model": {"name": "N"}}):  # fmt: skip
        assert parse_config(changed(**section), tmp_path).fingerprint() == plain
    for section in ({"metrics": {"step": 7}}, {"metrics": {"grids": 1}}, {"data": {"count": 3}},
                    {"run": {"maps": True}}, {"run": {"threads": 2}},
                    {"methods": {"relevance": {"preset": "epsilon"}}}):  # fmt: skip
        assert parse_config(changed(**section), tmp_path).fingerprint() != plain


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"metrics": {"stpe": 5}}, "[metrics] has no 'stpe': did you mean 'step'?"),
        ({"metrics": {"colour": 5}}, "[metrics] has no 'colour': choose among step, ties"),
        ({"metrics": {"step": "five"}}, "metrics.step = 'five': it must be a valid integer"),
        ({"metrics": {"step": True}}, "metrics.step = True: it must be a valid integer"),
        ({"metrics": {"step": 2.5}}, "metrics.step = 2.5: it must be a valid integer"),
        ({"metrics": {"step": 0}}, "metrics.step = 0: it must be greater than 0"),
        ({"metrics": {"step": 0, "targt": 1}}, "metrics.step = 0: it must be greater than 0; [metrics] has no 'targt'"),
        ({"metrics": {"heads": 5}}, "metrics.heads is for texts and passages, and [data] has images: leave it out"),
        ({"metrics": {"rounds": 0}}, "metrics.rounds = 0: it must be greater than 0"),
        ({"metrics": {"randomize": -1}}, "metrics.randomize = -1: it must be greater than or equal to 0"),
        ({"metrics": {"agreement": 1}}, "metrics.agreement = 1: it must be a valid boolean"),
        ({"metrics": {"ties": ["strikt"]}}, "it must be 'strict' or 'plateau'; did you mean 'strict'?"),
        ({"metrics": {"ties": []}}, "metrics.ties = []: Value should have at least 1 item"),
        ({"metrics": {"baseline": "white"}}, "'white': it must be 'black', 'mean' or 'blurred', or a valid number"),
        ({"metrics": {"backend": "fast"}}, "metrics.backend = 'fast': it must be 'eager' or 'inductor'"),
        ({"metrics": {"target": "both"}}, "metrics.target = 'both': it must be 'label' or 'predicted'"),
        ({"metrics": {"checkpoints": [3]}}, "metrics.checkpoints = 3: it must be a valid string"),
        ({"metrics": 3}, "[metrics] must be a table"),
        ({"data": {"kind": "mnist"}},
         "data.kind = 'mnist': it must be 'imagenet', 'cub', 'folder', 'npz', 'python', 'text' or 'passages'"),
        ({"data": {"part": "half"}}, "data.part = 'half': it must be 'development' or 'confirmation'"),
        ({"data": {"count": 3, "per_class": 1}}, "[data]: count and per_class both give the number of images"),
        ({"data": {"count": 0}}, "data.count = 0: it must be greater than 0"),
        ({"methods": {}}, "there are no methods"),
        ({"methods": {"a": {"kind": "lime"}}}, "methods.a.kind = 'lime': choose among fxlrp, captum_lrp"),
        ({"methods": {"a": {"kind": ["random"]}}}, "methods.a.kind = ['random']: "),
        ({"methods": {"a": {"kind": "gradcam"}}}, "methods.a.kind = 'gradcam': did you mean 'grad_cam'?"),
        ({"methods": {"a": {"prest": "x"}}}, "[methods.a] has no 'prest': did you mean 'preset'? (kind fxlrp)"),
        ({"methods": {"a": {"preset": "conservng"}}}, "methods.a: preset='conservng': choose one of 'conserving'"),
        ({"methods": {"a": {"split": "half"}}}, "methods.a: split='half': choose one of"),
        ({"methods": {"a": {"start": "none"}}}, "methods.a: start='none': choose one of"),
        ({"methods": {"a": {"rules": {"fc": "Epsilom(1)"}}}}, "methods.a: "),
        ({"methods": {"a": {"identity_skips": "no"}}}, "methods.a.identity_skips = 'no': it must be a valid boolean"),
        ({"methods": {"a": {"smooth": "much"}}}, "methods.a.smooth = 'much': it must be a valid number"),
        ({"methods": {"a": {"checkpoints": ["fc"]}}}, "[methods.a] has no 'checkpoints'"),
        ({"methods": {"a": {"kind": "integrated_gradients", "steps": 1.5}}}, "methods.a.steps = 1.5: it must be"),
        ({"methods": {"a": {"kind": "score_cam", "forward": 1}}}, "[methods.a] has no 'forward'"),
        ({"methods": {"a": {"kind": "python"}}}, "[methods.a] lacks 'function' (kind python)"),
        ({"methods": {"a": {"levels": [1]}}}, "methods.a.levels: 1 levels: give at least 2, or 0"),
        ({"methods": {"a": {"paper": "v"}}}, "methods.a.paper: 'v' is no row of the paper: did you mean 'iv'?"),
        ({"methods": {"a": 3}}, "methods.a must be a table"),
        ({"methods": 3}, "methods are tables by name, such as [methods.NAME]"),
        ({"sweep": {"s": {"splits": ["ratio"]}}}, "[sweep.s] has no 'splits': did you mean 'split'?"),
        ({"sweep": {"s": {"split": ["ratio", "half"]}}}, "sweep.s: split='half': choose one of"),
        ({"sweep": {"relevance": {"preset": "conserving"}}}, "two methods are called 'relevance'"),
        ({"run": {"against": "relevence"}}, "run.against = 'relevence' is no method: did you mean 'relevance'?"),
        ({"report": {"out": "x"}}, "the configuration has no 'report'"),
    ],
)  # fmt: skip
def test_a_mistake_is_an_error_that_names_its_place(section, message, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_config(changed(**section), tmp_path)


def test_every_option_of_a_kind_can_be_given(tmp_path):
    methods = {
        "all": {"preset": "epsilon_plus", "rules": {"fc": "Epsilon(1e-3)"}, "split": "signed", "identity_skips": False,
                "start": "logit", "at": ["fc", "input"], "smooth": 5, "levels": 8},
        "mine": {"kind": "python", "function": "a.b:c", "options": {"x": [1, 2]}},
        "cam": {"kind": "score_cam", "layer": "layer4"},
        "random": {"kind": "random", "seed": 3},
        "ig": {"kind": "integrated_gradients", "steps": 20},
    }  # fmt: skip
    entries = parse_config(changed(methods=methods), tmp_path).methods
    assert entries[0].levels == (8,)
    assert [dict(entry.spec.options) for entry in entries] == [
        {key: value for key, value in table.items() if key not in ("kind", "levels")} for table in methods.values()
    ]
    own = {"at", "smooth", "regions"}
    assert options_of("fxlrp").keys() == {"preset", "rules", "split", "identity_skips", "start", "precision"} | own


def test_missing_sections_and_unreadable_files_are_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"\[model\] is missing"):
        parse_config({"data": GIVEN["data"]}, tmp_path)
    with pytest.raises(ConfigError, match=r"\[data\] lacks .*'path'"):
        parse_config({**GIVEN, "data": {"kind": "npz"}}, tmp_path)
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
        read_config(tmp_path / "nowhere.toml")
    (tmp_path / "broken.toml").write_text("[model\n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not TOML"):
        read_config(tmp_path / "broken.toml")
    (tmp_path / "wrong.toml").write_text('[model]\nspec = "torchvision:resnet18"\n')
    with pytest.raises(ConfigError, match=r"wrong\.toml: \[data\] is missing"):
        read_config(tmp_path / "wrong.toml")


def test_methods_can_stand_in_a_file_of_their_own(tmp_path):
    (tmp_path / "methods.toml").write_text('[methods.a]\npreset = "epsilon"\n[methods.b]\nkind = "edges"\n')
    main = '[model]\nspec = "torchvision:resnet18"\n[data]\nkind = "npz"\npath = "x.npz"\n'
    (tmp_path / "main.toml").write_text(f'include = ["methods.toml"]\n{main}[methods.a]\npreset = "conserving"\n')
    first, second = read_config(tmp_path / "main.toml").methods
    assert (first.spec.name, first.spec.options) == ("a", {"preset": "conserving"})  # the nearer one stands
    assert second.spec.kind == "edges"
    (tmp_path / "methods.toml").write_text('[run]\nout = "elsewhere"\n')
    with pytest.raises(ConfigError, match=r"main\.toml: methods\.toml has no 'run'"):
        read_config(tmp_path / "main.toml")
    (tmp_path / "methods.toml").unlink()
    with pytest.raises(ConfigError, match=r"main\.toml: methods\.toml cannot be read"):
        read_config(tmp_path / "main.toml")


EXAMPLES = Path(__file__).parents[1] / "examples" / "evaluation"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*_*.toml")))
def test_the_example_configurations_can_be_read(name):
    config = read_config(EXAMPLES / name)
    assert {entry.paper for entry in config.methods} >= {"i", "ii", "iii", "iv", "mixture", "grad_cam"}
    assert config.metrics.ties == ("strict", "plateau")


WHOLE = [path for path in sorted(EXAMPLES.rglob("*.toml")) if "[metrics]" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_every_configuration_that_is_kept_can_be_read(path):
    config = read_config(path)
    assert config.out.resolve().parent == EXAMPLES.resolve() / "results"
    if config.what == "passages":  # they are made, and not read from files that may be missing
        samples = config.samples()
        assert {sample.subject for sample in samples} == {subject.name for subject in config.subjects}


@pytest.mark.parametrize("name", ["cifar10_resnet56", "efficientnet_lite0"])
def test_a_search_is_confirmed_on_images_that_it_was_not_made_with(name):
    chosen, confirmed = (read_config(EXAMPLES / "search" / f"{name}_{part}.toml")
                         for part in ("development", "confirmation"))  # fmt: skip
    assert (chosen.data.part, confirmed.data.part) == ("development", "confirmation")
    assert dataclasses.replace(chosen.data, part=None) == dataclasses.replace(confirmed.data, part=None)
    assert chosen.metrics == confirmed.metrics
    assert chosen.out != confirmed.out
    for config in (chosen, confirmed):
        assert {"grad_cam", "fxlrp"} == {entry.spec.kind for entry in config.methods}
    known = [(entry.spec.kind, entry.spec.options) for entry in chosen.methods]
    assert all((entry.spec.kind, entry.spec.options) in known for entry in confirmed.methods)
