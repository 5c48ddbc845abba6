"""Whether outputs of a model and its graph are the same, but for rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from fxlrp.runtime.verify.distance import distance, last_digit
from fxlrp.runtime.verify.randomness import seed_all
from fxlrp.runtime.verify.sides import Sides

SEEDS = (1, 2)


class Comparison:
    """Model and graph for the same inputs.

    Args:
        sides: what is run.
        inputs: of both.

    Attributes:
        batch: how many items the inputs have.
    """

    def __init__(self, sides: Sides, inputs: list[Tensor]) -> None:
        self.sides = sides
        self.inputs = inputs
        self.batch = sides.plan.count(inputs)
        self._coarsest = self._coarsest_digit()

    def agree(self, ours: Tensor, theirs: Tensor, inputs: list[Tensor] | None = None) -> bool:
        """Whether two outputs of the same inputs differ by no more than the kernels that computed them do."""
        if ours.shape != theirs.shape:
            return False
        difference = distance(ours, theirs)
        digit = max(last_digit(theirs), self._coarsest)
        few, many = (64, 32) if digit < 1e-4 else (2, 4)  # half precision: one more digit would hide anything
        if difference <= few * digit:
            return True
        if not difference <= digit**0.5:
            return False
        # A deep network enlarges what rounding does: as much as it enlarges a last digit of its input?
        inputs = self.inputs if inputs is None else inputs
        generator = torch.Generator().manual_seed(0)
        signs = [torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1 for x in inputs]
        moved = [
            x * (1 + sign * max(last_digit(x), digit)) if x.is_floating_point() else x
            for x, sign in zip(inputs, signs, strict=True)
        ]
        return difference <= many * distance(self.sides.model(inputs)[0], self.sides.model(moved)[0])

    def differ(self, a: Tensor, b: Tensor) -> bool:
        """Whether two outputs of one function for one input are more than a few last digits apart."""
        return a.shape != b.shape or distance(a, b) > 4 * max(last_digit(b), self._coarsest)

    def same_for_seeds(self) -> bool:
        """Whether the model gives the same, wherever the generators are."""
        outputs = []
        for seed in SEEDS:
            seed_all(seed)
            outputs.append(self.sides.model(self.inputs)[0])
        return not self.differ(*outputs)

    def _coarsest_digit(self) -> float:
        """The last digit of the coarsest type that is computed in."""
        weights, model, device = self.sides.weights, self.sides.of, self.inputs[0].device.type
        kinds = {x.dtype for x in self.inputs}
        if weights.dtype is not None:
            kinds.add(weights.dtype)
        else:
            kinds |= {tensor.dtype for tensor in [*model.parameters(), *model.buffers()]}
        if torch.is_autocast_enabled(device):
            kinds.add(torch.get_autocast_dtype(device))
        return max((torch.finfo(kind).eps for kind in kinds if kind.is_floating_point), default=0.0)
