"""Runs a program with an emulated H200 instead of a GPU: kernels take CPU tensors, and the CPU executes them.

python -m tests.ptx.rehearse -m perf run --sweep smoke --rehearse      # a module
python -m tests.ptx.rehearse scripts/models.py --rehearse              # a script
"""

import pathlib
import runpy
import sys

from triton_gru.plan.device import KNOWN_DEVICES

from .device import emulate_gpu


def main(arguments: list[str]) -> None:
    """Run the module after ``-m``, or the script, with the other arguments."""
    is_module = arguments[:1] == ["-m"]
    if len(arguments) < 1 + is_module:
        sys.exit(f"usage: {__doc__}")
    program, *rest = arguments[is_module:]
    sys.argv = [program, *rest]
    with emulate_gpu(KNOWN_DEVICES["H200"], seed=0):
        if is_module:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(pathlib.Path(program).resolve().parent))  # as Python itself does
            runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
