"""Timings of GRU implementations: `python -m perf`. A sweep is measured case by case into rows, which reports read."""
