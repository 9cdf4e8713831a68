"""Chooses the winner among timed candidates."""

from ..plan.config import CUBLAS
from ..plan.tables.entries import TimedResult
from ..plan.tables.revision import revision
from .space import IMPLEMENTATIONS, TORCH, Candidate
from .timing import Times

# A candidate is clearly faster if it is faster by more than `MIN_GAIN`, and by more than the noise of both times. Noise
# above `_MAX_NOISE` counts as `_MAX_NOISE`.
MIN_GAIN, _MAX_NOISE = 0.03, 0.1


def is_clearly_faster(a: Times, b: Times) -> bool:
    """Return whether ``a`` is faster than ``b`` by more than noise."""
    return a.p50 < b.p50 * (1 - min(_MAX_NOISE, max(MIN_GAIN, a.rel_iqr, b.rel_iqr)))


def choose_winner(
    incumbents: dict[str, Candidate], untuned: dict[str, Candidate], finals: dict[str, dict[Candidate, Times]]
) -> tuple[str, dict[str, TimedResult]]:
    """Return the winning implementation, or ``"torch"``, and the best result of each implementation.

    An incumbent wins unless another candidate is clearly faster. Otherwise tables would flip back and forth when tuned
    again.

    A kernel wins over nn.GRU only if it is not clearly slower in any mode. Modes differ, as nn.GRU keeps the host busy
    for another time than our launches do. The same rule holds for cuBLAS's projection against ours.

    Args:
        incumbents: implementation -> the candidate that plans take now. The key "" is the candidate of ``"auto"``.
        untuned: implementation or kernel -> the candidate that plans take without a table.
        finals: mode -> times, in the order of `Bench.modes`, with the same candidates in each.
    """
    compared = list(finals.values())[-1]
    best, results = {}, {}
    for name in IMPLEMENTATIONS:
        if same_name := [candidate for candidate in compared if candidate.name == name]:
            best[name] = _choose_fastest(same_name, incumbents.get(name), compared)
            results[name] = _result(best[name], finals, compared.get(untuned.get(name, untuned.get(best[name].kernel))))
    if TORCH in compared:
        results["torch"] = _result(TORCH, finals)
    if not best:
        return "torch", results
    eligible = {
        name: candidate
        for name, candidate in best.items()
        if candidate.projection != CUBLAS or not _is_faster_in_a_mode(best.get(candidate.kernel), candidate, finals)
    }
    ours = _choose_fastest(list(eligible.values()), eligible.get(incumbents[""].name), compared)
    if TORCH in compared:
        is_slower = _is_faster_in_a_mode(TORCH, ours, finals)
        is_faster = _is_faster_in_a_mode(ours, TORCH, finals)
        if is_slower or (not is_faster and incumbents[""] == TORCH):
            return "torch", results
    return ours.name, results


def _is_faster_in_a_mode(a: Candidate | None, b: Candidate, finals: dict[str, dict[Candidate, Times]]) -> bool:
    """Return whether ``a`` is clearly faster than ``b`` in at least one mode."""
    return a is not None and any(is_clearly_faster(times[a], times[b]) for times in finals.values())


def _choose_fastest(
    candidates: list[Candidate], incumbent: Candidate | None, compared: dict[Candidate, Times]
) -> Candidate:
    """Return the incumbent if it was timed and none is clearly faster, else the fastest."""
    fastest = min(candidates, key=lambda candidate: compared[candidate].p50)
    keeps = incumbent in compared and not is_clearly_faster(compared[fastest], compared[incumbent])
    return incumbent if keeps else fastest


def _result(
    candidate: Candidate, finals: dict[str, dict[Candidate, Times]], untuned: Times | None = None
) -> TimedResult:
    ms = {mode: (times[candidate].p20, times[candidate].p50, times[candidate].p80) for mode, times in finals.items()}
    tile = None if candidate.projection == CUBLAS else candidate.projection
    heuristic_ms = untuned and untuned.p50
    return TimedResult(candidate.config, revision(candidate.kernel), ms["eager"], ms.get("graph"), heuristic_ms, tile)
