"""Evaluations: what results hold, that runs go on where they stopped, that processes share them, and failures."""

import json
import signal
import time
import warnings

import evaluation_nets
import h5py
import numpy as np
import pytest
import torch
from evaluation_configs import METHODS, result_rows, result_table, small_config, small_file, small_table, start
from PIL import Image

import fxlrp
from fxlrp.common.file_lock import FileLock, lock_file
from fxlrp.errors import DataError, EvaluationError, WeightsError
from fxlrp.evaluation import evaluate, insertion_deletion, parse_config, write_report
from fxlrp.evaluation.evaluated_image import load_image
from fxlrp.evaluation.forward import CompiledForward
from fxlrp.evaluation.measure import measure
from fxlrp.evaluation.randomized import Share, joined
from fxlrp.evaluation.workers import Workers

pytestmark = pytest.mark.usefixtures("evaluation_place")


# Results --------------------------------------------------------------------------------------------


def test_every_image_and_method_has_its_row(tmp_path):
    config = small_config(tmp_path)
    seen = []
    finished = evaluate(config, progress=seen.append)
    assert (finished.images, finished.before, finished.failures, finished.unavailable) == (6, 0, 0, {})
    assert [(progress.done, progress.total) for progress in seen] == [(i, 6) for i in range(1, 7)]
    rows = result_rows(config)
    methods = [("conserving", 0), ("conserving", 8), ("symmetric", 0), ("symmetric", 8), ("bright", 0), ("random", 0),
               ("edges", 0)]  # fmt: skip
    indices = sorted({row["index"] for row in rows})
    assert [(row["index"], row["method"], row["levels"]) for row in rows] == [
        (index, *method) for index in indices for method in methods
    ]
    assert sorted(row["label"] for row in rows if row["method"] == "edges") == [0, 0, 1, 1, 2, 2]
    assert all(row["status"] == "ok" and row["target"] == row["label"] for row in rows)
    assert (config.out / "costs.json").exists()


def test_rows_hold_what_the_metrics_give(tmp_path):
    config = small_config(tmp_path)
    evaluate(config)
    loaded = evaluation_nets.load()
    (sample, *_) = config.samples()
    image = load_image(sample, loaded.preprocess)
    explainer = fxlrp.compile(loaded.model, "conserving", checkpoints=("block", "fc"))
    explanation = explainer(image.input, target=sample.label)
    heat = fxlrp.heatmap(explanation.relevance)
    for levels, maps in ((0, heat), (8, fxlrp.quantize_heat(heat, 8))):
        key = (sample.index, "conserving", levels)
        (row,) = [r for r in result_rows(config) if (r["index"], r["method"], r["levels"]) == key]
        for ties in ("strict", "plateau"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = insertion_deletion(loaded.model, image.image, maps, sample.label, step=9, ties=ties,
                                            normalize=image.normalize, batch_size=16)  # fmt: skip
            assert row[f"insertion_{ties}"] == pytest.approx(result.insertion.item(), abs=1e-6)
            assert row[f"deletion_{ties}"] == pytest.approx(result.deletion.item(), abs=1e-6)
            assert row[f"insertion_curve_{ties}"] == pytest.approx(result.curves.insertion[0].tolist(), abs=1e-6)
        assert row["start"] == pytest.approx(explanation.start.item(), rel=1e-6)
        assert dict(row["checkpoints"]).keys() == {"input", "block", "fc"}
        assert dict(row["checkpoints"])["input"] == pytest.approx(row["start"], rel=1e-5)
        assert row["tied"] == (0 if not levels else pytest.approx(1, abs=0.1))
        assert row["probability"] == pytest.approx(explanation.output.softmax(1)[0, sample.label].item(), rel=1e-6)


def test_an_evaluation_runs_its_forward_passes_by_the_backend(tmp_path, monkeypatch):
    # Here they are only captured: what Inductor makes of them is the next test's.
    compiler, batches = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiler(model, backend="eager", **options))
    plain = CompiledForward.forward
    monkeypatch.setattr(CompiledForward, "forward", lambda self, x: (batches.append(len(x)), plain(self, x))[1])
    eager = small_config(tmp_path, out="eager")
    compiled = small_config(tmp_path, out="compiled", metrics={"backend": "inductor"})
    assert eager.fingerprint() != compiled.fingerprint()
    evaluate(eager)
    assert not batches
    evaluate(compiled)
    assert max(batches) == 16
    for one, other in zip(result_rows(eager), result_rows(compiled), strict=True):
        assert (one["index"], one["method"], one["status"]) == (other["index"], other["method"], other["status"])
        for name in ("insertion_strict", "deletion_strict", "insertion_plateau", "insertion_curve_plateau"):
            assert other[name] == pytest.approx(one[name], abs=1e-5)


def test_compiled_forward_passes_see_batches_of_one_size_and_agree(tmp_path):
    net = evaluation_nets.Net().eval()
    compiled, seen = CompiledForward(net, 4), []
    run = compiled._run
    compiled.__dict__["_run"] = lambda x: (seen.append(len(x)), run(x))[1]
    for count in (4, 1, 7, 3):
        x = torch.randn(count, 3, 8, 8)
        logits = compiled(x)
        assert logits.shape == (count, logits.shape[1])
        torch.testing.assert_close(logits, net(x).detach(), rtol=1e-5, atol=1e-5)
    assert seen == [4, 4, 4, 4, 4]


def test_maps_are_kept_as_corelay_reads_them(tmp_path):
    config = small_config(tmp_path, maps=True)
    evaluate(config)
    assert {path.name for path in (config.out / "maps").iterdir()} == {f"{name}.h5" for name in METHODS}
    with h5py.File(config.out / "maps" / "conserving.h5") as file:
        assert file["attribution"].shape == (6, 1, 8, 8)
        assert file["prediction"].shape == (6, 3)
        assert file["index"][:].tolist() == [sample.index for sample in config.samples()]
        assert file["label"][:].tolist() == [sample.label for sample in config.samples()]
        loaded = evaluation_nets.load()
        image = load_image(config.samples()[2], loaded.preprocess)
        relevance = fxlrp.compile(loaded.model, "conserving")(image.input, target=image.sample.label).relevance
        assert np.allclose(file["attribution"][2, 0], relevance.sum(1)[0], atol=1e-7)


def test_the_predicted_class_can_be_explained(tmp_path):
    config = small_config(tmp_path, metrics={"target": "predicted"})
    evaluate(config)
    assert all(row["target"] == row["predicted"] for row in result_rows(config))


# Stopped, killed, shared ----------------------------------------------------------------------------


def test_a_second_run_does_nothing(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    evaluate(config)
    first = result_table(config)

    def never(*_):
        raise AssertionError("this image is done")

    monkeypatch.setattr("fxlrp.evaluation.runner.measure", never)
    assert evaluate(config).before == 6
    assert result_table(config).equals(first)


def test_a_run_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    whole, config, calls = small_config(tmp_path, out="whole"), small_config(tmp_path), []
    evaluate(whole)

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr("fxlrp.evaluation.runner.measure", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    assert len(set(result_table(config)["index"].to_pylist())) == 3
    assert (evaluate(config).before, len(calls)) == (3, 7)
    assert result_table(config).equals(result_table(whole))


@pytest.mark.parametrize("done", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_goes_on_and_gives_the_same(tmp_path, done):
    few = {name: METHODS[name] for name in ("conserving", "random")}
    options = {"model": "slow", "methods": few, "maps": True}
    whole, config = small_config(tmp_path, out="whole", **options), small_config(tmp_path, **options)
    evaluate(whole)
    process = start("fxlrp", "evaluate", small_file(tmp_path, **options), "--no-report")
    until = time.monotonic() + 120
    while (len(list((config.out / "results.parquet").glob("*.parquet"))) < done and process.poll() is None
           and time.monotonic() < until):  # fmt: skip
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finished = evaluate(config)
    assert (finished.images, finished.failures) == (6, 0)
    assert done <= finished.before < 6
    assert result_table(config).equals(result_table(whole))
    for file in (whole.out / "maps").iterdir():
        assert_same_maps(file, config.out / "maps" / file.name)


def assert_same_maps(first, second):
    with h5py.File(first) as a, h5py.File(second) as b:
        assert all(np.array_equal(a[name][:], b[name][:]) for name in ("attribution", "prediction", "label", "index"))


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same(tmp_path, count):
    few = {"randomize": 3, "properties": 3}
    whole = small_config(tmp_path, out="whole", metrics=few)
    config = small_config(tmp_path, metrics=few)
    evaluate(whole)
    several = ("torch.distributed.run", "--standalone", "--nproc-per-node", count, "-m")
    process = start(*several, "fxlrp", "evaluate", small_file(tmp_path, metrics=few), "--no-report")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert output.count("6 images, 0 of them from an earlier run") == 1
    assert result_table(config).equals(result_table(whole))
    for name, methods in (("randomized.json", "methods"), ("properties.json", "by_image")):
        ours, expected = (json.loads((folder / name).read_text()) for folder in (config.out, whole.out))
        assert list(ours[methods]) == list(expected[methods])
        assert ours == expected
    assert set(json.loads((config.out / "costs.json").read_text())) == set(METHODS)


def test_processes_share_the_work_and_do_nothing_twice(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(Workers("cpu").share(range(10)))
    assert sorted(number for share in shares for number in share) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_shares_of_processes_are_joined_in_the_order_of_their_images():
    nan = float("nan")
    first = Share(["b", "a"], {"one": [[0.5, 0.25], [nan, nan]], "two": [[1.0, 1.0], [1.0, 1.0]]})
    second = Share(["b", "a"], {"one": [[0.75], [nan]]})  # "two" failed there
    assert joined([first, second, Share([], {})]) == {"layers": ["b", "a"], "methods": {"one": [0.5, None]}}
    assert joined([Share([], {})]) == {"layers": [], "methods": {}}


# Failures -------------------------------------------------------------------------------------------


def test_a_method_that_raises_on_an_image_fails_on_that_image_alone(tmp_path):
    methods = {"conserving": {}, "picky": {"kind": "python", "function": "evaluation_nets:picky"}}
    config = small_config(tmp_path, methods=methods, per_class=4)
    finished = evaluate(config)
    picky = [row for row in result_rows(config) if row["method"] == "picky"]
    failed = [row for row in picky if row["status"] == "failed"]
    assert 0 < len(failed) < len(picky)
    assert finished.failures == len(failed)
    assert all(row["reason"] == "ValueError: this image is too bright" for row in failed)
    assert all(row["insertion_strict"] is None for row in failed)
    assert all(row["status"] == "ok" for row in result_rows(config) if row["method"] == "conserving")


def test_a_method_that_cannot_explain_the_model_has_a_reason(tmp_path):
    methods = {
        "conserving": {},
        "never": {"kind": "python", "function": "evaluation_nets:no_method"},
        "nowhere": {"kind": "python", "function": "evaluation_nets:nowhere"},
    }
    config = small_config(tmp_path, methods=methods)
    finished = evaluate(config)
    assert finished.unavailable["never"] == "ValueError: not on this model"
    assert "has no 'nowhere'" in finished.unavailable["nowhere"]
    assert finished.failures == 0
    assert "cannot run: `ValueError: not on this model`" in write_report(config, gallery=False).read_text()


def test_maps_of_a_wrong_shape_are_a_failure(tmp_path):
    config = small_config(tmp_path, methods={"wrong": {"kind": "python", "function": "evaluation_nets:wrong_shape"}})
    evaluate(config)
    assert all("must give maps (1, 8, 8)" in row["reason"] for row in result_rows(config))


def test_an_unreadable_image_fails_and_can_be_tried_again(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 60 * i + 20, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    good = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(good[:40])
    data = {"kind": "folder", "path": ".", "labels": "order"}
    config = parse_config(small_table(tmp_path, methods={"conserving": {}}, maps=True) | {"data": data}, tmp_path)

    def statuses():
        return [row["status"] for row in result_rows(config)]

    assert evaluate(config).failures == 1
    assert statuses() == ["ok", "failed", "ok"]
    assert "1.png is" in result_rows(config)[1]["reason"]
    assert "1.png is" in write_report(config, gallery=False).read_text()
    (tmp_path / "1.png").write_bytes(good)
    assert evaluate(config).failures == 1
    assert statuses() == ["ok", "failed", "ok"]
    again = evaluate(config, retry_failed=True)
    assert (again.before, again.failures) == (2, 0)
    assert statuses() == ["ok"] * 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": {"kind": "npz", "path": "nowhere.npz"}}, DataError, "cannot be read"),
        ({"data": {"kind": "npz", "path": "images.npz", "per_class": 99}}, DataError, "99 images of class 0"),
        ({"model": {"spec": "python:evaluation_nets:nothing"}}, WeightsError, "has no 'nothing'"),
        ({"run": {"out": "out", "device": "warp"}}, EvaluationError, "run.device = 'warp'"),
    ],
)
def test_an_error_comes_before_anything_is_written(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        evaluate(parse_config(small_table(tmp_path) | change, tmp_path))
    assert not (tmp_path / "out").exists()


def test_results_of_another_configuration_are_not_mixed(tmp_path):
    evaluate(small_config(tmp_path))
    with pytest.raises(EvaluationError, match="holds results of another configuration"):
        evaluate(small_config(tmp_path, metrics={"step": 7}))
    evaluate(small_config(tmp_path, title="Another name for the same"))


def test_two_evaluations_in_one_folder_the_second_says_so_at_once(tmp_path):
    config = small_config(tmp_path)
    lock = FileLock(lock_file(config.out))
    assert lock.take()
    with pytest.raises(EvaluationError, match="another evaluation is at work"):
        evaluate(config)
    assert not list(config.out.iterdir())
    lock.release()
    assert evaluate(config).before == 0
    assert evaluate(config).before > 0


def test_grids_that_cannot_be_made_are_told_and_cost_nothing_else(tmp_path):
    config = small_config(tmp_path, metrics={"grids": 2, "properties": 1})
    with pytest.warns(UserWarning, match="no grids: a grid of 2 × 2 needs as many classes"):
        finished = evaluate(config)
    assert finished.images == 6
    found = json.loads((config.out / "properties.json").read_text())
    assert (found["images"], found["grids"], found["by_grid"]) == (1, 0, {})
    assert set(found["by_image"]) == set(METHODS)
