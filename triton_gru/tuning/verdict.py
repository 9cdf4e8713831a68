"""Which of what was timed is to be taken."""

from ..plan.config import CUBLAS
from ..plan.tables.entries import TimedResult
from ..plan.tables.revision import revision
from .space import IMPLEMENTATIONS, TORCH, Candidate
from .timing import Times

# What is not faster by this, or by the noise of the two if that is more (up to a tenth), is not faster.
_LEAST, _MOST = 0.03, 0.1


def is_clearly_faster(a: Times, b: Times) -> bool:
    """Return whether ``a`` is faster than ``b`` by more than noise."""
    return a.p50 < b.p50 * (1 - min(_MOST, max(_LEAST, a.rel_iqr, b.rel_iqr)))


def choose_winner(
    before: dict[str, Candidate], untuned: dict[str, Candidate], finals: dict[str, dict[Candidate, Times]]
) -> tuple[str, dict[str, TimedResult]]:
    """Return the implementation to take, or ``"torch"``, and the best of each.

    What is there stays unless something is clearly faster: tuning again does not change tables to and fro.

    torch's calls keep the host for another time than our launches do. So ours is taken where torch's own GRU serves,
    too, only if it is not clearly slower in any mode; and cuBLAS's projection only if it is not so beside our own.

    Args:
        before: what runs now, by implementation; by "" what is chosen now.
        untuned: what would run without a table, by implementation, where it is no other than by kernel.
        finals: times by mode, in the order of `Bench.modes`; of the same candidates in each.
    """
    compared = list(finals.values())[-1]
    best, results = {}, {}
    for name in IMPLEMENTATIONS:
        if same := [each for each in compared if each.name == name]:
            best[name] = _fastest(same, before.get(name), compared)
            results[name] = _result(best[name], finals, compared.get(untuned.get(name, untuned.get(best[name].kernel))))
    if TORCH in compared:
        results["torch"] = _result(TORCH, finals)
    if not best:
        return "torch", results
    taken = {
        name: each
        for name, each in best.items()
        if each.projection != CUBLAS or not _is_faster_somewhere(best.get(each.kernel), each, finals)
    }
    ours = _fastest(list(taken.values()), taken.get(before[""].name), compared)
    if TORCH in compared:
        slower = _is_faster_somewhere(TORCH, ours, finals)
        faster = _is_faster_somewhere(ours, TORCH, finals)
        if slower or (not faster and before[""] == TORCH):
            return "torch", results
    return ours.name, results


def _is_faster_somewhere(a: Candidate | None, b: Candidate, finals: dict[str, dict[Candidate, Times]]) -> bool:
    """Return whether ``a`` is clearly faster than ``b`` in a mode."""
    return a is not None and any(is_clearly_faster(times[a], times[b]) for times in finals.values())


def _fastest(candidates: list[Candidate], there: Candidate | None, compared: dict[Candidate, Times]) -> Candidate:
    """Return the fastest, or what is there if that is not clearly slower."""
    fastest = min(candidates, key=lambda each: compared[each].p50)
    return there if there in compared and not is_clearly_faster(compared[fastest], compared[there]) else fastest


def _result(
    candidate: Candidate, finals: dict[str, dict[Candidate, Times]], untuned: Times | None = None
) -> TimedResult:
    ms = {mode: (times[candidate].p20, times[candidate].p50, times[candidate].p80) for mode, times in finals.items()}
    tile = None if candidate.projection == CUBLAS else candidate.projection
    heuristic_ms = untuned and untuned.p50
    return TimedResult(candidate.config, revision(candidate.kernel), ms["eager"], ms.get("graph"), heuristic_ms, tile)
