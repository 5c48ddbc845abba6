"""The optimiser: passes over the emitted program that make it faster and leave its results as they are.

``NAMES`` lists what ``compile(optimize=…)`` can be asked for. Two of them are no passes of their own
but knowledge that rules use while they are emitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from fxlrp.common.errors import OptimizeError
from fxlrp.passes.optimize.base import OptimizerPass
from fxlrp.passes.optimize.in_place import ReuseMemory
from fxlrp.passes.optimize.packed import PackWeights, can_pack
from fxlrp.passes.optimize.parts import OnePart
from fxlrp.passes.optimize.shared import ShareSteps
from fxlrp.passes.optimize.sums import KnownSums
from fxlrp.passes.optimize.transposes import TransposesAsConvolutions
from fxlrp.passes.optimize.unpacked import UnpackWeights
from fxlrp.passes.optimize.weights import FoldWeights

SINGLE_BRANCH = "single_branch"
REUSE_FORWARD = "reuse_forward"
REUSE_MEMORY = "reuse_memory"
PACK_WEIGHTS = "pack_weights"

EMITTED: dict[str, str] = {
    SINGLE_BRANCH: "z⁺ and its kin in one branch where the operand is known to have no negative element",
    REUSE_FORWARD: "the forward value as denominator where a rule takes the layer as it is, such as ε",
}
"""What rules do with what is known when they are emitted, and what it brings."""

PASSES: dict[str, OptimizerPass] = {
    "one_part": OnePart(),
    "share_steps": ShareSteps(),
    "known_sums": KnownSums(),
    "unpack_weights": UnpackWeights(),
    "transposes_as_convolutions": TransposesAsConvolutions(),
    PACK_WEIGHTS: PackWeights(),
    "fold_weights": FoldWeights(),
    REUSE_MEMORY: ReuseMemory(),
}
"""The passes, in the order in which they run."""

__all__ = ["NAMES", "OptimizerPass", "can_pack", "chosen", "optimize"]

NAMES = (*EMITTED, *PASSES)
"""All of them, which is the default; each leaves the output of the model as it is, to the bit."""


def chosen(optimize: bool | Sequence[str]) -> tuple[str, ...]:
    """What ``compile(optimize=…)`` asks for.

    Raises:
        OptimizeError: it is neither a boolean nor names, or a name is none of ``NAMES``.
    """
    if isinstance(optimize, bool):
        return NAMES if optimize else ()
    if not isinstance(optimize, str | Iterable):
        raise OptimizeError(f"optimize={optimize!r}: give True, False, or some of {', '.join(map(repr, NAMES))}")
    wanted = [optimize] if isinstance(optimize, str) else list(optimize)
    for name in wanted:
        if name not in NAMES:
            raise OptimizeError(f"optimize={name!r}: choose among {', '.join(map(repr, NAMES))}, or give True or False")
    return tuple(name for name in NAMES if name in wanted)


def optimize(module: fx.GraphModule, names: Iterable[str]) -> fx.GraphModule:
    """Run those of ``PASSES`` that are named, in their order."""
    wanted = [step for name, step in PASSES.items() if name in set(names)]
    for step in wanted:
        module = step.of_graph(module)
    return wanted[-1].finished(module) if wanted else module
