"""Plans: the chosen kernel, its configuration, and the text that explains the choice."""

import dataclasses
import functools
import itertools
import os
import random
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import triton_gru
from triton_gru.accuracy import PRECISIONS
from triton_gru.launch import execute
from triton_gru.plan import device as devices
from triton_gru.plan.config import BlockConfig
from triton_gru.plan.device import KNOWN_DEVICES, find_device, limit_sms, read_max_sms
from triton_gru.plan.heuristic import HEURISTICS, block_config, grid_config, heuristic
from triton_gru.plan.planner import BACKENDS, KERNELS, choose, clear_plan_cache
from triton_gru.plan.problem import LAYOUTS, Problem
from triton_gru.plan.tables import lookup, store
from triton_gru.plan.validity import adapt_config, unsupported_config_reason
from triton_gru.triton_versions import copies_shared_operands
from triton_gru.tuning.example import open_example
from triton_gru.tuning.space import candidates

from . import planted
from .pairwise import pairwise
from .planted import H200, T4

PROBLEM = planted.change_problem(batch_size=4, input_size=32, hidden_size=64)
change_problem = functools.partial(planted.change_problem, PROBLEM)


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda device: device.name)
@pytest.mark.parametrize(
    "dtype, hidden",
    [(torch.float32, 25), (torch.float32, 64), (torch.float16, 25), (torch.float16, 128), (torch.bfloat16, 64)],
)
def test_auto_takes_block_if_it_is_estimated_fastest(device, dtype, hidden):
    plan = choose(change_problem(dtype=dtype, hidden_size=hidden, precision="tf32"), device)
    assert plan.kernel == "block"
    assert plan.config.padded_hidden >= hidden
    assert plan.source == "heuristic"
    assert {kernel for kernel, _ in plan.rejection_reasons} == {"grid", "step", "torch"}
    assert all(reason.startswith("estimated ") for _, reason in plan.rejection_reasons)


@pytest.mark.parametrize(
    "fields, reason",
    [
        (
            {"hidden_size": 4096, "batch_size": 100},
            "hidden_size 4096 is too large: W_hh in float16 needs 96.1 MiB ",
        ),
        ({"dtype": torch.float64}, "no kernel for float64"),
        ({"unsupported_reason": "autocast is on strike"}, "autocast"),
    ],
)
def test_auto_falls_back_to_torch_with_a_reason(fields, reason):
    plan = choose(change_problem(**fields), H200)
    assert plan.kernel == "torch"
    assert plan.config is None
    (kernel, first_reason), *_ = plan.rejection_reasons
    assert kernel == "block" and first_reason.startswith(reason)
    assert reason in str(plan)
    with pytest.raises(RuntimeError, match="cannot serve this call"):
        choose(change_problem(**fields), H200, "block")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "device", [None, T4, *KNOWN_DEVICES.values()], ids=lambda device: device.name if device else "cpu"
)
def test_reset_before_is_planned_like_reset_after(backend, device):
    """Plans are those of reset after. Exception: in place of `nn.GRU`, the reference serves a call without a kernel.

    The backend "torch" raises.
    """
    after_problem, before_problem = PROBLEM, change_problem(reset_after=False)
    for problem in (before_problem, dataclasses.replace(before_problem, dtype=torch.float64)):
        if backend == "torch":
            with pytest.raises(RuntimeError, match="nn.GRU always resets after the recurrent product"):
                choose(problem, device, backend)
            continue
        try:
            expected = choose(dataclasses.replace(after_problem, dtype=problem.dtype), device, backend).kernel
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=re.escape(str(error).split(" (")[0])):
                choose(problem, device, backend)
            continue
        assert choose(problem, device, backend).kernel == {"torch": "reference"}.get(expected, expected)


@pytest.mark.parametrize("option", [{"reset_after": False}, {"resets": True}])
@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": torch.float32, "hidden_size": 128, "batch_size": 512},
        {"dtype": torch.float32, "hidden_size": 1024, "batch_size": 64},
        {"hidden_size": 2048, "batch_size": 64},
        {"hidden_size": 4096, "batch_size": 65},
    ],
)
def test_kernel_serves_options_that_nn_gru_lacks(fields, option):
    """A kernel is taken even if `nn.GRU` is estimated to be faster: the fallback here is a loop of launches."""
    assert choose(change_problem(**fields), H200).kernel == "torch"
    assert choose(change_problem(**fields, **option), H200).kernel in KERNELS


def test_key_holds_the_largest_problem_of_its_range():
    problem = change_problem(
        batch_size=33, num_layers=2, bidirectional=True, layout="packed", reset_after=False, dtype=torch.float32
    )
    key = problem.key()
    assert key.batch == 64 and change_problem(batch_size=0).key().batch == 1
    assert key.to_problem() == dataclasses.replace(problem, batch_size=64) and key.to_problem().key() == key
    for fields in ({"dtype": "float64"}, {"dtype": "nonsense"}, {"directions": 3}):
        with pytest.raises(ValueError, match="no kernel serves"):
            dataclasses.replace(key, **fields).to_problem()


@pytest.mark.parametrize(
    "fields, is_single_step",
    [({}, True), ({"steps": 2}, False), ({"layout": "lengths"}, False), ({"resets": True}, False)],
)
def test_single_step_needs_dense_input_without_resets(fields, is_single_step):
    assert change_problem(**{"steps": 1, **fields}).is_single_step == is_single_step


def test_cpu_tensors_go_to_torch():
    assert find_device(torch.device("cpu")) is None
    assert choose(PROBLEM, None).kernel == "torch"
    with pytest.raises(RuntimeError, match="the kernels need an NVIDIA GPU"):
        choose(PROBLEM, None, "block")


def test_rocm_has_no_device(monkeypatch):
    """On ROCm, torch reports the compute capability 9.4 for a gfx942."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(devices, "_find_gpu", lambda index: dataclasses.replace(H200, arch="sm_94"))
    assert find_device(torch.device("cuda", 0)) is None


INTERPRETED = """
import torch, triton_gru
gru = triton_gru.GRU(3, 4).eval()
x = torch.randn(2, 1, 3)
assert torch.equal(gru(x)[0], torch.nn.GRU.forward(gru, x)[0])
print(gru.plan(x))
print(triton_gru.plan.device.find_device(torch.device("cuda", 0)))
gru.backend = "block"
try:
    gru(x)
except RuntimeError as error:
    print(error)
"""


def test_interpreted_kernels_are_refused():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    plan, separator, message = done.stdout.partition("\nNone\n")
    reason = "the kernels run compiled only, and TRITON_INTERPRET was set when they were imported: unset it"
    assert plan.startswith("torch: ") and separator
    assert plan.endswith(f"\n  not block, grid, step  {reason}")
    assert message.startswith(f"backend='block' cannot serve this call: {reason} (T=2 ")


def test_auto_takes_torch_if_kernels_are_estimated_slower():
    ieee_problem = change_problem(dtype=torch.float32, hidden_size=128, batch_size=512)
    assert choose(ieee_problem, H200).kernel == "torch"
    assert dict(choose(ieee_problem, H200).rejection_reasons)["block"].startswith("estimated ")
    assert choose(ieee_problem, H200, "block").kernel == "block"
    assert choose(dataclasses.replace(ieee_problem, precision="tf32"), H200).kernel == "block"


def test_old_gpu_is_refused():
    plan = choose(PROBLEM, T4)
    assert plan.kernel == "torch"
    reason = "needs compute capability 8.0 or later, T4 has 7.5"
    assert plan.rejection_reasons == (("block", reason), ("grid", reason), ("step", reason))
    for kernel in KERNELS:
        with pytest.raises(RuntimeError, match=reason) as error:
            choose(PROBLEM, T4, kernel)
        assert error.value.reason == reason


@pytest.mark.parametrize(
    "fields, kernel",
    [
        ({"hidden_size": 512}, "grid"),
        ({"hidden_size": 2048, "batch_size": 16}, "grid"),
        ({"hidden_size": 192}, "grid"),
        ({"hidden_size": 2048, "batch_size": 64}, "torch"),
        ({"hidden_size": 1024, "dtype": torch.float32, "precision": "tf32"}, "grid"),
        ({"hidden_size": 160, "dtype": torch.float32, "precision": "tf32"}, "grid"),
        ({"hidden_size": 512, "batch_size": 1, "dtype": torch.float32, "precision": "ieee"}, "grid"),
        (
            {"hidden_size": 512, "input_size": 512, "batch_size": 64, "dtype": torch.float32, "precision": "ieee"},
            "torch",
        ),
        ({"hidden_size": 1024, "batch_size": 256}, "torch"),
        ({"hidden_size": 1024, "dtype": torch.float32, "precision": "ieee", "batch_size": 64}, "torch"),
        ({"hidden_size": 512, "batch_size": 4096}, "torch"),
        ({"hidden_size": 64, "steps": 1, "batch_size": 65}, "step"),
        ({"hidden_size": 4096}, "torch"),
        ({"hidden_size": 1024, "steps": 1}, "step"),
        ({"hidden_size": 4096, "batch_size": 65}, "torch"),
    ],
)
def test_auto_takes_another_kernel_or_torch_if_block_cannot_hold_w_hh_or_is_slower(fields, kernel):
    plan = choose(change_problem(**fields), H200)
    assert plan.kernel == kernel
    reasons = dict(plan.rejection_reasons)
    assert "too large" in reasons["block"] or reasons["block"].startswith("estimated ")
    assert set(reasons) == {"block", "grid", "step", "torch"} - {kernel}


@pytest.mark.parametrize("hidden", [1, 64, 512, 1024])
def test_single_step_is_planned_as_step(hidden):
    plan = choose(change_problem(hidden_size=hidden, steps=1), H200)
    assert plan.kernel == "step"


@pytest.mark.parametrize("layout", ["dense", "lengths", "packed"])
@pytest.mark.parametrize("hidden, kernel", [(64, "block"), (512, "grid")])
def test_layout_does_not_change_the_kernel(hidden, kernel, layout):
    assert choose(change_problem(hidden_size=hidden, layout=layout), H200).kernel == kernel
    if layout != "packed":
        assert choose(change_problem(hidden_size=hidden, layout=layout, resets=True), H200).kernel == kernel


def test_both_directions_run_at_once_if_the_chip_has_room():
    for hidden, batch, directions, copies in ((512, 8, 2, 1), (512, 16, 2, 2), (1024, 8, 2, 1), (2048, 8, 1, 1)):
        config = choose(change_problem(hidden_size=hidden, batch_size=batch, bidirectional=True), H200).config
        assert (config.directions, config.copies) == (directions, copies), hidden
        assert config.directions * config.copies * config.programs <= H200.sms
        assert config.count_rounds(batch, 2) == 2 // directions
    # Two directions fit at once only with fewer programs of more units.
    assert grid_config(1024, 16, 1, torch.float16, "ieee", H200).units == 16
    assert grid_config(1024, 16, 2, torch.float16, "ieee", H200).units == 32


def test_estimate_includes_reads_of_the_state():
    """The printed estimate of a large batch names the time of bytes, most of which are those of the state."""
    reasons = dict(choose(change_problem(hidden_size=2048, batch_size=64), H200).rejection_reasons)
    assert re.search(r"estimated .* bytes \d", reasons["grid"])


def test_larger_batches_take_more_copies_and_tiles():
    cuts = {}
    for batch in (1, 8, 9, 32, 33, 64, 65, 129, 257):
        config = grid_config(512, batch, 1, torch.float16, "ieee", H200)
        cuts[batch] = config.units, config.batch, config.tiles, config.copies
    assert cuts == {
        1: (16, 8, 1, 1), 8: (16, 8, 1, 1), 9: (16, 8, 1, 2), 32: (16, 8, 1, 4), 33: (32, 8, 1, 5), 64: (32, 8, 1, 8),
        65: (32, 8, 2, 5), 129: (32, 16, 2, 5), 257: (32, 8, 2, 8),
    }  # fmt: skip


def test_small_batches_hand_over_fewer_rows():
    """Rows are the batch rounded up to a power of two, or twice as many, and at most 8.

    With twice as many rows, fewer programs share a line of memory.

    That saves a fourth of a step at H = 1024 and B = 1 (perf/NOTES.md).
    """
    batches = (1, 2, 3, 4, 5, 8, 9)
    assert [grid_config(512, batch, 1, torch.float16, "ieee", H200).rows for batch in batches] == [2, 4, 4, 4, 8, 8, 8]


@pytest.mark.parametrize(
    "rows, batch, adapted_rows", [(2, 1, 2), (4, 1, 1), (8, 4, 8), (4, 4, 4), (1, 3, 4), (8, 9, 8)]
)
def test_tuned_rows_are_adapted_to_the_batch(rows, batch, adapted_rows):
    config = dataclasses.replace(grid_config(512, 1, 1, torch.float16, "ieee", H200), rows=rows)
    assert adapt_config(config, change_problem(hidden_size=512, batch_size=batch), H200).rows == adapted_rows


def test_many_programs_hand_over_by_probe():
    def choose_handover(hidden, batch):
        return grid_config(hidden, batch, 1, torch.float16, "ieee", H200).handover

    assert [
        choose_handover(512, 64),
        choose_handover(1024, 16),
        choose_handover(2048, 1),
        choose_handover(2048, 8),
    ] == ["flag", *3 * ["probe"]]
    assert choose_handover(2048, 64) == "flag", (
        "with two tiles, a program computes one while it waits for the other, so it rarely waits"
    )


def test_block_refuses_16_rows_with_several_tiles():
    """Such a kernel spills registers. One of them accessed invalid memory on an H200."""
    problem = change_problem(hidden_size=192, batch_size=64)
    assert "too few registers" in unsupported_config_reason(
        BlockConfig(units=64, tiles=3, batch=16, ahead=1, register_tiles=3, num_warps=4), problem, H200
    )
    assert (
        unsupported_config_reason(
            BlockConfig(units=64, tiles=3, batch=8, ahead=1, register_tiles=3, num_warps=4), problem, H200
        )
        == ""
    )
    assert (
        unsupported_config_reason(
            BlockConfig(units=128, tiles=1, batch=16, ahead=1, register_tiles=3, num_warps=8),
            change_problem(hidden_size=128, batch_size=64),
            H200,
        )
        == ""
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_hopper_gpus_with_other_memory_get_equal_configurations(kernel):
    """Up to 4096 hidden units, kernels compiled for an H200 are proven for all three GPUs."""
    devices = [dataclasses.replace(KNOWN_DEVICES[name], name="a Hopper") for name in ("H200", "H100", "GH200")]
    for hidden, batch, dtype_and_precision in itertools.product(
        (25, 128, 512, 2048, 4096), (1, 64, 1000), PRECISIONS.values()
    ):
        assert len({HEURISTICS[kernel](hidden, batch, 1, *dtype_and_precision, device) for device in devices}) == 1


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda device: device.name)
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_grid_is_never_larger_than_the_chip(device, dtype, precision):
    """The programs of a grid wait for each other: a program that is not on the chip would make the others hang."""
    for hidden in (1, 25, 96, 200, 256, 400, 600, 1000, 1024, 1500, 2048, 2112, 3000):
        for batch in (1, 8, 9, 64, 100, 1000, 10_000):
            config = grid_config(hidden, batch, 1, dtype, precision, device)
            if isinstance(config, str):
                assert "is too large: " in config
                continue
            assert config.programs * config.copies <= device.sms
            assert config.padded_hidden >= hidden
            assert config.shared_memory(dtype.itemsize) <= device.shared_memory


def test_grid_on_few_multiprocessors_takes_programs_of_32_units():
    device = dataclasses.replace(KNOWN_DEVICES["RTX 4090"], name="RTX 4060", sms=24)
    config = grid_config(700, 16, 1, torch.float16, "ieee", device)
    assert (config.units, config.programs) == (32, 22)
    assert "it takes 25 programs at once on as many multiprocessors, RTX 4060 has 24" in grid_config(
        800, 16, 1, torch.float16, "ieee", device
    )


def test_grid_in_fp32_ieee_refuses_other_cuts():
    cuts = ((32, 8, 1), (16, 8, 2))
    reason = grid_config(256, 1, 1, torch.float32, "ieee", H200, cuts)
    assert reason == f"grid has only the cut (16, 8, 1) in float32 (ieee), got {cuts}"


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda device: device.name)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_table_may_hold_what_the_heuristic_chooses(kernel, device):
    """Otherwise a tuned entry with this configuration would never be used."""
    sizes = itertools.product((1, 40, 65, 100, 128, 150, 192, 300, 600, 1024, 2048), (1, 3, 64, 1000))
    for (hidden, batch), (dtype, precision) in itertools.product(sizes, PRECISIONS.values()):
        problem = change_problem(hidden_size=hidden, batch_size=batch, dtype=dtype, precision=precision)
        config = heuristic(kernel, problem, device)
        assert isinstance(config, str) or unsupported_config_reason(config, problem, device) == "", config


# Sizes for host code that no call on a CPU reaches, on every device with plans.
ANY_SIZE = list(itertools.product((0, 1, 2, 33), (1, 2, 33), (1, 2, 33, 200, 1025)))  # batch, steps, hidden
ANY_OPTIONS = pairwise(
    (1, 2, 33), (1, 2, 3), (False, True), ("fp16", "tf32", "fp32"), (True, False), ("dense", "lengths", "packed")
)


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda device: device.name)
def test_any_size_is_planned_launched_and_tuned(device):
    for (batch, steps, hidden), options in zip(ANY_SIZE, itertools.cycle(ANY_OPTIONS)):
        inputs, layers, bidirectional, precision, reset_after, layout = options
        if layout == "packed" and batch == 0:
            layout = "dense"  # torch cannot pack an empty batch
        dtype, fp32_precision = PRECISIONS[precision]
        problem = Problem(
            steps=steps,
            batch_size=batch,
            input_size=inputs,
            hidden_size=hidden,
            num_layers=layers,
            bidirectional=bidirectional,
            dtype=dtype,
            precision=fp32_precision,
            reset_after=reset_after,
            layout=layout,
        )
        assert choose(problem, device).kernel in BACKENDS
        for candidate in candidates(problem, device):
            assert unsupported_config_reason(candidate.config, problem, device) == "", candidate
        with open_example(problem, "meta") as example:
            for kernel in KERNELS:
                config = heuristic(kernel, problem, device)
                if isinstance(config, str):
                    continue
                assert choose(problem, device, kernel).config == config
                assert unsupported_config_reason(config, problem, device) == "", config
                launches = list(execute.launches(example.call, config, device, *execute.allocate(example.call)))
                assert (len(launches) > 0) == (batch > 0)
                assert all(min(launch.programs) > 0 for launch in launches)


def test_cell_without_features_goes_to_torch():
    """`nn.GRUCell` allows sizes of 0, and `nn.GRU` does not."""
    for inputs, hidden in ((0, 3), (3, 0)):
        problem = change_problem(steps=1, input_size=inputs, hidden_size=hidden)
        assert choose(problem, H200).kernel == "torch"
        for kernel in KERNELS:
            with pytest.raises(RuntimeError, match="both must be positive"):
                choose(problem, H200, kernel)


def test_block_takes_more_rows_only_when_the_device_is_full():
    assert block_config(128, 8 * 132, 1, torch.float16, "ieee", H200).batch == 8
    assert block_config(128, 8 * 132 + 1, 1, torch.float16, "ieee", H200).batch == 16
    assert block_config(128, 1 << 20, 1, torch.float32, "tf32", H200).batch == 8
    assert block_config(128, 1 << 20, 1, torch.float16, "ieee", KNOWN_DEVICES["B200"]).batch == 8


# Texts of printed plans, and parts of them.
FIELDS = "units=16, programs=32, batch=8, rows=8, tiles=1, copies=2, slices=4, register_tiles=12, handover=flag"
EXCESS = "of one program's shared memory, H200 has 227 KiB"
NO_ROOM = "W_hh in float16 does not fit the registers and shared memory of 128 programs on H200"
TOO_LARGE = f"hidden_size 512 is too large: W_hh in float16 needs 1.47 MiB {EXCESS}"
ESTIMATED = f"""\
grid: W_hh fits the chip if split over its multiprocessors, and stays there for the whole sequence
  call       T=100 B=16 I=512 H=512, 1 layer, float16
  GPU        H200
  config     {FIELDS}, directions=1 (chosen by the heuristic, not tuned)
  inputs     projected by our kernel; with cuBLAS the call is estimated to take 106 us
  estimated  103 us: instructions 39 us, hop 27 us, bytes 23 us, launch 7.5 us, projection 6.2 us
  not block  {TOO_LARGE}
  not step   estimated 368 us: launch 250 us, bytes 64 us, instructions 45 us, projection 6.2 us
  not torch  estimated 460 us: launch 420 us, bytes 36 us, projection 4.7 us
  estimates  are for a call in a CUDA graph, by a model fitted to an H200; `triton-gru tune` measures times"""
BY_NAME = """\
step: asked for by name
  call       T=1 B=16 I=512 H=512, 2 layers, bidirectional, float32 (TF32), reset_after=False
  GPU        A100
  config     units=16, programs=32, batch=16, depth=128, num_warps=8, num_stages=3 (chosen by the heuristic, not tuned)
  estimated  29.3 us: bytes 11 us, launch 10 us, projection 6.7 us, instructions 1.9 us
  estimates  leave out the host (nn.GRU: eager), by a model fitted to an H200; `triton-gru tune` measures times"""
WITHOUT_GPU = """\
torch: nn.GRU serves the call, as it is not on a GPU that runs the kernels
  call       T=100 B=16 I=512 H=512, 1 layer, float16
  GPU        no GPU that runs the kernels
  not block, grid, step  the kernels need an NVIDIA GPU of compute capability 8.0 or later"""
FALLBACK = f"""\
torch: nn.GRU serves the call, as no kernel is estimated to be faster by 10 % or more
  call       T=1000 B=256 I=64 H=4096, 1 layer, with lengths, float16
  GPU        H200
  estimated  59.6 ms: bytes 54 ms, launch 4 ms, projection 1.5 ms
  not block  hidden_size 4096 is too large: W_hh in float16 needs 96.1 MiB {EXCESS}
  not grid   hidden_size 4096 is too large: {NO_ROOM}
  not step   estimated 252 ms: bytes 250 ms
  estimates  are for a call in a CUDA graph, by a model fitted to an H200; `triton-gru tune` measures times"""
REFERENCE = """\
reference: plain PyTorch serves the call step by step, as neither a kernel nor nn.GRU can
  call       T=100 B=16 I=512 H=512, 1 layer, reverse=True, packed, with resets, float64
  GPU        H200
  not block, grid, step  no kernel for float64
  not torch  nn.GRU cannot reset the state within a sequence"""
# Problems of the printed plans above.
USUAL = planted.PROBLEM
STEP_PROBLEM = dataclasses.replace(
    USUAL, steps=1, num_layers=2, bidirectional=True, dtype=torch.float32, precision="tf32", reset_after=False
)
LARGE_PROBLEM = dataclasses.replace(
    USUAL, steps=1000, batch_size=256, input_size=64, hidden_size=4096, layout="lengths"
)
RESETS_PROBLEM = dataclasses.replace(USUAL, dtype=torch.float64, resets=True, reverse=True, layout="packed")


@pytest.mark.parametrize(
    "problem, device, backend, text",
    [
        (USUAL, H200, "auto", ESTIMATED), (STEP_PROBLEM, KNOWN_DEVICES["A100"], "step", BY_NAME),
        (USUAL, None, "auto", WITHOUT_GPU),
        (LARGE_PROBLEM, H200, "auto", FALLBACK), (RESETS_PROBLEM, H200, "auto", REFERENCE),
    ],
    ids=["estimated", "by name", "without a GPU", "fallback", "reference"],
)  # fmt: skip
def test_plan_prints_as_a_report(problem, device, backend, text, tables):
    assert str(choose(problem, device, backend)) == text


def test_measured_plan_prints_as_a_report(tables):
    fields = ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(planted.ONE_CONFIG).items())
    path = store.save(
        [planted.make_entry(USUAL, "grid", grid=(planted.ONE_CONFIG, 0.08123), torch=(None, 1.2))], H200, tables
    )
    expected = f"""\
grid: measured: no other kernel was clearly faster, and nn.GRU was not, eager or in a CUDA graph
  call       T=100 B=16 I=512 H=512, 1 layer, float16
  GPU        H200
  config     {fields} (tuned)
  inputs     projected by our kernel; with cuBLAS the call was not measured
  measured   81.2 us in a CUDA graph (table {path}, of 2026-01-02)
  not block  {TOO_LARGE}
  not step   not measured
  not torch  measured 1.20 ms"""
    assert str(choose(USUAL, H200)) == expected
    longer = str(choose(dataclasses.replace(USUAL, steps=300, input_size=256), H200))
    assert "\n  measured   81.2 us in a CUDA graph at T=100 I=512 (table " in longer
    # For another number of layers only the configuration holds, not the time.
    deeper = str(choose(dataclasses.replace(USUAL, num_layers=2), H200, "grid"))
    assert f"(tuned: table {path}, of 2026-01-02)\n" in deeper and "\n  estimated  " in deeper
    store.save([planted.make_entry(USUAL, "torch", grid=(planted.ONE_CONFIG, 2.0), torch=(None, 1.2))], H200, tables)
    lookup.clear_table_cache()
    clear_plan_cache()
    assert (
        str(choose(USUAL, H200))
        == f"""\
torch: nn.GRU serves the call, as no kernel was measured to be as fast both eager and in a CUDA graph
  call       T=100 B=16 I=512 H=512, 1 layer, float16
  GPU        H200
  measured   1.20 ms in a CUDA graph (table {path}, of 2026-01-02)
  not block  {TOO_LARGE}
  not grid   measured 2.00 ms
  not step   not measured"""
    )


def test_plans_print_short_numbers_and_no_banned_words():
    """Texts have no exponents and no long numbers. Exception: sizes of the call, and configurations."""
    rng = random.Random(0)
    for _ in range(2000):
        dtype, precision = rng.choice([*PRECISIONS.values(), (torch.float64, "ieee")])
        problem = Problem(
            *(int(10 ** rng.uniform(0, exponent)) for exponent in (4.5, 4, 3.5, 3.9)), rng.randint(1, 4),
            rng.random() < 0.3, dtype, precision, rng.random() < 0.7, layout=rng.choice(LAYOUTS),
            resets=rng.random() < 0.2,
        )  # fmt: skip
        try:
            text = str(choose(problem, rng.choice([None, T4, *KNOWN_DEVICES.values()]), rng.choice(("auto", *KERNELS))))
        except RuntimeError as error:
            text = str(error)
        assert not re.search(r"\de[+-]|16 \(ieee\)|64 \(ieee\)|by +count|torch's|\(tf32\)|nan|\binf\b", text), text
        assert not re.search(r" [01] (layers|programs|shapes)\b|needs ([\d.]+ \w+) .* has \2\b", text), text
        sizes = {str(getattr(problem, name)) for name in ("steps", "batch_size", "input_size", "hidden_size")}
        checked = "\n".join(line for line in text.splitlines() if not line.startswith("  config "))
        numbers = re.findall(r"(?<![\w.])\d[\d.]*", checked)
        long_numbers = {number for number in numbers if len(number.replace(".", "").strip("0")) > 4} - sizes
        assert not long_numbers, (long_numbers, text)
        labelled_line = re.compile(r"  (\w+|not \w+(, \w+)*) +\S")
        assert all(labelled_line.match(line) for line in text.splitlines()[1:]), text


def test_module_plan_has_the_problem_of_its_call(device):
    gru = triton_gru.GRU(32, 64, device=device, dtype=torch.float16, backend="block").eval()
    x = torch.randn(100, 4, 32, device=device, dtype=torch.float16)
    plan = gru.plan(x)
    assert plan.problem == PROBLEM
    assert plan.config == block_config(64, 4, 1, torch.float16, "ieee", find_device(x.device))
    assert isinstance(plan.config, BlockConfig)
    cell = triton_gru.GRUCell(32, 64, device=device, dtype=torch.float16, backend="block").eval()
    assert cell.plan(x[0]).problem == change_problem(steps=1)
    assert cell.plan(x[0, 0]).problem == change_problem(steps=1, batch_size=1)


@pytest.mark.parametrize("setting, precision", [("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")])
def test_precision_follows_the_setting_for_recurrent_networks(setting, precision):
    gru = triton_gru.GRU(3, 4).eval()
    torch.backends.cudnn.rnn.fp32_precision = setting
    assert gru.plan(torch.randn(2, 1, 3)).problem.precision == precision
    torch.backends.cuda.matmul.fp32_precision, matmul_precision = "tf32", torch.backends.cuda.matmul.fp32_precision
    try:
        assert gru.plan(torch.randn(2, 1, 3)).problem.precision == precision
    finally:
        torch.backends.cuda.matmul.fp32_precision = matmul_precision


def test_limited_multiprocessors_are_a_device_of_its_own(monkeypatch):
    """Plans, tables and file names treat a limited GPU as another device.

    TRITON_GRU_MAX_SMS must be a whole number above 0.
    """
    limited = limit_sms(H200, 64)
    plan = choose(change_problem(hidden_size=1024, batch_size=64), limited, "grid")
    assert plan.config.programs * plan.config.copies <= 64
    assert "H200, 64 SMs" in str(plan)
    assert store.describe_device(limited) == {"name": "H200, 64 SMs", "cc": 90, "sms": 64}
    assert store.file_name(limited) == "H200-64-SMs.json"
    assert limit_sms(H200, 132) is limit_sms(H200, 500) is limit_sms(H200, None) is H200
    assert isinstance(heuristic("grid", change_problem(hidden_size=2048), limit_sms(H200, 100)), str)
    for text, sms in (("", None), ("64", 64), (" 7 ", 7)):
        monkeypatch.setenv("TRITON_GRU_MAX_SMS", text)
        assert read_max_sms() == sms
    for text in ("0", "-1", "half", "1.5"):
        monkeypatch.setenv("TRITON_GRU_MAX_SMS", text)
        with pytest.raises(ValueError, match=re.escape(f"a whole number above 0, got {text!r}: unset it to use all")):
            read_max_sms()


def test_found_gpu_is_limited_by_max_sms(monkeypatch):
    properties = SimpleNamespace(
        name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, L2_cache_size=60 << 20
    )
    limits = {"max_shared_mem": 232448, "sm_clock_rate": 1_980_000, "mem_clock_rate": 3_201_000, "mem_bus_width": 6144}
    utils = SimpleNamespace(get_device_properties=lambda index: limits)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(devices.driver, "_active", SimpleNamespace(utils=utils))
    monkeypatch.setenv("TRITON_GRU_MAX_SMS", "100")
    gpu = devices._find_gpu.__wrapped__(0)
    assert (gpu.name, gpu.sms, gpu.shared_memory) == ("NVIDIA H200, 100 SMs", 100, 232448)


@pytest.mark.parametrize(
    "version, precision, hidden, batch, is_reported",
    [
        ("3.8", "tf32", 512, 16, True), ("3.8", "tf32", 513, 16, False), ("3.8", "tf32", 512, 64, False),
        ("3.8", "fp16", 512, 16, False), ("3.9", "tf32", 512, 16, False),
    ],
)  # fmt: skip
def test_plan_tells_that_triton_3_8_copies_shared_operands(version, precision, hidden, batch, is_reported, monkeypatch):
    monkeypatch.setattr(
        triton_gru.plan.planner, "copies_shared_operands", lambda: copies_shared_operands(f"{version}.1")
    )
    dtype, fp32 = PRECISIONS[precision]
    problem = change_problem(dtype=dtype, precision=fp32, hidden_size=hidden, batch_size=batch, steps=1)
    assert ("16 % more instructions" in str(choose(problem, H200, "step"))) == is_reported
