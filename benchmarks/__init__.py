"""Benchmarks: one file per question, one harness. `python -m benchmarks all`."""
