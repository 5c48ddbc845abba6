"""Modules under a second path, such as ``fxlrp.render`` for ``fxlrp.maps.rendering``."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class ModuleAlias(ModuleType):
    """Stands for another module under a second path, until that module is used.

    It registers itself, so that ``import`` finds it. At the first use the module itself takes its place.

    Args:
        name: the second path.
        home: where the module is.
    """

    def __init__(self, name: str, home: str) -> None:
        super().__init__(name)
        vars(self)["_home"] = home
        sys.modules[name] = self

    def resolve(self) -> ModuleType:
        """Import the module, and put it in this place."""
        sys.modules[self.__name__] = module = importlib.import_module(self._home)
        return module

    def __getattr__(self, name: str) -> Any:
        # Python and its tools ask every module for attributes such as __file__: that does not use it.
        if name.startswith("__") and name not in ("__all__", "__path__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self.resolve(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.resolve(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.resolve(), name)

    def __dir__(self) -> list[str]:
        return dir(self.resolve())
