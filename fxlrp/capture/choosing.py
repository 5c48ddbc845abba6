"""Another output of a model that was captured already: the capture holds all that the model returns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from fxlrp.capture.captured import Captured, chosen_output
from fxlrp.capture.exported import quiet
from fxlrp.capture.followed import CAPTURING
from fxlrp.capture.functional import functional, settle, sizes_kept
from fxlrp.common.errors import CaptureError


class _Fields(dict[str, Any]):
    """What a model returned as a dataclass, or as a dict: a capture does not tell which."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def with_output(captured: Captured, output: Any) -> Captured | None:
    """The same model, another of its outputs explained; ``None`` where only a capture of its own can tell.

    Args:
        captured: what ``torch.export`` read of the model.
        output: which of its outputs to explain, as ``compile`` takes it.

    Raises:
        CaptureError: it names nothing that the model returns.
    """
    _, *leaves = _outputs(captured.graph)
    sources = list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, fx.Node)))
    examples = [source.meta.get("val") for source in sources]
    if not all(isinstance(value, FakeTensor) for value in examples):
        return None

    def choose(*values: Any) -> Any:
        by_source = dict(zip(sources, values, strict=True))
        filled = [by_source[leaf] if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
        returned = pytree.tree_unflatten(filled, captured.returns)
        return chosen_output(_Fields(returned) if type(returned) is dict else returned, output)

    try:
        with CAPTURING, quiet(), torch.autocast(_device(examples), enabled=False), sizes_kept(examples):
            way = functional(make_fx(choose, pre_dispatch=True)(*examples).graph)
    except CaptureError:
        if callable(output):  # what is no tensor is not in the graph, and it may ask for that
            return None
        raise
    except Exception:  # whatever it makes of tensors without values
        return None
    return replace(captured, graph=_followed(captured.graph, way, sources))


def _outputs(graph: fx.Graph) -> list[Any]:
    outputs: Any = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    return list(outputs)


def _followed(graph: fx.Graph, way: fx.Graph, sources: list[fx.Node]) -> fx.Graph:
    """A copy of a captured graph, and behind it the way from what the model returns to what is explained."""
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    returned: Any = new.graph_copy(graph, copies)
    values: dict[fx.Node, Any] = {}
    given = iter(sources)
    for node in way.nodes:
        if node.op == "placeholder":
            values[node] = copies[next(given)]
        elif node.op == "output":
            new.output([fx.node.map_arg(node.args[0], values.__getitem__), *returned[1:]])
        else:
            values[node] = new.node_copy(node, values.__getitem__)
            settle(values[node])
    return new


def _device(values: list[Any]) -> str:
    return next((str(value.device.type) for value in values), "cpu")
