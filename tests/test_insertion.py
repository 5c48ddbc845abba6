"""Insertion and deletion: against a loop that follows the definition word by word."""

import warnings

import numpy as np
import pytest
import torch
from checks import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxlrp
from fxlrp.errors import EvaluationError, InputError, TargetError
from fxlrp.evaluation import PlateauWarning, insertion_deletion
from fxlrp.evaluation.baselines import baseline_images, blurred
from fxlrp.evaluation.insertion import area, naming_ranks
from fxlrp.evaluation.ties import tied_share


class Small(nn.Module):
    """A classifier that looks at every pixel, with nothing linear about it."""

    def __init__(self, classes=3, size=6):
        super().__init__()
        torch.manual_seed(0)
        conv, fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * size**2, classes)
        self.net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), fc)

    def forward(self, x):
        return 3 * self.net(x)


def case(batch=3, size=6, dtype=torch.float64, seed=1):
    torch.manual_seed(seed)
    model = Small(size=size).to(dtype).eval()
    return model, torch.rand(batch, 3, size, size, dtype=dtype), torch.randn(batch, size, size, dtype=dtype)


def curves_by_definition(model, image, heat, target, step, *, plateau=False, base=0.0, normalize=None):
    """Petsiuk et al. (2018), one pixel after the other, on arrays."""
    total = heat.size
    order = np.argsort(-heat.ravel(), kind="stable")
    insertion, deletion = [], []
    for n in range(step, total + step, step):
        n = min(n, total)
        named = np.zeros(total, dtype=bool)
        if plateau:
            named[heat.ravel() >= heat.ravel()[order[n - 1]]] = True
        else:
            named[order[:n]] = True
        named = named.reshape(heat.shape)
        for curve, shown in ((insertion, named), (deletion, ~named)):
            x = torch.tensor(np.where(shown, image, base))[None]
            x = x if normalize is None else normalize(x)
            with torch.no_grad():
                curve.append(model(x).softmax(1)[0, target].item())
    return np.array(insertion), np.array(deletion)


@pytest.mark.parametrize("step", [1, 5, 7, 36, 100])
@pytest.mark.parametrize("ties", ["strict", "plateau"])
def test_curves_follow_the_definition(step, ties):
    model, images, maps = case()
    maps = (4 * maps).round()  # many pixels tie
    targets = torch.tensor([2, 0, 1])

    def normalize(x):
        return (x - 0.4) / 0.3

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlateauWarning)
        result = insertion_deletion(model, images, maps, targets, step=step, ties=ties, normalize=normalize)
    for i in range(3):
        expected = curves_by_definition(
            model, images[i].numpy(), maps[i].numpy(), int(targets[i]), step, plateau=ties == "plateau",
            normalize=normalize,
        )  # fmt: skip
        for got, curve in zip((result.curves.insertion[i], result.curves.deletion[i]), expected, strict=True):
            assert np.abs(got.numpy() - curve).max() < 1e-12
        for got, curve in zip((result.insertion[i], result.deletion[i]), expected, strict=True):
            span = len(curve) - 1
            mean = np.trapezoid(curve) / span if span else curve[0]
            assert abs(got.item() - mean) < 1e-12
    assert torch.equal(result.score, result.insertion - result.deletion)
    assert result.curves.pixels.tolist() == [min(n, 36) for n in range(step, 36 + step, step)]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_no_image_is_seen_twice(batch_size):
    model, images, _ = case(batch=2, size=6)
    heat = torch.arange(3.0).repeat_interleave(12).view(1, 6, 6).expand(2, -1, -1).double()  # three plateaus
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.extend(args[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlateauWarning)
        found = insertion_deletion(model, images, heat, [0, 1], step=4, ties="plateau", batch_size=batch_size)
    assert len(seen) == 2 * 2 * 3  # of each image, insertion and deletion, a plateau
    assert len(torch.unique(torch.stack(seen), dim=0)) == len(seen) - 1  # both are black in the end
    for curve in (found.curves.insertion, found.curves.deletion):
        assert curve.shape == (2, 9)
        for step in range(9):
            assert torch.equal(curve[:, step], curve[:, step // 3 * 3])
        assert not torch.equal(curve[:, 0], curve[:, 3])


def test_the_last_step_names_all_pixels():
    model, images, maps = case()
    result = insertion_deletion(model, images, maps, 1, step=5)
    with torch.no_grad():
        whole, nothing = (model(x).softmax(1)[:, 1] for x in (images, torch.zeros_like(images)))
    assert_close(result.curves.insertion[:, -1], whole)
    assert_close(result.curves.deletion[:, -1], nothing)


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.integers(1, 12))
def test_strict_and_plateau_agree_where_no_pixels_tie(seed, step):
    model, images, maps = case(batch=2, size=4, seed=seed)
    strict, plateau = (
        insertion_deletion(model, images, maps, 0, step=step, ties=ties) for ties in ("strict", "plateau")
    )
    assert torch.equal(strict.curves.insertion, plateau.curves.insertion)
    assert torch.equal(strict.curves.deletion, plateau.curves.deletion)
    assert strict.tied.tolist() == [0, 0]


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.integers(1, 4))
def test_naming_ranks_follow_the_order_of_attributions(seed, values):
    torch.manual_seed(seed)
    maps = torch.randint(0, values, (3, 4, 5)).double()
    strict, plateau = naming_ranks(maps), naming_ranks(maps, "plateau")
    for heat, place, first in zip(maps.flatten(1), strict, plateau, strict=True):
        assert sorted(place.tolist()) == list(range(20))
        assert (heat[place.argsort()].diff() <= 0).all()
        assert all(first[i] == (heat > heat[i]).sum() for i in range(20))


def test_a_batch_gives_what_single_images_give_for_any_batch_size():
    model, images, maps = case(batch=4)
    targets = [0, 1, 2, 0]
    whole = insertion_deletion(model, images, maps, targets, step=4)
    for size in (1, 5, 1000):
        other = insertion_deletion(model, images, maps, torch.tensor(targets), step=4, batch_size=size)
        assert_close(other.curves.insertion, whole.curves.insertion)
        assert_close(other.deletion, whole.deletion)
    for i in range(4):
        single = insertion_deletion(model, images[i : i + 1], maps[i : i + 1], targets[i], step=4)
        assert_close(single.score, whole.score[i : i + 1])


def test_a_better_map_scores_higher():
    # The model looks at one quarter of the image alone; a map that names it is the best, its negative the worst.
    class Corner(nn.Module):
        def forward(self, x):
            return torch.stack([4 * x[:, :, :3, :3].mean(dim=(1, 2, 3)), torch.full((len(x),), 1.0)], dim=1)

    images, maps = torch.ones(1, 3, 6, 6), torch.zeros(1, 6, 6)
    maps[:, :3, :3] = 1
    scores = [insertion_deletion(Corner().eval(), images, heat, 0, step=3).score for heat in (maps, -maps)]
    assert scores[0] > 0.4
    assert scores[1] < -0.4


# Baselines ------------------------------------------------------------------------------------------


def test_baselines_replace_pixels_as_named():
    _, images, _ = case()
    assert torch.equal(baseline_images(images), torch.zeros_like(images))
    assert torch.equal(baseline_images(images, 0.5), torch.full_like(images, 0.5))
    assert_close(baseline_images(images, "mean"), images.mean(dim=(2, 3), keepdim=True).expand_as(images))
    own = torch.rand(3, 1, 1, dtype=torch.float64)
    assert torch.equal(baseline_images(images, own), own.expand_as(images))
    model, images, maps = case()
    black, grey = (insertion_deletion(model, images, maps, 0, step=6, baseline=base) for base in ("black", 0.5))
    assert not torch.allclose(black.insertion, grey.insertion)


def test_blurring_keeps_a_flat_image_and_smooths_others():
    flat = torch.full((1, 3, 20, 30), 0.3, dtype=torch.float64)
    assert_close(blurred(flat, 4.0), flat)
    torch.manual_seed(0)
    noise = torch.rand(1, 3, 20, 30, dtype=torch.float64)
    soft = blurred(noise, 4.0)
    assert soft.shape == noise.shape
    assert soft.std() < 0.3 * noise.std()
    assert blurred(torch.rand(1, 1, 2, 3), 10.0).shape == (1, 1, 2, 3)  # smaller than the kernel


# Ties -----------------------------------------------------------------------------------------------


def test_plateaus_warn_and_name_the_share_of_tied_pixels():
    model, images, maps = case(batch=1)
    quantized = fxlrp.quantize_heat(maps, 4)
    with pytest.warns(PlateauWarning, match=r"9\d(\.\d)? % of the pixels tie"):
        insertion_deletion(model, images, quantized, 0, step=4, ties="plateau")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        insertion_deletion(model, images, maps, 0, step=4, ties="plateau")
        insertion_deletion(model, images, quantized, 0, step=4)


def test_tied_share_counts_pixels_of_equal_values():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert tied_share(maps).tolist() == [0, 0.5, 1]


def test_the_area_of_a_line_is_its_middle():
    assert area(torch.linspace(0, 1, 11, dtype=torch.float64)).item() == pytest.approx(0.5)
    assert area(torch.tensor([0.7])).item() == pytest.approx(0.7)


# Errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.rand(3, 6, 6)}, InputError, r"\(batch, channels, height, width\)"),
        ({"images": 2 * torch.rand(3, 3, 6, 6) - 1}, InputError, r"must lie in \[0, 1\]"),
        ({"heatmaps": torch.rand(3, 6, 5)}, InputError, r"one map per image.*\(3, 6, 6\), not \(3, 6, 5\)"),
        ({"heatmaps": torch.full((3, 6, 6), torch.nan)}, InputError, "NaN or infinity"),
        ({"targets": 7}, TargetError, "class 7 is out of range: the model has 3 classes"),
        ({"targets": -1}, TargetError, "out of range"),
        ({"targets": [0, 1]}, TargetError, "one per image"),
        ({"targets": 0.5}, TargetError, "class numbers"),
        ({"step": 0}, InputError, "step=0"),
        ({"step": 2.5}, InputError, "step=2.5"),
        ({"ties": "loose"}, InputError, "choose 'strict' or 'plateau'"),
        ({"baseline": "white"}, InputError, "choose among 'black', 'mean', 'blurred'"),
        ({"baseline": torch.rand(5)}, InputError, "does not broadcast"),
        ({"batch_size": 0}, InputError, "batch_size=0"),
    ],
)  # fmt: skip
def test_bad_input_is_an_error(change, error, message):
    model, images, maps = case(dtype=torch.float32)
    given = {"images": images, "heatmaps": maps, "targets": 0, "step": 4} | change
    with pytest.raises(error, match=message):
        insertion_deletion(model, given.pop("images"), given.pop("heatmaps"), given.pop("targets"), **given)


def test_a_model_without_logits_or_in_training_mode_is_an_error():
    model, images, maps = case()
    with pytest.raises(EvaluationError, match=r"model\.eval"):
        insertion_deletion(model.train(), images, maps, 0, step=4)
    with pytest.raises(EvaluationError, match="gives logits"):
        insertion_deletion(nn.Identity().eval(), images, maps, 0, step=4)


def test_model_and_inputs_are_not_changed():
    model, images, maps = case()
    before = [value.clone() for value in (*model.state_dict().values(), images, maps)]
    insertion_deletion(model, images, maps, 0, step=4, baseline="blurred")
    assert all(map(torch.equal, before, (*model.state_dict().values(), images, maps)))
