"""Execution: from a call and its plan to memory, launches and their arguments."""
