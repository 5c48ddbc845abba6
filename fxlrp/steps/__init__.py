"""Tensor functions that rules emit; they know neither rules nor graphs."""
