"""What fxlrp raises: every error says what was wrong and what to do about it."""

import json
from pathlib import Path


class FxlrpError(Exception):
    """Base of every error that fxlrp raises on purpose."""

    exit_code = 1
    """With which the command line ends."""


class CaptureError(FxlrpError):
    """The model could not be read as a graph."""


class UnknownOperationError(CaptureError):
    """The graph contains operations that the vocabulary does not name; all of them are listed.

    Attributes:
        opaque: whether ``torch.export`` could open each of them.
    """

    def __init__(self, opaque: bool, message: str) -> None:
        super().__init__(message)
        self.opaque = opaque


class NotCapturedError(CaptureError):
    """The graph was asked for before the first call, which captures the model."""


class TrainingModeError(FxlrpError):
    """The model, or a part of it, is in training mode."""


class RuleError(FxlrpError, ValueError):
    """A rule, a split or a preset cannot be used as asked."""


class PatternError(RuleError):
    """A name pattern, a type or an operation matches nothing in the model."""


class InputError(FxlrpError, ValueError):
    """An input has the wrong type, shape, dtype or device, or holds NaN or infinity."""


class TargetError(FxlrpError, ValueError):
    """A target is not a class of the model, or there is not one target per item."""


class ConditionError(FxlrpError, ValueError):
    """A condition does not fit the output of its module, or conditions do not fit the targets."""


class NonFiniteError(FxlrpError, ArithmeticError):
    """The output of the model, or the relevance, is NaN or infinite: there is nothing to explain."""


class PropagationError(FxlrpError, RuntimeError):
    """The model runs, but its relevance cannot be computed: a limit of fxlrp, or of the memory."""


class OptimizeError(FxlrpError, ValueError):
    """There is no optimisation of this name."""


class BackendError(FxlrpError, RuntimeError):
    """A backend does not exist, is not available here, or cannot compile an explanation."""


class ExportError(FxlrpError, RuntimeError):
    """An explanation cannot be exported as asked, or a file contains none."""


class FileError(ExportError, OSError):
    """A file cannot be written, for lack of space or of permission; what was there before is as it was."""


class StartError(FxlrpError, ValueError):
    """The starting relevance does not fit the output of the model."""


class WeightsError(FxlrpError, ValueError):
    """A model cannot be built from its name, or its weights cannot be read."""


class DrawError(FxlrpError, ValueError):
    """A picture of the graph cannot be drawn as asked, or the program that renders it is missing."""


class ImageError(FxlrpError, ValueError):
    """A file cannot be read as an image."""


class EvaluationError(FxlrpError, RuntimeError):
    """An evaluation cannot be run as asked, or it has no results."""


class ConfigError(FxlrpError, ValueError):
    """A configuration cannot be read, or it names something that does not exist."""


class DataError(FxlrpError, ValueError):
    """A data set is missing, has another layout than expected, or has too few images."""


class MethodError(FxlrpError, RuntimeError):
    """A method does not exist, or cannot explain a model."""


class MissingExtraError(FxlrpError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}, which is not installed: {install_command(extra)}")


def install_command(extra: str, package: str = __file__) -> str:
    """What installs an extra: by name, and where fxlrp was installed from a checkout from there.

    Args:
        extra: its name.
        package: a file in the second folder below the one that was installed.
    """
    by_name, here = f"pip install 'fxlrp[{extra}]'", Path(package).parents[2]
    if (here / "pyproject.toml").is_file():
        return f"{by_name}, or as it was installed here: pip install -e '{here}[{extra}]'"
    from importlib import metadata
    from urllib.parse import unquote, urlparse

    try:
        source = json.loads(metadata.distribution("fxlrp").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        source = {}
    address = urlparse(source.get("url", ""))
    checkout = Path(unquote(address.path))
    if address.scheme == "file" and (checkout / "pyproject.toml").is_file():
        return f"{by_name}, or as it was installed here: pip install '{checkout}[{extra}]'"
    return by_name


class IncompleteError(FxlrpError):
    """Some of many files could not be explained; the results of the others were written."""

    exit_code = 3


class StoppedError(FxlrpError):
    """Work was stopped from outside; what was done until then was kept."""

    exit_code = 130
    """What shells give for a program that Ctrl-C ended."""
