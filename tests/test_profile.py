"""Profiles: every step of the optimised program is timed once, under its kind, products apart from all else."""

import itertools

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import fxlrp
from benchmarks import kinds
from benchmarks.table import Table
from fxlrp.errors import InputError, TargetError
from fxlrp.passes.facts import KEY, Emitted
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
    return fxlrp.compile(Attending().eval())


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
    program = engine.program(prepared, engine.request(prepared)).module
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
    explainer = fxlrp.compile(net)
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


def test_the_benchmark_writes_rows_and_their_sums(tmp_path):
    options = ["--model", "cifar_resnet8", "--batch", "1", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    app = typer.Typer()
    app.command()(kinds.main)
    for again in range(2):
        if again:  # what is measured anew replaces all that was there of it
            rows = Table(tmp_path / "kinds.csv", kinds.COLUMNS, kinds.KEY)
            rows.add({**next(iter(rows.rows.values())), "kind": "gate", "forward": 9.0})
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 0, result.output
    rows = list(Table(tmp_path / "kinds.csv", kinds.COLUMNS, kinds.KEY).rows.values())
    assert {row["preset"] for row in rows} == set(kinds.PRESETS)
    assert {row["kind"] for row in rows} >= {"convolution", "linear", "join", "normalisation", kinds.CALL}
    page = (tmp_path / "kinds.md").read_text()
    section = page.partition("## conserving, batch 1")[2].partition("## otsuki2024")[0]
    cells = dict(line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| "))
    mine = [row for row in rows if row["preset"] == "conserving" and row["kind"] != kinds.CALL]
    sums = [sum(float(row[part]) for row in mine) for part in ("forward", "products", "rest")]
    assert float(cells["**sum of the forward pass**"]) == pytest.approx(sums[0], abs=0.006)
    assert float(cells["**sum of both**"]) == pytest.approx(sum(sums), abs=0.006)
    assert "gate, forward" not in cells


def test_the_page_has_every_kind_that_matters_and_sums_the_others():
    def row(model, kind, forward=0.0, products=0.0, rest=0.0):
        values = dict.fromkeys(kinds.COLUMNS, "1")
        given = {"model": model, "kind": kind, "forward": forward, "products": products, "rest": rest}
        return values | {"preset": "conserving"} | {name: str(value) for name, value in given.items()}

    rows = [row("resnet50", "convolution", 0.5, 0.75, 0.25), row("resnet50", "gate", 0.004, 0, 0.003),
            row("resnet50", kinds.CALL, rest=1.625), row("vgg16_bn", "convolution", 0.25, 0.5, 0.001),
            row("vgg16_bn", "pooling", 0.004, 0, 0.0625), row("vgg16_bn", kinds.CALL, rest=1.0)]  # fmt: skip
    lines = [line.strip("| ").split(" | ") for line in kinds.page(rows).splitlines() if line.startswith("| ")]
    assert lines == [
        ["kind of node", "resnet50", "vgg16_bn"],
        ["convolution, relevance: products", "0.75", "0.50"],
        ["convolution, forward", "0.50", "0.25"],
        ["convolution, relevance: rest", "0.25"],
        ["pooling, relevance: rest", "", "0.06"],
        ["others", "0.01", "0.00"],
        ["**sum of the forward pass**", "0.50", "0.25"],
        ["**sum of relevance**", "1.00", "0.56"],
        ["**sum of both**", "1.51", "0.82"],
        ["one call, by itself", "1.62", "1.00"],
    ]


def test_a_model_that_is_none_is_an_error(tmp_path):
    app = typer.Typer()
    app.command()(kinds.main)
    for option in (["--model", "resnet51"], ["--preset", "lrp"]):
        result = CliRunner().invoke(app, [*option, "--out", str(tmp_path)])
        assert result.exit_code == 2
        assert option[1] in result.output
    assert not list(tmp_path.iterdir())
