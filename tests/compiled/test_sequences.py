"""What lengths, packed input, resets and a second direction make of the kernels, beside the dense forward ones."""

import pytest

from triton_gru.kernels.block import block_scan
from triton_gru.kernels.grid import grid_scan
from triton_gru.kernels.projection import input_projection
from triton_gru.kernels.step import step_scan, whole_step

from .harness import KNOWN, STACK, compiled_variants, facts, kernel_launches, pretend

LAYOUTS = {
    "lengths": {"layout": "lengths"},
    "packed": {"layout": "packed"},
    "resets": {"resets": True},
    "lengths and resets": {"layout": "lengths", "resets": True},
}
H200 = KNOWN["H200"]


# Of each kernel a small size, the most registers, and the second type of words.
@pytest.mark.parametrize(
    "kernel, precision, hidden_size, batch_size",
    [
        ("block", "fp16", 64, 1),
        ("block", "fp16", 192, 1),
        ("block", "tf32", 128, 1),
        ("grid", "fp16", 512, 1),
        ("grid", "fp16", 2048, 64),
        ("grid", "tf32", 600, 1),
        ("step", "fp16", 4096, 1),
    ],
)
def test_a_step_is_little_more_than_a_dense_one(kernel, precision, hidden_size, batch_size):
    pretend(H200)

    def compiled(**options):
        *_, projection, scan = kernel_launches(
            kernel, H200, precision, hidden_size, batch_size, steps=1, inputs=hidden_size, hx=True, **options
        )
        return facts(projection.compile()), facts(scan.compile())

    # A single dense step would be one whole launch.
    dense = facts(
        kernel_launches(kernel, H200, precision, hidden_size, batch_size, inputs=hidden_size, hx=True)[-1].compile()
    )
    for name, options in LAYOUTS.items():
        for found in compiled(**options):
            assert found.stack <= STACK and found.spills == 0, (name, found)
            assert found.shared <= H200.shared_memory, (name, found)
        assert found.executed <= 1.25 * dense.executed + 8, (name, found)
        # No trip through shared memory more: what rows need to know of their sequences is loaded where it is used.
        assert found.loop["BAR"] <= dense.loop["BAR"], (name, found)


@pytest.mark.parametrize("device", [d for d in KNOWN.values() if d is not H200], ids=lambda device: device.arch)
@pytest.mark.parametrize("kernel", ["block", "grid", "step"])
def test_they_compile_for_every_architecture(kernel, device):
    if kernel == "grid" and device.isa == "plain":
        return  # is not served, whatever the layout
    pretend(device)
    for options in LAYOUTS["packed"], LAYOUTS["lengths and resets"]:
        for launch in kernel_launches(kernel, device, "fp16", 100, 3, steps=1, inputs=100, hx=True, **options):
            found = facts(launch.compile())
            assert found.stack <= STACK and found.spills == 0, found
            assert found.shared <= device.shared_memory, found


@pytest.mark.parametrize("kernel, scan", [("block", block_scan), ("grid", grid_scan), ("step", step_scan)])
def test_a_second_direction_adds_no_compile(kernel, scan):
    pretend(H200)
    for each in (scan, input_projection):
        each.device_caches.clear()
    for bidirectional in (False, True):
        for launch in kernel_launches(
            kernel, H200, "fp16", 200 - 100 * (kernel == "block"), 8, bidirectional=bidirectional
        ):
            launch.compile()
    assert compiled_variants(scan) == compiled_variants(input_projection) == 1


@pytest.mark.parametrize("device", KNOWN.values(), ids=lambda device: device.arch)
@pytest.mark.parametrize("precision, hidden_size", [("fp16", 512), ("tf32", 100), ("fp32", 64)])
def test_a_single_step_is_one_launch(precision, hidden_size, device):
    pretend(device)
    whole_step.device_caches.clear()
    for batch_size, hx in ((1, True), (3, True)):
        launches = kernel_launches(
            "step", device, precision, hidden_size, batch_size, steps=1, inputs=hidden_size, hx=hx
        )
        assert [launch.kernel for launch in launches] == [whole_step]
        found = facts(launches[0].compile())
        assert found.stack == 0 and found.spills == 0, found
        assert found.shared <= device.shared_memory, found
    assert compiled_variants(whole_step) == 1
