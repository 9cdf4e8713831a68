"""Calls of a kernel by name, checked against float64. `run_checked` also asserts that this kernel ran."""

import contextlib
import dataclasses
from unittest import mock

import torch

import triton_gru
from triton_gru.launch import route
from triton_gru.plan import planner
from triton_gru.plan.heuristic import HEURISTICS
from triton_gru.plan.planner import choose

from .conftest import poison_memory
from .launches import Launches
from .oracle import PRECISIONS, assert_accurate, compute_baseline, compute_exact, set_precision

LAYOUTS = ("time_first", "batch_first", "transposed", "every_other_feature", "odd_offset")
# Factors of a pairwise cover of calls, besides sizes: precision, layout, bias, num_layers, with_hx, reset_after.
FACTORS = (tuple(PRECISIONS), LAYOUTS, (True, False), (1, 2), (True, False), (True, False))


def make_input(layout, steps, batch, inputs, dtype, device):
    """Return random input of shape [T, B, I], or [B, T, I] for "batch_first".

    ``layout`` is one of `LAYOUTS`: it names how the elements are placed in memory.
    """
    outer, inner = (batch, steps) if layout == "batch_first" else (steps, batch)
    if layout == "transposed":
        return torch.randn(inputs, inner, outer, device=device).to(dtype).permute(2, 1, 0)
    if layout == "every_other_feature":
        return torch.randn(outer, inner, 2 * inputs, device=device).to(dtype)[..., ::2]
    if layout == "odd_offset":
        return torch.randn(outer * inner * inputs + 1, device=device).to(dtype)[1:].view(outer, inner, inputs)
    return torch.randn(outer, inner, inputs, device=device).to(dtype)


def case_id(hidden, batch, steps, precision, layout, bias, layers, with_hx, reset_after):
    """Return the pytest id of a case: the sizes and options of one call, except its directions and input size."""
    suffix = f"{'' if bias else '-no_bias'}-{layers}_layers{'-hx' if with_hx else ''}{'' if reset_after else '-before'}"
    return f"H{hidden}-B{batch}-T{steps}-{precision}-{layout}{suffix}"


def make_gru(inputs, hidden, precision, device, kernel="block", **options):
    """Return a GRU in eval() with backend ``kernel``. Set torch's global fp32 precision to ``precision`` too."""
    dtype = set_precision(precision)
    return triton_gru.GRU(inputs, hidden, device=device, dtype=dtype, backend=kernel, **options).eval()


def make_call(
    kernel, hidden, batch, steps, precision, layout, bias, layers, with_hx, reset_after, device, inputs=7,
    directions="forward",
):  # fmt: skip
    """Return a GRU with backend ``kernel``, a random input, and a random hx (None without ``with_hx``).

    ``directions`` is ``"forward"``, ``"reverse"`` or ``"both"``.
    """
    gru = make_gru(
        inputs, hidden, precision, device, kernel,
        num_layers=layers, bias=bias, batch_first=layout == "batch_first", bidirectional=directions == "both",
        reset_after=reset_after, reverse=directions == "reverse",
    )  # fmt: skip
    x = make_input(layout, steps, batch, inputs, PRECISIONS[precision][0], device)
    states = layers * (2 if gru.bidirectional else 1)
    hx = torch.randn(states, batch, hidden, device=device).to(x.dtype) if with_hx else None
    return gru, x, hx


def run_checked(gru, x, hx, precision, launched, **sequence_options):
    """Run the call on poisoned memory. Assert that only the GRU's backend ran scans, and that results are accurate.

    ``sequence_options`` are the arguments ``lengths`` and ``resets``. ``launched`` is the fixture of that name.
    Return output and h_n.
    """
    earlier_launches = len(launched)
    with torch.no_grad(), poison_memory():
        output, h_n = gru(x, hx, **sequence_options)
    assert Launches(launched[earlier_launches:]).has_only(gru.backend)
    check_results(gru, x, hx, precision, output, h_n, **sequence_options)
    return output, h_n


def check_results(gru, x, hx, precision, output, h_n, **sequence_options):
    """Assert that ``output`` and ``h_n`` of a call are accurate. ``x`` and ``output`` are padded, not packed."""
    exact_output, exact_h_n = compute_exact(gru, x, hx, **sequence_options)
    torch_output, torch_h_n = compute_baseline(gru, x, hx, precision, **sequence_options)
    assert_accurate(output, torch_output, exact_output, precision)
    assert_accurate(h_n, torch_h_n, exact_h_n, precision)


@contextlib.contextmanager
def use_config(kernel, config):
    """Plan every call of ``kernel`` with ``config`` instead of the heuristic's configuration, inside the context."""
    heuristic = HEURISTICS[kernel]
    HEURISTICS[kernel] = lambda *args: config
    planner.clear_plan_cache()
    try:
        yield
    finally:
        HEURISTICS[kernel] = heuristic
        planner.clear_plan_cache()


@contextlib.contextmanager
def use_projection(projection):
    """Plan every call of a kernel with the projection ``projection``, inside the context."""
    planner.clear_plan_cache()
    try:
        with mock.patch.object(
            route, "choose", lambda *args: dataclasses.replace(choose(*args), projection=projection)
        ):
            yield
    finally:
        planner.clear_plan_cache()
