"""``fxlrp explain``: a picture of each image, its sums, and a page on how relevance flows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxlrp.cli.arguments import class_number, compile_options, device_named
from fxlrp.cli.options import ExplainOptions
from fxlrp.cli.picture_paths import path_key, picture_paths, unused_path
from fxlrp.common.errors import InputError
from fxlrp.common.extras import require
from fxlrp.compiler import compile
from fxlrp.explainer import Explainer
from fxlrp.loading.images import Preprocess, as_seen, read_image, to_input
from fxlrp.loading.models import LoadedModel, load_model
from fxlrp.maps.heatmap import heatmap, layer_map, quantize_heat
from fxlrp.maps.rendering import (
    COLORS,
    Scale,
    blurred,
    color_range,
    enlarge,
    fitting_colors,
    overlay,
    save_png,
    with_bar,
)
from fxlrp.results.explanation import Explanation


@dataclass(frozen=True)
class Batch:
    """Images explained together."""

    paths: Sequence[Path]
    photos: Sequence[Tensor]
    explanation: Explanation
    heatmaps: Tensor
    absorbed: dict[str, Tensor] | None


def explain_images(options: ExplainOptions) -> None:
    """Explain images, print the results, and write a picture of each.

    Raises:
        FxlrpError: an option or an image is wrong, or the model cannot be explained. Whatever can be checked before
            the model runs is checked before.
    """
    require("matplotlib", "draw")
    compiling = compile_options(options)
    if options.colors is not None and options.colors not in COLORS:
        raise InputError(f"--colors {options.colors}: choose {' or '.join(COLORS)}")
    if not 0 < options.percentile <= 100:
        raise InputError(f"--percentile {options.percentile}: it must lie above 0 and at most at 100")
    device = device_named(options.device)
    if options.report is not None and options.report.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--report {options.report}: a report is a page, so the name must end in .html")
    for path in options.images:
        read_image(path)
    picture_files = picture_paths(options.images, options.out)
    loaded = load_model(options.model, options.weights)
    target = class_number(options.target, loaded.classes)
    assert loaded.preprocess is not None
    together = None if options.report is None else _equally_large(options.images, loaded.preprocess)
    explainer = compile(loaded.model.to(device), **compiling)
    used = {path_key(path) for path in (*options.images, *picture_files)}

    from rich.console import Console

    console = Console(highlight=False)
    # On a terminal one console must print both, because it moves the bar out of the way. If stdout is a file,
    # the bar is on stderr.
    bar_console = console if console.is_terminal else Console(stderr=True)
    with _progress(len(options.images), bar_console) as progress:
        task = progress.add_task("Explaining", total=len(options.images))
        remaining = iter(picture_files)
        for batch in _batches(explainer, loaded, options, target, device):
            for index, path in enumerate(batch.paths):
                picture = next(remaining)
                _write(batch, index, batch.heatmaps[index], picture, options)
                text = summary(batch, index, path, picture, loaded.classes)
                for line in _write_checkpoints(batch, index, picture, used, options):
                    text.append(line)
                console.print(text, soft_wrap=True)
                progress.advance(task)
    if options.report is not None and together is not None:
        photos = [as_seen(read_image(path), loaded.preprocess) for path in options.images]
        options.report.parent.mkdir(parents=True, exist_ok=True)
        explainer.report(together.to(device), options.report, target=target, class_names=loaded.classes, photos=photos)
        console.print(f"report        {options.report}", soft_wrap=True)


def _equally_large(paths: Sequence[Path], preprocess: Preprocess) -> Tensor:
    """The images as one batch.

    Raises:
        InputError: they differ in size after the preprocessing.
    """
    inputs = [to_input(read_image(path), preprocess) for path in paths]
    if len({value.shape for value in inputs}) > 1:
        raise InputError("--report needs images that the preprocessing makes equally large")
    return torch.stack(inputs)


def summary(batch: Batch, index: int, path: Path, picture: Path, classes: Sequence[str] | None) -> Any:
    """The results of one image, as a ``rich.text.Text``.

    Args:
        batch: the batch.
        index: the image's number in it.
        path: the image file.
        picture: the file that was written.
        classes: the classes' names.
    """
    from rich.text import Text

    explanation = batch.explanation
    probabilities = explanation.output[index].detach().cpu().double().softmax(0)
    text = Text.assemble((str(path), "bold"), "\n")
    target = int(explanation.target[index])  # type: ignore[index]
    values, numbers = probabilities.topk(min(5, len(probabilities)))
    for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
        line = f"  {100 * value:6.2f} %  {_named(number, classes)}\n"
        text.append(line, "bold cyan" if number == target else "")
    text.append(f"  explained   {_named(target, classes)}, probability {float(probabilities[target]):.6f}\n")
    text.append(f"  start       {explanation.start_name} {float(explanation.start[index]):.6f}\n")
    text.append(f"  Σ relevance {_total(explanation, explanation.relevance, index)}\n")
    if batch.absorbed is not None:
        amounts = {reason: float(amount[index]) for reason, amount in batch.absorbed.items()}
        shown = [f"{reason} {amount:.6f}" for reason, amount in amounts.items() if amount]
        text.append(f"  absorbed    {sum(amounts.values()):.6f}{' (' + ', '.join(shown) + ')' if shown else ''}\n")
    text.append(f"  picture     {picture}\n")
    return text


def _batches(
    explainer: Explainer, loaded: LoadedModel, options: ExplainOptions, target: int | None, device: torch.device
) -> Iterator[Batch]:
    preprocess: Preprocess = loaded.preprocess  # type: ignore[assignment]
    for start in range(0, len(options.images), options.batch_size):
        paths = options.images[start : start + options.batch_size]
        pictures = [read_image(path) for path in paths]
        inputs = [to_input(picture, preprocess) for picture in pictures]
        photos = [as_seen(picture, preprocess) for picture in pictures]
        if len({value.shape for value in inputs}) == 1:
            yield _explained(explainer, paths, photos, torch.stack(inputs).to(device), target, options)
            continue
        for path, photo, value in zip(paths, photos, inputs, strict=True):
            yield _explained(explainer, [path], [photo], value.unsqueeze(0).to(device), target, options)


def _explained(
    explainer: Explainer, paths: Sequence[Path], photos: Sequence[Tensor], inputs: Tensor,
    target: int | None, options: ExplainOptions,
) -> Batch:  # fmt: skip
    explanation = explainer(inputs, target=target)
    absorbed = explainer.ledger(inputs, target=explanation.target).absorbed if options.ledger else None
    return Batch(paths, photos, explanation, heatmap(explanation.relevance).detach().cpu(), absorbed)


def _total(explanation: Explanation, relevance: Tensor, index: int) -> str:
    """The sum of an item's relevance, and its share of the relevance that entered."""
    total, start = float(relevance[index].double().sum()), float(explanation.start[index])
    return f"{total:.6f}" + (f", {100 * total / start:.2f} % of what entered" if start else "")


def _write_checkpoints(
    batch: Batch, index: int, picture: Path, used: set[str], options: ExplainOptions
) -> Iterator[str]:
    """Write a picture beside ``picture`` for each checkpoint that has a map; give lines with its sum of relevance."""
    for name, value in batch.explanation.checkpoints.items():
        # A module that takes several values, or is called several times, has one each.
        several = value if isinstance(value, tuple) else (value,)
        for number, relevance in enumerate(several):
            label = name if len(several) == 1 else f"{name}[{number}]"
            shape = tuple(relevance.shape)
            if len(relevance) != len(batch.paths):  # windows or tokens in front
                yield f"  checkpoint  {label}: relevance of shape {shape} does not have the images in front\n"
                continue
            yield f"  checkpoint  {label}: Σ relevance {_total(batch.explanation, relevance, index)}\n"
            shown = layer_map(relevance[index].detach().cpu(), *batch.photos[index].shape[1:])
            if shown is None:
                yield f"  no picture  {label}: relevance of shape {shape[1:]} is no map of the image\n"
                continue
            beside = unused_path(picture.parent, f"{picture.stem}_{name}".replace("/", "_"), used)
            _write(batch, index, shown, beside, options)
            yield f"  picture     {beside}\n"


def _write(batch: Batch, index: int, relevance: Tensor, path: Path, options: ExplainOptions) -> None:
    shown = relevance.float()
    if options.quantize is not None:
        shown = quantize_heat(shown, options.quantize)
    colors = options.colors or fitting_colors(shown)
    # A blur would mix the levels of a quantized map.
    usual = 1.0 if options.quantize is None else 0.0
    smooth = usual if options.smooth is None else options.smooth
    limit = color_range([blurred(shown, smooth)], colors, options.percentile)
    picture = overlay(batch.photos[index], shown, colors, smooth=smooth, limit=limit)
    save_png(with_bar(picture, Scale(colors, limit)) if options.bar else enlarge(picture), path)


def _progress(images: int, console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=images < 2, redirect_stdout=False,
    )  # fmt: skip


def _named(number: int, classes: Sequence[str] | None) -> str:
    return f"class {number}" if classes is None else f"{classes[number]} ({number})"
