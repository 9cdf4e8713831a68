"""What lengths, packed input, resets and a second direction make of the kernels, beside the dense forward ones."""

import itertools

import pytest

from triton_gru.kernels.step import whole_step

from .harness import KNOWN_DEVICES, STACK_LIMIT, KernelStats, cases, count_variants, kernel_launches, set_compile_target

LAYOUTS = {"packed": {"layout": "packed"}, "lengths and resets": {"layout": "lengths", "resets": True}}
H200 = KNOWN_DEVICES["H200"]


# Where registers are short, both types of words, a step of many loads.
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
def test_a_step_is_little_more_than_a_dense_one(kernel, precision, hidden_size, batch_size):
    set_compile_target(H200)

    def compiled(**options):
        scan = kernel_launches(
            kernel, H200, precision, hidden_size, batch_size, inputs=hidden_size, hx=True, **options
        )[-1]
        return KernelStats(scan.compile())

    dense = compiled()
    for name, options in LAYOUTS.items():
        found = compiled(**options)
        assert found.stack <= STACK_LIMIT and found.spills == 0, (name, found)
        assert found.shared <= H200.shared_memory, (name, found)
        assert found.executed <= 1.25 * dense.executed + 8, (name, found)
        # No trip through shared memory more: what rows need to know of their sequences is loaded where it is used.
        assert found.loop["BAR"] <= dense.loop["BAR"], (name, found)


@pytest.mark.parametrize(
    "device, kernel, precision, hidden_size, batch_size",
    cases([], [(kernel, "fp16", 100, 3) for kernel in ("block", "grid", "step")]),
)
def test_they_compile_for_every_other_architecture(device, kernel, precision, hidden_size, batch_size):
    set_compile_target(device)
    projection, scan = kernel_launches(
        kernel, device, precision, hidden_size, batch_size, inputs=hidden_size, hx=True, layout="packed"
    )[:2]
    for launch in (projection, scan) if kernel == "block" else (scan,):
        found = KernelStats(launch.compile())
        assert found.stack <= STACK_LIMIT and found.spills == 0, found
        assert found.shared <= device.shared_memory, found


@pytest.mark.parametrize("kernel", ["block", "grid", "step"])
def test_one_direction_backward_compiles(kernel):
    set_compile_target(H200)
    for launch in kernel_launches(kernel, H200, "fp16", 100, 3, inputs=100, hx=True, layout="packed", reverse=True)[:2]:
        assert launch.constants["call" if "call" in launch.constants else "cut"].REVERSE.value is True
        found = KernelStats(launch.compile())
        assert found.stack <= STACK_LIMIT and found.spills == 0, found


@pytest.mark.parametrize("layout", ["lengths", "packed"])
def test_other_lengths_add_no_compile(layout):
    """Wherever their tables lie."""
    set_compile_target(H200)
    launches = [kernel_launches("block", H200, "fp16", 64, 9, steps=steps, layout=layout) for steps in (2, 3, 5, 8)]
    assert count_variants(itertools.chain(*launches)) == {"block_scan": 1, "input_projection": 1}


@pytest.mark.parametrize("kernel", ["block", "grid", "step"])
def test_a_second_direction_adds_no_compile(kernel):
    set_compile_target(H200)
    hidden_size = 100 if kernel == "block" else 200
    launches = [kernel_launches(kernel, H200, "fp16", hidden_size, 8, bidirectional=both) for both in (False, True)]
    assert count_variants(itertools.chain(*launches)) == {f"{kernel}_scan": 1, "input_projection": 1}


@pytest.mark.parametrize(
    "device, kernel, precision, hidden_size, batch_size",
    cases([("step", "fp16", 512, 3), ("step", "tf32", 100, 3)], [("step", "fp16", 512, 3)]),
)
def test_a_single_step_is_one_launch(device, kernel, precision, hidden_size, batch_size):
    set_compile_target(device)
    launches = []
    for rows in (1, batch_size):
        made = kernel_launches(kernel, device, precision, hidden_size, rows, steps=1, inputs=hidden_size, hx=True)
        assert [launch.kernel for launch in made] == [whole_step]
        launches += made
    assert count_variants(launches) == {"whole_step": 1}
    found = KernelStats(launches[0].compile())
    assert found.stack == 0 and found.spills == 0, found
    assert found.shared <= device.shared_memory, found


def test_a_prepared_launch_passes_what_was_compiled_for():
    """All parameters in their order, constants too: what Triton's own launch passes on."""
    set_compile_target(H200)
    launch = kernel_launches("step", H200, "fp16", 512, 3, steps=1, inputs=512, hx=True)[0]
    passed = {}

    class Compiled:
        function = packed_metadata = None

        def __getitem__(self, grid):
            passed.update(loaded=grid)

        def run(self, *args):
            passed.update(grid=args[:3], args=args[9:])

    whole, launch = launch, launch._replace(kernel=Recorded(launch.kernel, Compiled()))
    launch.make_starter()(*launch.args)
    names = whole.kernel.arg_names
    assert passed["grid"] == passed["loaded"] == (*whole.programs, 1)
    assert list(whole.compile().src.signature) == names
    assert len(passed["args"]) == len(names)
    for i, kind in enumerate(whole.compile().src.signature.values()):
        if i >= len(whole.args):
            assert kind == "constexpr", names[i]
        elif kind == "constexpr":
            assert whole.args[i] == 1, names[i]  # which is a constant to Triton
    assert dict(zip(names, passed["args"]))["cut"] is whole.constants["cut"]


class Recorded:
    """A kernel that has been compiled to something else."""

    def __init__(self, kernel, compiled):
        self.arg_names = kernel.arg_names
        self.warmup = lambda *args, grid, **constants: compiled
