"""Which of what was timed is to be taken."""

from ..plan.heuristic import HEURISTICS
from ..plan.tables.entries import Result
from ..plan.tables.revision import revision
from .space import TORCH, Candidate
from .timing import Times

# What is not faster by this, or by the noise of the two if that is more (up to a tenth), is not faster.
_LEAST, _MOST = 0.03, 0.1


def clearly_faster(a: Times, b: Times) -> bool:
    """Return whether ``a`` is faster than ``b`` by more than noise."""
    return a.p50 < b.p50 * (1 - min(_MOST, max(_LEAST, a.rel_iqr, b.rel_iqr)))


def conclude(
    before: dict[str, Candidate], untuned: dict[str, Candidate], finals: dict[str, dict[Candidate, Times]]
) -> tuple[str, dict[str, Result]]:
    """Return the kernel to take, or ``"torch"``, and the best of each kernel.

    What is there stays unless something is clearly faster: tuning again does not change tables to and fro. Ours is
    taken where torch's own GRU serves, too, only if it is not clearly slower in any mode.

    Args:
        before: what runs now, by kernel; by "" what is chosen now.
        untuned: what would run without a table, by kernel.
        finals: times by mode, in the order of `Bench.modes`; of the same candidates in each.
    """
    compared = list(finals.values())[-1]
    best, results = {}, {}
    for kernel in HEURISTICS:
        if of_kernel := [each for each in compared if each.kernel == kernel]:
            best[kernel] = _fastest(of_kernel, before.get(kernel), compared)
            results[kernel] = _result(best[kernel], finals, compared.get(untuned.get(kernel)))
    if TORCH in compared:
        results["torch"] = _result(TORCH, finals)
    if not best:
        return "torch", results
    ours = _fastest(list(best.values()), best.get(before[""].kernel), compared)
    if TORCH in compared:
        slower = any(clearly_faster(times[TORCH], times[ours]) for times in finals.values())
        faster = any(clearly_faster(times[ours], times[TORCH]) for times in finals.values())
        if slower or (not faster and before[""] == TORCH):
            return "torch", results
    return ours.kernel, results


def _fastest(candidates: list[Candidate], there: Candidate | None, compared: dict[Candidate, Times]) -> Candidate:
    """Return the fastest, or what is there if that is not clearly slower."""
    fastest = min(candidates, key=lambda each: compared[each].p50)
    return there if there in compared and not clearly_faster(compared[fastest], compared[there]) else fastest


def _result(candidate: Candidate, finals: dict[str, dict[Candidate, Times]], untuned: Times | None = None) -> Result:
    ms = {mode: (times[candidate].p20, times[candidate].p50, times[candidate].p80) for mode, times in finals.items()}
    return Result(candidate.config, revision(candidate.kernel), ms["eager"], ms.get("graph"), untuned and untuned.p50)
