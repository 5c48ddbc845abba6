"""The tensors of an explainer: the model's own, or converted copies that follow them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from fxlrp.common.tensors import Watch, plain_name, tensor_names, watchable
from fxlrp.passes.optimize.derived import Derived


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """The floating point type of the model's first such tensor; ``None`` where it has none."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            if tensor.is_floating_point():
                return tensor.dtype
    return None


class Weights:
    """Ties the tensors of graph modules to those of the model that they came from.

    As long as nothing is converted the tensors are shared, and a replaced parameter
    (``load_state_dict(assign=True)``, ``model.layer.weight = …``) is taken over at the
    next call. Once :meth:`convert` was used they are copies, made anew where the model's were written to.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules: set[int] = set()
        self._slots: list[tuple[Any, str, nn.Module, str]] = []
        self._copies: dict[tuple[int, str], tuple[Watch, torch.Tensor]] = {}
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None

    def add(self, module: fx.GraphModule) -> bool:
        """Tie the tensors of one more graph module; whether it was not tied before."""
        if id(module) in self._modules:
            return False
        self._modules.add(id(module))
        for child in module.children():
            if isinstance(child, Derived):
                self.add(child.program)
        for name in tensor_names(module.graph):
            *path, own = name.split(".")
            *way, leaf = plain_name(name).split(".")
            try:
                source: Any = self.model
                for part in way:
                    source = getattr(source, part)
                getattr(source, leaf)
            except AttributeError:
                source = None  # a constant that tracing made: no tensor of the model
            holder: Any = module
            for part in path:
                holder = getattr(holder, part)
            if source is None:
                source = _Constant({leaf: getattr(holder, own)})
            self._slots.append((source, leaf, holder, own))
        # The dtype of a model is that of its own tensors, whatever a constant is made in.
        self._slots.sort(key=lambda slot: isinstance(slot[0], _Constant))
        return True

    def forget(self, module: fx.GraphModule) -> None:
        """Untie a graph module that is used no more."""
        self._modules.discard(id(module))
        for child in module.children():
            if isinstance(child, Derived):
                self.forget(child.program)
        holders = set(map(id, module.modules()))
        self._slots = [slot for slot in self._slots if id(slot[2]) not in holders]

    def as_computed(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the model in the type and on the device that the explainer computes in."""
        dtype = self.dtype if tensor.is_floating_point() else None
        return tensor.to(device=self.device or tensor.device, dtype=dtype or tensor.dtype)

    def example(self) -> torch.Tensor | None:
        """A floating point tensor of the explainer, for dtype and device; ``None`` where there is none."""
        for _, _, holder, name in self._slots:
            tensor = _get(holder, name)
            if tensor.is_floating_point():
                return tensor
        return None

    def dtype_now(self) -> torch.dtype | None:
        """The floating point type that the explainer computes in; ``None`` where no tensor says so."""
        return self.dtype or dtype_of(self.model)

    def convert(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Note the dtype and device that ``function`` (as ``nn.Module._apply`` gets it) leads to."""
        tied = [getattr(source, leaf) for source, leaf, _, _ in self._slots]
        for tensor in tied or [*self.model.parameters(), *self.model.buffers()]:  # none is tied before the first call
            if tensor.is_floating_point():
                probe = function(tensor.detach().new_zeros(1, dtype=self.dtype, device=self.device))
                if (probe.dtype, probe.device) != (tensor.dtype, tensor.device):
                    self.dtype, self.device = probe.dtype, probe.device
                else:
                    self.dtype = self.device = None
                return

    def refresh(self, recorded: bool = False) -> None:
        """Take over what changed in the model; ``recorded``: converted copies lead back to it by autograd."""
        for source, leaf, holder, name in self._slots:
            ours, theirs = _get(holder, name), _get(source, leaf)
            if self.dtype is None and self.device is None:
                if ours is not theirs:
                    _put(holder, name, theirs)
            else:
                with torch.set_grad_enabled(recorded):
                    _put(holder, name, self._converted(source, leaf, theirs))

    def _converted(self, source: Any, leaf: str, theirs: torch.Tensor) -> torch.Tensor:
        """A tensor of the model as this explainer computes with it."""
        kept = self._copies.get((id(source), leaf))
        dtype = self.dtype if theirs.is_floating_point() else theirs.dtype
        if kept is not None and kept[0].unchanged([theirs]):
            copy = kept[1]
            needed = theirs.requires_grad and torch.is_grad_enabled()
            if copy.dtype == dtype and self.device in (None, copy.device) and not needed:
                return copy
        copy = theirs.to(device=self.device, dtype=dtype)
        if watchable([theirs, copy]) and not copy.requires_grad:
            self._copies[id(source), leaf] = Watch([theirs]), copy
        return copy


class _Constant:
    """Stands where a model would, for a tensor that no model holds."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        vars(self).update(tensors)


def _get(module: Any, name: str) -> torch.Tensor:
    """What ``getattr`` gives, in a third of the time where it is a parameter or a buffer."""
    own = vars(module)
    if name not in own:
        for kind in ("_parameters", "_buffers"):
            tensor: torch.Tensor | None = own.get(kind, {}).get(name)
            if tensor is not None:
                return tensor
    given: torch.Tensor = getattr(module, name)
    return given


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    for table in (module._parameters, module._buffers):
        table.pop(name, None)
    if isinstance(tensor, nn.Parameter):
        module._parameters[name] = tensor
    else:
        module._buffers[name] = tensor
