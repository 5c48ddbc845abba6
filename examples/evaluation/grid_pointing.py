"""The grid pointing game with EfficientNet-Lite0: does a map point at the image of the class that is asked for?

    python -m examples.evaluation.grid_pointing FOLDER [--grids 8]

FOLDER holds one image of ImageNet per class, the sorted names in the order of the classes. Four images of different
classes, each recognised with a probability of 0.6 at least, make a grid of 448 × 448.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

import fxlrp
from examples.efficientnet_lite0 import load
from fxlrp.evaluation.grid_pointing import grids, point

ROWS = [
    ("conserving", "probability"),
    ("conserving", "log_odds"),
    ("evidence", "probability"),
    ("evidence", "centred"),
    ("evidence", "log_odds"),
]


def confident(model, preprocess, files, most, at_least=0.6):
    """Images that the model is sure of, and their classes."""
    images, labels = [], []
    for number in range(0, len(files), 12):
        image = preprocess(Image.open(files[number]).convert("RGB"))
        with torch.no_grad():
            probabilities = model(image[None]).softmax(1)[0]
        if int(probabilities.argmax()) == number and float(probabilities[number]) >= at_least:
            images.append(image)
            labels.append(number)
        if len(images) == most:
            break
    return torch.stack(images), labels


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--grids", type=int, default=8)
    options = parser.parse_args()
    loaded = load()
    images, labels = confident(loaded.model, loaded.preprocess, sorted(options.folder.iterdir()), most=40)
    made = grids(images, labels, options.grids)
    print(f"{len(made)} grids of {len(labels)} images; by chance 0.25")
    heads = ("in the cell", "correlation", "Σ|R| / start")
    print(f"{'preset':12s} {'start':12s}", *(f"{head:>12s}" for head in heads), f"{'ledger':>8s}")
    for preset, start in ROWS:
        explainer = fxlrp.compile(loaded.model, preset, start=start)
        played = [point(lambda x, c, e=explainer: e(x, target=c).relevance.sum(1), grid, c) for grid, c in made]
        share = torch.tensor([result.shares for result in played]).mean()
        correlation = torch.tensor([result.correlation for result in played]).mean()
        grid, classes = made[0]
        first, target = grid[None], torch.tensor(classes[:1])
        explanation, ledger = explainer(first, target=target), explainer.ledger(first, target=target)
        magnitude = explanation.relevance.abs().sum() / explanation.start.abs().sum()
        error = (ledger.error / ledger.start).abs().max()
        print(f"{preset:12s} {start:12s} {share:12.3f} {correlation:12.3f} {magnitude:12.2f} {error:8.0e}", flush=True)


if __name__ == "__main__":
    main()
