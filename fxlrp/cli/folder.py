"""``fxlrp explain`` of many files: a folder of results that goes on where it was stopped, by several processes.

The folder holds ``pictures/``, ``records/`` (one per file, by which a run goes on), and, when all is done,
``explanations.parquet`` with all numbers, ``findings.json``, and ``index.html``, a page to look through.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fxlrp.cli.drawing import draw, gallery_pictures
from fxlrp.cli.findings import Finding, as_json
from fxlrp.cli.options import ExplainOptions
from fxlrp.cli.output import about, printing, save_numbers, write_json
from fxlrp.cli.processes import in_processes
from fxlrp.cli.work import Work
from fxlrp.common.atomic_files import made_folder
from fxlrp.common.errors import FxlrpError, ImageError, IncompleteError, InputError, StoppedError
from fxlrp.common.extras import require
from fxlrp.common.version import __version__
from fxlrp.evaluation.workers import Workers
from fxlrp.results.files import json_writer, polars, write
from fxlrp.views.gallery import Entry, Map, write_gallery

DEFAULT = Path("explained")
_NOT_RESULTS = ("json", "workers", "fresh", "images", "out", "batch_size", "device", "save")
"""Options that leave the results of a file as they are."""


@dataclass(frozen=True)
class Record:
    """Where the results of a file lie.

    Attributes:
        path: the file.
        name: of its results, unique in the folder.
        folder: of all results.
        made_by: the digest of all that its results depend on.
    """

    path: Path
    name: str
    folder: Path
    made_by: str

    @property
    def json(self) -> Path:
        """What was found, or why the file could not be explained."""
        return self.folder / "records" / f"{self.name}.json"

    @property
    def numbers(self) -> Path:
        """Its relevance and outputs."""
        return self.folder / "records" / f"{self.name}.parquet"

    @property
    def picture(self) -> Path:
        """Its picture."""
        return self.folder / "pictures" / f"{self.name}.png"

    @property
    def content(self) -> dict[str, Any] | None:
        """What is there, if it is of this run; ``None``: the file is still to be explained."""
        try:
            found = json.loads(self.json.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(found, dict) and found.get("made_by") == self.made_by
        return found if whole and (found.get("error") or self.numbers.exists()) else None


def explain_folder(options: ExplainOptions, files: Sequence[Path], make: Callable[[], Work]) -> None:
    """Explain all files that have no results yet, then write what is of all of them.

    Args:
        options: of the command.
        files: what to explain.
        make: compiles the model; it is called in every process that has work.

    Raises:
        IncompleteError: some files could not be explained.
        FxlrpError: the folder cannot be used, or the model cannot be explained.
    """
    polars()
    require("jinja2", "draw")
    folder = _folder(options.out)
    records = _records(options, files, folder)
    with Workers(options.device) as group:
        if group.first:
            for part in ("pictures", "records"):
                made_folder(folder / part, ImageError)
        group.wait()
        todo = [record for record in records if options.fresh or record.content is None]
        group.wait()  # all have looked before one begins
        share = group.share(todo)
        try:
            with printing(len(share) if group.first else 0, options) as (_, advance):
                if options.workers > 1 and group.count == 1 and len(todo) > 1:
                    in_processes(_explain_share, options, share, advance)
                elif share:
                    _explain(make(), share, options, advance)
        except KeyboardInterrupt:
            raise StoppedError(_stopped(records)) from None
        group.wait()
        if group.first:
            _finish(options, records, folder, len(records) - len(todo))


def _stopped(records: Sequence[Record]) -> str:
    done = sum(record.content is not None for record in records)
    return f"stopped with {done} of {len(records)} files done: the same command goes on from there"


def _explain(work: Work, records: Sequence[Record], options: ExplainOptions, advance: Callable[[], None]) -> None:
    """Explain files, and keep a record of each; ``advance`` is called after each."""
    by_path = {record.path: record for record in records}
    facts = about(work)

    def failed(path: Path, error: FxlrpError) -> None:
        record = by_path[path]
        write(record.json, {".json": json_writer({"made_by": record.made_by, "error": str(error), "file": str(path)})})
        advance()

    for answer in work.answers([record.path for record in records], failed):
        record = by_path[answer.item.path]
        draw(answer, record.picture, options)
        finding = replace(answer.finding, picture=str(record.picture))
        save_numbers(record.numbers, [replace(answer, finding=finding)])
        content = {"made_by": record.made_by, "about": facts, "finding": asdict(finding),
                   "gallery": gallery_pictures(answer, options)}  # fmt: skip
        write(record.json, {".json": json_writer(content)})  # last: with it the file is done
        advance()


def _explain_share(options: ExplainOptions, records: Sequence[Record], advance: Callable[[], None]) -> None:
    """Explain a share of the files, in a process of its own."""
    from fxlrp.cli.explain import checked, work_of

    _explain(work_of(options, checked(options)), records, options, advance)


def _finish(options: ExplainOptions, records: Sequence[Record], folder: Path, known: int) -> None:
    """Write what is of all files, and tell it.

    Raises:
        IncompleteError: some files could not be explained.
    """
    contents = [content for record in records if (content := record.content) is not None]
    good = [content for content in contents if not content.get("error")]
    failed = [{"file": content["file"], "error": content["error"]} for content in contents if content.get("error")]
    findings = [Finding.of_json(content["finding"]) for content in good]
    facts = {**(good[0]["about"] if good else {}), "failed": failed}
    write(folder / "findings.json", {".json": json_writer(as_json(findings, facts))})
    if good:
        kept = [record.numbers for record in records if (record.content or {}).get("finding")]
        _join(kept, folder / "explanations.parquet")
        entries = [(finding, content["gallery"]) for finding, content in zip(findings, good, strict=True)]
        count = f"{len(good)} of {len(records)}" if failed else f"{len(good)}"
        title = f"{count} file{'' if len(records) == 1 else 's'} explained"
        missing = [f"{each['file']}: {each['error']}" for each in failed]
        write_gallery([_entry(*entry) for entry in entries], folder / "index.html", title, missing)
    with printing(0, options) as (tell, _):
        tell(f"explained     {len(good)} of {len(records)} files" + (f", {known} of them before" if known else ""))
        for each in failed:
            tell(f"failed        {each['file']}: {each['error']}")
        for name in ("index.html", "explanations.parquet", "findings.json"):
            if (folder / name).exists():
                tell(f"written       {folder / name}")
    write_json(options, findings, facts)
    if failed:
        raise IncompleteError(f"{len(failed)} of {len(records)} files could not be explained")


def _entry(finding: Finding, pictures: dict[str, Any]) -> Entry:
    """What the page shows of a file."""
    maps = [Map(reason.question, reason.title, picture, limit, reason.unit, reason.in_words, pictures["colors"])
            for reason, (picture, limit) in zip(finding.reasons, pictures["maps"], strict=True)]  # fmt: skip
    top = [(str(each), 100 * (each.probability or 0)) for each in finding.top]
    return Entry(finding.file, pictures["photo"], top, maps, pictures["frame"], pictures["shape"],
                 [f"{kind}: {told}" for kind, told in finding.others])  # fmt: skip


def _join(parts: Sequence[Path], path: Path) -> None:
    """One table of all parts, which are never all in memory."""
    tables = polars()
    try:
        write(path, {".parquet": lambda beside: tables.scan_parquet(list(parts)).sink_parquet(beside)})
    except tables.exceptions.PolarsError as error:
        raise InputError(
            f"the files differ in shape, and have no table together: theirs are in {parts[0].parent} ({error})"
        ) from error


def _folder(out: Path | None) -> Path:
    folder = out or DEFAULT
    if folder.suffix.lower() == ".png" or (folder.exists() and not folder.is_dir()):
        raise ImageError(f"--out {folder} is a file: results of many files go to a folder")
    return folder


def _records(options: ExplainOptions, files: Sequence[Path], folder: Path) -> list[Record]:
    """The files with the names of their results, which tell in which folder each one was."""
    settings = {name: value for name, value in asdict(options).items() if name not in _NOT_RESULTS}
    beside = [_state(path) for path in (options.weights, options.classes, *_files_of(options.model)) if path]
    common = Path(os.path.commonpath([path.resolve().parent for path in files]))
    names: set[str] = set()
    records = []
    for path in files:
        stem = "__".join(path.resolve().relative_to(common).with_suffix("").parts)
        name, number = stem, 2
        while name.casefold() in names:
            name, number = f"{stem}-{number}", number + 1
        names.add(name.casefold())
        told = json.dumps([__version__, settings, beside, str(path), _state(path)], default=str, sort_keys=True)
        records.append(Record(path, name, folder, hashlib.sha256(told.encode()).hexdigest()[:32]))
    return records


def _files_of(model: str) -> Sequence[Path]:
    """The files that a specification names: of a model that was changed, results are made anew."""
    source, _, name = model.partition(":")
    if source == "python":
        return [Path(name.partition(":")[0].replace(".", "/")).with_suffix(".py")]
    folder = Path(name)
    return sorted(folder.iterdir()) if source == "transformers" and folder.is_dir() else [folder]


def _state(path: Path) -> str:
    """What changes where a file does."""
    try:
        found = path.stat()
    except OSError:
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"
