"""Reading explanations from files: archives of torch, compiled packages, and ONNX."""

from __future__ import annotations

import os

import torch

from fxlrp.common.atomic_files import checked_path
from fxlrp.exports.archive import is_compiled, member_names
from fxlrp.exports.saved import SavedExplainer, load_archive, load_package


def load(
    path: str | os.PathLike[str], device: str | torch.device | None = None, *, compiled: bool = False
) -> SavedExplainer:
    """Read an explanation that :meth:`fxlrp.Explainer.save`, ``export_onnx`` or ``export_aot`` wrote.

    A saved explanation is data: no code in the file is run, whatever is in it, and a damaged file is an error. A
    compiled package is machine code: without ``compiled=True`` only those run that you compiled on this machine.

    Args:
        path: the file; the name of one of ONNX ends in .onnx.
        device: where it is to run; ``None``: where it was saved from. A compiled package runs on
            its own kind of device only, and ONNX on the CPU.
        compiled: whether to run machine code that somebody else compiled.

    Raises:
        ExportError: the file is no such explanation, it is damaged, or it holds what fxlrp does not write.
        MissingExtraError: the file is ONNX, and onnxruntime is not installed (extra ``onnx``).
    """
    path = checked_path(path)
    if path.suffix.lower() == ".onnx":
        from fxlrp.exports.onnx import load_onnx

        return load_onnx(path, device)
    if is_compiled(member_names(path)):
        return load_package(path, device, compiled)
    return load_archive(path, device)
