"""The processes of a run and their shares: one process, or several of torchrun, on one machine or more."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fxlrp.common.errors import EvaluationError

T = TypeVar("T")


def rank() -> int:
    """The number of this process among those that torchrun started; 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


class Workers:
    """The processes of a run, of which this is one; a context that joins and leaves them.

    Attributes:
        rank: the number of this process.
        count: how many there are.
    """

    def __init__(self, device: str) -> None:
        self.rank = rank()
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = self._device(device)

    def _device(self, name: str) -> torch.device:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise EvaluationError(f"run.device = {name!r} is no device of torch") from error
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise EvaluationError(f"run.device = {name!r}: CUDA is not available here")
            if device.index is None:
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return device

    def __enter__(self) -> Workers:
        if self.count > 1:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            # Some images take longer than others, and a process waits for the last one however long it takes.
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(days=30))
        return self

    def __exit__(self, *exception: object) -> None:
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process does what only one may do."""
        return self.rank == 0

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """This process' share of the work."""
        return work[self.rank :: self.count]

    def agree(self, value: T | None) -> T:
        """What the first process says; the others wait for it. An error there is an error everywhere.

        Raises:
            EvaluationError: ``value`` of the first process is an exception.
        """
        if self.count > 1:
            sent: list[Any] = [value if self.first else None]
            dist.broadcast_object_list(sent, src=0, device=self.device if self.device.type == "cuda" else None)
            value = sent[0]
        if isinstance(value, BaseException):
            raise value
        return value  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """What every process says, in the order of their numbers; all wait for the last one."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all have come here."""
        if self.count > 1:
            dist.barrier()
