"""Chooses the winner among timed candidates."""

from ..plan.config import CUBLAS
from ..plan.tables.entries import TimedResult
from ..plan.tables.revision import revision
from .space import IMPLEMENTATIONS, TORCH, Candidate
from .timing import Times

# A candidate is clearly faster if it is faster by more than `MIN_GAIN`, and by more than the noise of both times. Noise
# above `_MAX_NOISE` is taken for `_MAX_NOISE`.
MIN_GAIN, _MAX_NOISE = 0.03, 0.1


def is_clearly_faster(times: Times, baseline: Times) -> bool:
    """Return whether the median of ``times`` is below that of ``baseline`` by more than `MIN_GAIN` and the noise."""
    needed_gain = min(_MAX_NOISE, max(MIN_GAIN, times.rel_iqr, baseline.rel_iqr))
    return times.p50 < baseline.p50 * (1 - needed_gain)


def choose_winner(
    incumbents: dict[str, Candidate], untuned: dict[str, Candidate], finals: dict[str, dict[Candidate, Times]]
) -> tuple[str, dict[str, TimedResult]]:
    """Return the winning implementation, or ``"torch"``, and the best result of each implementation that was timed.

    The medians of the last mode are compared. An incumbent wins unless another candidate is clearly faster. Otherwise
    tables would flip back and forth when tuned again.

    A kernel wins over nn.GRU only if nn.GRU is not clearly faster in any mode. One mode is not enough. An eager call
    includes the host's work, which differs between nn.GRU and our kernels. A call in a CUDA graph leaves it out. In the
    same way, cuBLAS's projection wins only if the same kernel with our projection is not clearly faster in any mode.

    Args:
        incumbents: implementation -> the candidate that plans take now. The key "" is the candidate of ``"auto"``.
        untuned: implementation or kernel -> the candidate that plans take without a table.
        finals: mode -> times of the final round, in the order of `Bench.modes`, with the same candidates in each.
    """
    last_mode_times = list(finals.values())[-1]
    best, results = {}, {}
    for name in IMPLEMENTATIONS:
        if same_name := [candidate for candidate in last_mode_times if candidate.name == name]:
            best[name] = _choose_fastest(same_name, incumbents.get(name), last_mode_times)
            # `untuned` has each kernel with our projection, but "+cublas" only if a plan without a table takes it.
            untuned_candidate = untuned.get(name, untuned.get(best[name].kernel))
            results[name] = _build_result(best[name], finals, untuned_times=last_mode_times.get(untuned_candidate))
    if TORCH in last_mode_times:
        results["torch"] = _build_result(TORCH, finals)
    if not best:
        return "torch", results
    # The name of a kernel is also the name of the implementation with our projection.
    eligible = {
        name: candidate
        for name, candidate in best.items()
        if candidate.projection != CUBLAS or not _is_faster_in_a_mode(best.get(candidate.kernel), candidate, finals)
    }
    incumbent = incumbents[""]
    kernel_winner = _choose_fastest(list(eligible.values()), eligible.get(incumbent.name), last_mode_times)
    if TORCH in last_mode_times:
        is_nn_gru_faster = _is_faster_in_a_mode(TORCH, kernel_winner, finals)
        is_kernel_faster = _is_faster_in_a_mode(kernel_winner, TORCH, finals)
        if is_nn_gru_faster or (not is_kernel_faster and incumbent == TORCH):
            return "torch", results
    return kernel_winner.name, results


def _is_faster_in_a_mode(
    candidate: Candidate | None, baseline: Candidate, finals: dict[str, dict[Candidate, Times]]
) -> bool:
    """Return whether ``candidate`` is clearly faster than ``baseline`` in at least one mode. False if it is None."""
    return candidate is not None and any(
        is_clearly_faster(times[candidate], times[baseline]) for times in finals.values()
    )


def _choose_fastest(
    candidates: list[Candidate], incumbent: Candidate | None, times: dict[Candidate, Times]
) -> Candidate:
    """Return the incumbent if it was timed and no candidate is clearly faster, else the fastest candidate."""
    fastest = min(candidates, key=lambda candidate: times[candidate].p50)
    keeps_incumbent = incumbent in times and not is_clearly_faster(times[fastest], times[incumbent])
    return incumbent if keeps_incumbent else fastest


def _build_result(
    candidate: Candidate, finals: dict[str, dict[Candidate, Times]], untuned_times: Times | None = None
) -> TimedResult:
    """Return a candidate's times in all modes, as tables store them.

    ``untuned_times`` are those of the candidate that plans take without a table, in the last mode. None if that
    candidate was not timed.
    """
    ms = {mode: (times[candidate].p20, times[candidate].p50, times[candidate].p80) for mode, times in finals.items()}
    return TimedResult(
        candidate.config,
        revision(candidate.kernel),
        eager_ms=ms["eager"],
        graph_ms=ms.get("graph"),
        heuristic_ms=untuned_times and untuned_times.p50,
        tile=None if candidate.projection == CUBLAS else candidate.projection,
    )
