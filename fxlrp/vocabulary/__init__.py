"""The vocabulary: every operation that fxlrp knows, once, with all its spellings."""

from fxlrp.vocabulary import (
    arithmetic,
    attention,
    complex_values,
    embedding,
    fourier,
    linear,
    linear_algebra,
    normalisation,
    order,
    pointwise,
    pooling,
    rearrangement,
    recurrent,
    reduction,
    regions,
    routing,
    sampling,
    scattering,
    selection,
    similarity,
)
from fxlrp.vocabulary.operation import Arguments, Bound, Composed, Kind, Operation, Sign, Unsupported, Vocabulary

VOCABULARY = Vocabulary()
"""The table that the compiler reads. ``register`` adds to it."""

FAMILIES = (
    embedding, linear, pooling, reduction, arithmetic, pointwise, normalisation, routing, selection, attention,
    recurrent, rearrangement, scattering, order, similarity, sampling, complex_values, fourier,
    linear_algebra, regions,
)  # fmt: skip

for family in FAMILIES:
    for entry in getattr(family, "OPERATIONS", ()):
        VOCABULARY.register(entry)
    for module_type, lowering in getattr(family, "MODULES", {}).items():
        VOCABULARY.register_module(module_type, lowering)
    for composed in getattr(family, "COMPOSED", ()):
        VOCABULARY.compose(composed)

register = VOCABULARY.register
register_module = VOCABULARY.register_module

__all__ = [
    "VOCABULARY", "Arguments", "Bound", "Composed", "Kind", "Operation", "Sign", "Unsupported", "Vocabulary",
    "register", "register_module",
]
