"""The vocabulary: every operation that fxlrp knows, once, with all its spellings."""

from fxlrp.vocabulary import linear, normalisation, pointwise, routing, selection
from fxlrp.vocabulary.operation import Arguments, Bound, Kind, Operation, Sign, Unsupported, Vocabulary

VOCABULARY = Vocabulary()
"""The table that the compiler reads. ``register`` adds to it."""

for family in (linear, pointwise, normalisation, routing, selection):
    for entry in family.OPERATIONS:
        VOCABULARY.register(entry)
for module_type, lowering in normalisation.MODULES.items():
    VOCABULARY.register_module(module_type, lowering)

register = VOCABULARY.register
register_module = VOCABULARY.register_module

__all__ = [
    "VOCABULARY", "Arguments", "Bound", "Kind", "Operation", "Sign", "Unsupported", "Vocabulary",
    "register", "register_module",
]
