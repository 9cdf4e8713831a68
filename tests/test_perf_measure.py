"""Measuring one case: the accuracy gate before any timing, and rows of providers that fail."""

import dataclasses

import pytest
import torch

from perf import gpu, measure, providers, sweeps
from perf.case import Case
from perf.measure import Conditions, DeviceLost
from perf.providers import streaming, torch_modules
from perf.providers.interface import Ready, Unavailable
from perf.record import TimingsCsv
from perf.report import compare_with_nn_gru, load
from perf.run import summarize_rows
from triton_gru import accuracy
from triton_gru.plan.device import limit_sms
from triton_gru.plan.planner import KERNELS
from triton_gru.tuning import timing

from .perf_calls import CPU, TINY, measure_rows, plant_provider
from .planted import H200
from .ptx.device import emulate_gpu

pytestmark = pytest.mark.usefixtures("few_calls", "kernels_on_cpu")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_every_kernel_is_judged_and_timed(precision, launched):
    names = ["triton_gru", *(f"triton_gru.{kernel}" for kernel in KERNELS), "perf.experiments.hand_overs:probe"]
    rows = measure_rows(names, dataclasses.replace(TINY, precision=precision))
    assert list(rows) == ["torch.nn.GRU", *names]
    assert [row.kernel for row in rows.values()] == ["torch", "torch", *KERNELS, "grid"]
    assert {f"{kernel}_scan" for kernel in KERNELS} <= set(launched)
    for row in rows.values():
        assert row.status in ("ok", "noisy"), row.error
        assert (row.T, row.B, row.I, row.H, row.mode) == (3, 2, 16, 16, "eager")
        assert row.n >= 3
        assert 0 < row.p20_ms <= row.p50_ms <= row.p80_ms
        assert 0 <= row.max_abs_err < 0.01
    assert '"handover": "probe"' in rows["perf.experiments.hand_overs:probe"].config


@pytest.mark.parametrize("layers", [1, 3])
def test_handwritten_loop_rnn_and_lstm_are_right(layers):
    rows = measure_rows(["handwritten", "torch.nn.RNN", "torch.nn.LSTM"], dataclasses.replace(TINY, layers=layers))
    assert all(row.status in ("ok", "noisy") and row.max_abs_err < 1e-5 for row in rows.values())


def test_reset_before_is_measured_and_reset_after_is_wrong_for_it(monkeypatch):
    """The gate finds outputs of the other variant. Providers without `reset_after=False` are unavailable."""
    case = dataclasses.replace(TINY, layers=2, reset_after=False)
    plant_provider(monkeypatch, "triton_gru.after", lambda gru, x: Ready(make_nn_gru(gru)))
    names = ["triton_gru", *(f"triton_gru.{kernel}" for kernel in KERNELS), "handwritten"]
    rows = measure_rows([*names, "triton_gru.after", "cudnn.standard", "torch.compile"], case)
    for name in ("torch.nn.GRU", *names):
        assert rows[name].status in ("ok", "noisy") and rows[name].max_abs_err < 1e-5, rows[name]
        assert rows[name].variant == "reset_before"
    assert [rows[name].kernel for name in names[1:4]] == list(KERNELS)
    assert rows["triton_gru.after"].status == "wrong"
    for name in ("cudnn.standard", "torch.compile"):
        assert (rows[name].status, rows[name].error) == (
            "unavailable", "this provider has no GRU that resets before the recurrent product",
        )  # fmt: skip


def make_nn_gru(gru):
    """Return an `nn.GRU` with the weights of ``gru``."""
    twin = torch.nn.GRU(gru.input_size, gru.hidden_size, gru.num_layers).eval()
    twin.load_state_dict(gru.state_dict())
    return twin


def make_wrong(part, value):
    """Return a provider like `nn.GRU`, with ``value`` added to the last element of a result.

    ``part`` is 0 for the output and 1 for ``h_n``.
    """

    def prepare(gru, x):
        def call(x):
            results = [result.clone() for result in gru(x)]
            results[part].view(-1)[-1] += value
            return tuple(results)

        return Ready(call)

    return prepare


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("value", [1e-3, float("nan")])
def test_wrong_provider_gets_no_time(part, value, monkeypatch):
    plant_provider(monkeypatch, "wrong", make_wrong(part, value))
    rows = measure_rows(["wrong", "handwritten"])
    assert (rows["wrong"].status, rows["wrong"].n, rows["wrong"].p50_ms) == ("wrong", 0, "")
    assert not rows["wrong"].max_abs_err < 9e-4
    assert rows["handwritten"].n > 0


def test_gate_compares_the_last_row_of_a_batch_checked_in_parts(monkeypatch):
    plant_provider(monkeypatch, "wrong", make_wrong(0, 1e-3))
    monkeypatch.setattr(accuracy, "_MAX_OUTPUT_ELEMENTS", 16 * 3 * 2)  # H = 16, T = 3: parts of two rows
    rows = measure_rows(["wrong", "handwritten"], dataclasses.replace(TINY, batch=5))
    assert rows["wrong"].status == "wrong"
    assert rows["handwritten"].n > 0


def test_our_providers_have_less_slack_than_peers(monkeypatch):
    """The planted error exceeds our bound, and is within the tolerance of a peer, which is four times our bound."""
    error = 3 * 4 * torch.finfo(torch.float32).eps
    plant_provider(monkeypatch, "peer", make_wrong(0, error))
    plant_provider(monkeypatch, "triton_gru.new", make_wrong(0, error))
    rows = measure_rows(["peer", "triton_gru.new"])
    assert rows["peer"].n > 0
    assert rows["triton_gru.new"].status == "wrong"


def test_unmeasurable_providers_give_rows_with_a_reason(monkeypatch):
    def unavailable(gru, x):
        raise Unavailable("the package is not here")

    def failing(gru, x):
        return Ready(lambda x: 1 / 0)

    plant_provider(monkeypatch, "missing", unavailable)
    plant_provider(monkeypatch, "failing", failing)
    with emulate_gpu(limit_sms(H200, 64), 1):
        rows = measure_rows(["missing", "failing", "triton_gru.grid"], dataclasses.replace(TINY, hidden=1040))
    assert (rows["missing"].status, rows["missing"].error) == ("unavailable", "the package is not here")
    assert (rows["failing"].status, rows["failing"].error) == ("failed", "ZeroDivisionError: division by zero")
    assert rows["triton_gru.grid"].status == "unavailable"
    assert "it takes 65 programs at once" in rows["triton_gru.grid"].error
    reported = set()
    assert "the package is not here" in summarize_rows(list(rows.values()), reported)
    assert "unavailable: missing, triton_gru.grid" in summarize_rows(list(rows.values()), reported)


def test_provider_that_fails_while_timed_leaves_no_times(monkeypatch):
    def prepare(gru, x):
        calls = iter(range(5))  # enough calls to be judged

        def call(x):
            if next(calls, None) is None:
                raise RuntimeError("enough")
            return gru(x)

        return Ready(call)

    plant_provider(monkeypatch, "tired", prepare)
    rows = measure_rows(["tired", "triton_gru.block"])
    assert {row.status for row in rows.values()} == {"failed"}
    assert rows["tired"].error == "RuntimeError: enough"
    assert not any(row.n for row in rows.values())


def test_graph_is_judged_by_the_results_of_its_replay(monkeypatch):
    """A graph that captured nothing is wrong though the call was right. Work on another stream is not captured."""

    def capture_graph(function, pool=None):
        result = tuple(part.clone() for part in function())

        def replay():
            for part, now in zip(result, () if captures_nothing else function()):
                part.copy_(now)

        return replay, result

    monkeypatch.setattr(measure, "capture_graph", capture_graph)
    monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: None)
    both_modes = dataclasses.replace(CPU, modes=("eager", "graph"))
    captures_nothing = False
    rows = measure_rows(["handwritten"], conditions=both_modes)
    assert list(rows) == ["torch.nn.GRU", "torch.nn.GRU+graph", "handwritten", "handwritten+graph"]
    assert all(row.n > 0 for row in rows.values())
    captures_nothing = True
    rows = measure_rows(["handwritten"], conditions=both_modes)
    assert rows["handwritten"].n > 0
    assert (rows["handwritten+graph"].status, rows["handwritten+graph"].n) == ("wrong", 0)


def test_provider_gets_inputs_in_its_own_layout(monkeypatch):
    laid_out, called = [], []

    def lay_out(x):
        laid_out.append(x.clone())
        return laid_out[-1]

    def prepare(gru, x):
        return Ready(lambda x: called.append(x) or gru(x), lay_out=lay_out)

    plant_provider(monkeypatch, "another layout", prepare)
    assert measure_rows(["another layout"])["another layout"].n > 0
    assert {id(x) for x in called} == {id(x) for x in laid_out}


BIDIRECTIONAL = dataclasses.replace(TINY, steps=2, directions=2)
PACKED = dataclasses.replace(TINY, batch=3, layout="packed")
RAGGED = dataclasses.replace(PACKED, layout="lengths", input_size=5)


@pytest.mark.parametrize("case", [BIDIRECTIONAL, PACKED, RAGGED, dataclasses.replace(RAGGED, reset_after=False)])
def test_every_kernel_serves_two_directions_and_unequal_lengths(case, launched):
    names = ["triton_gru", "triton_gru.block", "perf.experiments.hand_overs:probe", "triton_gru.step"]
    rows = measure_rows([*names, "torch.nn.RNN", "torch.nn.LSTM"], case)
    assert {f"{kernel}_scan" for kernel in KERNELS} <= set(launched)
    for row in rows.values():
        assert row.status in ("ok", "noisy"), row.error
        assert (row.directions, row.layout, row.layers, row.T, row.I) == (
            case.directions, case.layout, case.layers, case.steps, case.inputs,
        )  # fmt: skip
        assert row.n > 0 and row.max_abs_err < 1e-5


@pytest.mark.parametrize("case", [BIDIRECTIONAL, PACKED, dataclasses.replace(RAGGED, input_size=None)])
@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
@pytest.mark.parametrize("part", [0, 1])
def test_last_element_of_every_result_is_judged(part, wrong, case, monkeypatch):
    """An error in one element is found, whichever result and part of the result has the element.

    The last element of ``h_n`` belongs to the second direction of the bidirectional case. The last element of a padded
    output is a zero after the end of the shortest sequence. Without the error, the same provider is right.
    """
    error = wrong

    def prepare(gru, x):
        nn_gru = torch_modules.PROVIDERS["torch.nn.GRU"](gru, x)

        def call(x):
            output, h_n = nn_gru.call(nn_gru.lay_out(x))
            results = [output.data.clone(), h_n.clone()]
            results[part].view(-1)[-1] += error
            return tuple(results)

        return Ready(call)

    plant_provider(monkeypatch, "planted", prepare)
    assert measure_rows(["planted"], case)["planted"].status == "wrong"
    error = 0.0  # `call` reads this variable
    assert measure_rows(["planted"], case)["planted"].n > 0  # timed, so it was right


def test_providers_without_unequal_lengths_or_two_directions_are_unavailable():
    padded_only = ["handwritten", "torch.compile", "torchrl"]
    without_lengths = [*padded_only, "cudnn.standard", "cudnn.persist_static"]
    for case, names in ((PACKED, padded_only), (RAGGED, without_lengths)):
        rows = measure_rows(names, case)
        for name in names:
            assert (rows[name].status, "of one length" in rows[name].error) == ("unavailable", True)
    names = ["handwritten", "torchrl"]
    rows = measure_rows(names, BIDIRECTIONAL)
    assert {(rows[name].status, "one direction" in rows[name].error) for name in names} == {("unavailable", True)}


FRAMES = dataclasses.replace(TINY, steps=1, layers=2, is_streaming=True)


def make_stream(is_forgetful=False, can_reset=True):
    """Return a streaming provider of `nn.GRU`.

    If ``is_forgetful``, each frame starts from zeros. Without ``can_reset``, its `reset` does nothing.
    """

    def prepare(gru, x):
        state = None

        def call(x):
            nonlocal state
            output, state = gru(x, None if is_forgetful else state)
            return output

        def reset():
            nonlocal state
            state = None if can_reset else state

        return Ready(call, reset=reset, no_graph_reason="it has its own")

    return prepare


def test_stream_is_judged_from_its_reset_and_by_its_state(monkeypatch):
    monkeypatch.setitem(providers.STREAMING_PROVIDERS, "right", make_stream())
    monkeypatch.setitem(providers.STREAMING_PROVIDERS, "forgetful", make_stream(is_forgetful=True))
    monkeypatch.setitem(providers.STREAMING_PROVIDERS, "not reset", make_stream(can_reset=False))
    rows = measure_rows(["right", "forgetful", "not reset"], FRAMES)
    assert {name: row.status for name, row in rows.items() if not row.n} == {
        "forgetful": "wrong", "not reset": "wrong",
    }  # fmt: skip
    assert rows["right"].variant == "streaming"
    assert 0 < rows["right"].p50_ms <= rows["right"].p99_ms


def test_nan_is_wrong_in_frames_and_in_other_cells(monkeypatch):
    def prepare_stream(gru, x):
        ready = make_stream()(gru, x)
        return dataclasses.replace(ready, call=lambda x: ready.call(x) * torch.nan)

    def prepare_cell(gru, x):
        ready = providers.PROVIDERS["torch.nn.RNN"](gru, x)
        return dataclasses.replace(ready, call=lambda x: (ready.call(x)[0], ready.call(x)[1] * torch.nan))

    monkeypatch.setitem(providers.STREAMING_PROVIDERS, "frames", prepare_stream)
    plant_provider(monkeypatch, "cell", prepare_cell)
    assert measure_rows(["frames"], FRAMES)["frames"].status == "wrong"
    assert measure_rows(["cell"])["cell"].status == "wrong"


@pytest.mark.parametrize("layers", [1, 2])
def test_every_streaming_provider_is_right(layers, launched):
    rows = measure_rows(providers.STREAMING_PROVIDERS, dataclasses.replace(FRAMES, layers=layers))
    assert list(rows) == list(providers.STREAMING_PROVIDERS)
    assert {f"{kernel}_scan" for kernel in ("block", "grid")} <= set(launched)
    for row in rows.values():
        assert row.status in ("ok", "noisy"), row.error
        assert (row.T, row.layers, row.variant) == (1, layers, "streaming")
        assert row.n > 0 and row.max_abs_err < 1e-5


def test_streams_and_sequences_are_not_mixed_up():
    rows = measure_rows(["handwritten"], FRAMES)
    assert (rows["handwritten"].status, rows["handwritten"].error) == (
        "unavailable",
        "this provider is called here only with sequences",
    )
    rows = measure_rows(["triton_gru.stream"])
    assert rows["triton_gru.stream"].status == "unavailable"
    assert "only with single frames" in rows["triton_gru.stream"].error


def test_graph_of_a_stream_must_carry_its_state(monkeypatch):
    """Replays are judged one after the other. A graph that does not carry its state from one to the next is wrong."""

    def capture_graph(function, pool=None):
        result = function().clone()
        return (lambda: result.copy_(function())), result

    monkeypatch.setattr(measure, "capture_graph", capture_graph)
    monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: None)
    monkeypatch.setitem(providers.STREAMING_PROVIDERS, "own graph", make_stream())
    both_modes = dataclasses.replace(CPU, modes=("eager", "graph"))
    names = ["torch.nn.GRUCell", "triton_gru", "own graph"]
    rows = measure_rows(names, FRAMES, both_modes)
    assert all(rows[f"{name}+graph"].n > 0 for name in ["torch.nn.GRU", *names[:2]])
    assert (rows["own graph"].n > 0, rows["own graph+graph"].error) == (True, "it has its own")

    def prepare_without_carry(gru, x):
        ready = streaming.PROVIDERS["torch.nn.GRU"](gru, x)
        zeros = x.new_zeros(gru.num_layers, x.size(1), gru.hidden_size)
        return dataclasses.replace(ready, captured=lambda x: gru(x, zeros)[0])

    monkeypatch.setitem(providers.STREAMING_PROVIDERS, "left behind", prepare_without_carry)
    rows = measure_rows(["left behind"], FRAMES, both_modes)
    assert (rows["left behind"].n > 0, rows["left behind+graph"].status) == (True, "wrong")


def test_conditions_set_the_number_of_rounds(monkeypatch):
    monkeypatch.setattr(measure, "MAX_ROUNDS", 5)
    no_time = dataclasses.replace(CPU, seconds=0.0)
    for conditions, rounds in ((dataclasses.replace(no_time, rounds=7), 7), (no_time, 3)):  # 3 by `few_calls`
        assert measure_rows([], conditions=conditions)["torch.nn.GRU"].n == rounds


def test_rounds_are_written_in_order_and_paired_in_the_report(tmp_path, monkeypatch):
    # The ratios of the rounds are 3, 2 and 2, with the median 2.
    planted = {"torch.nn.GRU": [300.0, 2.469134, 0.00002], "triton_gru": [100.0, 1.234567, 0.00001]}
    monkeypatch.setattr(measure, "samples", lambda calls, *_, **__: {name: planted[name] for name in calls})
    plant_provider(monkeypatch, "wrong", make_wrong(0, 1e-3))
    written = TimingsCsv(tmp_path / "rows.csv", "cpu")
    written.add(*measure_rows(["triton_gru", "wrong"]).values())
    assert [row["samples_ms"] for row in written.rows()] == ["300 2.4691 2e-05", "100 1.2346 1e-05", ""]
    assert compare_with_nn_gru(load([written.path]))["times faster"].tolist() == [2.0]


def test_least_rounds_are_taken_though_all_is_quiet():
    times = timing.samples(
        {"a": [int]}, rounds=50, time_once=lambda function: 1.0, seconds=0.0, stop_when_quiet=True, min_rounds=30
    )
    assert len(times["a"]) == 30


def test_99th_percentile():
    times = timing.quantiles([float(ms) for ms in range(101)])
    assert (times.p50, times.p99) == (50.0, 99.0)
    assert times.columns()["p99_ms"] == 99.0


def test_lost_gpu_raises_with_the_results_before_it(monkeypatch):
    def raise_unavailable(gru, x):
        raise Unavailable("the package is not here")

    plant_provider(monkeypatch, "missing", raise_unavailable)
    plant_provider(monkeypatch, "killer", lambda gru, x: is_lost.append(True) or 1 / 0)
    is_lost = []
    monkeypatch.setattr(measure, "is_gpu_lost", lambda: bool(is_lost))
    with pytest.raises(DeviceLost) as lost:
        measure_rows(["missing", "killer", "handwritten"])
    assert [(row.provider, row.status) for row in lost.value.rows] == [("missing", "unavailable"), ("killer", "failed")]


def test_launch_that_gave_up_is_an_error_of_its_own_provider(monkeypatch):
    """Not of the provider that is prepared next, although this one has no call in the mode of its row."""
    launches_that_gave_up = []

    def give_up(x):
        launches_that_gave_up.append(x)
        return x, x

    def raise_if_hung():
        if launches_that_gave_up:
            launches_that_gave_up.clear()
            raise RuntimeError("gave up")

    plant_provider(monkeypatch, "hangs", lambda gru, x: Ready(give_up, no_graph_reason="it waits"))
    monkeypatch.setattr(measure.hang, "raise_if_hung", raise_if_hung)
    rows = measure_rows(["hangs", "handwritten"], conditions=dataclasses.replace(CPU, modes=("graph",)))
    assert rows["hangs+graph"].error == "RuntimeError: gave up"
    assert "gave up" not in rows["handwritten+graph"].error


def test_process_whose_torch_frees_no_memory_has_lost_the_gpu(monkeypatch):
    """With torch 2.11, `empty_cache` raises after the capture of a CUDA graph has failed."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    assert not gpu.is_gpu_lost()

    def raise_after_a_failed_capture():
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr("torch.cuda.empty_cache", raise_after_a_failed_capture)
    assert gpu.is_gpu_lost()


@pytest.mark.gpu
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("l2", ["warm", "cold"])
def test_smoke_providers_on_a_gpu_in_both_modes(l2, monkeypatch):
    """Every provider is right or unavailable. Times of some providers show that their graphs hold work."""
    conditions = Conditions("cuda", ("eager", "graph"), l2, seconds=0.2)
    case = Case("fp16", hidden=256, batch=4, steps=100)
    rows = measure_rows(sweeps.SWEEPS["smoke"].providers, case, conditions)
    for provider in ("torch.nn.GRU", "triton_gru", "triton_gru.grid", "triton_gru.step", "handwritten"):
        for name in (provider, f"{provider}+graph"):
            assert rows[name].status in ("ok", "noisy"), rows[name].error
            assert rows[name].peak_mem_mb > 0
            assert rows[name].p50_ms > 0.02  # 100 steps take longer than an empty graph
    assert rows["triton_gru"].kernel == "grid"
    assert {row.status for row in rows.values()} <= {"ok", "noisy", "unavailable"}, {
        row.provider: row.error for row in rows.values() if row.status in ("wrong", "failed")
    }


@pytest.mark.gpu
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("precision", ["fp16", "tf32"])
@pytest.mark.parametrize("name", ["packed", "lengths", "bidirectional", "streaming", "reset-before"])
def test_other_sweeps_on_a_gpu(name, precision):
    """In one small case of each sweep, every provider is right or unavailable in both modes."""
    sweep = sweeps.SWEEPS[name]
    case = next(case for case in sweep.cases if (case.precision, case.hidden, case.batch) == (precision, 256, 16))
    case = dataclasses.replace(case, steps=min(case.steps, 50))
    names = list(dict.fromkeys((*sweep.providers, *(["triton_gru.grid"] if name != "streaming" else ()))))
    rows = measure_rows(names, case, Conditions("cuda", sweep.modes, "warm", seconds=0.2))
    assert {row.status for row in rows.values()} <= {"ok", "noisy", "unavailable"}, {
        row.provider: row.error for row in rows.values() if row.status in ("wrong", "failed")
    }
    expected = {"triton_gru.stream"} if name == "streaming" else {"triton_gru.grid", "triton_gru.grid+graph"}
    assert all(rows[provider].n > 0 for provider in expected | {"torch.nn.GRU", "torch.nn.GRU+graph", "triton_gru"})


def test_precision_is_pinned_everywhere_and_restored():
    backends = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    for precision, expected in (("tf32", "tf32"), ("fp32", "ieee"), ("fp16", "tf32")):
        with Case(precision, 1, 1, 1).pin_precision():
            assert [backend.fp32_precision for backend in backends] == [expected] * 2
    assert [backend.fp32_precision for backend in backends] == before


def test_row_of_an_unmeasured_case_holds_its_shape():
    row = TINY.make_row("handwritten", "graph", "warm")
    assert (row.provider, row.mode, row.l2, row.H, row.floor_ms) == ("handwritten+graph", "graph", "warm", 16, "")
