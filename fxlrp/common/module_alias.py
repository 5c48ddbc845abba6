"""Modules under a second path, such as ``fxlrp.render`` for ``fxlrp.maps.rendering``."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class ModuleAlias(ModuleType):
    """Stands for another module, which is imported when something in it is first used.

    It registers itself, so that ``import`` finds it.

    Args:
        name: the second path.
        home: where the module is.
    """

    def __init__(self, name: str, home: str) -> None:
        super().__init__(name)
        vars(self)["_home"] = home
        sys.modules[name] = self

    def __getattr__(self, name: str) -> Any:
        # Python and its tools ask every module for attributes such as __file__: that is no use of it.
        if name.startswith("__") and name not in ("__all__", "__path__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(self._home), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(importlib.import_module(self._home), name, value)

    def __dir__(self) -> list[str]:
        return dir(importlib.import_module(self._home))
