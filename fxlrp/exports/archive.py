"""Saved explanations as files: what may be in one, and what is never believed.

torch reads an exported program with more trust than a file deserves: it unpickles example inputs, looks up functions
by any name, and evaluates sizes as Python. What is handed to it here was checked: known operations of torch, sizes that
are arithmetic, tensors as plain bytes, and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fxlrp.capture.exported import quiet
from fxlrp.common.errors import ExportError

FORMAT = 2
"""The version of the format; a file says which one it has."""
SIGNATURE = "fxlrp.json"
SEAL = "fxlrp.seal"
_DIGEST = re.compile(rb'"digest": "[0-9a-f]{64}"')
_NO_DIGEST = '"digest": "' + "0" * 64 + '"'

_TARGET = re.compile(r"torch\.ops\.(aten|prims)\.[A-Za-z_]\w*\.[A-Za-z_]\w*|torch\.sym_(max|min|float|int|not|sum|ite)")
_OPERATORS = frozenset(
    f"_operator.{name}" for name in (
        "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge", "getitem",
        "and_", "or_", "not_", "pos", "lshift", "rshift",
    )
)  # fmt: skip
_SIZE = re.compile(r"[\w\s()+\-*/,.=<>&|~']*")
_WORD = re.compile(r"[A-Za-z_]\w*")
_WORDS = re.compile(
    r"[suz]u?f?\d+|Symbol|Integer|Rational|positive|integer|nonnegative|real|True|False|Add|Mul|Pow|Mod|PythonMod|Max|Min"
    r"|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|CeilToInt|FloorToInt|RoundToInt|TruncToInt|IntTrueDiv|FloatTrueDiv"
    r"|ToFloat|Identity|Where|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|int_oo|oo|evaluate"
    r"|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|true|false"
)
_FOREIGN = ("as_custom_obj", "as_operator", "as_graph", "as_script_object")
_TREES = frozenset({
    None, "builtins.list", "builtins.tuple", "builtins.dict", "collections.OrderedDict", "fxlrp.Explanation",
})  # fmt: skip
_COMPILED = "aotinductor"


def is_compiled(names: list[str]) -> bool:
    """Whether an archive of these members holds machine code."""
    return any(_COMPILED in name for name in names)


def written(program: torch.export.ExportedProgram, signature: Mapping[str, Any]) -> bytes:
    """A program and its signature as the bytes of a file, with the format's version and a digest of all of it."""
    torchs = io.BytesIO()
    text = json.dumps({**signature, "format": FORMAT}).removesuffix("}") + ", " + _NO_DIGEST + "}"
    torch.export.save(program, torchs, extra_files={SIGNATURE: text})
    members = _members(torchs)
    name = _one(members, f"/extra/{SIGNATURE}")
    digest = _digest(members)
    members[name] = text.replace(_NO_DIGEST, f'"digest": "{digest}"').encode()
    return _zipped(members)


def read(path: Path) -> tuple[torch.export.ExportedProgram, dict[str, Any]]:
    """The program in a file, and what the file says of it; no code of the file is run.

    Raises:
        ExportError: the file is damaged, of another format, or holds what fxlrp does not write.
    """
    try:
        _check_uncompressed(path)
        members = _members(path)
        text = members[_one(members, f"/extra/{SIGNATURE}")]
        signature = json.loads(text)
        if not isinstance(signature, dict) or signature.get("format") != FORMAT:
            raise ExportError(f"{path} has another format than {FORMAT}: save the explanation anew with this fxlrp")
        if not hmac.compare_digest(str(signature.pop("digest", "")), _digest(members)):
            raise ExportError(f"{path} is damaged: its contents are not those that were saved")
        del signature["format"]
        _check_tree(signature["structure"])
        with quiet():
            return torch.export.load(io.BytesIO(_zipped(_trusted(members)))), signature
    except ExportError:
        raise
    except FileNotFoundError as error:
        raise ExportError(f"{path}: there is no such file") from error
    except MemoryError:
        raise
    except Exception as error:  # whatever torch makes of a file that is none
        raise ExportError(f"{path} is no explanation that fxlrp saved, or it is damaged: {error}") from error


def member_names(path: Path) -> list[str]:
    """The names of the members of a file.

    Raises:
        ExportError: it is no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except FileNotFoundError as error:
        raise ExportError(f"{path}: there is no such file") from error
    except Exception as error:  # zipfile raises many kinds for a damaged directory
        raise ExportError(f"{path} is no saved explanation: {error}") from error


# Machine code ------------------------------------------------------------------------------------


def seal(path: Path) -> None:
    """Note in a compiled package that this user made it."""
    key = _key(make=True)
    if key:
        with zipfile.ZipFile(path, "a") as archive:
            seal = _seal({name: archive.read(name) for name in archive.namelist()}, key)
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/extra/{SEAL}", seal)


def is_sealed(path: Path) -> bool:
    """Whether this user made a compiled package, and nobody changed it."""
    members, key = _members(path), _key(make=False)
    seals = [name for name in members if name.endswith(f"/extra/{SEAL}")]
    if len(seals) != 1 or not key:
        return False
    found = members.pop(seals[0]).decode(errors="replace")
    return hmac.compare_digest(found.encode(), _seal(members, key).encode())


def _seal(members: Mapping[str, bytes], key: bytes) -> str:
    return hmac.new(key, _digest(members).encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes:
    """A secret of this user; ``b""`` where there is none."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "fxlrp"
    path = folder / "key"
    try:
        if make and not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
        key = path.read_bytes()
    except OSError:
        return b""
    return key if len(key) == 32 else b""


# What is trusted ---------------------------------------------------------------------------------


def _trusted(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The members that torch may read, cleaned; all others are left out.

    Raises:
        ExportError: one holds what fxlrp does not write.
    """
    kept = {name: data for name, data in members.items() if "/sample_inputs/" not in name}
    for name in [name for name in kept if name.endswith("_config.json")]:
        for entry in json.loads(kept[name])["config"].values():
            if entry["use_pickle"]:
                raise ExportError("a tensor in this file is pickled, which fxlrp never does")
    model = _one(members, "/models/model.json")
    program = json.loads(members[model])
    for node in program["graph_module"]["graph"]["nodes"]:
        if not _TARGET.fullmatch(node["target"]) and node["target"] not in _OPERATORS:
            raise ExportError(f"this file calls {node['target']!r}, which is no operation of torch that fxlrp writes")
        node["metadata"] = {}
    program["guards_code"] = []
    program["graph_module"]["metadata"] = {}
    for symbol in program["range_constraints"]:
        _check_size(symbol)
    for key, value in _walk(program):
        if key in _FOREIGN:
            raise ExportError(f"this file holds an object of its own kind ({key}), which fxlrp never writes")
        if key == "expr_str":
            _check_size(value)
        if key in ("in_spec", "out_spec") and value:
            _check_tree(value)
    kept[model] = json.dumps(program).encode()
    root = model.partition("/")[0]
    examples = io.BytesIO()
    torch.save(((), {}), examples)
    kept[f"{root}/data/sample_inputs/model.pt"] = examples.getvalue()
    return kept


def _check_tree(text: str) -> None:
    """Raise where the structure of arguments or results is not of plain containers.

    Raises:
        ExportError: so it is.
    """
    for key, value in _walk(json.loads(text)):
        if key == "__enum__" or (key == "type" and value not in _TREES):
            raise ExportError(f"this file holds a {value!r}, which fxlrp never writes")


def _check_size(text: Any) -> None:
    """Raise where a size is more than arithmetic: torch evaluates it.

    Raises:
        ExportError: it is.
    """
    if not isinstance(text, str) or not _SIZE.fullmatch(text) or not all(map(_WORDS.fullmatch, _WORD.findall(text))):
        raise ExportError(f"a size in this file is no arithmetic: {str(text)[:80]!r}")


def _walk(value: Any) -> Iterator[tuple[Any, Any]]:
    """All keys and values of nested JSON."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield from item.items()
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _check_uncompressed(path: Path) -> None:
    """Raise where a small file could fill the memory.

    Raises:
        ExportError: it is compressed.
    """
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ExportError(f"{path} is compressed, and fxlrp writes nothing compressed")


def _members(source: Any) -> dict[str, bytes]:
    with zipfile.ZipFile(source) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _one(members: Mapping[str, bytes], ending: str) -> str:
    names = [name for name in members if name.endswith(ending)]
    if len(names) != 1:
        raise ExportError("this is no explanation that fxlrp saved")
    return names[0]


def _digest(members: Mapping[str, bytes]) -> str:
    """Of all members and their names, the signature without the digest in it."""
    total = hashlib.sha256()
    for name in sorted(members):
        data = members[name]
        if name.endswith(f"/extra/{SIGNATURE}"):
            data = _DIGEST.sub(_NO_DIGEST.encode(), data)
        inner = name.partition("/")[2]  # the first part is the file's own name, which may change
        total.update(f"{len(inner)}:{inner}:{len(data)}:".encode())
        total.update(data)
    return total.hexdigest()


def _zipped(members: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return made.getvalue()
