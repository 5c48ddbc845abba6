"""The passes, one a file: canonicalise, annotate, find joins, assign rules, emit."""
