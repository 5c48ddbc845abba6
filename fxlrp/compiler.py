"""compile(): from a model to its explainer."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import InitVar, replace
from os import PathLike
from typing import Any, Concatenate, ParamSpec, cast

import numpy.typing as npt
from torch import nn
from torch.export import ExportedProgram

from fxlrp.explainer import Explainer
from fxlrp.interop import quantus
from fxlrp.loading import onnx_files
from fxlrp.runtime.captures import READERS, CapturedModel
from fxlrp.runtime.engine import Engine
from fxlrp.runtime.recipe import Recipe

P = ParamSpec("P")
Model = nn.Module | CapturedModel | ExportedProgram | str | PathLike[str]
"""What can be compiled; a path is that of a file of ONNX."""


def _compiler(recipe: Callable[P, Recipe]) -> Callable[Concatenate[Model, P], Explainer]:
    """A function with the parameters of ``recipe``, which so are written once, after the model."""

    def compile(model: Model, *args: P.args, **kwargs: P.kwargs) -> Explainer:
        options = inspect.signature(recipe).parameters
        if unknown := kwargs.keys() - options.keys():
            close = difflib.get_close_matches(next(iter(unknown)), options, n=1)
            hint = f"; did you mean {close[0]}=?" if close else ""
            raise TypeError(f"compile() takes no {next(iter(unknown))}= but {', '.join(options)}{hint}")
        asked = recipe(*args, **kwargs)
        if isinstance(model, CapturedModel) and asked.output is None:
            asked = replace(asked, output=model.output)
        return Explainer(Engine(_read(model), asked, cast("dict[str, Any]", kwargs).get("example_inputs")))

    model = inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Model)
    compile.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [model, *map(_plain, inspect.signature(recipe, eval_str=True).parameters.values())],
        return_annotation=Explainer,
    )
    compile.__doc__ = _DOC.format(*_sections(inspect.getdoc(Recipe) or ""))
    compile.__qualname__ = "compile"
    return compile  # type: ignore[return-value]  # Concatenate knows no name for the model


def _read(model: Model) -> Any:
    """The network in a file, or the model itself."""
    return onnx_files.onnx_model(model) if onnx_files.is_onnx(model) else model  # type: ignore[arg-type]


READERS.append(_read)


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter of the recipe, of its plain type where the recipe does not keep it."""
    kind = parameter.annotation
    return parameter.replace(annotation=kind.type) if isinstance(kind, InitVar) else parameter


def _sections(doc: str) -> tuple[str, str]:
    """The parameters and the errors in a docstring, as they stand below its headings."""
    parameters, _, errors = doc.partition("Args:\n")[2].partition("Raises:\n")
    return parameters.strip(), errors.strip()


_DOC = """Compile the explainer of ``model``.

The model is read by symbolic tracing where that can follow it, and else by ``torch.export``
from example inputs: those given here, or those of the explainer's first call.

Args:
    model: any module in eval mode, an exported program, what :func:`fxlrp.capture` gave, or the path of an .onnx
        file. It is not changed.
    {}

Raises:
    TrainingModeError: the model is in training mode.
    CaptureError: the model cannot be captured, or uses unknown operations.
    {}
"""

compile = _compiler(Recipe)


def capture(model: Model, *inputs: Any, output: Any = None, **named: Any) -> CapturedModel:
    """Read a model once, to be compiled several times: with other presets, rules, starts, outputs or foils.

    Args:
        model: as :func:`compile` takes it.
        *inputs: an example of what it takes, (batch, ...), for models that symbolic tracing cannot follow; without,
            those are read at the first call of an explainer.
        output: which of its outputs to explain, as :func:`compile` takes it, where ``compile`` is not told another.
        **named: examples by name.

    Raises:
        TrainingModeError, CaptureError, InputError: as :func:`compile` and a call of the explainer.
    """
    captured = CapturedModel(model, output)
    engine = Engine(captured, Recipe(output=output))
    if inputs or named:
        engine.prepare(inputs, named)
    return captured


def quantus_explain(
    model: nn.Module, inputs: npt.ArrayLike, targets: npt.ArrayLike, *, sum_channels: bool = True, device: Any = None,
    **options: Any,
) -> npt.NDArray[Any]:  # fmt: skip
    """Relevance as Quantus asks for it: ``metric(…, explain_func=fxlrp.quantus_explain)``.

    A model is compiled once, and later updates of its weights are followed, as metrics that randomise
    them need. What is kept of a model goes when the model goes.

    Args:
        model: a module in eval mode. It is not changed.
        inputs: (batch, ...), channels first; converted to the model's precision.
        targets: (batch,), the classes to explain, or one class for all.
        sum_channels: whether to give (batch, 1, ...), the sum over the channels of images and series.
        device: where to compute; ``None``: where the model is.
        **options: as for :func:`fxlrp.compile`; Quantus hands ``explain_func_kwargs`` on to here.

    Returns:
        (batch, ...) like the inputs, or one channel of them.

    Raises:
        FxlrpError: as for :func:`fxlrp.compile` and for a call of the explainer.
    """
    return quantus.explain(
        compile, model, inputs, targets, sum_channels=sum_channels, device=device, options=options
    )
