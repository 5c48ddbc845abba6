"""Profiles: every step of the optimised program is timed once, under its kind, products apart from all else."""

import itertools

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fxlrp
from benchmarks import program
from benchmarks.__main__ import app
from benchmarks.pages import CsvTable
from benchmarks.runs import COLUMNS
from benchmarks.runs import KEY as KEY_OF_ROWS
from fxlrp.errors import InputError, TargetError
from fxlrp.passes.facts import KEY, Emitted
from fxlrp.passes.request import Request
from fxlrp.profile import WEIGHTS
from fxlrp.runtime import timing as times
from fxlrp.runtime.engine import Engine


class Attending(nn.Module):
    """A convolution, a join, pooling, a norm and attention."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 24)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        x = self.pool(torch.relu(self.inner(x)) + x)
        x = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.mix(x).chunk(3, dim=-1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).mean(dim=1))


@pytest.fixture(scope="module")
def explainer():
    torch.manual_seed(0)
    return fxlrp.compile(Attending().eval(), "conserving")


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8)


@pytest.fixture
def ticking(monkeypatch):
    """A clock on which everything that is timed takes a second."""
    clock = itertools.count()
    monkeypatch.setattr(times.time, "perf_counter", lambda: float(next(clock)))


def run_by(explainer, images):
    """The calls of the program that an explanation runs."""
    engine = Engine(explainer.forward_func, explainer.recipe)
    prepared = engine.prepare((images,), {})
    program = engine.program(prepared, Request()).module
    return [node for node in program.graph.nodes if node.op.startswith("call")]


def test_each_call_of_the_optimised_program_is_timed_once(explainer, images, ticking):
    profile = explainer.profile(images, rounds=2)
    calls = run_by(explainer, images)
    assert profile.milliseconds == 1000 * len(calls)
    relevance = sum(isinstance(node.meta.get(KEY), Emitted) for node in calls)
    assert sum(row.milliseconds for row in profile if row.relevance) == 1000 * relevance
    assert 0 < relevance < len(calls)


def test_programs_on_packed_weights_are_the_ones_timed(images, ticking):
    net = nn.Sequential(nn.Conv2d(3, 128, 1), nn.ReLU(), nn.Conv2d(128, 256, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    net = nn.Sequential(net, nn.Flatten(), nn.Linear(256, 3)).eval().to(memory_format=torch.channels_last)
    explainer = fxlrp.compile(net, "conserving")
    images = images.contiguous(memory_format=torch.channels_last)
    profile = explainer.profile(images)
    calls = run_by(explainer, images)
    assert any("packed" in str(node.target) for node in calls)
    assert profile.milliseconds == 1000 * len(calls)
    (last,) = (row for row in profile if row.node.endswith("_2") and row.relevance and row.kind == "convolution")
    assert last.products == 2000  # W⁺ and its transpose, by packed weights


def test_products_are_told_from_all_else(explainer, images, ticking):
    found = explainer.profile(images).kinds
    for kind, count in (("convolution", 2), ("linear", 2), ("product", 1)):
        forward, relevance = found[kind]
        assert (forward.products, forward.rest) == (1000 * count, 0)
        assert relevance.products >= 1000 * count  # denominators or transpose, at the least one of them
        assert relevance.rest > 0
    for kind in ("join", "pooling", "normalisation", "pointwise", "routing", WEIGHTS):
        assert found[kind][0].products == found[kind][1].products == 0
    assert found["join"][1].rest > 0
    assert found["pooling"][1].rest > 0


def test_rows_are_of_the_nodes_of_the_model(explainer, images):
    profile = explainer.profile(images)
    names = {node.name for node in explainer.model_graph.nodes}
    assert {row.node for row in profile if row.kind != WEIGHTS} <= names
    propagated = {row.node for row in profile if row.relevance and row.kind != WEIGHTS}
    assert {"conv", "inner", "pool", "mix", "head"} <= propagated <= {row.node for row in explainer.ledger(images)}
    assert min(row.milliseconds for row in profile) >= 0
    sums = explainer.profile(images)
    total = sum(part.total for parts in sums.kinds.values() for part in parts)
    assert total == pytest.approx(sums.milliseconds, rel=1e-12)


def test_it_is_read_as_a_table_whose_shares_add_up(explainer, images, ticking):
    profile = explainer.profile(images)
    head, _, *lines = str(profile).splitlines()
    assert head.split()[0] == "kind"
    assert {line.split()[0] for line in lines} == {*profile.kinds, "all"}
    shares = [float(line.split()[-1].rstrip("%")) for line in lines]
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.05 * len(shares))
    assert lines[-1].split()[-1] == "100.0%"
    assert repr(profile).startswith(f"<Profile of {len(profile)} steps")


def test_it_changes_nothing(explainer, images):
    before = explainer(images)
    state = {name: tensor.clone() for name, tensor in explainer.forward_func.state_dict().items()}
    explainer.profile(images)
    after = explainer(images)
    assert torch.equal(before.relevance, after.relevance)
    assert all(torch.equal(tensor, state[name]) for name, tensor in explainer.forward_func.state_dict().items())


def test_node_times_are_of_the_program_as_the_rules_wrote_it(explainer, images, ticking):
    calls = [node for node in explainer.emitted.nodes if node.op.startswith("call")]
    assert sum(explainer.node_times(images).values()) == 1000 * len(calls)


def test_what_cannot_be_profiled_is_an_error(explainer, images):
    for rounds in (0, True, 1.5):
        with pytest.raises(InputError, match="whole number"):
            explainer.profile(images, rounds=rounds)
    for ask in (explainer.profile, explainer.node_times):
        with pytest.raises(TargetError, match="one target per item"):
            ask(images, target=[0, 1])
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="autocast"):
            ask(images)
    with pytest.raises(InputError):
        explainer.profile(images[:, :1])


# The benchmark -----------------------------------------------------------------------------------


@pytest.mark.slow  # processes that start take most of it; the page and its sums are tested below
def test_the_benchmark_writes_rows_and_their_sums(tmp_path):
    options = ["kinds", "--model", "cifar_resnet8", "--batch", "1", "--rounds", "1", "--threads", "1"]
    options += ["--method", "conserving", "--method", "conserving" + program.PROFILE]
    table = CsvTable(tmp_path / "kinds.csv", KEY_OF_ROWS)
    case = {"device": "cpu", "model": "cifar_resnet8", "size": 32, "batch": 1, "method": "conserving" + program.PROFILE}
    table.add([{**case, "part": "gate, forward", "status": "ok", "ratio": 9.0}])  # of an earlier run: it is replaced
    result = CliRunner().invoke(app, [*options, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = CsvTable(table.path, KEY_OF_ROWS).rows.values()
    assert {row["method"] for row in rows} == {"autograd", "placebo", "conserving", "conserving" + program.PROFILE}
    own = [row for row in rows if row["method"] == "conserving" + program.PROFILE]
    mine = {row["part"]: float(row["ratio"]) for row in own if row["part"]}
    assert {part.split(",")[0] for part in mine} >= {"convolution", "linear", "join", "normalisation"}
    page = (tmp_path / "kinds.md").read_text()
    section = page.partition("## conserving, batch 1")[2].partition("## otsuki2024")[0]
    cells = dict(line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| "))
    forward = sum(ratio for part, ratio in mine.items() if part.endswith(", forward"))
    assert float(cells["**sum of the forward pass**"]) == pytest.approx(forward, abs=0.006)
    assert float(cells["**sum of both**"]) == pytest.approx(sum(mine.values()), abs=0.006)
    assert "gate, forward" not in cells


def test_the_page_has_every_kind_that_matters_and_sums_the_others(tmp_path):
    def rows(model, call, **kinds_of):
        common = {"device": "cpu", "device_name": "Some CPU", "model": model, "size": 224, "batch": 1, "status": "ok"}
        yield {**common, "method": "conserving", "ratio": call}
        for kind, values in kinds_of.items():
            for what, value in zip((program.FORWARD, program.PRODUCTS, program.REST), values, strict=True):
                yield {**common, "method": "conserving" + program.PROFILE, "part": f"{kind}, {what}", "ratio": value}

    table = CsvTable(tmp_path / "kinds.csv", KEY_OF_ROWS)
    table.add(rows("resnet50", 1.625, convolution=(0.5, 0.75, 0.25), gate=(0.004, 0.0, 0.003)))
    table.add(rows("vgg16_bn", 1.0, convolution=(0.25, 0.5, 0.001), pooling=(0.004, 0.0, 0.0625)))
    ((_, columns, lines),) = program.by_kind(table.frame(COLUMNS))["tables"]
    assert [columns, *lines] == [
        ["kind of node", "resnet50", "vgg16_bn"],
        ["convolution, relevance: products", "0.75", "0.50"],
        ["convolution, forward", "0.50", "0.25"],
        ["convolution, relevance: rest", "0.25", ""],
        ["pooling, relevance: rest", "", "0.06"],
        ["others", "0.01", "0.00"],
        ["**sum of the forward pass**", "0.50", "0.25"],
        ["**sum of relevance**", "1.00", "0.56"],
        ["**sum of both**", "1.51", "0.82"],
        ["one call, by itself", "1.62", "1.00"],
    ]


def test_a_model_that_is_none_is_an_error(tmp_path):
    for option in (["--model", "resnet51"], ["--method", "lrp"], ["--variant", "none"]):
        result = CliRunner().invoke(app, ["kinds", *option, "--out", str(tmp_path)])
        assert result.exit_code == 2
        assert option[1] in result.output or "no case has" in result.output
    assert not list(tmp_path.iterdir())
