"""The folder of results: what killed processes leave, results in the earlier layout, and what cannot be read."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fxlrp.errors import EvaluationError
from fxlrp.evaluation.store import RESULTS, Store, schema

ORDER = (7, 3, 12)


def rows(index, status="ok"):
    return [
        {"index": index, "method": method, "levels": 0, "status": status, "checkpoints": [("input", 0.5)],
         "insertion_strict": index / 100, "insertion_curve_strict": [0.25, 0.5]}
        for method in ("second", "first")
    ]  # fmt: skip


def maps(index):
    return {"first": np.full((2, 3), index, np.float32), "a/b": np.ones((2, 3), np.float32), "": np.arange(4.0)}


@pytest.fixture
def store(tmp_path):
    """A folder with the results of three images, of which one failed."""
    made = Store(tmp_path / "out")
    made.open("fingerprint", {"title": "T"})
    for index in ORDER:
        made.add(index, rows(index, "failed" if index == 7 else "ok"), maps(index), label=index % 2)
    return made


def indices(file):
    with h5py.File(file) as content:
        assert (content["attribution"][:, 0, 0, 0] == content["index"][:]).all() or "first" not in file.name
        return content["index"][:].tolist()


def test_results_come_in_the_order_of_images_and_methods(store):
    table = store.read()
    assert table.schema.equals(schema())
    assert table["index"].to_pylist() == [3, 3, 7, 7, 12, 12]
    assert table["method"].to_pylist() == ["second", "first"] * 3
    assert store.read(["levels"]).column_names == ["levels"]
    assert pq.read_table(store.results).equals(table)  # as users read it


def test_what_a_killed_process_was_writing_is_no_result(store):
    unfinished = store.results / ".00000099-x"
    unfinished.mkdir()
    (unfinished / "00000099.parquet").write_bytes(b"half")
    assert store.done() == {3, 7, 12}
    assert store.read()["index"].to_pylist() == [3, 3, 7, 7, 12, 12]
    store.open("fingerprint", {})
    assert not unfinished.exists()


def test_maps_are_collected_into_one_file_per_method(store):
    store.maps.collect()
    assert {path.name for path in store.maps.folder.iterdir()} == {"first.h5", "a_b.h5"}
    assert indices(store.maps.folder / "first.h5") == [3, 7, 12]


def test_collecting_maps_that_was_cut_off_can_be_repeated(store):
    kept = {path.name: path.read_bytes() for path in (store.maps.folder / "waiting").iterdir()}
    store.maps.collect()
    (store.maps.folder / "waiting").mkdir()
    for name, content in kept.items():
        (store.maps.folder / "waiting" / name).write_bytes(content)
    store.add(5, rows(5), maps(5))
    store.maps.collect()
    assert indices(store.maps.folder / "first.h5") == [3, 5, 7, 12]


@pytest.mark.parametrize("collected", [False, True])
def test_failed_images_are_forgotten_with_their_maps(store, collected):
    if collected:
        store.maps.collect()
    assert store.failed() == {7}
    store.forget_failed()
    store.maps.collect()
    assert store.done() == {3, 12}
    assert indices(store.maps.folder / "first.h5") == [3, 12]


def in_the_earlier_layout(store, parts):
    """The same folder in the earlier layout: all images in one file, or those of ``parts`` still apart."""
    table = store.read()
    old = store.folder / "parts"
    old.mkdir()
    for index in parts:
        store._file(index).rename(old / store._file(index).name)
        (store.maps.folder / "waiting" / f"{index:08d}.npz").rename(old / f"{index:08d}.npz")
    for path in store.results.iterdir():
        path.unlink()
    store.results.rmdir()
    store.maps.collect()
    merged = table.filter(pc.invert(pc.is_in(table["index"], pa.array(parts, pa.int64()))))
    if len(merged):
        pq.write_table(merged, store.results)
    return table


@pytest.mark.parametrize("parts", [[], [7], [3, 7, 12]])
def test_results_in_the_earlier_layout_are_read_and_taken_up(store, parts):
    table = in_the_earlier_layout(store, parts)
    assert store.read().equals(table)
    store.open("fingerprint", {})
    assert store.done() == {3, 7, 12}
    store.add(5, rows(5), maps(5))
    store.maps.collect()
    assert indices(store.maps.folder / "first.h5") == [3, 5, 7, 12]
    assert {path.name for path in store.folder.iterdir()} == {RESULTS, "maps", "run.json"}


def test_a_conversion_that_was_cut_off_goes_on(store):
    table = in_the_earlier_layout(store, [7])
    store.results.rename(store.folder / "merged.parquet")
    store.results.mkdir()
    store._write(store._file(3), table.slice(0, 2))
    assert store.read().equals(table)


def test_unusable_folders_are_errors(store, tmp_path):
    with pytest.raises(EvaluationError, match=r"holds no results.*run fxlrp evaluate first"):
        Store(tmp_path / "nowhere").read()
    with pytest.raises(EvaluationError, match="holds results of another configuration: give another folder"):
        store.open("another", {})
    store._file(3).write_bytes(b"damaged")
    with pytest.raises(EvaluationError, match=r"cannot be read.*00000003\.parquet"):
        store.read()
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="cannot be used for results"):
        Store(tmp_path / "file" / "out").open("fingerprint", {})
    (store.folder / "run.json").write_text("damaged")
    with pytest.raises(EvaluationError, match="cannot be used for results"):
        store.open("fingerprint", {})
