"""Counts what one time step of a call makes the GPU do, as compiled for it: ``python -m tests.ptx count SEED SECONDS``.

Counts are no times. The recurrence alone is counted: the gate inputs are there.
"""

import time

import torch

from triton_gru.accuracy import PRECISIONS
from triton_gru.device import Device

from ..calls import make_call, run_checked
from .device import Emulated, emulating

HIDDEN, BATCH = (64, 128, 192, 256, 512, 1024), (1, 16)
# One step is the difference between calls of so many steps, divided by the difference of the two.
FEWER, MORE = 4, 8
SCHEDULE = {"quantum": 64, "delay": 0, "sleeps": False, "reconverge_late": False, "resident": 0}
HEADER = (
    f"{'H':>5} {'B':>3} {'precision':9} {'kernel':6} | {'KB read':>8} {'of W_hh':>8} {'KB written':>10} | "
    f"{'busiest warp':>12} {'matrix':>7} {'fma':>7} {'barriers':>8} | {'KB of shared memory':>19}"
)


def count_steps(gpu: Emulated, kernel: str, precision: str, hidden: int, batch: int, steps: int) -> dict[str, int]:
    """Return what a call of so many steps does, its projection left out, once its result has been checked."""
    gru, x, hx = make_call(kernel, hidden, batch, steps, precision, "time_first", True, 1, True, True, "cpu", inputs=32)
    first = len(gpu.outcomes)
    run_checked(gru, x, hx, precision, gpu.launched)
    scans = [outcome for outcome in gpu.outcomes[first:] if outcome.kernel != "input_projection"]
    weights = gru.weight_hh_l0.data_ptr()
    return {
        "read": sum(scan.made.read + scan.made.received for scan in scans),
        "of W_hh": sum(read for scan in scans for base, size, read, _ in scan.memory if base <= weights < base + size),
        "written": sum(scan.made.written for scan in scans),
        "busiest": sum(scan.busiest.instructions for scan in scans),
        "matrix": sum(scan.made.matrix for scan in scans),
        "fma": sum(scan.made.fma for scan in scans),
        "barriers": sum(scan.busiest.barriers for scan in scans),
        "shared": sum(scan.made.shared_read + scan.made.shared_written for scan in scans),
    }


def print_counts(device: Device, seed: int, seconds: float) -> None:
    """Print a row for each shape that the time suffices for. A wrong result raises an error."""
    end = time.monotonic() + seconds
    print(f"one time step as compiled for {device.name}\n{HEADER}")
    for hidden in HIDDEN:
        for batch in BATCH:
            for precision in PRECISIONS:
                if time.monotonic() > end:
                    return
                torch.manual_seed(seed)
                with emulating(device, seed) as gpu:
                    gpu.fixed = {"seed": seed, **SCHEDULE}
                    kernel = _kernel_for(precision, hidden, batch)
                    fewer, more = (count_steps(gpu, kernel, precision, hidden, batch, n) for n in (FEWER, MORE))
                step = {name: (more[name] - fewer[name]) / (MORE - FEWER) for name in more}
                print(
                    f"{hidden:5} {batch:3} {precision:9} {kernel:6} | {step['read'] / 1024:8.1f} "
                    f"{step['of W_hh'] / 1024:8.1f} {step['written'] / 1024:10.1f} | {step['busiest']:12.1f} "
                    f"{step['matrix']:7.0f} {step['fma']:7.0f} {step['barriers']:8.1f} | {step['shared'] / 1024:19.1f}",
                    flush=True,
                )


def _kernel_for(precision: str, hidden: int, batch: int) -> str:
    """Return the kernel that ``"auto"`` chooses for a long sequence, or ``"grid"`` where it chooses none."""
    gru, x, hx = make_call("auto", hidden, batch, 1, precision, "time_first", True, 1, True, True, "cpu", inputs=32)
    kernel = gru.plan(x.expand(512, batch, 32), hx).kernel
    return kernel if kernel in ("block", "grid", "step") else "grid"
