"""Optional packages, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from fxlrp.common.errors import MissingExtraError


def require(module_name: str, extra: str) -> Any:
    """Import a module that only an extra of fxlrp brings.

    Args:
        module_name: the module's full name, such as ``"matplotlib.colors"``.
        extra: the extra that installs it, such as ``"draw"``.

    Returns:
        The module itself, also where its name has dots.

    Raises:
        MissingExtraError: the module's package is not installed.
    """
    package = module_name.partition(".")[0]
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A package that is installed but cannot import something of its own is broken, not missing:
        # its own message helps more than ours.
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(package, extra) from error
