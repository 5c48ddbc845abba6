"""Reports: their tables, pictures and numbers, and how sure these are."""

import dataclasses
import importlib
import json
import re
import sys
import warnings

import numpy as np
import polars as pl
import pytest
from evaluation_configs import METHODS, result_rows, small_config, small_file, small_table
from PIL import Image
from scipy import stats

import fxlrp
from fxlrp import cli
from fxlrp.errors import ConfigError, EvaluationError, MissingExtraError
from fxlrp.evaluation import evaluate, parse_config, read_results, write_report
from fxlrp.evaluation.result_frames import differences
from fxlrp.evaluation.statistics import Estimate, estimate

pytestmark = pytest.mark.usefixtures("evaluation_place")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line; gives its exit code and what it printed."""

    def runner(*arguments):
        monkeypatch.setattr(sys, "argv", ["fxlrp", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return stopped.value.code, " ".join((printed.out + printed.err).split())

    return runner


def section(text, headline):
    return text.split(f"## {headline}")[1].split("##")[0]


def scores(text):
    return [float(score) for score in re.findall(r"\| (-?[\d.]+) \(", text)]


def test_a_report_has_every_table_and_picture(tmp_path):
    config = small_config(tmp_path, per_class=4, metrics={"randomize": 2, "properties": 2})
    evaluate(config)
    page = write_report(config)
    text = page.read_text()
    for headline in ("All methods", "Table 1", "Table 2", "Table 3", "Table C", "What of the paper's ordering holds",
                     "Cost", "Conservation", "Agreement", "What maps are like",
                     "Maps of a randomised model", "Galleries"):  # fmt: skip
        assert f"## {headline}" in text, headline
    assert re.search(r"\| symmetric \|.*\| 37\.6 \|", section(text, "Table 3"))
    assert re.search(r"\| symmetric, 8 levels \|.*\| 51\.0 \|", section(text, "Table 3"))
    assert re.search(r"\| conserving \| -?\d\.\d\d \|", section(text, "What maps are like"))
    pictures = set(re.findall(r"\]\((.+?\.(?:png|jpg))\)", text))
    assert pictures == {"scores.png", "curves_strict.png", "curves_plateau.png", "conservation.png", "agreement.png",
                        "gallery_best.jpg", "gallery_worst.jpg"}  # fmt: skip
    for name in pictures:
        assert Image.open(page.parent / name).size[0] > 200
    assert "\n\n\n" not in text
    assert len((page.parent / "results.csv").read_text().splitlines()) == 8
    results = read_results(config)
    assert {"image", "method", "levels", "insertion_strict", "id_strict"} <= set(results.columns)
    assert results["index"].n_unique() == 12
    randomized = json.loads((config.out / "randomized.json").read_text())
    assert randomized["layers"][-1] == "stem"
    assert randomized["methods"]["edges"] == pytest.approx([1.0] * len(randomized["layers"]))


def test_a_report_says_what_the_results_hold(tmp_path):
    config = small_config(tmp_path, per_class=4, methods={"conserving": {"levels": [0, 8]}, "edges": {"kind": "edges"}})
    evaluate(config)
    text = write_report(config, gallery=False).read_text()
    rows = [row for row in result_rows(config) if (row["method"], row["levels"]) == ("conserving", 8)]
    cells = []
    for tie in ("strict", "plateau"):
        insertion, deletion = (np.array([row[f"{what}_{tie}"] for row in rows]) for what in ("insertion", "deletion"))
        score, means = insertion - deletion, (100 * insertion.mean(), 100 * deletion.mean())
        cells += [estimate(score).text(), *(f"{mean:.1f}" for mean in means), f"{100 * (score <= 0.371).mean():.0f} %"]
    tied = f"{100 * np.mean([row['tied'] for row in rows]):.1f}"
    assert f"| conserving, 8 levels | 12 | {' | '.join([*cells, tied])} |" in text
    correct = 100 * np.mean([row["predicted"] == row["label"] for row in rows])
    assert f"12 images, of which the model gets {correct:.1f} % right. Explained and followed: the label." in text
    shares = np.array([dict(row["checkpoints"])["input"] / row["start"] for row in rows])
    line = f"| conserving | input | {shares.mean():.4f} | {shares.min():.4f} | {shares.max():.4f} |"
    assert line in section(text, "Conservation")


def test_a_report_is_made_again_from_the_results_alone(tmp_path, run):
    few = {name: METHODS[name] for name in ("bright", "edges")}
    config = small_config(tmp_path, methods=few)
    evaluate(config)
    first = write_report(config, gallery=False).read_text()
    moved = dataclasses.replace(config, run=dataclasses.replace(config.run, title="Moved"))
    second = write_report(moved, tmp_path / "elsewhere", gallery=False).read_text()
    assert second.splitlines()[1:] == first.splitlines()[1:]
    assert second.startswith("# Moved")
    code, output = run("report", small_file(tmp_path, methods=few), "--no-gallery", "--to", tmp_path / "third")
    assert code == 0, output
    assert (tmp_path / "third" / "report.md").read_text() == first


def test_the_command_evaluates_and_reports(tmp_path, run):
    few = {name: METHODS[name] for name in ("bright", "edges")}
    code, output = run("evaluate", small_file(tmp_path, methods=few), "--out", tmp_path / "there")
    assert code == 0, output
    assert "6 images, 0 of them from an earlier run" in output
    assert (tmp_path / "there" / "report" / "report.md").exists()


def test_a_sweep_is_ranked_with_costs_and_against_one_method(tmp_path):
    table = small_table(tmp_path, methods={})
    table["sweep"] = {"rules": {"preset": ["conserving", "epsilon_plus"], "split": ["ratio", "symmetric"]}}
    table["run"]["against"] = first = "rules: preset=conserving, split=ratio"
    config = parse_config(table, tmp_path)
    evaluate(config)
    text = write_report(config, gallery=False).read_text()
    ranked, gains = section(text, "Sweep: rules"), scores(section(text, f"Against {first}"))
    assert len(scores(ranked)) == 4
    assert scores(ranked) == sorted(scores(ranked), reverse=True)
    assert re.search(r"\| [\d.]+ \| [\d.]+ \|\n", ranked)
    assert len(gains) == 3
    assert gains == sorted(gains, reverse=True)
    (own,) = re.findall(rf"\| {re.escape(first)} \| (-?[\d.]+) \(", ranked)
    others = scores(ranked)
    others.remove(float(own))
    assert gains == pytest.approx([score - float(own) for score in others], abs=0.11)  # of rounded numbers


def test_galleries_are_left_out_with_a_reason_where_the_data_are_gone(tmp_path):
    config = small_config(tmp_path, methods={"bright": METHODS["bright"]})
    evaluate(config)
    (tmp_path / "images.npz").unlink()
    text = write_report(config).read_text()
    assert re.search(r"No gallery: .*images\.npz cannot be read", section(text, "Galleries"))


def test_a_report_without_results_is_an_error(tmp_path):
    with pytest.raises(EvaluationError, match="holds no results"):
        write_report(small_config(tmp_path))


def test_the_command_says_what_is_wrong_in_a_file(tmp_path, run):
    path = small_file(tmp_path)
    path.write_text(path.read_text().replace('"step" = 9', '"step" = 0'))
    code, output = run("evaluate", path)
    assert code == 1
    assert f"error: {path}: metrics.step = 0: it must be greater than 0" in output
    with pytest.raises(ConfigError):
        parse_config({"model": 3}, tmp_path)


@pytest.fixture
def without(monkeypatch):
    """Hide a package, and evaluations that were imported with it."""

    def hide(package):
        for name in [name for name in sys.modules if name.startswith("fxlrp.evaluation")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(fxlrp, "evaluation")
        monkeypatch.setitem(sys.modules, package, None)

    return hide


@pytest.mark.parametrize(
    ("package", "name"),
    [("pydantic", "read_config"), ("pyarrow", "evaluate"), ("polars", "write_report"), ("scipy", "write_report"),
     ("jinja2", "write_report")],
)  # fmt: skip
def test_a_missing_package_is_an_error_that_names_the_extra(without, package, name):
    without(package)
    evaluation = importlib.import_module("fxlrp.evaluation")
    with pytest.raises(MissingExtraError, match=rf"this needs {package}, .*fxlrp\[evaluate\]"):
        getattr(evaluation, name)
    assert callable(evaluation.insertion_deletion)  # metrics need none of them


def test_a_package_that_the_report_needs_is_missed_before_the_evaluation(tmp_path, run, without):
    path = small_file(tmp_path, methods={"edges": {"kind": "edges"}})
    without("polars")
    assert run("evaluate", path) == (1, f"error: {MissingExtraError('polars', 'evaluate')}")
    assert not (tmp_path / "out").exists()
    assert run("evaluate", path, "--no-report")[0] == 0


# How sure -------------------------------------------------------------------------------------------


def test_intervals_are_those_of_scipy_and_narrow_with_more_images():
    values = np.random.default_rng(1).gamma(2.0, size=400)
    few, many = estimate(values[:40]), estimate(values)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(5))
    assert many.mean == pytest.approx(values.mean())
    assert many[1:] == pytest.approx(expected.confidence_interval, abs=0.02)
    assert many.high - many.low < few.high - few.low
    assert estimate(values) == many


@pytest.mark.parametrize("values", [[0.1] * 7, [0.3, 0.3 + 1e-16, 0.3], [0.0, 0.0]])
def test_equal_values_have_an_interval_of_no_width(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate(np.array(values))
    assert found == pytest.approx((values[0],) * 3)
    assert found.text() == f"{100 * values[0]:.1f} ({100 * values[0]:.1f} to {100 * values[0]:.1f})"


def test_one_image_has_a_mean_and_no_interval():
    found = estimate(np.array([0.25]))
    assert found.mean == 0.25
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    assert found.text() == "25.0"
    assert estimate(np.array([])).text() == "–"


def test_two_images_have_an_interval_between_them():
    found = estimate(np.array([0.2, 0.4]))
    assert 0.2 <= found.low <= found.mean <= found.high <= 0.4
    assert found.low < found.high


def test_a_report_of_one_image_decides_nothing(tmp_path):
    methods = {"conserving": {"paper": "iv"}, "symmetric": {"split": "symmetric", "paper": "i"}}
    table = small_table(tmp_path, methods=methods)
    table["data"] = {"kind": "npz", "path": "images.npz", "count": 1}
    config = parse_config(table, tmp_path)
    evaluate(config)
    text = write_report(config, gallery=False).read_text()
    assert "**undecided**" in section(text, "What of the paper's ordering holds")
    assert "holds**" not in text
    lines = (config.out / "report" / "results.csv").read_text().splitlines()
    assert lines[1].split(",")[9:11] == ["", ""]


def test_differences_are_of_images_that_both_methods_have():
    first = pl.DataFrame({"index": [4, 1, 3], "id_strict": [0.5, 0.25, 1.0]})
    second = pl.DataFrame({"index": [1, 2, 4], "id_strict": [0.125, 9.0, 1.0]})
    assert differences(first, second, "strict").tolist() == [-0.5, 0.125]
    assert Estimate(0.5, 0.25, 0.75).text() == "50.0 (25.0 to 75.0)"
