"""Runs a campaign: ``python -m tests.ptx matrix 1 600`` draws random calls from seed 1 for ten minutes.

The command that repeats a failed case is printed.
"""

import argparse
import collections
import os
import random
import sys
import time
import traceback

import torch

from triton_gru.plan.device import KNOWN_DEVICES

from .campaigns import CAMPAIGNS, Skipped
from .device import emulate_gpu


def main() -> int:
    """Run the cases of a campaign until the time is over, or only the case of ``--case``.

    Return the exit status: 1 if any case failed or none passed, otherwise 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.ptx", description=__doc__.splitlines()[0])
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("seed", type=int, help="the seed of all cases")
    parser.add_argument("seconds", type=float, nargs="?", default=60, help="how long to run (default: 60)")
    parser.add_argument("--device", default="H200", choices=KNOWN_DEVICES)
    parser.add_argument("--case", type=int, help="run only this case")
    parser.add_argument("--error", type=float, default=0.0, metavar="SHARE",
                        help="share of the error that the PTX manual allows an approximation (default: 0)")  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("TESTS_SEED", str(options.seed))
    end = time.monotonic() + options.seconds
    tally, case, executed = collections.Counter(), options.case or 0, 0
    while time.monotonic() < end:
        result, executed_by_case = _run_case(options, case)
        tally[result] += 1
        executed += executed_by_case
        case += 1
        if options.case is not None:
            break
    print(f"{options.campaign} on {options.device}, seed {options.seed}: {dict(tally)}, {executed:,} instructions")
    return 1 if tally["failed"] or not tally["passed"] else 0


def _run_case(options: argparse.Namespace, case: int) -> tuple[str, int]:
    """Run a case, and return "passed", "skipped" or "failed" and the number of instructions executed."""
    draw = random.Random(f"{options.campaign} {options.seed} {case}")
    torch.manual_seed(draw.getrandbits(60))
    with emulate_gpu(KNOWN_DEVICES[options.device], draw.getrandbits(60)) as gpu:
        gpu.fixed_schedule["error"] = options.error
        try:
            description, result = CAMPAIGNS[options.campaign](draw, gpu), "passed"
        except Skipped as reason:
            description, result = str(reason), "skipped"
        except Exception as failure:
            description, result = "".join(traceback.format_exception(failure, limit=-3)), "failed"
            error = f" --error {options.error}" if options.error else ""
            description += (
                f"to repeat it: python -m tests.ptx {options.campaign} {options.seed} --case {case} "
                f"--device {options.device!r}{error}"
            )
        print(f"{case}: {result}: {description}", flush=True)
        return result, sum(outcome.executed for outcome in gpu.outcomes)


if __name__ == "__main__":
    sys.exit(main())
