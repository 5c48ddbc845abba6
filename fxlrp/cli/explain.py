"""``fxlrp explain``: a picture of each image, its sums, numbers for other programs, a page on how relevance flows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxlrp.cli import sources
from fxlrp.cli.arguments import asked_of, compile_options, device_named
from fxlrp.cli.drawing import draw, draw_checkpoints, photograph
from fxlrp.cli.folder import explain_folder
from fxlrp.cli.options import ExplainOptions
from fxlrp.cli.output import about, printing, save_numbers, write_json
from fxlrp.cli.picture_paths import path_key, picture_paths
from fxlrp.cli.work import Answer, Work
from fxlrp.common.atomic_files import made_folder, unwritable
from fxlrp.common.errors import InputError
from fxlrp.common.extras import require
from fxlrp.compiler import compile
from fxlrp.loading.images import Preprocess, read_image, to_input
from fxlrp.loading.models import ModelWarning, load_model
from fxlrp.maps.rendering import COLORS

VIEWS = ("whole", "crop", "tiles")
NUMBERS = (".npz", ".json", ".parquet")


def explain_images(options: ExplainOptions) -> None:
    """Explain images, print the results, and write a picture of each.

    Raises:
        FxlrpError: an option or an image is wrong, or the model cannot be explained. Whatever can be checked before
            the model runs is checked before.
    """
    compiling = checked(options)
    found = sources.found(options.images)
    if found.many:
        _check_many(options)
        explain_folder(options, found.files, lambda: work_of(options, compiling))
        return
    for path in found.files:
        (sources.read_array if path.suffix.lower() in sources.ARRAYS else read_image)(path)
    pictures = picture_paths(found.files, options.out)
    work = work_of(options, compiling)
    together = None if options.report is None else _equally_large(found.files, work.preprocess)
    if options.save is not None:
        _saved_together([path for path in found.files if path.suffix.lower() not in sources.ARRAYS], work)
    used = {path_key(path) for path in (*found.files, *pictures)}
    answers, findings = [], []
    with printing(len(found.files), options) as (tell, advance):
        for answer, picture in zip(work.answers(found.files), pictures, strict=True):
            draw(answer, picture, options)
            others = (*answer.finding.others, *draw_checkpoints(answer, picture, used, options))
            findings.append(replace(answer.finding, picture=str(picture), others=others))
            tell(findings[-1].as_text())
            advance()
            if options.save is not None or options.report is not None:
                answers.append(answer)
        if options.save is not None:
            save_numbers(options.save, answers)
            tell(f"numbers       {options.save}")
        if options.report is not None and together is not None:
            _write_report(work, together, answers, options.report)
            tell(f"report        {options.report}")
    write_json(options, findings, about(work))


def _write_report(work: Work, images: Tensor, answers: Sequence[Answer], path: Path) -> None:
    """Write the page of these images and of the classes that were asked for; else of the three most probable ones."""
    options = work.options
    numbers = [[reason.target.number for reason in answer.finding.reasons if reason.target and not reason.against]
               for answer in answers]  # fmt: skip
    asked = (options.target or options.against or options.top > 1) and all(numbers)
    view = "crop" if options.view == "crop" else "whole"
    whole = [photograph(answer.item, view) for answer in answers]
    made_folder(path.parent, InputError)
    rivals = [number for question in work.questions for number in question.against]
    work.explainer.report(
        images.to(work.device), path, target=torch.tensor(numbers) if asked else None,
        against=list(dict.fromkeys(rivals)) or None, class_names=work.loaded.classes,
        photos=[photo for photo, _ in whole], boxes=[box for _, box in whole],
        names=[answer.finding.file for answer in answers],
    )  # fmt: skip


def checked(options: ExplainOptions) -> dict[str, Any]:
    """The arguments for compile, if all options are right.

    Raises:
        FxlrpError: one is not.
    """
    require("matplotlib", "draw")
    compiling = compile_options(options)
    asked_of(options)
    if options.colors is not None and options.colors not in COLORS:
        raise InputError(f"--colors {options.colors}: choose {' or '.join(COLORS)}")
    if options.view not in VIEWS:
        raise InputError(f"--view {options.view}: choose one of {', '.join(VIEWS)}")
    if not 0 < options.percentile <= 100:
        raise InputError(f"--percentile {options.percentile}: it must lie above 0 and at most at 100")
    if options.contour is not None and not 0 < options.contour <= 1:
        raise InputError(f"--contour {options.contour}: a share above 0 and up to 1")
    device_named(options.device)
    _check_places(options)
    if options.report is not None and options.report.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--report {options.report}: a report is a page, so the name must end in .html")
    if options.json is not None and str(options.json) != "-" and options.json.suffix.lower() != ".json":
        raise InputError(f"--json {options.json}: the name must end in .json, or be - for the standard output")
    if options.save is not None:
        if options.save.suffix.lower() not in NUMBERS:
            raise InputError(f"--save {options.save}: the name must end in {', '.join(NUMBERS)}")
        if options.save.suffix.lower() == ".parquet":
            require("polars", "tables")
    return compiling


def _check_places(options: ExplainOptions) -> None:
    """Check that files can be written where they are asked for, before any work is done for them."""
    places = {"--out": options.out, "--json": options.json, "--save": options.save, "--report": options.report}
    for option, path in places.items():
        if path is not None and str(path) != "-" and (reason := unwritable(path)):
            raise InputError(f"{option} {path}: {reason}")
    if options.out is None and unwritable(Path()):
        raise InputError("pictures go to the current folder, where nothing may be written: name another by --out")


def work_of(options: ExplainOptions, compiling: dict[str, Any]) -> Work:
    """The model, compiled."""
    device = device_named(options.device)
    with warnings.catch_warnings():
        if all(path.suffix.lower() in sources.ARRAYS for path in options.images):
            # Arrays are taken as they are, whatever would be guessed of photographs.
            warnings.filterwarnings("ignore", ".* does not say how its input is made", ModelWarning)
        loaded = load_model(options.model, options.weights, asked_of(options))
    return Work(loaded, compile(loaded.model.to(device), **compiling), options, device)


def _check_many(options: ExplainOptions) -> None:
    for name, value in (("report", options.report), ("checkpoint", options.checkpoints)):
        if value:
            raise InputError(f"--{name} is for files that are named one by one")
    if options.save is not None:
        raise InputError("--save is for files that are named one by one: numbers of many are in explanations.parquet")


def _saved_together(paths: Sequence[Path], work: Work) -> None:
    """Check that one file can hold the numbers of all photographs.

    Raises:
        InputError: the maps that are saved differ in size.
    """
    if work.options.view != "tiles":
        _equally_large(paths, work.preprocess)
    elif len({read_image(path).size for path in paths}) > 1:
        raise InputError("--save with --view tiles has a map as large as the photograph: give photographs of one size")


def _equally_large(paths: Sequence[Path], preprocess: Preprocess) -> Tensor | None:
    """The images as one batch; ``None``: there are none.

    Raises:
        InputError: they differ in size after the preprocessing.
    """
    inputs = [to_input(read_image(path), preprocess) for path in paths]
    if len({value.shape for value in inputs}) > 1:
        raise InputError("--report and --save need images that the preprocessing makes equally large")
    return torch.stack(inputs) if inputs else None
