"""One case: the gate before any time, and rows of what fails."""

import dataclasses

import pytest
import torch

from perf import measure, sweeps
from perf.case import Case
from perf.measure import Conditions, DeviceLost, blank_row
from perf.providers.interface import Ready, Unavailable
from perf.run import summary
from triton_gru.plan import KERNELS

from .perf_calls import CPU, KNOWN, TINY, plant

pytestmark = pytest.mark.usefixtures("few_calls")


def measured(names, case=TINY, conditions=CPU):
    return {row.provider: row for row in measure.measure(case, names, conditions, KNOWN)}


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_every_kernel_goes_through_gate_and_clock(precision, launched):
    names = ["triton_gru", *(f"triton_gru.{kernel}" for kernel in KERNELS), "triton_gru.grid.tag"]
    rows = measured(names, dataclasses.replace(TINY, precision=precision))
    assert list(rows) == ["torch.nn.GRU", *names]
    assert [row.kernel for row in rows.values()] == ["torch", "torch", *KERNELS, "grid"]
    assert {f"{kernel}_scan" for kernel in KERNELS} <= set(launched)
    for row in rows.values():
        assert row.status in ("ok", "noisy"), row.error
        assert (row.T, row.B, row.I, row.H, row.mode) == (3, 2, 16, 16, "eager")
        assert row.n >= 3
        assert 0 < row.p20_ms <= row.p50_ms <= row.p80_ms
        assert 0 <= row.max_abs_err < 0.01
    assert "handover='tag'" in rows["triton_gru.grid.tag"].config


@pytest.mark.parametrize("layers", [1, 3])
def test_the_handwritten_loop_and_the_other_cells_are_right(layers):
    rows = measured(["handwritten", "torch.nn.RNN", "torch.nn.LSTM"], dataclasses.replace(TINY, layers=layers))
    assert all(row.status in ("ok", "noisy") and row.max_abs_err < 1e-5 for row in rows.values())


def _spoilt(part, value):
    """torch's own GRU but for one number of its outputs or its last states."""

    def prepare(gru, x):
        def call(x):
            results = [each.clone() for each in gru(x)]
            results[part].view(-1)[-1] += value
            return tuple(results)

        return Ready(call)

    return prepare


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("value", [1e-3, float("nan")])
def test_a_wrong_provider_gets_no_time(part, value, monkeypatch):
    plant(monkeypatch, "wrong", _spoilt(part, value))
    rows = measured(["wrong", "handwritten"])
    assert (rows["wrong"].status, rows["wrong"].n, rows["wrong"].p50_ms) == ("wrong", 0, "")
    assert not rows["wrong"].max_abs_err < 9e-4
    assert rows["handwritten"].n > 0


def test_the_gate_compares_every_row_of_a_batch_that_is_checked_in_parts(monkeypatch):
    plant(monkeypatch, "wrong", _spoilt(0, 1e-3))
    monkeypatch.setattr(measure, "_NUMBERS_AT_ONCE", 16 * 3 * 2)  # two rows
    rows = measured(["wrong", "handwritten"], dataclasses.replace(TINY, batch=5))
    assert rows["wrong"].status == "wrong"
    assert rows["handwritten"].n > 0


def test_ours_has_less_slack_than_peers(monkeypatch):
    """A provider that is as wrong as three times the library's own bound."""
    allowed = 3 * 4 * torch.finfo(torch.float32).eps
    plant(monkeypatch, "peer", _spoilt(0, allowed))
    plant(monkeypatch, "triton_gru.new", _spoilt(0, allowed))
    rows = measured(["peer", "triton_gru.new"])
    assert rows["peer"].n > 0
    assert rows["triton_gru.new"].status == "wrong"


def test_what_cannot_be_measured_is_a_row_that_says_why(monkeypatch):
    def unavailable(gru, x):
        raise Unavailable("the package is not here")

    def failing(gru, x):
        return Ready(lambda x: 1 / 0)

    plant(monkeypatch, "missing", unavailable)
    plant(monkeypatch, "failing", failing)
    rows = measured(["missing", "failing", "triton_gru.grid"], dataclasses.replace(TINY, hidden=1040))
    assert (rows["missing"].status, rows["missing"].error) == ("unavailable", "the package is not here")
    assert (rows["failing"].status, rows["failing"].error) == ("failed", "ZeroDivisionError: division by zero")
    assert rows["triton_gru.grid"].status == "unavailable"
    assert "65 programs have to be on the chip at once" in rows["triton_gru.grid"].error
    said = set()
    assert "the package is not here" in summary(list(rows.values()), said)
    assert "unavailable: missing, triton_gru.grid" in summary(list(rows.values()), said)


def test_a_provider_that_fails_while_it_is_timed_leaves_no_times(monkeypatch):
    def prepare(gru, x):
        calls = iter(range(5))

        def call(x):
            if next(calls, None) is None:
                raise RuntimeError("enough")
            return gru(x)

        return Ready(call)

    plant(monkeypatch, "tired", prepare)
    rows = measured(["tired", "triton_gru.block"])
    assert {row.status for row in rows.values()} == {"failed"}
    assert rows["tired"].error == "RuntimeError: enough"
    assert not any(row.n for row in rows.values())


def test_a_graph_is_judged_by_what_its_replay_writes(monkeypatch):
    """One that captured nothing, as on another stream than torch's, is wrong though the call was right."""

    def graphed(function, pool=None):
        result = tuple(each.clone() for each in function())

        def replay():
            for each, now in zip(result, () if captures_nothing else function()):
                each.copy_(now)

        return replay, result

    monkeypatch.setattr(measure, "graphed", graphed)
    monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: None)
    both = dataclasses.replace(CPU, modes=("eager", "graph"))
    captures_nothing = False
    rows = measured(["handwritten"], conditions=both)
    assert list(rows) == ["torch.nn.GRU", "torch.nn.GRU+graph", "handwritten", "handwritten+graph"]
    assert all(row.n > 0 for row in rows.values())
    captures_nothing = True
    rows = measured(["handwritten"], conditions=both)
    assert rows["handwritten"].n > 0
    assert (rows["handwritten+graph"].status, rows["handwritten+graph"].n) == ("wrong", 0)


@pytest.mark.parametrize("batch_first", [True, False])
def test_inputs_of_a_provider_that_takes_batches_first_lie_so(batch_first, monkeypatch):
    def prepare(gru, x):
        def call(x):
            assert x.shape == (3, 2, 16) and x.transpose(0, 1).is_contiguous() == batch_first
            return gru(x)

        return Ready(call, batch_first=batch_first)

    plant(monkeypatch, "batch first", prepare)
    assert measured(["batch first"])["batch first"].n > 0


def test_a_lost_gpu_ends_the_run_with_the_culprits_rows(monkeypatch):
    plant(monkeypatch, "killer", lambda gru, x: 1 / 0)
    monkeypatch.setattr(measure, "_lost", lambda: True)
    with pytest.raises(DeviceLost) as lost:
        measured(["killer"])
    assert [(row.provider, row.status) for row in lost.value.rows] == [("killer", "failed")]


@pytest.mark.gpu
@pytest.mark.parametrize("l2", ["warm", "cold"])
def test_a_case_on_a_gpu_in_both_modes(l2, monkeypatch):
    """Every provider that is there, right, timed eager and in a graph; the graph is what was timed, not nothing."""
    conditions = Conditions("cuda", ("eager", "graph"), l2, seconds=0.2)
    case = Case("fp16", hidden=256, batch=4, steps=100)
    rows = measured(sweeps.SWEEPS["smoke"].providers, case, conditions)
    for provider in ("torch.nn.GRU", "triton_gru", "triton_gru.grid", "triton_gru.step", "handwritten"):
        for name in (provider, f"{provider}+graph"):
            assert rows[name].status in ("ok", "noisy"), rows[name].error
            assert rows[name].peak_mem_mb > 0
            assert rows[name].p50_ms > 0.02
    assert rows["triton_gru"].kernel == "grid"
    assert {row.status for row in rows.values()} <= {"ok", "noisy", "unavailable"}, {
        row.provider: row.error for row in rows.values() if row.status in ("wrong", "failed")
    }


def test_precision_is_pinned_everywhere_and_put_back():
    backends = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    for precision, expected in (("tf32", "tf32"), ("fp32", "ieee"), ("fp16", "tf32")):
        with Case(precision, 1, 1, 1).pinned():
            assert [backend.fp32_precision for backend in backends] == [expected] * 2
    assert [backend.fp32_precision for backend in backends] == before


def test_a_row_before_it_is_measured_says_what_it_is_of():
    row = blank_row(TINY, "handwritten", "graph", CPU, KNOWN)
    assert (row.provider, row.mode, row.l2, row.H, row.floor_ms) == ("handwritten+graph", "graph", "warm", 16, "")
