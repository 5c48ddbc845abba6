"""Insertion, deletion and the ID score: how a model's probability answers to the pixels that a map names first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fxlrp.common.errors import EvaluationError, InputError, TargetError
from fxlrp.evaluation.baselines import baseline_images
from fxlrp.evaluation.ties import first_equal, tied_share

TieRule = Literal["strict", "plateau"]
TIES: tuple[str, ...] = get_args(TieRule)

Normalize = Callable[[Tensor], Tensor]
"""From images (batch, channels, height, width) in [0, 1] to what the model takes."""


class PlateauWarning(UserWarning):
    """Scores by plateaus say little about maps with ties."""


class Curves(NamedTuple):
    """The probability of the explained class after each step.

    Attributes:
        pixels: (steps,), how many pixels were named by then.
        insertion: (batch, steps).
        deletion: (batch, steps).
    """

    pixels: Tensor
    insertion: Tensor
    deletion: Tensor


@dataclass(frozen=True)
class InsertionDeletion:
    """What :func:`insertion_deletion` measured.

    Attributes:
        insertion: (batch,), the area under the insertion curve, between 0 and 1.
        deletion: (batch,), the area under the deletion curve, between 0 and 1.
        curves: the curves themselves.
        tied: (batch,), the share of pixels whose attribution another pixel has as well.
    """

    insertion: Tensor
    deletion: Tensor
    curves: Curves
    tied: Tensor

    @property
    def score(self) -> Tensor:
        """(batch,), ID: insertion − deletion."""
        return self.insertion - self.deletion


def insertion_deletion(
    model: nn.Module, images: Tensor, heatmaps: Tensor, targets: int | Sequence[int] | Tensor, *, step: int,
    ties: str = "strict", baseline: str | float | Tensor = "black", normalize: Normalize | None = None,
    batch_size: int = 64,
) -> InsertionDeletion:  # fmt: skip
    """Insertion, deletion and ID (Petsiuk et al., BMVC 2018; Otsuki et al., ECCV 2024, Eqs. 9 and 10).

    Pixels are sorted by attribution, the highest first. After n = step, 2·step, … pixels the insertion image
    holds those pixels on the baseline, and the deletion image has the baseline in their place; the last step
    names all of them. An area is taken by the trapezoid rule over the steps, and divided by their span.

    Args:
        model: from images to logits, (batch, classes); in eval mode.
        images: (batch, channels, height, width), between 0 and 1.
        heatmaps: (batch, height, width).
        targets: the class whose probability is followed: one for all, or one per image.
        step: how many pixels at a time.
        ties: among pixels of one attribution ``"strict"`` takes the upper left first, so that n pixels are n
            pixels (the definition in the paper); ``"plateau"`` takes every pixel that attains the attribution
            of the n-th (what the paper's released code does).
        baseline: what stands where a pixel is missing: ``"black"``, the ``"mean"`` of each image's channels, the
            image ``"blurred"``, a number, or a tensor that broadcasts to the images.
        normalize: applied to the images after pixels were replaced; ``None``: the model takes [0, 1].
        batch_size: how many images the model sees at once.

    Returns:
        Areas, curves and the share of tied pixels, on the model's device.

    Warns:
        PlateauWarning: plateaus were asked for and pixels tie: such scores can be high for maps without worth.

    Raises:
        InputError: shapes do not fit, values are not finite, images are not within [0, 1], or ``step``,
            ``ties`` or ``baseline`` is nothing that there is.
        TargetError: a target is no class, or there is not one per image.
        EvaluationError: the model does not give logits (batch, classes), or is in training mode.
    """
    _check(model, images, heatmaps, step, ties, batch_size)
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), images.device)
    images, heatmaps = images.to(device), heatmaps.to(device)
    classes = _targets(targets, images)
    base = baseline_images(images, baseline)
    ranks = naming_ranks(heatmaps, ties)
    tied = tied_share(heatmaps)
    if ties == "plateau" and bool((tied > 0).any()):
        warnings.warn(
            f"{100 * tied.mean():.3g} % of the pixels tie, and plateaus enter the image at once: "
            'such scores can be high for maps without worth; ties="strict" is the definition',
            PlateauWarning, stacklevel=2,
        )  # fmt: skip
    total = images.shape[-2] * images.shape[-1]
    pixels = torch.arange(1, -(-total // step) + 1, device=images.device).mul_(step).clamp_(max=total)
    first_alike = _first_alike(ranks, pixels).flatten()
    probabilities = torch.empty(len(first_alike), dtype=torch.float64, device=images.device)
    with torch.inference_mode():
        for cells, batch in _masked(images, base, ranks, pixels, torch.unique(first_alike), batch_size):
            logits = model(batch if normalize is None else normalize(batch))
            probabilities[cells] = _probabilities(logits, classes[cells // len(pixels) % len(images)])
    insertion, deletion = probabilities[first_alike].view(2, len(images), len(pixels))
    return InsertionDeletion(area(insertion), area(deletion), Curves(pixels, insertion, deletion), tied)


def naming_ranks(heatmaps: Tensor, ties: str = "strict") -> Tensor:
    """After how many pixels each pixel is named: it is among the first n where its rank is below n.

    Args:
        heatmaps: (batch, height, width).
        ties: ``"strict"``: the rank of a pixel in the order of attributions; all ranks differ.
            ``"plateau"``: the rank of the first pixel of the same attribution.

    Returns:
        (batch, height · width), integers.
    """
    values, order = heatmaps.flatten(1).sort(dim=1, descending=True, stable=True)
    ranks = first_equal(values) if ties == "plateau" else torch.arange(values.shape[1], device=values.device)
    return torch.empty_like(order).scatter_(1, order, ranks.expand_as(order))


def area(curve: Tensor) -> Tensor:
    """The area under curves by the trapezoid rule, divided by their span: (..., steps) to (...)."""
    steps = curve.shape[-1]
    return curve[..., 0] if steps == 1 else torch.trapezoid(curve, dim=-1) / (steps - 1)


# A cell is one image of one curve: its number counts through (2, batch, steps), insertion before deletion.


def _first_alike(ranks: Tensor, pixels: Tensor) -> Tensor:
    """For each cell, (2, batch, steps), the first cell with the same image: a plateau may outlast a step."""
    named = torch.searchsorted(ranks.sort(dim=1).values, pixels.expand(len(ranks), -1).contiguous())
    first = torch.searchsorted(named, named)  # equally many pixels are the same pixels
    curves = torch.arange(2 * len(ranks), device=ranks.device).view(2, -1, 1)
    return curves * len(pixels) + first


def _masked(
    images: Tensor, base: Tensor, ranks: Tensor, pixels: Tensor, cells: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images at some cells, in batches, each with its cells."""
    count, steps = len(images), len(pixels)
    for some in torch.split(cells, batch_size):
        image = some // steps % count
        shown = ranks[image] < pixels[some % steps][:, None]
        shown ^= (some >= count * steps)[:, None]  # deletion shows what insertion does not
        mask = shown.view(-1, 1, *images.shape[-2:])
        yield some, torch.where(mask, images[image], base[image])


def _probabilities(logits: Tensor, classes: Tensor) -> Tensor:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise EvaluationError(f"insertion and deletion need a model that gives logits (batch, classes), not {got}")
    if int(classes.max()) >= logits.shape[1]:
        raise TargetError(f"class {int(classes.max())} is out of range: the model has {logits.shape[1]} classes")
    return logits.double().softmax(dim=1).gather(1, classes[:, None])[:, 0]


def _check(model: nn.Module, images: Tensor, heatmaps: Tensor, step: int, ties: str, batch_size: int) -> None:
    if model.training:
        raise EvaluationError("the model is in training mode: call model.eval() first")
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point() or not images.numel():
        raise InputError("images are a floating point tensor (batch, channels, height, width), and not empty")
    expected = (images.shape[0], *images.shape[2:])
    if not isinstance(heatmaps, Tensor) or heatmaps.shape != expected:
        got = tuple(heatmaps.shape) if isinstance(heatmaps, Tensor) else type(heatmaps).__name__
        raise InputError(f"give one map per image, of its size: heatmaps must be {expected}, not {got}")
    if not bool(torch.isfinite(heatmaps).all()):
        raise InputError("the heatmaps hold NaN or infinity, which have no place in an order")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise InputError(
            f"images must lie in [0, 1], these reach from {low:.3g} to {high:.3g}: pixels are replaced before "
            "normalisation, which goes into normalize="
        )
    if ties not in TIES:
        raise InputError(f"ties={ties!r}: choose {' or '.join(map(repr, TIES))}")
    for name, number in (("step", step), ("batch_size", batch_size)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(f"{name}={number!r}: give a whole number of at least 1")


def _targets(targets: int | Sequence[int] | Tensor, images: Tensor) -> Tensor:
    classes = torch.as_tensor(targets, device=images.device)
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TargetError(f"targets are class numbers, not {classes.dtype}")
    if classes.dim() == 0:
        classes = classes.expand(len(images))
    if classes.shape != (len(images),):
        raise TargetError(f"{len(images)} images and targets of shape {tuple(classes.shape)}: give one per image")
    if int(classes.min()) < 0:
        raise TargetError(f"class {int(classes.min())} is out of range")
    return classes.long()
