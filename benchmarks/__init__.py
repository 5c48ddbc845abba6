"""Benchmarks: how many models compile and conserve, beside other implementations."""
