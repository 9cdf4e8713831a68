"""Questions that a GPU has yet to answer. A file is deleted with its answer; nothing else in perf/ imports it."""
