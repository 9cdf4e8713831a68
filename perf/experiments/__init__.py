"""Experiments: questions that need a GPU. A file is deleted once it is answered. No other file in perf/ imports it."""
