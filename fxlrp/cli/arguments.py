"""What several commands make of their options: compile's arguments, a class, a device, an example."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxlrp.cli.options import ExplanationOptions, ModelOptions
from fxlrp.common.errors import InputError, StartError, TargetError
from fxlrp.loading.models import LoadedModel
from fxlrp.loading.preprocessing import Asked
from fxlrp.loading.rule_text import read_rules
from fxlrp.presets import preset_named
from fxlrp.rules.starts import STARTS

# A picture explains one class; "output" starts at all of them.
_STARTS = [name for name in STARTS if name != "output"]


def compile_options(options: ModelOptions) -> dict[str, Any]:
    """The keyword arguments for :func:`fxlrp.compile`, without those that were not given.

    Raises:
        RuleError: there is no such preset, or a rule cannot be read.
        StartError: there is no such start, or it is not of one class.
    """
    if options.preset is not None:
        preset_named(options.preset)
    given: dict[str, Any] = {"preset": options.preset, "split": options.split, "rules": read_rules(options.rules or ())}
    if isinstance(options, ExplanationOptions):
        start = options.start and options.start.lower().replace("-", "_")
        if start is not None and start not in _STARTS:
            close = difflib.get_close_matches(start, _STARTS, n=1, cutoff=0.6)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise StartError(f"--start {options.start}: choose one of {', '.join(_STARTS)}{hint}")
        given |= {"start": start, "checkpoints": options.checkpoints}
    return {name: value for name, value in given.items() if value is not None}


def asked_of(options: ModelOptions) -> Asked:
    """What the options say of preprocessing and classes.

    Raises:
        InputError: means or standard deviations are no numbers.
    """
    return Asked(options.size, _numbers("--mean", options.mean), _numbers("--std", options.std), options.channels,
                 options.classes)  # fmt: skip


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise InputError(f"{option} {text}: numbers with commas between them, such as 0.5,0.5,0.5") from error


def class_number(target: str | None, classes: Sequence[str] | None, option: str = "--target") -> int | None:
    """The number of a class that is given by number or by name, in upper or lower case.

    ``option``: where it was given.

    Raises:
        TargetError: no class has this name or number, or several classes have this name.
    """
    if target is None:
        return None
    try:
        number = int(target)
    except ValueError:
        pass
    else:
        if number < 0 or (classes is not None and number >= len(classes)):
            hint = "" if classes is None else f": there are {len(classes)} classes, 0 to {len(classes) - 1}"
            raise TargetError(f"{option} {target} is no class{hint}")
        return number
    if classes is None:
        raise TargetError(f"{option} {target}: this model's classes have no names, give a number")
    numbers = [number for number, name in enumerate(classes) if name.casefold() == target.casefold()]
    if len(numbers) > 1:
        several = ", ".join(map(str, numbers))
        raise TargetError(f"{option} {target}: classes {several} all have this name, give the number")
    if not numbers:
        lower = {name.casefold(): name for name in classes}
        wanted = target.casefold()
        containing = [name for key, name in lower.items() if wanted in key]
        close = containing or [lower[key] for key in difflib.get_close_matches(wanted, lower, n=4, cutoff=0.5)]
        hint = f": did you mean {', '.join(close[:4])}?" if close else ""
        raise TargetError(f"{option} {target} is no class of this model{hint}")
    return numbers[0]


def device_named(name: str) -> torch.device:
    """The device of this name.

    Raises:
        InputError: there is none, or it cannot be used on this machine.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # Which of these torch raises depends on the device: the last one for a device that it was not built for.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(f"--device {name} cannot be used here: {first}") from error
    if device.type == "meta":
        raise InputError("--device meta holds no numbers")
    return device


def example_of(loaded: LoadedModel) -> Tensor:
    """An input of the model's size, for models that are captured from example inputs."""
    from PIL import Image

    assert loaded.preprocess is not None
    return loaded.preprocess(Image.new("RGB", (256, 256))).unsqueeze(0)
