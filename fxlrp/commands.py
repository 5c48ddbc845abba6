"""What the commands do, once the command line has been read. Needs the extras ``cli`` and ``draw``."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxlrp import compile, heatmap, quantize_heat
from fxlrp.errors import ExportError, InputError, StartError, TargetError
from fxlrp.explainer import Explainer
from fxlrp.explanation import Explanation
from fxlrp.exports.portable import check_path
from fxlrp.extras import require
from fxlrp.heatmap import layer_map
from fxlrp.images import Preprocess, as_seen, read_image, to_input
from fxlrp.models import LoadedModel, ModelWarning, load_model
from fxlrp.places import free_place, identity, picture_paths
from fxlrp.presets import preset_named
from fxlrp.render import COLORS, enlarge, fitting_colors, overlay, save_png
from fxlrp.rule_text import read_rules
from fxlrp.rules.start import STARTS

# Pictures are of one class; "output" would start at all of them.
_STARTS = [name for name in STARTS if name != "output"]


@dataclass(frozen=True)
class ExplainOptions:
    """The options of ``fxlrp explain``, as its help describes them."""

    images: Sequence[Path]
    model: str
    weights: Path | None = None
    target: str | None = None
    preset: str = "conserving"
    rules: Sequence[str] = ()
    split: str | None = None
    start: str = "probability"
    checkpoints: Sequence[str] = ()
    out: Path | None = None
    device: str = "cpu"
    batch_size: int = 8
    colors: str | None = None
    quantize: int | None = None
    smooth: float | None = None
    ledger: bool = True
    report: Path | None = None


@dataclass(frozen=True)
class GraphOptions:
    """The options of ``fxlrp graph``, as its help describes them."""

    model: str
    out: Path = Path("graph.svg")
    weights: Path | None = None
    preset: str = "conserving"
    split: str | None = None
    rules: Sequence[str] = ()
    view: str = "both"
    depth: int | None = None
    flow: Path | None = None
    target: str | None = None
    explore: Path | None = None


@dataclass(frozen=True)
class ExportOptions:
    """The options of ``fxlrp export``, as its help describes them."""

    model: str
    out: Path
    weights: Path | None = None
    preset: str = "conserving"
    rules: Sequence[str] = ()
    split: str | None = None
    start: str = "probability"
    checkpoints: Sequence[str] = ()
    compiled: bool = False
    size: int | None = None


@dataclass(frozen=True)
class Batch:
    """Images explained together."""

    paths: Sequence[Path]
    photos: Sequence[Tensor]
    explanation: Explanation
    heatmaps: Tensor
    absorbed: dict[str, Tensor] | None


def explain_images(options: ExplainOptions) -> None:
    """Explain images, print what came out, and write a picture of each.

    Raises:
        FxlrpError: whatever can be wrong, and before the model runs where it can be known by then.
    """
    require("matplotlib", "draw")
    preset_named(options.preset)
    rules = read_rules(options.rules)
    _start(options.start)
    if options.colors is not None and options.colors not in COLORS:
        raise InputError(f"--colors {options.colors}: choose {' or '.join(COLORS)}")
    device = _device(options.device)
    if options.report is not None and options.report.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--report {options.report}: a report is a page, so the name must end in .html")
    for path in options.images:
        read_image(path)
    places = picture_paths(options.images, options.out)
    loaded = load_model(options.model, options.weights)
    target = class_number(options.target, loaded.classes)
    if options.report is not None:
        assert loaded.preprocess is not None
        _equally_large(options.images, loaded.preprocess)
    explainer = compile(
        loaded.model.to(device), options.preset, rules=rules, split=options.split, start=options.start,
        checkpoints=options.checkpoints,
    )  # fmt: skip
    taken = {identity(path) for path in (*options.images, *places)}

    from rich.console import Console

    console = Console(highlight=False)
    # On a screen one console must print both, for it moves the bar out of the way; where stdout
    # goes into a file, the bar may still be watched on stderr.
    watched = console if console.is_terminal else Console(stderr=True)
    with _progress(len(options.images), watched) as progress:
        task = progress.add_task("Explaining", total=len(options.images))
        remaining = iter(places)
        for batch in _batches(explainer, loaded, options, target, device):
            for index, path in enumerate(batch.paths):
                place = next(remaining)
                _write(batch, index, batch.heatmaps[index], place, options)
                text = summary(batch, index, path, place, loaded.classes)
                for line in _write_checkpoints(batch, index, place, taken, options):
                    text.append(line)
                console.print(text, soft_wrap=True)
                progress.advance(task)
    if options.report is not None:
        assert loaded.preprocess is not None
        photos = [as_seen(read_image(path), loaded.preprocess) for path in options.images]
        options.report.parent.mkdir(parents=True, exist_ok=True)
        together = _equally_large(options.images, loaded.preprocess).to(device)
        explainer.report(together, options.report, target=target, class_names=loaded.classes, photos=photos)
        console.print(f"report        {options.report}", soft_wrap=True)


def _equally_large(paths: Sequence[Path], preprocess: Preprocess) -> Tensor:
    """The images as one batch.

    Raises:
        InputError: preprocessed they differ in size.
    """
    inputs = [to_input(read_image(path), preprocess) for path in paths]
    if len({value.shape for value in inputs}) > 1:
        raise InputError("--report needs images that the preprocessing makes equally large")
    return torch.stack(inputs)


def draw_graph(options: GraphOptions) -> None:
    """Draw the graph of a model's explainer into a file, or show it in Model Explorer.

    Raises:
        FxlrpError: whatever can be wrong.
    """
    preset_named(options.preset)
    overrides = read_rules(options.rules)
    out, shown = options.out, options.explore or options.flow
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: name a file, such as {out / 'graph.svg'}")
    picture = None if shown is None else read_image(shown)
    if options.target is not None and picture is None:
        raise InputError("--target is the class of an image: give one, by --flow or --explore")
    if options.explore is not None:
        require("model_explorer", "explorer")
    with warnings.catch_warnings():
        if picture is None:  # the drawing is the same with random weights
            warnings.simplefilter("ignore", ModelWarning)
        loaded = load_model(options.model, options.weights)
    target = class_number(options.target, loaded.classes)
    example = _example(loaded)
    explainer = compile(loaded.model, options.preset, rules=overrides, split=options.split, example_inputs=example)
    if picture is not None:
        assert loaded.preprocess is not None
        example = to_input(picture, loaded.preprocess).unsqueeze(0)
    if options.explore is not None:
        explainer.explore(example, target=target)
        return
    ledger = None if picture is None else explainer.ledger(example, target=target)
    out.parent.mkdir(parents=True, exist_ok=True)
    explainer.draw(str(out), options.view, depth=options.depth, ledger=ledger)
    print(out)


def export_explanation(options: ExportOptions) -> None:
    """Write a model's explanation as a file, and say what it takes and gives.

    Raises:
        FxlrpError: whatever can be wrong, and before the model is built where it can be known by then.
    """
    preset_named(options.preset)
    rules = read_rules(options.rules)
    check_path(options.out, (".pt2", ".onnx"))
    onnx = options.out.suffix.lower() == ".onnx"
    if onnx and options.compiled:
        raise ExportError("--compiled makes a .pt2 file; an .onnx file is compiled by what runs it")
    loaded = load_model(options.model, options.weights)
    explainer = compile(
        loaded.model, options.preset, rules=rules, split=options.split, start=_start(options.start),
        checkpoints=options.checkpoints,
    )  # fmt: skip
    example = _example(loaded)
    if options.size is not None:
        example = example.new_zeros(*example.shape[:2], options.size, options.size)
    if onnx:
        explainer.export_onnx(options.out, example)
    elif options.compiled:
        explainer.export_aot(options.out, example)
    else:
        explainer.save(options.out, example)
    shape = ", ".join(map(str, ("batch", *example.shape[1:])))
    print(f"{options.out}  {options.out.stat().st_size / 2**20:.1f} MiB, for inputs ({shape}) and a target (batch)")


def _start(name: str) -> str:
    if name not in _STARTS:
        raise StartError(f"--start {name}: choose one of {', '.join(_STARTS)}")
    return name


def _example(loaded: LoadedModel) -> Tensor:
    """An input of the model's size, for models that are captured from one."""
    from PIL import Image

    assert loaded.preprocess is not None
    return loaded.preprocess(Image.new("RGB", (256, 256))).unsqueeze(0)


def class_number(target: str | None, classes: Sequence[str] | None) -> int | None:
    """The number of a class that is given by number or, in any case of letters, by name.

    Raises:
        TargetError: no class has this name or number, or several have this name.
    """
    if target is None:
        return None
    try:
        number = int(target)
    except ValueError:
        pass
    else:
        if number < 0 or (classes is not None and number >= len(classes)):
            known = "" if classes is None else f": there are {len(classes)} classes, 0 to {len(classes) - 1}"
            raise TargetError(f"--target {target} is no class{known}")
        return number
    if classes is None:
        raise TargetError(f"--target {target}: this model's classes have no names, give a number")
    numbers = [number for number, name in enumerate(classes) if name.casefold() == target.casefold()]
    if len(numbers) > 1:
        several = ", ".join(map(str, numbers))
        raise TargetError(f"--target {target}: classes {several} all have this name, give the number")
    if not numbers:
        lower = {name.casefold(): name for name in classes}
        parts = [name for key, name in lower.items() if target.casefold() in key]
        close = parts or [lower[key] for key in difflib.get_close_matches(target.casefold(), lower, n=4, cutoff=0.5)]
        hint = f": did you mean {', '.join(close[:4])}?" if close else ""
        raise TargetError(f"--target {target} is no class of this model{hint}")
    return numbers[0]


def summary(batch: Batch, index: int, path: Path, place: Path, classes: Sequence[str] | None) -> Any:
    """What came out for one image, as a rich text.

    Args:
        batch: the batch.
        index: the image's place in it.
        path: the image file.
        place: the picture that was written.
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
    text.append(f"  Σ relevance {_total(explanation, explanation.relevance, index)}\n")
    if batch.absorbed is not None:
        amounts = {reason: float(amount[index]) for reason, amount in batch.absorbed.items()}
        shown = [f"{reason} {amount:.6f}" for reason, amount in amounts.items() if amount]
        text.append(f"  absorbed    {sum(amounts.values()):.6f}{' (' + ', '.join(shown) + ')' if shown else ''}\n")
    text.append(f"  picture     {place}\n")
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
    """The sum of an item's relevance, and the share that it is of what entered."""
    total, start = float(relevance[index].double().sum()), float(explanation.start[index])
    return f"{total:.6f}" + (f", {100 * total / start:.2f} % of what entered" if start else "")


def _write_checkpoints(
    batch: Batch, index: int, place: Path, taken: set[str], options: ExplainOptions
) -> Iterator[str]:
    """Write a picture beside ``place`` for each checkpoint that has a map, and tell what its relevance adds up to."""
    for name, found in batch.explanation.checkpoints.items():
        # A module that takes several values, or is called several times, has as many.
        several = found if isinstance(found, tuple) else (found,)
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
            beside = free_place(place.parent, f"{place.stem}_{name}".replace("/", "_"), taken)
            _write(batch, index, shown, beside, options)
            yield f"  picture     {beside}\n"


def _write(batch: Batch, index: int, relevance: Tensor, place: Path, options: ExplainOptions) -> None:
    shown = relevance.float()
    if options.quantize is not None:
        shown = quantize_heat(shown, options.quantize)
    colors = options.colors or fitting_colors(shown)
    # Blurred, the levels of a quantized map would run into each other.
    usual = 1.0 if options.quantize is None else 0.0
    smooth = usual if options.smooth is None else options.smooth
    save_png(enlarge(overlay(batch.photos[index], shown, colors, smooth=smooth)), place)


def _progress(images: int, console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=images < 2, redirect_stdout=False,
    )  # fmt: skip


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # Which of these torch raises depends on the device: for one that it was not built for, such as mps, the last.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(f"--device {name} cannot be used here: {first}") from error
    if device.type == "meta":
        raise InputError("--device meta holds no numbers")
    return device


def _named(number: int, classes: Sequence[str] | None) -> str:
    return f"class {number}" if classes is None else f"{classes[number]} ({number})"
