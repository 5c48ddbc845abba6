"""The command line: ``fxlrp explain``, ``graph``, ``export``, ``evaluate`` and ``report``."""

from fxlrp.cli.application import main

__all__ = ["main"]
