"""AttnLRP and CP-LRP of whole vision transformers are what LXT, the authors' own code, says.

The shipped presets stabilise every quotient with ε = 10⁻⁶, and LXT's explicit form can; its efficient form, gradient
× input, cannot, and LXT adds ε without a sign. So the presets below are the shipped ones with an ε that does not
matter. In all else they are LXT: biases of layers and norms take their shares, which are absorbed.

What differs is constants. Where the model adds one (positions), LXT gives it its share; in fxlrp the addition of a
constant passes relevance on: the two agree behind the addition, and up to the input where the constant is zero. And
fxlrp gives a constant token no share of a layer that it goes through before it has met the signal: of what enters the
transformer, the tokens of the image are compared.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import assert_close
from lxt_nets import EPSILON, GOLDEN, PLAIN, RUNS, TARGET, TinyViT, images, make, torchvision_vit

import fxlrp
from fxlrp.rules import Bilinear, Epsilon, NormEpsilon, SignedSplit, ThroughValues

NEAR = 1e-7
SMALL = {
    "linear": Epsilon(EPSILON, bias="absorb"), "split": SignedSplit(EPSILON), "norm": NormEpsilon(EPSILON),
}  # fmt: skip
PRESETS = {
    "attnlrp": replace(fxlrp.PRESETS["attnlrp"], product=Bilinear(Epsilon(EPSILON)), **SMALL),
    "cp_lrp": replace(fxlrp.PRESETS["cp_lrp"], product=ThroughValues(Epsilon(EPSILON)), **SMALL),
}


@pytest.fixture
def lxt():
    return pytest.importorskip("lxt")


def explained(run, preset, positions):
    """The relevance of the input and of the image's tokens, as in ``RUNS``."""
    tiny = run.startswith("attnlrp")
    model, inside = (TinyViT(PLAIN), "blocks") if tiny else (torchvision_vit(), "encoder.layers")
    explainer = fxlrp.compile(make(model, positions=positions), preset, start="one", checkpoints=[inside])
    explanation = explainer(images(), TARGET)
    return {"input": explanation.relevance, "tokens": of_the_image(explanation.checkpoints[inside])}


def of_the_image(tokens):
    return tokens[:, 1:]


def compare(run, positions, wanted, limit=NEAR, preset=None):
    found = explained(run, preset or PRESETS[run.split()[0]], positions)
    assert_close(found["tokens"], of_the_image(wanted["tokens"]), limit)
    if not positions:
        assert_close(found["input"], wanted["input"], limit)


def stored(run, positions):
    with np.load(GOLDEN) as maps:
        return {where: torch.from_numpy(maps[f"{run}/{positions}/{where}"]) for where in ("input", "tokens")}


both = pytest.mark.parametrize("positions", [False, True], ids=["no positions", "positions"])
runs = pytest.mark.parametrize("run", RUNS)


@runs
@both
def test_a_preset_is_the_stored_relevance_of_lxt(run, positions):
    compare(run, positions, stored(run, positions))


@runs
@both
def test_a_preset_is_what_lxt_says(lxt, run, positions):
    compare(run, positions, RUNS[run](positions=positions))


@runs
def test_the_shipped_presets_differ_by_their_stabilizer_alone(run):
    compare(run, False, stored(run, False), 1e-3, run.split()[0])


def test_positions_take_a_share_in_lxt_alone():
    theirs = stored("attnlrp efficient", True)
    model = make(TinyViT(PLAIN), positions=True)
    patches = F.unfold(images(), 4, stride=4).transpose(1, 2)
    total = model.embed(patches) + model.position[:, 1:]
    # What is left to the embedding once the positions have theirs goes on to the pixels by the ε rule.
    share = patches * (of_the_image(theirs["tokens"]) / total @ model.embed.weight)
    assert_close(F.fold(share.transpose(1, 2), (12, 12), 4, stride=4), theirs["input"], NEAR)
    # In fxlrp all of it goes on.
    share = patches * (of_the_image(theirs["tokens"]) / model.embed(patches) @ model.embed.weight)
    ours = explained("attnlrp efficient", PRESETS["attnlrp"], True)["input"]
    assert_close(ours, F.fold(share.transpose(1, 2), (12, 12), 4, stride=4), NEAR)
