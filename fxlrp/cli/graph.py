"""``fxlrp graph``: the graph as a picture, or in a browser."""

from __future__ import annotations

import warnings

from fxlrp.cli.arguments import asked_of, class_number, compile_options, example_of
from fxlrp.cli.options import GraphOptions
from fxlrp.common.atomic_files import made_folder
from fxlrp.common.errors import InputError
from fxlrp.common.extras import require
from fxlrp.compiler import compile
from fxlrp.loading.images import read_image, to_input
from fxlrp.loading.models import ModelWarning, load_model


def draw_graph(options: GraphOptions) -> None:
    """Draw the graph of a model's explainer into a file, or show it in Model Explorer.

    Raises:
        FxlrpError: an option or the image is wrong, or the model cannot be explained.
    """
    compiling = compile_options(options)
    out, shown = options.out, options.explore or options.flow
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: name a file, such as {out / 'graph.svg'}")
    picture = None if shown is None else read_image(shown)
    if options.target is not None and picture is None:
        raise InputError("--target is the class of an image: give one, by --flow or --explore")
    if options.explore is not None:
        require("model_explorer", "explorer")
    with warnings.catch_warnings():
        if picture is None:  # random weights give the same drawing
            warnings.simplefilter("ignore", ModelWarning)
        loaded = load_model(options.model, options.weights, asked_of(options))
    target = class_number(options.target, loaded.classes)
    example = example_of(loaded)
    explainer = compile(loaded.model, example_inputs=example, **compiling)
    if picture is not None:
        assert loaded.preprocess is not None
        example = to_input(picture, loaded.preprocess).unsqueeze(0)
    if options.explore is not None:
        explainer.explore(example, target=target)
        return
    ledger = None if picture is None else explainer.ledger(example, target=target)
    made_folder(out.parent, InputError)
    explainer.draw(str(out), options.view, depth=options.depth, ledger=ledger)
    print(out)
