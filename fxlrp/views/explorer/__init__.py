"""An explainer in Model Explorer: modules that open and close, and relevance as colours of their nodes.

explainer.explore(images)

Needs the extra ``explorer`` (``ai-edge-model-explorer``).
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from fxlrp.common.atomic_files import checked_path, whole
from fxlrp.common.errors import DrawError
from fxlrp.common.extras import require
from fxlrp.views.draw.flow import Flow
from fxlrp.views.explorer.graph import collection, pictures
from fxlrp.views.explorer.overlays import overlays
from fxlrp.views.readable import Readable


def write_graph(
    explainer: Readable, path: str | os.PathLike[str], images: Any = None, *, target: Any = None
) -> list[Path]:
    """Write the graph, and what there is to say of its nodes, as files that Model Explorer opens.

    Args:
        explainer: what to show.
        path: a file name that ends in ``.json``; overlays are written beside it, as ``NAME.relevance.json``, ….
        images: what the model takes, to explain; ``None``: the graph alone.
        target: the class to explain, as for an explanation.

    Returns:
        The paths: the graph's, then those of the overlays.

    Raises:
        DrawError: the path will not do.
        InputError, TargetError: as for an explanation.
    """
    path = checked_path(path)
    if path.suffix.lower() != ".json" or not path.parent.is_dir():
        raise DrawError(f"{path}: a graph is written as a .json file, in a folder that is there")
    graph, data = _described(explainer, images, target)
    contents = {path: graph}
    contents |= {path.with_suffix(f".{name.replace(' ', '_')}.json"): values for name, values in data.items()}
    for place, content in contents.items():
        with whole(place) as beside:
            beside.write_text(json.dumps(content), encoding="utf-8")
    return list(contents)


def explore(
    explainer: Readable, images: Any = None, *, target: Any = None, host: str = "localhost", port: int = 8080,
    browser: bool = True,
) -> None:  # fmt: skip
    """Serve the graph to a browser, until it is stopped (Ctrl-C).

    Args:
        explainer: what to show.
        images: what the model takes, to explain; ``None``: the graph alone.
        target: the class to explain, as for an explanation.
        host: where to serve.
        port: the same; 8080 stands for the first from there on that is free.
        browser: whether to open the page.

    Raises:
        MissingExtraError: Model Explorer is not installed.
        InputError, TargetError: as for an explanation.
    """
    server = require("model_explorer", "explorer")
    graph, data = _described(explainer, images, target)
    with tempfile.TemporaryDirectory(prefix="fxlrp-") as folder:
        path = Path(folder) / f"{explainer.model_name}.json"
        path.write_text(json.dumps(graph), encoding="utf-8")
        config = server.config().add_model_from_path(str(path))
        for name, values in data.items():
            config.add_node_data(name, json.dumps(values))
        server.visualize_from_config(config, host=host, port=port, no_open_in_browser=not browser)


def _described(explainer: Readable, images: Any, target: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The graph, and by name what there is to say of its nodes, as Model Explorer reads them."""
    if images is None:
        return collection(explainer.model_name, pictures(explainer, None)), {}
    flow = Flow(explainer.ledger(images, target=target), {node.name for node in explainer.emitted.nodes})
    shown = pictures(explainer, flow)
    times = explainer.node_times(images, target=target)
    return collection(explainer.model_name, shown), overlays(shown, flow, times)
