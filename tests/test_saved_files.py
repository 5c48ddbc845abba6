"""A saved explanation is data: no code in it is run, damage is told, and saving never leaves half a file."""

import importlib.util
import io
import json
import os
import random
import subprocess
import sys
import zipfile

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from torch import nn

import fxlrp
from fxlrp.errors import ExportError, FxlrpError
from fxlrp.exports import archive
from fxlrp.loading.checkpoints import read_checkpoint
from fxlrp.loading.images import read_image


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file, an input, and what is explained of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    x = torch.randn(2, 3, 8, 8)
    explainer = fxlrp.compile(model, "conserving")
    relevance = explainer(x).relevance
    return explainer.save(tmp_path_factory.mktemp("saved") / "good.pt2"), x, relevance


def rewritten(source, path, change):
    """A copy of a file, its members changed; ``None`` leaves one out. The digest is made to fit."""
    with zipfile.ZipFile(source) as opened:
        members = {name: change(name, opened.read(name)) for name in opened.namelist()}
    members = {name: data for name, data in members.items() if data is not None}
    name = next(name for name in members if name.endswith("/extra/fxlrp.json"))
    fields = json.loads(members[name])
    fields["digest"] = "0" * 64
    members[name] = json.dumps(fields).encode()
    members[name] = json.dumps({**fields, "digest": archive._digest(members)}).encode()
    with zipfile.ZipFile(path, "w") as target:
        for name, data in members.items():
            target.writestr(name, data)
    return path


def in_member(ending, change):
    """A change of one member of a file, of JSON."""

    def changed(name, data):
        if not name.endswith(ending):
            return data
        content = json.loads(data)
        change(content)
        return json.dumps(content).encode()

    return changed


def test_a_file_is_read_as_it_was_saved_also_under_another_name(saved, tmp_path):
    good, x, relevance = saved
    assert torch.equal(fxlrp.load(good)(x).relevance, relevance)
    renamed = tmp_path / "other.pt2"
    renamed.write_bytes(good.read_bytes())
    assert torch.equal(fxlrp.load(renamed)(x).relevance, relevance)
    assert torch.equal(fxlrp.load(rewritten(good, tmp_path / "same.pt2", lambda n, d: d))(x).relevance, relevance)
    loaded = torch.export.load(good).module()  # without fxlrp
    assert torch.equal(loaded(x, torch.full((2,), -1))[0], relevance)


class Resized(nn.Module):
    """Interpolation between two layers, over one, two or three axes."""

    def __init__(self, dims, **how):
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.first, self.last, self.how = convolution(2, 3, 3), convolution(3, 4, 3), how

    def forward(self, x):
        return self.last(F.interpolate(self.first(x).relu(), **self.how)).relu().flatten(2).mean(2)


def _slow(*values):
    """A case of the long run; one of its kind is in the default run."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("dims", "how"),
    [
        _slow(1, {"mode": "nearest", "scale_factor": 2}),
        _slow(3, {"mode": "nearest", "size": (5, 4, 6)}),
        _slow(1, {"mode": "linear", "size": 7}),
        _slow(2, {"mode": "bilinear", "scale_factor": 2}),
        (2, {"mode": "bilinear", "size": (7, 5), "align_corners": True}),
        (2, {"mode": "bilinear", "size": (5, 3), "antialias": True}),
        _slow(3, {"mode": "trilinear", "scale_factor": 1.5}),
    ],
    ids=str,
)
def test_models_with_interpolation_are_saved_for_any_batch(tmp_path, dims, how):
    torch.manual_seed(0)
    explainer, shape = fxlrp.compile(Resized(dims, **how).eval(), "conserving"), (2, *[6] * dims)
    explainer(torch.randn(2, *shape))
    loaded = fxlrp.load(explainer.save(tmp_path / "resized.pt2"))
    for batch in (1, 3):
        x = torch.randn(batch, *shape)
        assert_close(loaded(x).relevance, explainer(x).relevance, 1e-5)


class Loop(nn.Module):
    """Takes the items one after the other, so that a graph of it is one for a number of items."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        return torch.stack([self.last(row.relu()) for row in x])


def test_a_graph_for_one_batch_alone_is_not_saved(tmp_path):
    explainer, x = fxlrp.compile(Loop().eval()), torch.randn(3, 6)
    explainer(x)
    for write, name in ((explainer.save, "loop.pt2"), (explainer.export_onnx, "loop.onnx")):
        with pytest.raises(ExportError, match=r"batches of 3 alone.*without a loop over the items"):
            write(tmp_path / name)
    assert not list(tmp_path.iterdir())


class Sampled(nn.Module):
    """A spatial transformer, over images or volumes."""

    def __init__(self, dims):
        super().__init__()
        self.place, self.dims = nn.Linear(2, dims * (dims + 1)), dims
        self.convolution = (nn.Conv2d, nn.Conv3d)[dims - 2](2, 4, 3)

    def forward(self, x):
        theta = self.place(x.flatten(2).mean(2)).view(-1, self.dims, self.dims + 1)
        grid = F.affine_grid(theta, x.shape, align_corners=False)
        return self.convolution(F.grid_sample(x, grid, align_corners=False)).relu().flatten(2).mean(2)


class Scattered(nn.Module):
    """Puts tokens in where a mask says: how many there are is known when it runs."""

    def __init__(self):
        super().__init__()
        self.known, self.other, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x, mask):
        h = self.known(x)
        h = h.masked_scatter(mask[..., None].expand_as(h), self.other(x)[mask])
        return self.last(h.relu().mean(1))


def _first(relevance):
    return relevance[0] if isinstance(relevance, tuple) else relevance


@pytest.mark.parametrize(
    ("model", "shape"), [(Sampled(2), (2, 6, 6)), _slow(Sampled(3), (2, 5, 5, 5)), (Scattered(), (7, 6))],
    ids=["images", "volumes", "tokens by a mask"],
)  # fmt: skip
def test_what_is_sampled_or_scattered_is_saved_for_any_batch(tmp_path, model, shape):
    torch.manual_seed(0)

    def inputs(batch):
        mask = [torch.rand(batch, shape[0]) > 0.5] if isinstance(model, Scattered) else []
        return torch.randn(batch, *shape), *mask

    explainer = fxlrp.compile(model.eval(), "conserving")
    explainer(*inputs(3))
    loaded = fxlrp.load(explainer.save(tmp_path / "saved.pt2"))
    for batch in (1, 4):
        x = inputs(batch)
        found, wanted = loaded(*x), explainer(*x)
        assert_close(found.output, wanted.output, 1e-5)
        assert_close(_first(found.relevance), _first(wanted.relevance), 1e-5)


class Payload:
    def __init__(self, proof):
        self.proof = str(proof)

    def __reduce__(self):
        return open, (self.proof, "w")


def test_no_code_in_a_file_is_run(saved, tmp_path):
    good, x, relevance = saved
    proof, pickled = tmp_path / "ran", io.BytesIO()
    torch.save({"a": Payload(proof)}, pickled)

    def evil_pickle(name, data):
        return pickled.getvalue() if "sample_inputs" in name else data

    assert torch.equal(fxlrp.load(rewritten(good, tmp_path / "a.pt2", evil_pickle))(x).relevance, relevance)

    def evil_size(program):
        values = program["graph_module"]["graph"]["sym_int_values"]
        next(iter(values.values()))["as_expr"]["expr_str"] = f"open({str(proof)!r}, 'w')"

    def evil_range(program):
        program["range_constraints"] = {f"open({str(proof)!r}, 'w')": {"min_val": 1, "max_val": 9}}

    def evil_function(program):
        program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"

    def evil_tree(program):
        call = program["graph_module"]["module_call_graph"][0]["signature"]
        call["out_spec"] = call["out_spec"].replace("builtins.list", "some.module.Kind")

    def evil_object(program):
        node = program["graph_module"]["graph"]["nodes"][0]
        node["inputs"][0]["arg"] = {"as_custom_obj": {"name": "x", "class_fqn": "os.system"}}

    for change in (evil_size, evil_range, evil_function, evil_tree, evil_object):
        with pytest.raises(ExportError, match="this file"):
            fxlrp.load(rewritten(good, tmp_path / "b.pt2", in_member("model.json", change)))

    def evil_guards(program):
        program["guards_code"] = [f"open({str(proof)!r}, 'w')"]

    fxlrp.load(rewritten(good, tmp_path / "c.pt2", in_member("model.json", evil_guards)))(x)

    def evil_weight(name, data):
        if not name.endswith("weights_config.json"):
            return data
        config = json.loads(data)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()

    with pytest.raises(ExportError, match="pickled"):
        fxlrp.load(rewritten(good, tmp_path / "d.pt2", evil_weight))
    assert not proof.exists()


def test_a_damaged_file_is_one_error_or_explains_as_before(saved, tmp_path):
    good, x, relevance = saved
    whole, path = good.read_bytes(), tmp_path / "bad.pt2"
    damaged = [b"", b"hello", bytes(5000), *(whole[: int(share * len(whole))] for share in (0.01, 0.5, 0.99))]
    for seed in range(30):
        data, draw = bytearray(whole), random.Random(seed)
        for _ in range(4):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        damaged.append(bytes(data))
    told = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            assert torch.equal(fxlrp.load(path)(x).relevance, relevance)
        except ExportError:
            told += 1
    assert told > 20
    with pytest.raises(ExportError, match="no such file"):
        fxlrp.load(tmp_path / "nowhere.pt2")


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(classes=999),
        lambda fields: fields.update(dtypes=["float64"]),
        lambda fields: fields.update(takes_target=False),
        lambda fields: fields["inputs"][0].update(shape=["batch", 3, 9, 9]),
        lambda fields: fields.pop("outputs"),
        lambda fields: fields.update(new=1),
        lambda fields: fields.update(format=1),
        lambda fields: fields["inputs"][0].update(name={}),
        lambda fields: fields["inputs"][0].update(axis=7),
        lambda fields: fields["inputs"][0].update(entries=""),
        lambda fields: fields["about"].update(start=3),
        lambda fields: fields.update(inputs={}),
    ],
)
def test_what_a_file_says_is_held_against_its_program(saved, tmp_path, change):
    with pytest.raises(ExportError):
        fxlrp.load(rewritten(saved[0], tmp_path / "bad.pt2", in_member("/extra/fxlrp.json", change)))


def test_a_changed_program_whose_digest_fits_is_one_error(saved, tmp_path):
    good, x, _ = saved
    with zipfile.ZipFile(good) as opened:
        name = next(name for name in opened.namelist() if name.endswith("/models/model.json"))
        program = json.loads(opened.read(name))
    places = [place for place in _places(program) if place]
    told = 0
    for seed in range(40):
        draw = random.Random(seed)
        place, value = draw.choice(places), draw.choice([None, -1, 7, 2**40, "", "x", [], {}, True])
        changed = in_member("/models/model.json", lambda found, place=place, value=value: _put(found, place, value))
        try:
            fxlrp.load(rewritten(good, tmp_path / "bad.pt2", changed))(x)
        except ExportError:
            told += 1
    assert told > 10


def _places(value, place=()):
    """Where the values of nested JSON are."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    yield place
    for key, item in items:
        yield from _places(item, (*place, key))


def _put(content, place, value):
    for key in place[:-1]:
        content = content[key]
    content[place[-1]] = value


def test_a_compressed_file_is_refused_before_it_fills_the_memory(saved, tmp_path):
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(saved[0]) as opened, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name in opened.namelist():
            made.writestr(name, opened.read(name))
    with pytest.raises(ExportError, match="compressed"):
        fxlrp.load(path)


_FULL_DISK = """
import resource, sys, warnings; warnings.simplefilter("ignore")
import torch, fxlrp
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 500)).eval()
x = torch.randn(200, 3, 8, 8)
explainer = fxlrp.compile(model); explanation = explainer(x)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for path in sys.argv[1:]:
    try:
        if path.endswith(".pt2"): explainer.save(path)
        elif path.endswith(".onnx"): explainer.export_onnx(path)
        elif path.endswith(".html"): explainer.report(x[:2], path)
        else: explanation.save(path)
    except fxlrp.errors.FxlrpError as error: print("told", error)
"""
_WRITERS = {
    ".pt2": "torch", ".onnx": "onnxscript", ".html": "torch", ".npz": "numpy", ".json": "json", ".parquet": "polars",
}  # fmt: skip
"""What can be written, and the package that does it."""


@pytest.mark.skipif(sys.platform == "win32", reason="files are limited by resource, which Windows lacks")
@pytest.mark.parametrize("onnx", [False, _slow(True)], ids=["files", "ONNX"])
def test_a_full_disk_leaves_the_old_file(tmp_path, onnx):
    endings = [ending for ending in _WRITERS if (ending == ".onnx") == onnx]
    written = [ending for ending in endings if importlib.util.find_spec(_WRITERS[ending])]
    files = [tmp_path / f"a{ending}" for ending in written]
    for file in files:
        file.write_bytes(b"OLD")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, *map(str, files)],
        env=environment, capture_output=True, text=True, check=True,
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("told")]
    assert len(told) == len(files)
    assert all("cannot be written, and is as it was: " in line for line in told)
    assert sorted(os.listdir(tmp_path)) == sorted(file.name for file in files)
    assert all(file.read_bytes() == b"OLD" for file in files)


def test_machine_code_of_others_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "compiled.pt2"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("compiled/data/aotinductor/model/code.so", b"code")
    with pytest.raises(ExportError, match=r"machine code.*compiled=True"):
        fxlrp.load(path)
    archive.seal(path)
    assert archive.is_sealed(path)
    with zipfile.ZipFile(path, "a") as changed:
        changed.writestr("compiled/data/aotinductor/model/more.so", b"code")
    assert not archive.is_sealed(path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another user"))
    assert not archive.is_sealed(path)


def test_a_name_that_is_too_long_is_an_error_of_fxlrp():
    explainer, name = fxlrp.compile(nn.Linear(4, 3).eval(), "conserving"), "a" * 300
    explanation = explainer(torch.rand(2, 4))
    uses = [
        (fxlrp.compile, ".onnx"), (fxlrp.load, ".pt2"), (fxlrp.load, ".onnx"), (explainer.save, ".pt2"),
        (explainer.export_aot, ".pt2"), (explainer.export_onnx, ".onnx"), (explainer.draw, ".svg"),
        (explanation.save, ".npz"), (fxlrp.Explanation.read, ".npz"), (read_image, ".png"), (read_checkpoint, ".pt"),
    ]  # fmt: skip
    for use, suffix in uses:
        with pytest.raises(FxlrpError, match="too long"):
            use(name + suffix)


@pytest.mark.parametrize("path", [None, 3, b"x.pt2", "a\0b.pt2"])
def test_what_names_no_file_is_an_error(path):
    explainer = fxlrp.compile(nn.Linear(4, 3).eval(), "conserving")
    explainer(torch.rand(2, 4))
    for use in (fxlrp.load, explainer.save, explainer.export_aot):
        with pytest.raises(ExportError, match="a file is named by"):
            use(path)
