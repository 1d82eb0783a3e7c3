"""Benchmarks of the training step against other implementations."""
