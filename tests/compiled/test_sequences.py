"""Tests of the machine code for lengths, packed input, resets and directions, compared with dense forward scans."""

import itertools

import pytest

from triton_gru.kernels.step import whole_step

from .harness import KNOWN_DEVICES, STACK_LIMIT, KernelStats, cases, count_variants, kernel_launches, set_compile_target

# Name -> options of `kernel_launches`.
LAYOUTS = {"packed": {"layout": "packed"}, "lengths and resets": {"layout": "lengths", "resets": True}}
H200 = KNOWN_DEVICES["H200"]


# The cases have few free registers, both types of words, and a step of many loads.
@pytest.mark.parametrize(
    "kernel, precision, hidden_size, batch_size",
    [
        ("block", "fp16", 192, 1),
        ("block", "tf32", 128, 1),
        ("grid", "fp16", 512, 1),
        ("grid", "fp16", 1024, 64),
        ("step", "fp16", 4096, 1),
    ],
)
def test_a_step_takes_little_more_than_a_dense_step(kernel, precision, hidden_size, batch_size):
    set_compile_target(H200)

    def compile_scan(**options):
        *_, scan = kernel_launches(
            kernel, H200, precision, hidden_size, batch_size, inputs=hidden_size, hx=True, **options
        )
        return KernelStats(scan.compile())

    dense = compile_scan()
    for name, options in LAYOUTS.items():
        stats = compile_scan(**options)
        assert stats.stack <= STACK_LIMIT and stats.spills == 0, (name, stats)
        assert stats.shared <= H200.shared_memory, (name, stats)
        assert stats.executed <= 1.25 * dense.executed + 8, (name, stats)
        # There is no additional trip through shared memory: the threads that need a row's length or resets load them.
        assert stats.loop["BAR"] <= dense.loop["BAR"], (name, stats)


@pytest.mark.parametrize(
    "device, kernel, precision, hidden_size, batch_size",
    cases([], [(kernel, "fp16", 100, 3) for kernel in ("block", "grid", "step")]),
)
def test_packed_scans_compile_for_every_other_architecture(device, kernel, precision, hidden_size, batch_size):
    set_compile_target(device)
    projection, scan, *_ = kernel_launches(
        kernel, device, precision, hidden_size, batch_size, inputs=hidden_size, hx=True, layout="packed"
    )
    for launch in (projection, scan) if kernel == "block" else (scan,):  # the projection is the same for all kernels
        stats = KernelStats(launch.compile())
        assert stats.stack <= STACK_LIMIT and stats.spills == 0, stats
        assert stats.shared <= device.shared_memory, stats


@pytest.mark.parametrize("kernel", ["block", "grid", "step"])
def test_a_single_reverse_direction_compiles(kernel):
    set_compile_target(H200)
    # Further launches of ``step`` are of the same kernel as its first scan.
    projection, scan, *_ = kernel_launches(
        kernel, H200, "fp16", 100, 3, inputs=100, hx=True, layout="packed", reverse=True
    )
    for launch in (projection, scan):
        # Scans have the constants of a call. The projection has only those of its cut.
        constants = launch.constants.get("call") or launch.constants["cut"]
        assert constants.REVERSE.value is True
        stats = KernelStats(launch.compile())
        assert stats.stack <= STACK_LIMIT and stats.spills == 0, stats


@pytest.mark.parametrize("layout", ["lengths", "packed"])
def test_other_lengths_need_no_other_kernel(layout):
    """Check that a kernel is compiled once for any number of steps and any address of the tables of lengths."""
    set_compile_target(H200)
    launches = [kernel_launches("block", H200, "fp16", 64, 9, steps=steps, layout=layout) for steps in (2, 3, 5, 8)]
    assert count_variants(itertools.chain(*launches)) == {"block_scan": 1, "input_projection": 1}


@pytest.mark.parametrize("kernel", ["block", "grid", "step"])
def test_a_second_direction_needs_no_other_kernel(kernel):
    set_compile_target(H200)
    hidden_size = 100 if kernel == "block" else 200
    launches = [
        kernel_launches(kernel, H200, "fp16", hidden_size, 8, bidirectional=is_both) for is_both in (False, True)
    ]
    assert count_variants(itertools.chain(*launches)) == {f"{kernel}_scan": 1, "input_projection": 1}


@pytest.mark.parametrize(
    "device, kernel, precision, hidden_size, batch_size",
    cases([("step", "fp16", 512, 3), ("step", "tf32", 100, 3)], [("step", "fp16", 512, 3)]),
)
def test_a_single_step_is_one_launch(device, kernel, precision, hidden_size, batch_size):
    set_compile_target(device)
    launches = []
    for rows in (1, batch_size):
        (launch,) = kernel_launches(kernel, device, precision, hidden_size, rows, steps=1, inputs=hidden_size, hx=True)
        assert launch.kernel is whole_step
        launches.append(launch)
    assert count_variants(launches) == {"whole_step": 1}
    stats = KernelStats(launches[0].compile())
    assert stats.stack == 0 and stats.spills == 0, stats
    assert stats.shared <= device.shared_memory, stats


def test_a_prepared_launch_passes_all_parameters_in_order():
    """Check that the kernel gets arguments and constants in the order of its parameters, as in Triton's own launch."""
    set_compile_target(H200)
    launch = kernel_launches("step", H200, "fp16", 512, 3, steps=1, inputs=512, hx=True)[0]
    passed = {}

    class Compiled:
        """A compiled kernel that only notes how it is loaded and run."""

        function = packed_metadata = None

        def __getitem__(self, grid):
            passed.update(loaded=grid)

        def run(self, *args):
            # After the grid: stream, function, two metadata and two hooks. Then the kernel's parameters.
            passed.update(grid=args[:3], args=args[9:])

    launch._replace(kernel=Recorded(launch.kernel, Compiled())).make_starter()(*launch.args)
    names = launch.kernel.arg_names
    assert passed["grid"] == passed["loaded"] == (*launch.programs, 1)
    assert list(launch.compile().src.signature) == names
    assert len(passed["args"]) == len(names)
    for i, kind in enumerate(launch.compile().src.signature.values()):
        if i >= len(launch.args):
            assert kind == "constexpr", names[i]
        elif kind == "constexpr":
            assert launch.args[i] == 1, names[i]  # Triton makes an argument of 1 a constant
    assert dict(zip(names, passed["args"]))["cut"] is launch.constants["cut"]


class Recorded:
    """A kernel whose compiled form is replaced by another object."""

    def __init__(self, kernel, compiled):
        self.arg_names = kernel.arg_names
        self.warmup = lambda *args, grid, **constants: compiled
