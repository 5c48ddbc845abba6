"""Every core operation of ATen has an entry in the vocabulary, or a reason to have none."""

import pytest
import torch

from fxlrp.capture.decompositions import decompositions
from fxlrp.passes.refusals import _RANDOM
from fxlrp.passes.signal import QUESTIONS, SHAPE_FUNCTIONS, SHAPE_METHODS
from fxlrp.vocabulary import VOCABULARY
from fxlrp.vocabulary.silent import SILENT

WITHOUT_SIGNAL = QUESTIONS | SHAPE_FUNCTIONS | SHAPE_METHODS | _RANDOM


def core() -> list:
    packets = [getattr(torch.ops.aten, name) for name in dir(torch.ops.aten)]
    overloads = [getattr(p, form) for p in packets if hasattr(p, "overloads") for form in p.overloads()]
    return [overload for overload in overloads if torch.Tag.core in overload.tags]


def is_closed(overload) -> bool:
    name = overload.overloadpacket.__name__
    written = name.endswith("_backward") or overload._overloadname == "out"  # of gradients, or into given memory
    return (
        written or name in WITHOUT_SIGNAL or any(name in names for names in SILENT.values())
        or VOCABULARY.overload(overload) is not None or overload in decompositions()
    )  # fmt: skip


def test_the_list_of_torch_is_found():
    assert len(core()) > 150


@pytest.mark.parametrize("overload", core(), ids=str)
def test_every_core_operation_has_an_entry_or_a_reason(overload):
    assert is_closed(overload)


def test_no_reason_is_given_for_what_has_an_entry():
    names = [name for names in SILENT.values() for name in names]
    assert len(names) == len(set(names))
    known = {overload.overloadpacket.__name__ for overload in core() if VOCABULARY.overload(overload) is not None}
    assert not known & set(names)
