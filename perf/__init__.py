"""Timings: how they are taken (timing), what a row of a report holds (record), and the sweeps."""
