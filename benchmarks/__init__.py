"""Benchmarks: how many models compile and conserve, and how fast, beside other implementations."""
