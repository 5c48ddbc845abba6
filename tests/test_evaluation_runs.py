"""Evaluations from end to end: complete, resumed, killed, shared among processes, with failures, and reported."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import evaluation_nets
import numpy as np
import pytest
import torch
from fxlrp.evaluation.items import load_item
from PIL import Image

import fxlrp
from fxlrp.errors import ConfigError, DataError, EvaluationError, WeightsError
from fxlrp.evaluation import evaluate, insertion_deletion, parse_config, write_report
from fxlrp.evaluation.forward import CompiledForward
from fxlrp.evaluation.measure import measure
from fxlrp.evaluation.randomized import Part, joined
from fxlrp.evaluation.store import RESULTS, Store
from fxlrp.evaluation.workers import Workers

pq = pytest.importorskip("pyarrow.parquet")

HERE = Path(__file__).parent

METHODS = {
    "conserving": {"levels": [0, 8], "paper": "iv"},
    "symmetric": {"split": "symmetric", "identity_skips": False, "levels": [0, 8], "paper": "i"},
    "bright": {"kind": "python", "function": "evaluation_nets:brightness", "options": {"power": 2.0}},
    "random": {"kind": "random"},
    "edges": {"kind": "edges"},
}


@pytest.fixture(autouse=True)
def quiet_and_single_threaded(monkeypatch):
    monkeypatch.chdir(HERE)  # models and methods are found there
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def table(folder, *, model="load", methods=METHODS, per_class=2, **sections):
    """A configuration, whose data are written where they are not there."""
    if not (folder / "images.npz").exists():
        evaluation_nets.write_arrays(folder / "images.npz")
    return {
        "model": {"spec": f"python:evaluation_nets:{model}"},
        "data": {"kind": "npz", "path": "images.npz", "per_class": per_class, "seed": 1},
        "metrics": {"step": 9, "ties": ["strict", "plateau"], "checkpoints": ["block", "fc"], "batch_size": 16,
                    **sections.pop("metrics", {})},
        "run": {"out": "out", **sections.pop("run", {})},
        "methods": methods,
    }  # fmt: skip


def config(folder, **options):
    return parse_config(table(folder, **options), folder)


def rows(folder):
    return pq.read_table(folder / RESULTS).to_pylist()


def toml(folder, **options):
    """A configuration as a file."""

    def value(entry):
        return json.dumps(entry) if not isinstance(entry, dict) else (
            "{" + ", ".join(f'"{k}" = {value(v)}' for k, v in entry.items()) + "}"
        )  # fmt: skip

    lines = []
    for name, section in table(folder, **options).items():
        if name == "methods":
            for method, entry in section.items():
                lines += [f'[methods."{method}"]', *(f"{k} = {value(v)}" for k, v in entry.items())]
        else:
            lines += [f"[{name}]", *(f"{k} = {value(v)}" for k, v in section.items())]
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def command(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)], cwd=HERE, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip


# Results --------------------------------------------------------------------------------------------


def test_every_image_and_method_has_its_row(tmp_path):
    given = config(tmp_path)
    seen = []
    finished = evaluate(given, progress=seen.append)
    assert (finished.images, finished.before, finished.failures, finished.unavailable) == (6, 0, 0, {})
    assert [(p.done, p.total) for p in seen] == [(i, 6) for i in range(1, 7)]
    found = rows(given.out)
    methods = [("conserving", 0), ("conserving", 8), ("symmetric", 0), ("symmetric", 8), ("bright", 0), ("random", 0),
               ("edges", 0)]  # fmt: skip
    indices = sorted({row["index"] for row in found})
    assert [(row["index"], row["method"], row["levels"]) for row in found] == [
        (index, *method) for index in indices for method in methods
    ]
    assert sorted(row["label"] for row in found if row["method"] == "edges") == [0, 0, 1, 1, 2, 2]
    assert all(row["status"] == "ok" and row["target"] == row["label"] for row in found)
    assert not list((given.out / "parts").iterdir())
    assert (given.out / "costs.json").exists()


def test_rows_hold_what_the_metrics_give(tmp_path):
    given = config(tmp_path)
    evaluate(given)
    loaded = evaluation_nets.load()
    (sample, *_) = given.samples()
    item = load_item(sample, loaded.preprocess)
    explainer = fxlrp.compile(loaded.model, checkpoints=("block", "fc"))
    explanation = explainer(item.input, target=sample.label)
    heat = fxlrp.heatmap(explanation.relevance)
    for levels, maps in ((0, heat), (8, fxlrp.quantize_heat(heat, 8))):
        key = (sample.index, "conserving", levels)
        (row,) = [r for r in rows(given.out) if (r["index"], r["method"], r["levels"]) == key]
        for ties in ("strict", "plateau"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = insertion_deletion(loaded.model, item.image, maps, sample.label, step=9, ties=ties,
                                            normalize=item.normalize, batch_size=16)  # fmt: skip
            assert row[f"insertion_{ties}"] == pytest.approx(result.insertion.item(), abs=1e-6)
            assert row[f"deletion_{ties}"] == pytest.approx(result.deletion.item(), abs=1e-6)
            assert row[f"insertion_curve_{ties}"] == pytest.approx(result.curves.insertion[0].tolist(), abs=1e-6)
        assert row["start"] == pytest.approx(explanation.start.item(), rel=1e-6)
        assert dict(row["checkpoints"]).keys() == {"input", "block", "fc"}
        assert dict(row["checkpoints"])["input"] == pytest.approx(row["start"], rel=1e-5)
        assert row["tied"] == (0 if not levels else pytest.approx(1, abs=0.1))
        assert row["probability"] == pytest.approx(explanation.output.softmax(1)[0, sample.label].item(), rel=1e-6)


def test_compiled_forward_passes_give_the_same_to_the_last_digits(tmp_path, monkeypatch):
    plain, batches = CompiledForward.forward, []
    monkeypatch.setattr(CompiledForward, "forward", lambda self, x: (batches.append(len(x)), plain(self, x))[1])
    eager = config(tmp_path, run={"out": "eager"})
    compiled = config(tmp_path, run={"out": "compiled"}, metrics={"backend": "inductor"})
    assert eager.fingerprint() != compiled.fingerprint()
    evaluate(eager)
    assert not batches
    evaluate(compiled)
    assert max(batches) == 16
    for one, other in zip(rows(eager.out), rows(compiled.out), strict=True):
        assert (one["index"], one["method"], one["status"]) == (other["index"], other["method"], other["status"])
        for name in ("insertion_strict", "deletion_strict", "insertion_plateau", "insertion_curve_plateau"):
            assert other[name] == pytest.approx(one[name], abs=1e-5)


def test_compiled_forward_passes_see_batches_of_one_size():
    net = evaluation_nets.Net().eval()
    compiled, seen = CompiledForward(net, 4), []
    run = compiled._run
    compiled.__dict__["_run"] = lambda x: (seen.append(len(x)), run(x))[1]
    for count in (4, 1, 7, 3):
        x = torch.randn(count, 3, 8, 8)
        found = compiled(x)
        assert found.shape == (count, found.shape[1])
        torch.testing.assert_close(found, net(x).detach(), rtol=1e-5, atol=1e-5)
    assert seen == [4, 4, 4, 4, 4]


def test_maps_are_kept_as_corelay_reads_them(tmp_path):
    h5py = pytest.importorskip("h5py")
    given = config(tmp_path, run={"maps": True})
    evaluate(given)
    names = {path.stem for path in (given.out / "maps").iterdir()}
    assert names == {"conserving", "symmetric", "bright", "random", "edges"}
    with h5py.File(given.out / "maps" / "conserving.h5") as file:
        assert file["attribution"].shape == (6, 1, 8, 8)
        assert file["prediction"].shape == (6, 3)
        assert file["index"][:].tolist() == [s.index for s in given.samples()]
        assert file["label"][:].tolist() == [s.label for s in given.samples()]
        loaded = evaluation_nets.load()
        item = load_item(given.samples()[2], loaded.preprocess)
        relevance = fxlrp.compile(loaded.model)(item.input, target=item.sample.label).relevance
        assert np.allclose(file["attribution"][2, 0], relevance.sum(1)[0], atol=1e-7)


def test_the_predicted_class_can_be_explained(tmp_path):
    given = config(tmp_path, metrics={"target": "predicted"})
    evaluate(given)
    assert all(row["target"] == row["predicted"] for row in rows(given.out))


# Resumed, killed, shared ----------------------------------------------------------------------------


def test_a_second_run_does_nothing_and_a_longer_one_the_rest(tmp_path, monkeypatch):
    given = config(tmp_path)
    evaluate(given)
    first = pq.read_table(given.out / RESULTS)

    def never(*_):
        raise AssertionError("this image is done")

    monkeypatch.setattr("fxlrp.evaluation.runner.measure", never)
    assert evaluate(given).before == 6
    assert pq.read_table(given.out / RESULTS).equals(first)


def test_what_is_stopped_by_an_error_is_taken_up(tmp_path, monkeypatch):
    whole = config(tmp_path, run={"out": "whole"})
    evaluate(whole)
    given, calls = config(tmp_path), []

    def stops(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr("fxlrp.evaluation.runner.measure", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(given)
    assert len(list((given.out / "parts").glob("*.parquet"))) == 3
    finished = evaluate(given)
    assert (finished.before, len(calls)) == (3, 7)
    assert pq.read_table(given.out / RESULTS).equals(pq.read_table(whole.out / RESULTS))


def test_a_merge_that_was_cut_off_loses_and_doubles_nothing(tmp_path):
    given = config(tmp_path, run={"maps": True})
    evaluate(given)
    expected = pq.read_table(given.out / RESULTS)
    store = Store(given.out, [(e.spec.name, n) for e in given.methods for n in e.levels])
    one = expected.filter(np.asarray(expected["index"]) == expected["index"][0].as_py())
    store._write(given.out / "parts" / f"{one['index'][0].as_py():08d}.parquet", one)  # merged, and still there
    (given.out / "parts" / ".half-x").mkdir()
    store.clean()
    store.merge()
    assert pq.read_table(given.out / RESULTS).equals(expected)
    assert not list((given.out / "parts").iterdir())


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_killed_and_run_again_gives_the_same(tmp_path, part):
    few = {name: METHODS[name] for name in ("conserving", "random")}
    whole = config(tmp_path, model="slow", methods=few, run={"out": "whole", "maps": True})
    evaluate(whole)
    path = toml(tmp_path, model="slow", methods=few, run={"maps": True})
    process = command("fxlrp", "evaluate", path, "--no-report")
    parts, until = tmp_path / "out" / "parts", time.monotonic() + 120
    while len(list(parts.glob("*.parquet"))) <= part and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / RESULTS).exists()
    again = command("fxlrp", "evaluate", path, "--no-report")
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert re.search(r"6 images, [1-5] of them from an earlier run", output), output
    assert pq.read_table(tmp_path / "out" / RESULTS).equals(pq.read_table(whole.out / RESULTS))
    for place in (whole.out / "maps").iterdir():
        assert_same_maps(place, tmp_path / "out" / "maps" / place.name)


def assert_same_maps(first, second):
    h5py = pytest.importorskip("h5py")
    with h5py.File(first) as a, h5py.File(second) as b:
        assert all(np.array_equal(a[name][:], b[name][:]) for name in ("attribution", "prediction", "label", "index"))


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same(tmp_path, count):
    whole = config(tmp_path, run={"out": "whole"}, metrics={"randomize": 3})
    evaluate(whole)
    path = toml(tmp_path, metrics={"randomize": 3})
    several = ("torch.distributed.run", "--standalone", "--nproc-per-node", count, "-m")
    process = command(*several, "fxlrp", "evaluate", path)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert pq.read_table(tmp_path / "out" / RESULTS).equals(pq.read_table(whole.out / RESULTS))
    assert (tmp_path / "out" / "report" / "report.md").exists()
    found, expected = (json.loads((folder / "randomized.json").read_text()) for folder in (tmp_path / "out", whole.out))
    assert list(found["methods"]) == list(expected["methods"])
    assert found == expected
    assert set(json.loads((tmp_path / "out" / "costs.json").read_text())) == set(METHODS)


def test_images_of_several_processes_are_joined_in_their_order():
    nan = float("nan")
    first = Part(["b", "a"], {"one": [[0.5, 0.25], [nan, nan]], "two": [[1.0, 1.0], [1.0, 1.0]]})
    second = Part(["b", "a"], {"one": [[0.75], [nan]]})  # "two" failed there
    assert joined([first, second, Part([], {})]) == {"layers": ["b", "a"], "methods": {"one": [0.5, None]}}
    assert joined([Part([], {})]) == {"layers": [], "methods": {}}


# What goes wrong ------------------------------------------------------------------------------------


def test_a_method_that_throws_on_an_image_costs_that_row_alone(tmp_path):
    methods = {"conserving": {}, "picky": {"kind": "python", "function": "evaluation_nets:picky"}}
    given = config(tmp_path, methods=methods, per_class=4)
    finished = evaluate(given)
    picky = [row for row in rows(given.out) if row["method"] == "picky"]
    failed = [row for row in picky if row["status"] == "failed"]
    assert 0 < len(failed) < len(picky)
    assert finished.failures == len(failed)
    assert all(row["reason"] == "ValueError: this image is too bright" for row in failed)
    assert all(row["insertion_strict"] is None for row in failed)
    assert all(row["status"] == "ok" for row in rows(given.out) if row["method"] == "conserving")


def test_a_method_that_cannot_run_on_the_model_is_told_with_its_reason(tmp_path):
    methods = {
        "conserving": {},
        "never": {"kind": "python", "function": "evaluation_nets:no_method"},
        "nowhere": {"kind": "python", "function": "evaluation_nets:nowhere"},
    }
    given = config(tmp_path, methods=methods)
    finished = evaluate(given)
    assert finished.unavailable["never"] == "ValueError: not on this model"
    assert "has no 'nowhere'" in finished.unavailable["nowhere"]
    assert finished.failures == 0
    page = write_report(given, gallery=False).read_text()
    assert "cannot run: `ValueError: not on this model`" in page


def test_maps_of_a_wrong_shape_are_a_failure(tmp_path):
    given = config(tmp_path, methods={"wrong": {"kind": "python", "function": "evaluation_nets:wrong_shape"}})
    evaluate(given)
    assert all("must give maps (1, 8, 8)" in row["reason"] for row in rows(given.out))


def test_an_unreadable_image_is_recorded_and_can_be_tried_again(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 60 * i + 20, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    good = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(good[:40])
    given = table(tmp_path, methods={"conserving": {}}, run={"maps": True})
    given["data"] = {"kind": "folder", "path": ".", "labels": "order"}
    given = parse_config(given, tmp_path)
    finished = evaluate(given)
    assert finished.failures == 1
    assert [row["status"] for row in rows(given.out)] == ["ok", "failed", "ok"]
    assert "1.png is" in rows(given.out)[1]["reason"]
    assert "1.png is" in write_report(given, gallery=False).read_text()
    (tmp_path / "1.png").write_bytes(good)
    assert evaluate(given).failures == 1
    assert [row["status"] for row in rows(given.out)] == ["ok", "failed", "ok"]
    again = evaluate(given, retry_failed=True)
    assert (again.before, again.failures) == (2, 0)
    assert [row["status"] for row in rows(given.out)] == ["ok"] * 3


def test_what_cannot_be_run_is_told_before_anything_is_written(tmp_path):
    evaluation_nets.write_arrays(tmp_path / "images.npz")
    for change, error, message in (
        ({"data": {"kind": "npz", "path": "nowhere.npz"}}, DataError, "cannot be read"),
        ({"data": {"kind": "npz", "path": "images.npz", "per_class": 99}}, DataError, "99 images of class 0"),
        ({"model": {"spec": "python:evaluation_nets:nothing"}}, WeightsError, "has no 'nothing'"),
        ({"run": {"out": "out", "device": "warp"}}, EvaluationError, "run.device = 'warp'"),
    ):
        with pytest.raises(error, match=message):
            evaluate(parse_config(table(tmp_path) | change, tmp_path))
        assert not (tmp_path / "out").exists()


def test_results_of_another_configuration_are_not_mixed(tmp_path):
    evaluate(config(tmp_path))
    with pytest.raises(EvaluationError, match="holds results of another configuration"):
        evaluate(config(tmp_path, metrics={"step": 7}))
    evaluate(config(tmp_path, run={"title": "Another name for the same"}))


def test_the_command_line_tells_what_is_wrong(tmp_path):
    path = toml(tmp_path)
    path.write_text(path.read_text().replace("step = 9", "step = 0"))
    process = command("fxlrp", "evaluate", path)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "metrics.step = 0: at least 1 is needed" in " ".join(output.split())
    with pytest.raises(ConfigError):
        parse_config({"model": 3}, tmp_path)


# Reports --------------------------------------------------------------------------------------------


def test_a_report_has_every_table_and_picture(tmp_path):
    given = config(tmp_path, per_class=4, metrics={"randomize": 2})
    evaluate(given)
    page = write_report(given)
    text = page.read_text()
    for headline in ("All methods", "Table 1", "Table 2", "Table 3", "Table C", "What of the paper's ordering holds",
                     "Cost", "Conservation", "Agreement", "Maps of a randomised model", "Galleries"):  # fmt: skip
        assert f"## {headline}" in text, headline
    table_3 = text.split("## Table 3")[1].split("##")[0]
    assert re.search(r"\| symmetric \|.*\| 37\.6 \|", table_3)
    assert re.search(r"\| symmetric, 8 levels \|.*\| 51\.0 \|", table_3)
    pictures = set(re.findall(r"\]\((.+?\.png)\)", text))
    assert pictures == {"scores.png", "curves_strict.png", "curves_plateau.png", "conservation.png", "agreement.png",
                        "gallery_best.png", "gallery_worst.png"}  # fmt: skip
    for name in pictures:
        assert Image.open(page.parent / name).size[0] > 200
    lines = (page.parent / "results.csv").read_text().splitlines()
    assert len(lines) == 8
    randomized = json.loads((given.out / "randomized.json").read_text())
    assert randomized["layers"][-1] == "stem"
    assert randomized["methods"]["edges"] == pytest.approx([1.0] * len(randomized["layers"]))


def test_a_report_is_made_anew_from_the_results_alone(tmp_path):
    given = config(tmp_path)
    evaluate(given)
    first = write_report(given, gallery=False).read_text()
    moved = dataclasses.replace(given, run=dataclasses.replace(given.run, title="Moved"))
    second = write_report(moved, tmp_path / "elsewhere", gallery=False).read_text()
    assert second.splitlines()[1:] == first.splitlines()[1:]
    assert second.startswith("# Moved")
    process = command("fxlrp", "report", toml(tmp_path), "--no-gallery", "--to", tmp_path / "third")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert (tmp_path / "third" / "report.md").read_text() == first


def test_a_report_without_results_is_told(tmp_path):
    with pytest.raises(EvaluationError, match="holds no results"):
        write_report(config(tmp_path))


def test_a_sweep_is_told_by_rank_with_costs(tmp_path):
    given = table(tmp_path, methods={})
    given["sweep"] = {"rules": {"preset": ["conserving", "epsilon_plus"], "split": ["ratio", "symmetric"]}}
    given["run"]["against"] = first = "rules: preset=conserving, split=ratio"
    given = parse_config(given, tmp_path)
    evaluate(given)
    text = write_report(given, gallery=False).read_text()
    assert "## Sweep: rules" in text
    section = text.split("## Sweep: rules")[1].split("##")[0]
    scores = [float(x) for x in re.findall(r"\| (-?[\d.]+) \(", section)]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    gains = [float(x) for x in re.findall(r"\| (-?[\d.]+) \(", text.split(f"## Against {first}")[1].split("##")[0])]
    assert len(gains) == 3
    assert gains == sorted(gains, reverse=True)
    (own,) = re.findall(rf"\| {re.escape(first)} \| (-?[\d.]+) \(", section)
    scores.remove(float(own))
    assert gains == pytest.approx([score - float(own) for score in scores], abs=0.11)  # of rounded numbers


def test_processes_share_the_work_and_do_nothing_twice(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(Workers("cpu").share(range(10)))
    assert sorted(number for share in shares for number in share) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
