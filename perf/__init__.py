"""Timings of GRU implementations: `python -m perf`. From sweeps by run and measure to rows (record), and to reports."""
