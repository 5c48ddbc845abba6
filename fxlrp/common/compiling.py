"""Whether this thread is being compiled or exported, and so computes with tensors that hold no values."""

from __future__ import annotations

import torch


def is_compiling() -> bool:
    """Whether torch.compile or torch.export follows the code that asks.

    ``torch.compiler.is_compiling()`` is true for all threads while one exports; only in that one are modes active
    that turn computing into writing down.
    """
    if torch.compiler.is_dynamo_compiling():
        return True
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    return bool(modes) and torch.compiler.is_compiling()
