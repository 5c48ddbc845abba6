"""Reading a model as a graph, without touching the model.

Symbolic tracing comes first: it takes milliseconds and leaves batch and resolution free.
Where it cannot follow, ``torch.export`` reads the model from example inputs.
"""

import importlib
import sys
import types
from typing import Any

from fxlrp.capture.call import Call, bind, input_counts
from fxlrp.capture.captured import (
    Captured,
    as_module,
    attribute,
    check_loaded,
    check_model,
    tensor_proxy,
    unwrapped,
)
from fxlrp.capture.choosing import with_output
from fxlrp.capture.exported import export
from fxlrp.capture.program import OneBatchError
from fxlrp.capture.snapshot import Snapshot
from fxlrp.capture.symbolic import trace

__all__ = [
    "Call", "Captured", "OneBatchError", "Snapshot", "as_module", "attribute", "bind", "check_loaded",
    "check_model", "export", "input_counts", "tensor_proxy", "trace", "unwrapped", "with_output",
]  # fmt: skip


class _Room(types.ModuleType):
    """This package is called as the function that it shares its name with, ``fxlrp.capture(model, *inputs)``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The function is on the top floor; it is looked up when it is called.
        return importlib.import_module("fxlrp.compiler").capture(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
