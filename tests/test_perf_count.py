"""`python -m perf count`: a row holds the counts of a step whose results are right, or why there are none."""

import dataclasses
import functools
import sys
import types

import pytest
import torch
import triton
import triton.language as tl
from torch.nn.functional import linear

from perf import count
from perf.__main__ import main
from perf.providers.interface import Unavailable
from triton_gru.plan.device import KNOWN_DEVICES

from .perf_calls import read_csv
from .ptx import providers
from .ptx.count import Case, count_step
from .ptx.device import emulate_gpu
from .ptx.providers import Peer, count_peer

# Configurations of the planted kernel. TIMES is how often a program computes a step, so it scales the work.
CONFIGS = [triton.Config({"TIMES": 3}, num_warps=1), triton.Config({"TIMES": 1}, num_warps=1)]
CONFIGS += [triton.Config({"TIMES": 4}, num_warps=2)]


@triton.jit
def _planted_kernel(gi, h0, w, b, out, T, scale, H: tl.constexpr, TIMES: tl.constexpr):
    """Compute T steps of a GRU, one row of the batch in a program. Stored states are multiplied by ``scale``."""
    row, rows, unit = tl.program_id(0), tl.num_programs(0), tl.arange(0, H)
    h = tl.load(h0 + row * H + unit)
    for t in range(T):
        for _ in tl.static_range(TIMES):
            tile = w + unit[:, None] * H + unit[None, :]
            r = tl.sum(tl.load(tile) * h[None, :], 1) + tl.load(b + unit)
            z = tl.sum(tl.load(tile + H * H) * h[None, :], 1) + tl.load(b + H + unit)
            n = tl.sum(tl.load(tile + 2 * H * H) * h[None, :], 1) + tl.load(b + 2 * H + unit)
            gate = gi + (t * rows + row) * 3 * H + unit
            n = 2 * tl.sigmoid(2 * (tl.load(gate + 2 * H) + tl.sigmoid(tl.load(gate) + r) * n)) - 1
            new = n + tl.sigmoid(tl.load(gate + H) + z) * (h - n)
            tl.store(out + (t * rows + row) * H + unit, new * scale)
        h = new


_tuned_kernel = triton.autotune(CONFIGS, key=["T"])(_planted_kernel)


def _launch_scan(gi, h0, w_hh, b_hh, kernel=_tuned_kernel, scale=1.0, **config):
    """Launch the planted kernel for all steps, and return the output of a GRU [T, B, H].

    It refuses tensors on a CPU, as a peer's code does. `perf count` must make them look like tensors on a GPU.
    """
    if not gi.is_cuda:
        raise ValueError("not on a GPU")
    out = torch.empty(*gi.shape[:2], w_hh.size(1))
    kernel[lambda named: (named["out"].size(1),)](gi, h0, w_hh, b_hh, out, len(gi), scale, H=w_hh.size(1), **config)
    return out


def _launch_steps(gi, h, w_hh, b_hh):
    """Return what `_launch_scan` returns, with a launch for each step."""
    outputs = []
    for gates in gi.split(1):
        outputs.append(_launch_scan(gates, h, w_hh, b_hh, _planted_kernel, TIMES=1, num_warps=1))
        h = outputs[-1][0]
    return torch.cat(outputs)


def _prepare(scan, case, gru, x):
    """Return a function from the input to the output of ``gru``, which calls ``scan``. It is `Peer.prepare`."""
    w_ih, w_hh, b_ih, b_hh = (parameter.detach() for parameter in gru.parameters())
    return lambda x: scan(linear(x, w_ih, b_ih), x.new_zeros(case.batch, case.hidden), w_hh, b_hh)


@pytest.fixture
def plant_peer(monkeypatch):
    """Return a function that adds the provider "planted", a peer that computes a GRU by ``scan``."""

    def plant_peer(scan, prepare=_prepare):
        peer = Peer("triton", ("w",), functools.partial(prepare, scan))
        monkeypatch.setitem(providers.PROVIDERS, "planted", functools.partial(count_peer, peer))

    return plant_peer


def run(folder, *arguments, provider="planted", precision="fp32"):
    """Count a case of 16 hidden units and two sequences, and return all rows of the CSV."""
    case = ["--hidden", "16", "--batch", "2", "--precision", precision, "--provider", provider]
    assert main(["count", *case, "--out", str(folder), *arguments]) == 0
    return read_csv(folder / "counts-H200.csv")


@pytest.mark.parametrize("device, hidden, exchanges", [("H200", 256, "1"), ("RTX 5090", 64, "0")])
def test_row_of_triton_gru_holds_the_counts_and_no_time(device, hidden, exchanges, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GIT_SHA", "f" * 40)
    shape = ["--hidden", str(hidden), "--batch", "16", "--precision", "tf32", "--provider", "triton_gru", "--markdown"]
    assert main(["count", *shape, "--out", str(tmp_path), "--device", device]) == 0
    (row,) = read_csv(tmp_path / f"counts-{device.replace(' ', '-')}.csv")
    with emulate_gpu(KNOWN_DEVICES[device], 1) as gpu:
        step = count_step(gpu, Case(row["kernel"], hidden, 16, "tf32"))
    assert row["status"] == "ok" and 0 < float(row["max_abs_err"]) < 1e-2
    assert (row["device"], row["git_sha"], row["triton"]) == (device, "f" * 40, triton.__version__)
    assert (row["dtype"], row["precision"], row["H"], row["B"]) == ("float32", "tf32", str(hidden), "16")
    assert float(row["read"]) == step["read"] + step["received"] > 0
    for name in ("programs", "warps", "written", "busiest", "matrix", "fma", "barriers"):
        assert float(row[name]) == step[name] > 0, name
    assert (row["launches"], row["exchanges"], row["read_w_hh"]) == ("0", exchanges, "0")
    printed = capsys.readouterr().out
    assert "not time" in printed and f"| tf32 {hidden}, 16 | triton_gru |" in printed


def test_peer_is_counted_in_the_configuration_with_fewest_instructions(tmp_path, plant_peer):
    plant_peer(_launch_scan)
    (row,) = run(tmp_path)
    assert row["status"] == "ok" and 0 < float(row["max_abs_err"]) < 1e-5
    assert (row["kernel"], row["version"]) == ("_planted_kernel", triton.__version__)
    assert row["config"].startswith("best of 3: TIMES: 1, num_warps: 1")
    expected = {"launches": 0, "programs": 2, "warps": 1, "matrix": 0, "exchanges": 0}
    assert {name: float(row[name]) for name in expected} == expected
    weights = 2 * 3 * 16 * 16 * 4  # bytes of W_hh in fp32, read by two programs
    assert float(row["written"]) == 2 * 16 * 4 and float(row["read_w_hh"]) == weights
    assert float(row["read"]) - weights == 2 * 3 * 16 * 4 * 2  # gate inputs and a bias
    assert 100 < float(row["busiest"]) < 1000 and float(row["fma"]) > 0


def test_launch_for_each_step_counts_as_an_exchange(tmp_path, plant_peer):
    plant_peer(_launch_steps)
    (row,) = run(tmp_path)
    assert (row["status"], row["launches"], row["exchanges"], row["config"]) == ("ok", "1", "1", "")


@pytest.mark.parametrize("limit", ["MAX_KERNEL_LENGTH", "MAX_EXECUTED"])
def test_long_kernel_is_counted_only_with_the_most_warps(limit, tmp_path, plant_peer, monkeypatch):
    """A kernel is long if its code, or its execution, exceeds a limit. The planted kernel exceeds 50 instructions."""
    plant_peer(_launch_scan)
    monkeypatch.setattr(providers, limit, 50)
    (row,) = run(tmp_path)
    assert row["config"].startswith("most warps of 3: TIMES: 4, num_warps: 2")


def test_peer_is_unavailable_if_no_configuration_fits(tmp_path, plant_peer, monkeypatch):
    plant_peer(_launch_scan)
    for shared_memory, status in ((0, "unavailable"), (1 << 17, "ok")):
        device = dataclasses.replace(KNOWN_DEVICES["H200"], shared_memory=shared_memory)
        monkeypatch.setitem(KNOWN_DEVICES, "H200", device)
        assert run(tmp_path)[-1]["status"] == status


def test_wrong_results_are_not_counted(tmp_path, plant_peer):
    plant_peer(functools.partial(_launch_scan, scale=1.5))
    (row,) = run(tmp_path)
    assert row["status"] == "wrong" and float(row["max_abs_err"]) > 0.05
    assert not any(row[name] for name in count.COUNTS)


def test_reading_unwritten_memory_is_wrong(tmp_path, plant_peer):
    """`perf count` fills new memory with NaN, so a result that depends on it is NaN."""
    plant_peer(lambda *args: _launch_scan(*args) + 0 * torch.empty(1))
    assert run(tmp_path)[0]["status"] == "wrong"


@pytest.mark.parametrize("error, status", [(Unavailable("no such"), "unavailable"), (ValueError("no such"), "failed")])
def test_provider_that_raises_gives_a_row_with_the_reason(error, status, tmp_path, plant_peer):
    def refuse(*args):
        raise error

    plant_peer(None, refuse)
    (row,) = run(tmp_path)
    assert row["status"] == status and row["error"].endswith("no such")
    assert not any(row[name] for name in count.COUNTS)


def test_provider_without_launches_is_wrong_or_fails(tmp_path, plant_peer):
    """The first provider's results are wrong. The second provider's results are right."""
    plant_peer(lambda gi, h0, w, b: gi[..., : h0.size(1)])
    assert run(tmp_path)[0]["status"] == "wrong"
    plant_peer(None, lambda scan, case, gru, x: lambda x: gru(x)[0])
    assert run(tmp_path)[1]["error"] == "triton launches no kernel"


def test_launch_beyond_the_limit_of_instructions_fails(tmp_path, plant_peer):
    """The planted kernel needs more than 1000 instructions for its steps. "ENDLESS" is the emulator's word for that."""
    plant_peer(_launch_scan)
    (row,) = run(tmp_path, "--most", "1000")
    assert row["status"] == "failed" and "ENDLESS" in row["error"]


@pytest.mark.parametrize(
    "name, module", [("torchrl", "torchrl"), ("gru_qat.scan", "gru_qat"), ("gru_qat.persistent", "gru_qat")]
)
def test_peer_that_is_not_installed_is_unavailable(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    (row,) = run(tmp_path, provider=name, precision="tf32")
    assert row["status"] == "unavailable" and module in row["error"]


def test_gru_qat_is_counted_in_float32(tmp_path, monkeypatch):
    for name in ("gru_qat", "gru_qat.triton_kernels"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    scans = types.SimpleNamespace(gru_scan_forward=_launch_scan, gru_scan_forward_persistent=_launch_steps)
    monkeypatch.setitem(sys.modules, "gru_qat.triton_kernels.scan", scans)
    monkeypatch.setattr(providers, "version", {"gru-qat": "1.2"}.get)
    run(tmp_path, provider="gru_qat.scan", precision="tf32")
    run(tmp_path, provider="gru_qat.persistent", precision="tf32")
    rows = run(tmp_path, provider="gru_qat.scan", precision="fp16")
    assert [row["status"] for row in rows] == ["ok", "ok", "unavailable"]
    assert [row["launches"] for row in rows] == ["0", "1", ""] and rows[0]["version"] == "1.2"


def test_rows_are_kept_and_a_cut_off_row_is_dropped(tmp_path, plant_peer, capsys):
    """``--resume`` skips cases that have a row. A CSV with other columns is refused, and stays unchanged."""
    plant_peer(_launch_scan)
    (first,) = run(tmp_path)
    assert len(run(tmp_path)) == 2
    assert run(tmp_path, "--resume")[0] == first
    assert len(run(tmp_path, "--resume", precision="tf32")) == 3
    path = tmp_path / "counts-H200.csv"
    path.write_bytes(path.read_bytes()[:-5])
    rows = run(tmp_path)
    assert rows[0] == first and [row["precision"] for row in rows] == ["ieee"] * 3
    path.write_text("some,other\ntable,1")
    assert main(["count", "--out", str(tmp_path)]) == 2
    assert path.read_text() == "some,other\ntable,1" and "other columns" in capsys.readouterr().err


def test_unknown_provider_is_an_error(tmp_path, capsys):
    assert main(["count", "--out", str(tmp_path), "--provider", "nobody"]) == 2
    assert "cannot count nobody: choose from triton_gru, torchrl" in capsys.readouterr().err


def test_table_has_ratios_to_triton_gru(tmp_path, plant_peer):
    plant_peer(_launch_scan)
    run(tmp_path, precision="tf32")
    run(tmp_path, provider="triton_gru", precision="tf32")
    table = count.tabulate_counts(count.load(tmp_path / "counts-H200.csv"))
    theirs, ours = (table[table["provider"] == name].iloc[0] for name in ("planted", "triton_gru"))
    assert theirs["H, B"] == ours["H, B"] == "tf32 16, 2"
    assert ours["KB x"] == ours["busiest x"] == 1
    assert theirs["KB x"] == theirs["KB"] / ours["KB"] and theirs["busiest x"] == theirs["busiest"] / ours["busiest"]
    assert theirs["W_hh"] == 6 and theirs["KB"] == 6.75  # as in the test of the counts of a peer, in KB
