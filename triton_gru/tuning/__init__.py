"""Measures which implementation of each shape is fastest on a GPU, and keeps the results."""
