"""The vocabulary: every operation that fxlrp knows, once, with all its spellings."""

from fxlrp.vocabulary import (
    attention,
    embedding,
    linear,
    normalisation,
    pointwise,
    pooling,
    recurrent,
    reduction,
    routing,
    selection,
)
from fxlrp.vocabulary.operation import Arguments, Bound, Kind, Operation, Sign, Unsupported, Vocabulary

VOCABULARY = Vocabulary()
"""The table that the compiler reads. ``register`` adds to it."""

FAMILIES = (
    embedding, linear, pooling, reduction, pointwise, normalisation, routing, selection, attention, recurrent,
)  # fmt: skip

for family in FAMILIES:
    for entry in family.OPERATIONS:
        VOCABULARY.register(entry)
    for module_type, lowering in getattr(family, "MODULES", {}).items():
        VOCABULARY.register_module(module_type, lowering)
    for function, lowering in getattr(family, "FUNCTIONS_OF_SEVERAL", {}).items():
        VOCABULARY.register_function(function, lowering)
    for name, lowering in getattr(family, "METHODS", {}).items():
        VOCABULARY.register_method(name, lowering)
    for overload, lowering in getattr(family, "OVERLOADS", {}).items():
        VOCABULARY.register_overload(overload, lowering)

register = VOCABULARY.register
register_module = VOCABULARY.register_module

__all__ = [
    "VOCABULARY", "Arguments", "Bound", "Kind", "Operation", "Sign", "Unsupported", "Vocabulary",
    "register", "register_module",
]
