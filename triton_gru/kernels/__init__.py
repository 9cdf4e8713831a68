"""Triton JIT kernels and nothing else: no torch, no choice of configuration, no launch code."""
