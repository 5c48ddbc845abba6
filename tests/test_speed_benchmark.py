"""Timing benchmarks: methods take turns in processes of their own, failures are rows, pages come from rows alone."""

import importlib.util
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fxlrp
from benchmarks import coverage, harness, program, runs, speed
from benchmarks.__main__ import app
from benchmarks.harness import PLACEBO, Memory, Settings, measure
from benchmarks.methods import PEERS, Case, Trial
from benchmarks.models import CifarResNet, build, is_model, noise
from benchmarks.pages import CsvTable
from benchmarks.speed import METHODS as TIMED
from benchmarks.speed import quotient, starred_quotient
from benchmarks.workers import Failure, Worker
from fxlrp.passes.optimize import NAMES

CASE = Case("cifar_resnet8", 2, 32)

HERE = Settings("tests.timed_methods:METHODS", rounds=3, threads=1, timeout=120)


def entries(*names):
    return {name: (name, "") for name in names}


# The harness -------------------------------------------------------------------------------------


def test_methods_take_turns_and_failures_are_rows():
    measured = measure(CASE, entries("yard", "broken", "parts"), HERE)
    rows = {row["method"]: row for row in measured if not row.get("part")}
    assert list(rows) == ["yard", PLACEBO, "broken", "parts"]
    assert rows["yard"]["ratio"] == rows["yard"]["ratio_min"] == rows["yard"]["ratio_max"] == 1
    row = rows[PLACEBO]
    assert (row["status"], row["extra"]) == ("ok", 7)
    assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    assert len(row["times"].split()) == row["rounds"] == 3
    assert row["first_s"] > 0
    assert row["run"] == rows["yard"]["run"]
    assert (rows["broken"]["stage"], rows["broken"]["reason"]) == ("set-up", "ValueError: no rule for this layer")
    parts = {row["part"]: row for row in measured if row["method"] == "parts" and row["status"] == "ok"}
    assert parts["right"]["ratio"] == pytest.approx(2 * parts["left"]["ratio"])
    assert parts[""]["seconds"] == 3


@pytest.mark.slow
def test_a_method_runs_another_checkout_of_which_it_needs_the_public_face_alone(tmp_path):
    (tmp_path / "fxlrp").mkdir()
    (tmp_path / "fxlrp" / "__init__.py").write_text(
        "__version__ = 'other'\ndef compile(model, preset, **options): return lambda images: None\n"
    )
    settings = Settings("benchmarks.speed:METHODS", rounds=1, threads=1, timeout=120)
    names = {"before": ("fxlrp eager", str(tmp_path)), "now": ("fxlrp eager", "")}
    rows = {row["method"]: row for row in measure(CASE, names, settings)}
    assert rows["before"]["version"] == rows[PLACEBO]["version"] == "fxlrp other, no commit"
    assert rows["now"]["version"].startswith(f"fxlrp {fxlrp.__version__}")
    (tmp_path / "empty").mkdir()
    (row, *_) = measure(CASE, {"before": ("fxlrp eager", str(tmp_path / "empty"))}, settings)
    assert "empty holds no fxlrp" in row["reason"]


class FakeMethod(SimpleNamespace):
    """Stands for a process: "large" fits beside the yardstick alone, and "fickle" gives up in the first round."""

    rows = harness.TimedMethod.rows
    alive = 0

    def __init__(self, name, entry, case, settings):
        super().__init__(name=name, method=entry[0], facts={}, calls=[], failure=None, closed=False)
        FakeMethod.alive += 1

    def close(self):
        FakeMethod.alive -= not self.closed
        self.closed = True

    def prepare(self):
        if self.method == "huge" or (self.method == "large" and FakeMethod.alive > 2):
            raise Failure("first call", "can't allocate memory")

    def count(self):
        if self.name == "fickle":
            raise Failure("round", "gave up")
        self.calls.append({"seconds": 2.0 if self.name == "small" else 1.0, "processor": 1.0, "parts": {}})

    def weigh(self):
        pass


def test_methods_are_measured_in_groups_and_what_fails_beside_others_once_more_alone(monkeypatch):
    monkeypatch.setattr(harness, "TimedMethod", FakeMethod)
    names = ["yard", "small", "large", "fickle", "same", "huge"]
    rows = {row["method"]: row for row in measure(CASE, entries(*names), Settings("nothing", together=2))}
    assert {name: row["group"] for name, row in rows.items()} == {
        "yard": 1, PLACEBO: 1, "small": 1, "same": 2, "huge": 3, "large": 4, "fickle": 5,
    }  # fmt: skip
    assert list(rows) == ["yard", PLACEBO, *names[1:]]
    assert rows["small"]["ratio"] == 2
    assert rows["large"]["status"] == rows["same"]["status"] == rows[PLACEBO]["status"] == "ok"
    assert (rows["huge"]["stage"], rows["huge"]["reason"]) == ("first call", "can't allocate memory")
    assert (rows["fickle"]["stage"], rows["fickle"]["reason"]) == ("round", "gave up")
    assert FakeMethod.alive == 0


@pytest.mark.parametrize(("yardstick", "reason"), [
    ("huge", "failed at first call: can't allocate memory"), ("fickle", "failed at round: gave up"),
])  # fmt: skip
def test_all_fail_without_the_yardstick(monkeypatch, yardstick, reason):
    monkeypatch.setattr(harness, "TimedMethod", FakeMethod)
    rows = {row["method"]: row for row in measure(CASE, entries(yardstick, "small"), Settings("nothing"))}
    assert reason.endswith(rows[yardstick]["reason"])
    assert rows["small"]["reason"] == rows[PLACEBO]["reason"] == f"{yardstick}, the yardstick, {reason}"
    assert {row["group"] for row in rows.values()} == {1}


@pytest.mark.parametrize(
    ("task", "reason"),
    [("hang", "took longer than 0 s"), ("die", "killed by SIGKILL, probably out of memory: last words")],
)
def test_a_worker_that_hangs_or_dies_fails(task, reason):
    worker = Worker("tests.worker_tasks", {}, timeout=60, threads=1)
    assert worker.ask("begin", "start") == {"started": True}
    worker.timeout = 0.2 if task == "hang" else 60
    with pytest.raises(Failure, match=reason) as failure:
        worker.ask("memory", task)
    worker.close()
    assert worker.process.poll() is not None
    assert failure.value.row == {"status": "failed", "stage": "memory", "reason": str(failure.value)}


# The coverage sweep ------------------------------------------------------------------------------


class FakeWorker:
    """Stands for a process that fails at one stage, or hangs there until it is killed."""

    def __init__(self, row):
        self.row, self.killed, self.closed = row, threading.Event(), False

    def ask(self, stage, do):
        if stage == self.row["name"]:
            raise Failure(stage, "no rule for this layer")
        if self.row["name"] == "hangs":
            self.killed.wait(60)
            raise Failure(stage, "killed by SIGKILL")
        return {do: 1}

    def kill(self):
        self.killed.set()

    def close(self):
        self.closed = True


def test_the_row_of_what_fails_says_at_which_stage_and_keeps_what_was_measured_before():
    rows = {}
    coverage.sweep([{"name": "explain"}, {"name": "good"}, {"name": "explain", "peer": "captum"}], 2, FakeWorker,
                      lambda row: rows.update({(row["name"], row.get("peer")): row}))  # fmt: skip
    assert (rows["good", None]["status"], rows["good", None]["ledger"]) == ("ok", 1)
    failed = rows["explain", None]
    assert (failed["status"], failed["stage"], failed["reason"]) == ("failed", "explain", "no rule for this layer")
    assert (failed["compile"], "ledger" in failed) == (1, False)
    assert rows["explain", "captum"].keys() & {"compile", "run"} == {"run"}


def test_an_interrupted_sweep_leaves_no_worker_behind():
    workers = []

    def start(row):
        workers.append(FakeWorker(row))
        return workers[-1]

    def interrupt(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        coverage.sweep([{"name": "hangs"}, {"name": "good"}, *[{"name": "hangs"}] * 9], 2, start, interrupt)
    assert len(workers) <= 3
    assert all(worker.closed for worker in workers)


# Models, methods, memory -------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_cifar_resnets_have_as_many_layers_as_they_say(depth):
    layers = [name for name, module in CifarResNet(depth).named_modules()
              if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in name]  # fmt: skip
    assert len(layers) == depth
    assert is_model(f"cifar_resnet{depth}")
    assert not is_model(f"cifar_resnet{depth + 1}")


@pytest.mark.parametrize("name", [name for name in TIMED if "inductor" not in name])
def test_every_method_runs_where_it_applies(name):
    method = TIMED[name]
    if not method.suits("cifar_resnet8", "cpu"):
        pytest.skip(f"{name} is for {method.models} on {method.device or 'any device'}")
    if importlib.util.find_spec(method.package) is None:
        pytest.skip(f"{method.package} is not installed")
    form = torch.channels_last if method.channels_last else torch.contiguous_format
    images = noise(3, 32, 32).contiguous(memory_format=form)
    _, call = method.steps(Trial(build("cifar_resnet8").to(memory_format=form), images))
    call()
    call()


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_tells_which_share_arrives(name):
    if importlib.util.find_spec(PEERS[name].package) is None or name == "lxt":
        pytest.skip(f"{PEERS[name].package} is not installed, or made for transformers")
    shares, how = PEERS[name].shares(build("cifar_resnet8"), noise(3, 32, 32))
    assert shares.shape == (2,)
    assert how
    if name == "fxlrp":
        torch.testing.assert_close(shares, torch.ones(2, dtype=torch.float64), rtol=1e-4, atol=0)


def test_autolrp_explains_a_batch_as_it_explains_each_image():
    pytest.importorskip("autolrp")
    images = noise(3, 32, 32, batch=3)

    def relevance(images):
        _, explain = PEERS["autolrp composite"].steps(Trial(build("cifar_resnet8"), images))
        return explain()[1]

    together, apart = relevance(images), torch.cat([relevance(image) for image in images.split(1)])
    shares = together.sum(dim=(1, 2, 3)) / apart.sum(dim=(1, 2, 3))
    torch.testing.assert_close(together, apart * shares[:, None, None, None], rtol=1e-3, atol=1e-6)


def test_memory_tells_a_peak_apart_from_what_is_held():
    memory = Memory("cpu")
    if memory.peak() is None:
        pytest.skip("the system does not tell how much memory a process takes")
    before = memory.start_over()
    torch.ones(32 * 2**20)  # 128 MiB
    peak = memory.peak()
    assert peak - before > 100 * 2**20
    assert memory.start_over() - before < 50 * 2**20
    assert memory.peak() < peak - 50 * 2**20


# Pages -------------------------------------------------------------------------------------------


def row(method, ratio=None, *, model="resnet50", batch=1, run="one", reason="", **more):
    measured = {"ratio": ratio, "ratio_min": ratio * 0.9, "ratio_max": ratio * 1.1, "seconds": ratio / 2, "rounds": 3,
                "peak_mb": 300.0, "call_mb": 200.0, "held_mb": 100.0, "setup_s": 1.5, "first_s": 2.5,
                "version": "zennit 1.0.0"} if ratio else {}  # fmt: skip
    return {
        "device": "cpu", "device_name": "Some CPU", "model": model, "size": 224, "batch": batch, "method": method,
        "status": "ok" if ratio else "failed", "stage": "" if ratio else "set-up", "reason": reason, "threads": 2,
        "dtype": "float32", "memory_format": "contiguous", "torch": "2.14.1", "run": run, "group": 1, "busy": 0.0,
        "date": "2026-01-01 00:00 UTC", **measured, **more,
    }  # fmt: skip


def written(folder, benchmark, rows, against=False):
    """The page of some rows."""
    table = CsvTable(folder / f"{benchmark.name}.csv", runs.KEY)
    table.add(rows)
    runs.write_files(benchmark, table, against)
    return table.path.with_suffix(".md").read_text()


ROWS = [
    row("autograd", 1.0), row(PLACEBO, 1.02), row("forward", 0.4), row("forward inductor", 0.3),
    row("fxlrp eager", 1.5), row("fxlrp inductor", 1.0), row("fxlrp channels-last epsilon_plus", 1.25),
    row("zennit EpsilonPlus", 5.0), row("captum LRP", 2.0), row("autolrp", reason="RuntimeError: a|b"),
    row("autograd", 1.0, model="swin_t"), row("fxlrp eager", 1.5, model="swin_t"),
    row("captum LRP", model="swin_t", reason="no rule"),
]  # fmt: skip


def test_the_page_holds_what_the_rows_say(tmp_path):
    page = written(tmp_path, speed.SPEED, ROWS)
    assert "- CPU: Some CPU, 2 thread(s); torch 2.14.1, float32, 3 rounds; batch 1; height and width 224; 11" in page
    assert "The placebo is the yardstick in a second process: 1.020 to 1.020, single rounds 0.918 to 1.122." in page
    assert "| resnet50 | 1 | captum LRP | 2.00 | 1.50 (eager) | 1.33 | 1.00 (inductor) | 2.00 |" in page
    assert "- no peer runs, fxlrp does: swin_t (batch 1)" in page
    assert "| zennit EpsilonPlus | fxlrp channels-last epsilon_plus | 1 | 4.00 |  |" in page
    assert "| placebo | 1.02 (0.92–1.12) |  |" in page
    assert "| fxlrp inductor | **1.00** (0.90–1.10) |  |" in page
    assert "| fxlrp eager | 80% |  |" in page
    assert "| fxlrp eager | 300 / 200 / 100 | 300 / 200 / 100 |" in page
    assert "- **autolrp**, resnet50 (batch 1), at set-up: `RuntimeError: a|b`" in page


def test_a_quotient_of_figures_from_two_runs_is_starred():
    ours, peer, other = row("fxlrp eager", 1.5), row("captum LRP", 3.0), row("autolrp", 3.0, run="two")
    assert quotient(peer, ours) == quotient(other, ours) == 2
    assert starred_quotient(peer, ours) == "2.00"
    assert starred_quotient(other, ours) == "2.00\\*"
    assert starred_quotient(dict(peer, status="failed"), ours) == starred_quotient(peer, None) == ""


def test_page_and_plot_are_made_anew_without_measuring(tmp_path):
    CsvTable(tmp_path / "speed.csv", runs.KEY).add(ROWS)
    before = (tmp_path / "speed.csv").read_text()
    result = CliRunner().invoke(app, ["speed", "--page-only", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "speed.md").read_text().startswith("# Speed\n")
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    assert (tmp_path / "speed.csv").read_text() == before


def test_nothing_measured_is_an_error_and_no_page(tmp_path):
    result = CliRunner().invoke(app, ["targets", "--page-only", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_only_missing_leaves_complete_cases_alone(tmp_path, monkeypatch):
    measured = []

    def fake(case, names, *rest):
        measured.append(case.batch)
        return [row(name, 1.0, batch=case.batch) for name in names]

    def run(*options):
        command = ["speed", "--model", "resnet50", "--out", str(tmp_path), *options]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output

    monkeypatch.setattr(runs, "measure", fake)
    methods = ["--method", "fxlrp eager", "--method", "lxt"]
    run("--batch", "1", *methods)
    run("--batch", "1", "--batch", "8", "--only-missing", *methods)
    assert measured == [1, 8]
    run("--batch", "1", "--batch", "8", "--only-missing", "--method", "forward")
    assert measured == [1, 8, 1, 8]
    assert "lxt" not in (tmp_path / "speed.csv").read_text()  # it does not apply


def test_a_case_is_slower_only_beyond_the_placebo(tmp_path):
    rows = [
        row(name, ratio, compared="fxlrp eager", batch=batch)
        for batch, placebo, now in ((1, 1.01, 1.04), (8, 0.97, 1.04), (32, 1.0, 0.9))
        for name, ratio in (("before", 1.0), (PLACEBO, placebo), ("now", now))
    ]
    rows += [row("before", compared="fxlrp inductor", reason="broke"), row("now", compared="fxlrp inductor")]
    page = written(tmp_path, speed.SPEED, rows, against=True)
    assert "beyond the placebo: 1 of 4 cases" in page
    assert "- **slower**: fxlrp eager resnet50, batch 1\n" in page
    assert "| fxlrp eager | resnet50 | 8 | now | 0.52 s | 1.040 (0.936–1.144) |" in page


def test_every_optimisation_has_a_variant_and_a_line(tmp_path):
    assert set(program.OPTIMISED) >= {"all", "none"}
    for name in NAMES:
        assert f"without {name}" in program.OPTIMISED
    page = written(tmp_path, program.OPTIMIZER, [row("all", 1.0), row("none", 1.4), row("none", 1.6, batch=8)])
    assert "| none | 1.400 (1.260–1.540) | 200 / 100 | 1.600 (1.440–1.760) | 200 / 100 |" in page
    assert all(f"- `{name}`" in page for name in NAMES)
    assert "No placebo was measured" in page


def test_an_optimisation_is_worth_it_only_beyond_the_placebo(tmp_path):
    first, second, third = NAMES[:3]
    rows = [
        row("all", 1.0), row(PLACEBO, 1.02), row(f"without {first}", 1.1), row(f"without {second}", 1.04),
        row(f"without {third}", 0.9, held_mb=120.0), row("all", 1.0, batch=8), row(f"without {second}", 2.0, batch=8),
    ]  # fmt: skip
    page = written(tmp_path, program.OPTIMIZER, rows)
    none = "+0.0% (resnet50, batch 1)"
    assert f"| {first} | +7.1% (resnet50, batch 1) | {none} | {none} | yes |" in page
    assert f"| {second} | +1.8% (resnet50, batch 1) | +0.0% (resnet50, batch 1) | +0.0%" in page
    assert "| **no** |" in next(line for line in page.splitlines() if line.startswith(f"| {second} |"))
    assert f"| {third} | -13.1% (resnet50, batch 1) | +16.7% (resnet50, batch 1) | +6.2%" in page


def test_scaling_is_told_by_axis(tmp_path):
    rows = [row("captum LRP", batch=2, reason="no rule")]
    for batch in (1, 2):
        rows += [row("autograd", 1.0, batch=batch), row("fxlrp eager", 1.5, batch=batch)]
    page = written(tmp_path, speed.SCALING, rows)
    assert "### Batch: resnet50, 224 × 224" in page
    assert "| 2 | 0.5 s | 1.50 (1.35–1.65) | fails | 1.50 + 2.50 |" in page
    assert "| 224 | 0.5 s | 1.50 (1.35–1.65) | 1.50 + 2.50 |" in page
    assert "### Depth" not in page
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
