"""Which kernel is chosen, in which configuration, and what is said about it."""

import dataclasses
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

PROBLEM = Problem(
    steps=100, batch_size=4, input_size=32, hidden_size=64, num_layers=1, bidirectional=False,
    dtype=torch.float16, precision="ieee", reset_after=True,
)  # fmt: skip


def change(**fields):
    return dataclasses.replace(PROBLEM, **fields)


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda d: d.name)
@pytest.mark.parametrize(
    "dtype, hidden",
    [(torch.float32, 25), (torch.float32, 64), (torch.float16, 25), (torch.float16, 128), (torch.bfloat16, 64)],
)
def test_auto_takes_block_where_it_is_faster(device, dtype, hidden):
    plan = choose(change(dtype=dtype, hidden_size=hidden, precision="tf32"), device)
    assert plan.kernel == "block"
    assert plan.config.padded_hidden >= hidden
    assert plan.source == "heuristic"
    assert {kernel for kernel, _ in plan.rejection_reasons} == {"grid", "step", "torch"}
    assert all(why.startswith("estimated ") for _, why in plan.rejection_reasons)


@pytest.mark.parametrize(
    "fields, why",
    [
        (
            {"hidden_size": 4096, "batch_size": 100},
            "hidden_size 4096 is too large: W_hh in float16 needs 96.1 MiB ",
        ),
        ({"dtype": torch.float64}, "no kernel for float64"),
        ({"unsupported_reason": "autocast is on strike"}, "autocast"),
    ],
)
def test_auto_goes_to_torch_and_says_why(fields, why):
    plan = choose(change(**fields), H200)
    assert plan.kernel == "torch"
    assert plan.config is None
    assert plan.rejection_reasons[0][0] == "block"
    assert plan.rejection_reasons[0][1].startswith(why)
    assert why in str(plan)
    with pytest.raises(RuntimeError, match="cannot serve this call"):
        choose(change(**fields), H200, "block")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", [None, T4, *KNOWN_DEVICES.values()], ids=lambda d: d.name if d else "cpu")
def test_reset_before(backend, device):
    """As reset after, but that torch has none: where no kernel serves the call, it is the reference."""
    after, before = PROBLEM, change(reset_after=False)
    for each in (before, dataclasses.replace(before, dtype=torch.float64)):
        if backend == "torch":
            with pytest.raises(RuntimeError, match="nn.GRU always resets after the recurrent product"):
                choose(each, device, backend)
            continue
        try:
            expected = choose(dataclasses.replace(after, dtype=each.dtype), device, backend).kernel
        except RuntimeError as refusal:
            with pytest.raises(RuntimeError, match=re.escape(str(refusal).split(" (")[0])):
                choose(each, device, backend)
            continue
        assert choose(each, device, backend).kernel == {"torch": "reference"}.get(expected, expected)


@pytest.mark.parametrize("torch_has_none", [{"reset_after": False}, {"resets": True}])
@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": torch.float32, "hidden_size": 128, "batch_size": 512},
        {"dtype": torch.float32, "hidden_size": 1024, "batch_size": 64},
        {"hidden_size": 2048, "batch_size": 64},
        {"hidden_size": 4096, "batch_size": 65},
    ],
)
def test_a_kernel_serves_what_torch_does_not_have(fields, torch_has_none):
    """Also where nn.GRU would be estimated to be faster: in its place there would be a loop of launches."""
    assert choose(change(**fields), H200).kernel == "torch"
    assert choose(change(**fields, **torch_has_none), H200).kernel in KERNELS


def test_a_key_is_of_the_largest_problem_that_it_holds_for():
    problem = change(
        batch_size=33, num_layers=2, bidirectional=True, layout="packed", reset_after=False, dtype=torch.float32
    )
    key = problem.key()
    assert key.batch == 64 and change(batch_size=0).key().batch == 1
    assert key.to_problem() == dataclasses.replace(problem, batch_size=64) and key.to_problem().key() == key
    for fields in ({"dtype": "float64"}, {"dtype": "nonsense"}, {"directions": 3}):
        with pytest.raises(ValueError, match="no kernel serves"):
            dataclasses.replace(key, **fields).to_problem()


@pytest.mark.parametrize(
    "fields, single",
    [({}, True), ({"steps": 2}, False), ({"layout": "lengths"}, False), ({"resets": True}, False)],
)
def test_a_single_step_is_of_dense_input_without_resets(fields, single):
    assert change(**{"steps": 1, **fields}).is_single_step == single


def test_cpu_tensors_go_to_torch():
    assert find_device(torch.device("cpu")) is None
    assert choose(PROBLEM, None).kernel == "torch"
    with pytest.raises(RuntimeError, match="the kernels need an NVIDIA GPU"):
        choose(PROBLEM, None, "block")


def test_rocm_has_no_device(monkeypatch):
    """There a gfx942 has the compute capability 9.4."""
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
except RuntimeError as refusal:
    print(refusal)
"""


def test_kernels_made_to_be_interpreted_are_not_run():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    plan, found, refusal = done.stdout.partition("\nNone\n")
    why = "the kernels run compiled only, and TRITON_INTERPRET was set when they were imported: unset it"
    assert plan.startswith("torch: ") and found
    assert plan.endswith(f"\n  not block, grid, step  {why}")
    assert refusal.startswith(f"backend='block' cannot serve this call: {why} (T=2 ")


def test_auto_leaves_to_torch_what_is_expected_to_be_slower():
    ieee = change(dtype=torch.float32, hidden_size=128, batch_size=512)
    assert choose(ieee, H200).kernel == "torch"
    assert dict(choose(ieee, H200).rejection_reasons)["block"].startswith("estimated ")
    assert choose(ieee, H200, "block").kernel == "block"
    assert choose(dataclasses.replace(ieee, precision="tf32"), H200).kernel == "block"


def test_an_old_gpu_is_refused():
    plan = choose(PROBLEM, T4)
    assert plan.kernel == "torch"
    why = "needs compute capability 8.0 or later, T4 has 7.5"
    assert plan.rejection_reasons == (("block", why), ("grid", why), ("step", why))
    for kernel in KERNELS:
        with pytest.raises(RuntimeError, match=why) as refused:
            choose(PROBLEM, T4, kernel)
        assert refused.value.reason == why


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
def test_auto_above_what_one_program_holds(fields, kernel):
    plan = choose(change(**fields), H200)
    assert plan.kernel == kernel
    why = dict(plan.rejection_reasons)
    assert "too large" in why["block"] or why["block"].startswith("estimated ")
    assert set(why) == {"block", "grid", "step", "torch"} - {kernel}


@pytest.mark.parametrize("hidden", [1, 64, 512, 1024])
def test_a_single_step_is_one_launch(hidden):
    plan = choose(change(hidden_size=hidden, steps=1), H200)
    assert plan.kernel == "step"


@pytest.mark.parametrize("layout", ["dense", "lengths", "packed"])
@pytest.mark.parametrize("hidden, kernel", [(64, "block"), (512, "grid")])
def test_how_sequences_end_does_not_decide_the_kernel(hidden, kernel, layout):
    assert choose(change(hidden_size=hidden, layout=layout), H200).kernel == kernel
    if layout != "packed":
        assert choose(change(hidden_size=hidden, layout=layout, resets=True), H200).kernel == kernel


def test_both_directions_share_the_chip_where_it_has_room():
    for hidden, batch, at_once, copies in ((512, 8, 2, 1), (512, 16, 2, 2), (1024, 8, 2, 1), (2048, 8, 1, 1)):
        config = choose(change(hidden_size=hidden, batch_size=batch, bidirectional=True), H200).config
        assert (config.directions, config.copies) == (at_once, copies), hidden
        assert config.directions * config.copies * config.programs <= H200.sms
        assert config.count_rounds(batch, 2) == 2 // at_once
    # What no longer fits beside the other direction is cut into fewer programs of more units.
    assert grid_config(1024, 16, 1, torch.float16, "ieee", H200).units == 16
    assert grid_config(1024, 16, 2, torch.float16, "ieee", H200).units == 32


def test_auto_leaves_to_torch_what_reads_too_much_of_the_state():
    reasons = dict(choose(change(hidden_size=2048, batch_size=64), H200).rejection_reasons)
    assert re.search(r"estimated .* bytes \d", reasons["grid"])


def test_more_tiles_of_the_batch_where_the_chip_has_room():
    def config(batch):
        return grid_config(512, batch, 1, torch.float16, "ieee", H200)

    cuts = {
        batch: (c.units, c.batch, c.tiles, c.copies)
        for batch in (1, 8, 9, 32, 33, 64, 65, 129, 257)
        for c in [config(batch)]
    }
    assert cuts == {
        1: (16, 8, 1, 1), 8: (16, 8, 1, 1), 9: (16, 8, 1, 2), 32: (16, 8, 1, 4), 33: (32, 8, 1, 5), 64: (32, 8, 1, 8),
        65: (32, 8, 2, 5), 129: (32, 16, 2, 5), 257: (32, 8, 2, 8),
    }  # fmt: skip


def test_rows_that_are_not_there_are_not_handed_over():
    """But for one more of each, for programs not to share a line of memory: a fourth of a step at H = 1024."""
    batches = (1, 2, 3, 4, 5, 8, 9)
    assert [grid_config(512, b, 1, torch.float16, "ieee", H200).rows for b in batches] == [2, 4, 4, 4, 8, 8, 8]


@pytest.mark.parametrize("rows, batch, kept", [(2, 1, 2), (4, 1, 1), (8, 4, 8), (4, 4, 4), (1, 3, 4), (8, 9, 8)])
def test_a_tuned_configuration_keeps_its_rows_for_the_batch_it_was_found_for(rows, batch, kept):
    config = dataclasses.replace(grid_config(512, 1, 1, torch.float16, "ieee", H200), rows=rows)
    assert adapt_config(config, change(hidden_size=512, batch_size=batch), H200).rows == kept


def test_many_programs_wait_for_one_word_of_a_tile():
    def handover(hidden, batch):
        return grid_config(hidden, batch, 1, torch.float16, "ieee", H200).handover

    assert [handover(512, 64), handover(1024, 16), handover(2048, 1), handover(2048, 8)] == ["flag", *3 * ["probe"]]
    assert handover(2048, 64) == "flag", "two tiles in turn: what is waited for has mostly come"


def test_16_rows_and_several_tiles_are_too_much_for_block():
    """They spill, and such a kernel has accessed memory that is not there, on an H200."""
    problem = change(hidden_size=192, batch_size=64)
    assert "too few registers" in unsupported_config_reason(BlockConfig(64, 3, 16, 1, 3, 4), problem, H200)
    assert unsupported_config_reason(BlockConfig(64, 3, 8, 1, 3, 4), problem, H200) == ""
    assert (
        unsupported_config_reason(BlockConfig(128, 1, 16, 1, 3, 8), change(hidden_size=128, batch_size=64), H200) == ""
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_chip_with_other_memory_is_planned_alike(kernel):
    """Up to 4096 hidden units. So what is compiled for an H200 is proven for all three."""
    devices = [dataclasses.replace(KNOWN_DEVICES[name], name="a Hopper") for name in ("H200", "H100", "GH200")]
    for hidden, batch, numbers in itertools.product((25, 128, 512, 2048, 4096), (1, 64, 1000), PRECISIONS.values()):
        assert len({HEURISTICS[kernel](hidden, batch, 1, *numbers, device) for device in devices}) == 1


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda d: d.name)
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_grid_is_never_larger_than_the_chip(device, dtype, precision):
    """A program that is not on the chip would be waited for in vain."""
    for hidden in (1, 25, 96, 200, 256, 400, 600, 1000, 1024, 1500, 2048, 2112, 3000):
        for batch in (1, 8, 9, 64, 100, 1000, 10_000):
            config = grid_config(hidden, batch, 1, dtype, precision, device)
            if isinstance(config, str):
                assert "is too large: " in config
                continue
            assert config.programs * config.copies <= device.sms
            assert config.padded_hidden >= hidden
            assert config.shared_memory(dtype.itemsize) <= device.shared_memory


# Host code that no call on a CPU reaches: whatever the sizes, on every device that a plan can be made for.
ANY_SIZE = list(itertools.product((0, 1, 2, 33), (1, 2, 33), (1, 2, 33, 200, 1025)))  # batch, steps, hidden
ANYHOW = pairwise(
    (1, 2, 33), (1, 2, 3), (False, True), ("fp16", "tf32", "fp32"), (True, False), ("dense", "lengths", "packed")
)


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda d: d.name)
def test_any_size_is_planned_launched_and_tuned(device):
    for (batch, steps, hidden), how in zip(ANY_SIZE, itertools.cycle(ANYHOW)):
        inputs, layers, bidirectional, precision, reset_after, layout = how
        if layout == "packed" and batch == 0:
            layout = "dense"  # torch packs no empty batch
        dtype, fp32_precision = PRECISIONS[precision]
        problem = Problem(
            steps, batch, inputs, hidden, layers, bidirectional, dtype, fp32_precision, reset_after, layout=layout
        )
        assert choose(problem, device).kernel in BACKENDS
        for candidate in candidates(problem, device):
            assert unsupported_config_reason(candidate.config, problem, device) == "", candidate
        with open_example(problem, "meta") as each:
            for kernel in KERNELS:
                config = heuristic(kernel, problem, device)
                if isinstance(config, str):
                    continue
                assert choose(problem, device, kernel).config == config
                assert unsupported_config_reason(config, problem, device) == "", config
                made = list(execute.launches(each.call, config, device, *execute.allocate(each.call)))
                assert (len(made) > 0) == (batch > 0)
                assert all(min(started.programs) > 0 for started in made)


def test_no_kernel_is_taken_for_a_cell_without_features():
    """Which torch.nn.GRUCell allows, and torch.nn.GRU does not."""
    for inputs, hidden in ((0, 3), (3, 0)):
        problem = change(steps=1, input_size=inputs, hidden_size=hidden)
        assert choose(problem, H200).kernel == "torch"
        for kernel in KERNELS:
            with pytest.raises(RuntimeError, match="both must be positive"):
                choose(problem, H200, kernel)


def test_programs_get_wider_only_when_the_device_is_full():
    assert block_config(128, 8 * 132, 1, torch.float16, "ieee", H200).batch == 8
    assert block_config(128, 8 * 132 + 1, 1, torch.float16, "ieee", H200).batch == 16
    assert block_config(128, 1 << 20, 1, torch.float32, "tf32", H200).batch == 8
    assert block_config(128, 1 << 20, 1, torch.float16, "ieee", KNOWN_DEVICES["B200"]).batch == 8


FIELDS = "units=16, programs=32, batch=8, rows=8, tiles=1, copies=2, slices=4, register_tiles=12, handover=flag"
HAS = "of shared memory beside the registers of one program, H200 has 227 KiB"
TOO_LARGE = f"hidden_size 512 is too large: W_hh in float16 needs 1.47 MiB {HAS}"
ESTIMATED = f"""\
grid: W_hh fits the chip, its hidden units split over the multiprocessors, and stays there for the whole sequence
  call       T=100 B=16 I=512 H=512, 1 layer, float16
  GPU        H200
  config     {FIELDS}, directions=1 (chosen by the heuristic, not tuned)
  inputs     projected by our kernel; with cuBLAS the call is estimated to take 106 us
  estimated  103 us: instructions 39 us, hop 27 us, bytes 23 us, launch 7.5 us, projection 6.2 us
  not block  {TOO_LARGE}
  not step   estimated 368 us: launch 250 us, bytes 64 us, instructions 45 us, projection 6.2 us
  not torch  estimated 460 us: launch 420 us, bytes 36 us, projection 4.7 us
  estimates  are as in a CUDA graph, by a model fitted to an H200; `triton-gru tune` measures"""
BY_NAME = """\
step: asked for by name
  call       T=1 B=16 I=512 H=512, 2 layers, bidirectional, float32 (TF32), reset_after=False
  GPU        A100
  config     units=16, programs=32, batch=16, depth=128, num_warps=8, num_stages=3 (chosen by the heuristic, not tuned)
  estimated  29.3 us: bytes 11 us, launch 10 us, projection 6.7 us, instructions 1.9 us
  estimates  are without the host (nn.GRU: eager), by a model fitted to an H200; `triton-gru tune` measures"""
WITHOUT_GPU = """\
torch: nn.GRU serves the call, which is on no GPU that runs the kernels
  call       T=100 B=16 I=512 H=512, 1 layer, float16
  GPU        none that runs kernels
  not block, grid, step  the kernels need an NVIDIA GPU of compute capability 8.0 or later"""
FALLBACK = f"""\
torch: nn.GRU serves the call, as no kernel is estimated to be faster by 10 % or more
  call       T=1000 B=256 I=64 H=4096, 1 layer, with lengths, float16
  GPU        H200
  estimated  59.6 ms: bytes 54 ms, launch 4 ms, projection 1.5 ms
  not block  hidden_size 4096 is too large: W_hh in float16 needs 96.1 MiB {HAS}
  not grid   hidden_size 4096 is too large: it takes 256 programs at once, one on each multiprocessor, H200 has 132
  not step   estimated 252 ms: bytes 250 ms
  estimates  are as in a CUDA graph, by a model fitted to an H200; `triton-gru tune` measures"""
REFERENCE = """\
reference: plain PyTorch serves the call step by step, as neither a kernel nor nn.GRU can
  call       T=100 B=16 I=512 H=512, 1 layer, reverse=True, packed, with resets, float64
  GPU        H200
  not block, grid, step  no kernel for float64
  not torch  nn.GRU does not restart within a sequence"""
USUAL = planted.PROBLEM
OTHER = dataclasses.replace(
    USUAL, steps=1, num_layers=2, bidirectional=True, dtype=torch.float32, precision="tf32", reset_after=False
)
LARGE = dataclasses.replace(USUAL, steps=1000, batch_size=256, input_size=64, hidden_size=4096, layout="lengths")
RESTARTED = dataclasses.replace(USUAL, dtype=torch.float64, resets=True, reverse=True, layout="packed")


@pytest.mark.parametrize(
    "problem, device, backend, text",
    [
        (USUAL, H200, "auto", ESTIMATED), (OTHER, KNOWN_DEVICES["A100"], "step", BY_NAME), (USUAL, None, "auto", WITHOUT_GPU),
        (LARGE, H200, "auto", FALLBACK), (RESTARTED, H200, "auto", REFERENCE),
    ],
    ids=["estimated", "by name", "without a GPU", "fallback", "reference"],
)  # fmt: skip
def test_a_plan_reads_as_a_report(problem, device, backend, text, tables):
    assert str(choose(problem, device, backend)) == text


def test_a_measured_plan_reads_as_a_report(tables):
    fields = ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(planted.ONE_CONFIG).items())
    path = store.save(
        [planted.make_entry(USUAL, "grid", grid=(planted.ONE_CONFIG, 0.08123), torch=(None, 1.2))], H200, tables
    )
    expected = f"""\
grid: no other was clearly faster when measured, nor was nn.GRU, eager or in a CUDA graph
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
    # The configuration alone holds for other layers.
    other = str(choose(dataclasses.replace(USUAL, num_layers=2), H200, "grid"))
    assert f"(tuned: table {path}, of 2026-01-02)\n" in other and "\n  estimated  " in other
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


def test_every_plan_has_numbers_for_people():
    """No exponents and no long numbers, but in sizes that the user gave and in configurations."""
    drawn = random.Random(0)
    for _ in range(2000):
        dtype, precision = drawn.choice([*PRECISIONS.values(), (torch.float64, "ieee")])
        problem = Problem(
            *(int(10 ** drawn.uniform(0, most)) for most in (4.5, 4, 3.5, 3.9)), drawn.randint(1, 4),
            drawn.random() < 0.3, dtype, precision, drawn.random() < 0.7, layout=drawn.choice(LAYOUTS),
            resets=drawn.random() < 0.2,
        )  # fmt: skip
        try:
            text = str(
                choose(problem, drawn.choice([None, T4, *KNOWN_DEVICES.values()]), drawn.choice(("auto", *KERNELS)))
            )
        except RuntimeError as refusal:
            text = str(refusal)
        assert not re.search(r"\de[+-]|16 \(ieee\)|64 \(ieee\)|by count|torch's|\(tf32\)|nan|\binf\b", text), text
        assert not re.search(r" [01] (layers|programs|shapes)\b|needs ([\d.]+ \w+) .* has \2\b", text), text
        given = {str(getattr(problem, name)) for name in ("steps", "batch_size", "input_size", "hidden_size")}
        told = "\n".join(line for line in text.splitlines() if not line.startswith("  config "))
        numbers = re.findall(r"(?<![\w.])\d[\d.]*", told)
        long = {number for number in numbers if len(number.replace(".", "").strip("0")) > 4} - given
        assert not long, (long, text)
        label = re.compile(r"  (\w+|not \w+(, \w+)*) +\S")
        assert all(label.match(line) for line in text.splitlines()[1:]), text


def test_the_module_plans_what_it_runs(device):
    gru = triton_gru.GRU(32, 64, device=device, dtype=torch.float16, backend="block").eval()
    x = torch.randn(100, 4, 32, device=device, dtype=torch.float16)
    plan = gru.plan(x)
    assert plan.problem == PROBLEM
    assert plan.config == block_config(64, 4, 1, torch.float16, "ieee", find_device(x.device))
    assert isinstance(plan.config, BlockConfig)
    cell = triton_gru.GRUCell(32, 64, device=device, dtype=torch.float16, backend="block").eval()
    assert cell.plan(x[0]).problem == change(steps=1)
    assert cell.plan(x[0, 0]).problem == change(steps=1, batch_size=1)


@pytest.mark.parametrize("setting, precision", [("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")])
def test_precision_follows_torchs_setting_for_recurrent_networks(setting, precision):
    gru = triton_gru.GRU(3, 4).eval()
    torch.backends.cudnn.rnn.fp32_precision = setting
    assert gru.plan(torch.randn(2, 1, 3)).problem.precision == precision
    torch.backends.cuda.matmul.fp32_precision, before = "tf32", torch.backends.cuda.matmul.fp32_precision
    try:
        assert gru.plan(torch.randn(2, 1, 3)).problem.precision == precision
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_a_part_of_the_chip(monkeypatch):
    """It is a device of its own to plans, to tables and to their files."""
    part = limit_sms(H200, 64)
    plan = choose(change(hidden_size=1024, batch_size=64), part, "grid")
    assert plan.config.programs * plan.config.copies <= 64
    assert "H200, 64 SMs" in str(plan)
    assert store.describe_device(part) == {"name": "H200, 64 SMs", "cc": 90, "sms": 64}
    assert store.file_name(part) == "H200-64-SMs.json"
    assert limit_sms(H200, 132) is limit_sms(H200, 500) is limit_sms(H200, None) is H200
    assert isinstance(heuristic("grid", change(hidden_size=2048), limit_sms(H200, 100)), str)
    for text, sms in (("", None), ("64", 64), (" 7 ", 7)):
        monkeypatch.setenv("TRITON_GRU_MAX_SMS", text)
        assert read_max_sms() == sms
    for text in ("0", "-1", "half", "1.5"):
        monkeypatch.setenv("TRITON_GRU_MAX_SMS", text)
        with pytest.raises(ValueError, match=re.escape(f"a whole number above 0, got {text!r}: unset it to use all")):
            read_max_sms()


def test_a_gpu_is_found_as_the_part_that_may_be_used(monkeypatch):
    properties = SimpleNamespace(
        name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, L2_cache_size=60 << 20
    )
    limits = {"max_shared_mem": 232448, "sm_clock_rate": 1_980_000, "mem_clock_rate": 3_201_000, "mem_bus_width": 6144}
    utils = SimpleNamespace(get_device_properties=lambda index: limits)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(devices.driver, "_active", SimpleNamespace(utils=utils))
    monkeypatch.setenv("TRITON_GRU_MAX_SMS", "100")
    found = devices._find_gpu.__wrapped__(0)
    assert (found.name, found.sms, found.shared_memory) == ("NVIDIA H200, 100 SMs", 100, 232448)


@pytest.mark.parametrize(
    "version, precision, hidden, batch, says",
    [
        ("3.8", "tf32", 512, 16, True), ("3.8", "tf32", 513, 16, False), ("3.8", "tf32", 512, 64, False),
        ("3.8", "fp16", 512, 16, False), ("3.9", "tf32", 512, 16, False),
    ],
)  # fmt: skip
def test_a_plan_says_what_this_triton_makes_worse(version, precision, hidden, batch, says, monkeypatch):
    monkeypatch.setattr(
        triton_gru.plan.planner, "copies_shared_operands", lambda: copies_shared_operands(f"{version}.1")
    )
    dtype, fp32 = PRECISIONS[precision]
    problem = change(dtype=dtype, precision=fp32, hidden_size=hidden, batch_size=batch, steps=1)
    assert ("a sixth more instructions" in str(choose(problem, H200, "step"))) == says
