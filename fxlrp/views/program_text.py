"""The code of an explainer, as a person reads it."""

from __future__ import annotations

import re

from torch import fx

from fxlrp.passes.facts import KEY, Emitted

_ASSIGNMENT = re.compile(r"^    (\w+)(?: : [^=]+)? = ")


def commented(module: fx.GraphModule) -> str:
    """The module's code, with a comment line where the relevance of another node begins."""
    emitted = {node.name: node.meta.get(KEY) for node in module.graph.nodes}
    lines: list[str] = []
    current = None
    for line in module.code.strip().splitlines():
        match = _ASSIGNMENT.match(line)
        origin = emitted.get(match.group(1)) if match else None
        if isinstance(origin, Emitted) and (origin.node, origin.rule) != current:
            current = origin.node, origin.rule
            lines.append("    # " + (": ".join(filter(None, current)) or "made of weights, once"))
        lines.append(line)
    return "\n".join(lines) + "\n"
