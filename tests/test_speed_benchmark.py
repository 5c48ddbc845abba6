"""The speed benchmark: methods take turns in processes of their own, failures are rows, pages come from rows alone."""

import importlib.util
import subprocess
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from benchmarks import interleaved, optimizer, scaling, speed
from benchmarks.interleaved import COLUMNS, KEY, measure
from benchmarks.peers import autolrp_set_up
from benchmarks.speed_memory import Memory
from benchmarks.speed_methods import METHODS as TIMED
from benchmarks.speed_methods import Method
from benchmarks.speed_models import CifarResNet, build, images_for, known
from benchmarks.speed_page import speed_page
from benchmarks.speed_process import Case, Failure, Settings, Worker
from benchmarks.speed_sheet import quotient, told_quotient
from benchmarks.table import Table
from fxlrp.passes.optimize import NAMES

CASE = Case("cifar_resnet8", 2, 32)

# What the workers of these tests run: they find it here by name. ---------------------------------


def once(model, images):
    return lambda: lambda: model(images)


def broken(model, images):
    def set_up():
        raise ValueError("no rule for this layer")

    return set_up


METHODS = {"yard": Method(once, "model"), "same": Method(once, "model"), "broken": Method(broken, "model")}
HERE = Settings("tests.test_speed_benchmark", "yard", rounds=3, warmups=0, threads=1, timeout=120)

# The controller ----------------------------------------------------------------------------------


def test_methods_take_turns_and_failures_are_rows():
    rows = {row["method"]: row for row in measure(CASE, ["same", "broken"], HERE)}
    assert list(rows) == ["yard", "same", "broken"]
    assert rows["yard"]["ratio"] == rows["yard"]["ratio_min"] == rows["yard"]["ratio_max"] == 1
    same = rows["same"]
    assert same["status"] == "ok"
    assert same["ratio_min"] <= same["ratio"] <= same["ratio_max"]
    assert len(same["times"].split()) == same["rounds"] == 3
    assert same["first_s"] > 0
    assert same["run"] == rows["yard"]["run"]
    assert set(same) <= set(COLUMNS)
    assert (rows["broken"]["stage"], rows["broken"]["reason"]) == ("set-up", "ValueError: no rule for this layer")


GIB = {"yard": (1, 1), "small": (1, 2), "other": (1, 2), "large": (6, 9), "huge": (99, 99)}


class FakeWorker(SimpleNamespace):
    """Stands for a process that holds so much, and so much at its peak."""

    def __init__(self, method, case, settings):
        super().__init__(method=method, facts={}, times=[], holds=0, most=0)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def prepare(self, room):
        self.holds, self.most = (int(gib * 2**30) for gib in GIB[self.method])
        if self.most > room * 2**30:
            raise Failure("first call", "can't allocate memory")

    def count(self):
        if self.method == "other":
            raise Failure("round", "gave up")
        self.times.append(2.0 if self.method == "small" else 1.0)

    def weigh(self):
        pass


def test_what_does_not_fit_together_is_measured_in_groups(monkeypatch):
    monkeypatch.setattr(interleaved, "Worker", FakeWorker)
    settings = Settings(yardstick="yard", memory=10)
    rows = {row["method"]: row for row in measure(CASE, ["small", "large", "huge", "other"], settings)}
    assert {name: row["group"] for name, row in rows.items()} == {
        "yard": 1, "small": 1, "large": 2, "huge": 3, "other": 3,
    }  # fmt: skip
    assert rows["small"]["ratio"] == 2
    assert rows["large"]["status"] == "ok"
    assert rows["huge"]["reason"] == "can't allocate memory"
    assert (rows["other"]["stage"], rows["other"]["reason"]) == ("round", "gave up")


def test_without_the_yardstick_all_fail(monkeypatch):
    monkeypatch.setattr(interleaved, "Worker", FakeWorker)
    rows = {row["method"]: row for row in measure(CASE, ["small"], Settings(yardstick="huge"))}
    assert rows["huge"]["reason"] == "can't allocate memory"
    assert rows["small"]["reason"] == "huge, the yardstick, failed at first call: can't allocate memory"


@pytest.mark.parametrize(
    ("command", "timeout", "reason"),
    [
        ("sleep 60", 1, "took longer than 1 s"),
        ("kill -KILL $$", 60, "killed by SIGKILL, probably out of memory: last words"),
    ],
)
def test_a_worker_that_hangs_or_dies_fails(command, timeout, reason, tmp_path):
    worker = Worker("yard", CASE, Settings(timeout=timeout))
    worker.log = tmp_path / "log.txt"
    worker.log.write_text("last words")
    with subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker.process:
        with pytest.raises(Failure, match=reason) as failure:
            worker.weigh()
        worker.process.kill()
        with suppress(BrokenPipeError):  # of a request that the dead process never read
            worker.process.stdin.close()
    assert failure.value.stage == "memory"
    assert failure.value.of_memory == ("SIGKILL" in reason)


# Models, methods, memory -------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_cifar_resnets_have_as_many_layers_as_they_say(depth):
    layers = [name for name, module in CifarResNet(depth).named_modules()
              if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in name]  # fmt: skip
    assert len(layers) == depth
    assert known(f"cifar_resnet{depth}")
    assert not known(f"cifar_resnet{depth + 1}")


@pytest.mark.parametrize("name", [name for name in TIMED if "inductor" not in name])
def test_every_method_runs_where_it_applies(name):
    method = TIMED[name]
    if not method.suits("cifar_resnet8", "cpu"):
        pytest.skip("applies elsewhere")
    if importlib.util.find_spec(method.package) is None:
        pytest.skip(f"{method.package} is not installed")
    form = torch.channels_last if method.channels_last else torch.contiguous_format
    model, images = build("cifar_resnet8").to(memory_format=form), images_for(2, 32).contiguous(memory_format=form)
    call = method.begin(model, images)()
    call()
    call()


def test_autolrp_explains_a_batch_as_it_explains_each_image():
    pytest.importorskip("autolrp")
    images = images_for(3, 32)
    explain = autolrp_set_up(build("cifar_resnet8"), composite=True)
    together, apart = explain(images)[1], torch.cat([explain(images[i : i + 1])[1] for i in range(3)])
    shares = together.sum(dim=(1, 2, 3)) / apart.sum(dim=(1, 2, 3))
    torch.testing.assert_close(together, apart * shares[:, None, None, None], rtol=1e-3, atol=1e-6)


def test_memory_tells_a_peak_apart_from_what_is_held():
    memory = Memory("cpu")
    if memory.peak() is None:
        pytest.skip("the system does not tell")
    memory.settle()
    memory.start_over()
    before = memory.now()
    torch.ones(32 * 2**20)  # 128 MiB
    memory.settle()
    assert memory.peak() - before > 100 * 2**20
    assert memory.now() - before < 50 * 2**20


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


def table_of(path, rows):
    table = Table(path, COLUMNS, KEY)
    for one in rows:
        table.add(one)
    return list(table.rows.values())


ROWS = [
    row("autograd", 1.0), row("forward", 0.4), row("forward inductor", 0.3), row("fxlrp eager", 1.5),
    row("fxlrp inductor", 1.0), row("fxlrp channels-last epsilon_plus", 1.25), row("zennit EpsilonPlus", 5.0),
    row("captum LRP", 2.0), row("autolrp", reason="RuntimeError: a|b"), row("autograd", 1.0, model="swin_t"),
    row("fxlrp eager", 1.5, model="swin_t"), row("captum LRP", model="swin_t", reason="no rule"),
]  # fmt: skip


def test_the_page_holds_what_the_rows_say(tmp_path):
    page = speed_page(table_of(tmp_path / "speed.csv", ROWS))
    assert "- CPU: Some CPU, 2 threads; torch 2.14.1, float32, 3 rounds; 10 rows" in page
    assert "No GPU was at hand" in page
    assert "| resnet50 | 1 | captum LRP | 2.00 | 1.50 (eager) | 1.33 | 1.00 (inductor) | 2.00 |" in page
    assert "- no peer runs, fxlrp does: swin_t (batch 1)" in page
    assert "| zennit EpsilonPlus | fxlrp channels-last epsilon_plus | 1 | 4.00 |  |" in page
    assert "| fxlrp inductor | **1.00** (0.90–1.10) |  |" in page
    assert "| fxlrp eager | 80% |  |" in page
    assert "| fxlrp eager | 300 / 200 / 100 | 300 / 200 / 100 |" in page
    assert "- **autolrp**, resnet50 (batch 1), at set-up: `RuntimeError: a|b`" in page


def test_a_quotient_of_figures_from_two_runs_is_starred(tmp_path):
    ours, peer, other = table_of(
        tmp_path / "speed.csv", [row("fxlrp eager", 1.5), row("captum LRP", 3.0), row("autolrp", 3.0, run="two")]
    )
    assert quotient(peer, ours) == quotient(other, ours) == 2
    assert told_quotient(peer, ours) == "2.00"
    assert told_quotient(other, ours) == "2.00\\*"
    assert told_quotient(dict(peer, status="failed"), ours) == told_quotient(peer, None) == ""


def test_page_and_plot_are_made_anew_without_measuring(tmp_path):
    table_of(tmp_path / "speed.csv", ROWS)
    app = speed.typer.Typer()
    app.command()(speed.main)
    result = CliRunner().invoke(app, ["--page-only", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "results.md").read_text().startswith("# Speed\n")
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_only_missing_leaves_complete_cases_alone(tmp_path, monkeypatch):
    table = Table(tmp_path / "speed.csv", COLUMNS, KEY)
    measured = []
    monkeypatch.setattr(speed, "measure", lambda case, names, *rest: measured.append(case.batch) or
                        [row(name, 1.0, batch=case.batch) for name in names])  # fmt: skip
    cases = [Case("resnet50", 1, 224), Case("resnet50", 8, 224)]
    console = speed.Console(quiet=True)
    speed.sweep(cases[:1], ["autograd", "fxlrp eager", "lxt"], Settings(), table, console)
    speed.sweep(cases, ["autograd", "fxlrp eager", "lxt"], Settings(), table, console, only_missing=True)
    assert measured == [1, 8]
    speed.sweep(cases, ["autograd", "forward"], Settings(), table, console, only_missing=True)
    assert measured == [1, 8, 1, 8]
    assert not any("lxt" in key for key in table.rows)  # it does not apply


def test_every_optimisation_has_a_variant_and_a_line(tmp_path):
    assert set(optimizer.METHODS) >= {"all", "none", "heatmap, all", "heatmap, without sum_channels"}
    for name in NAMES:
        assert (f"without {name}" in optimizer.METHODS) != (f"with {name}" in optimizer.METHODS)
    page = optimizer.page(
        table_of(tmp_path / "optimizer.csv", [row("all", 1.0), row("none", 1.4), row("none", 1.6, batch=8)])
    )
    assert "| none | 1.400 (1.260–1.540) | 200 / 100 | 1.600 (1.440–1.760) | 200 / 100 |" in page
    assert "- `fold_norms` (not by default): " in page


def test_scaling_is_told_by_axis(tmp_path):
    rows = table_of(tmp_path / "scaling.csv", [
        row(name, ratio, batch=batch) for batch in (1, 2) for name, ratio in (("autograd", 1.0), ("fxlrp eager", 1.5))
    ] + [row("captum LRP", batch=2, reason="no rule")])  # fmt: skip
    page = scaling.page(rows)
    assert "### Batch: resnet50, 224 × 224" in page
    assert "| 2 | 0.5 s | 1.50 (1.35–1.65) | fails | 1.50 + 2.50 |" in page
    assert "| 224 | 0.5 s | 1.50 (1.35–1.65) | 1.50 + 2.50 |" in page
    assert "### Depth" not in page
    assert scaling.draw(rows, tmp_path / "scaling.png")
