"""torch.compile of torch.nn.GRU, which Dynamo leaves alone unless its ``allow_rnn`` is set, and of a single step.

No cuDNN is left in it: tracing takes torch's decomposition of ``aten.gru``, which asks for no device, and unrolls the
recurrence. For each layer that is one product for the inputs of all steps, then for each step a product (``addmm``,
on a GPU by cuBLAS) and the gates in kernels that Inductor generates, launched one after the other. In fp32 the
products follow torch.backends.cuda.matmul.fp32_precision.

"torch.compile.cells" makes the same launches from a loop in Python around one compiled step. It takes as long to
compile for any T. Each step adds Dynamo's guards to the host's part.
"""

import torch
from torch import Tensor, nn

from . import handwritten
from .interface import Ready, Unavailable, require_one_direction, require_padded

# Layers times directions times steps. Compiling takes time in proportion: for 1, 4, 16 and 64 steps of one layer with
# H = 64 it took 1.1, 3.4, 12 and 48 s for a CPU (torch 2.13 on two cores). 32 of the 48 s went by in the C++ compiler,
# which a GPU does not need.
MOST_STEPS = 64
# All modules share the code of forward, and all cases that of a step. Dynamo gives up at 8 versions of one code, and at
# 256 of all together. Resetting it instead would drop what other providers have compiled for this case.
_NO_LIMIT = {"recompile_limit": 1 << 20, "accumulated_recompile_limit": 1 << 20}


def _prepare(gru: nn.GRU, x: Tensor) -> Ready:
    require_padded(x)
    steps = gru.num_layers * (1 + gru.bidirectional) * x.size(0)
    if steps > MOST_STEPS:
        raise Unavailable(
            f"torch.compile unrolls the recurrence: compiling took 48 s for 64 steps of one layer on a CPU, and it "
            f"takes time in proportion; layers times directions times steps are {steps}, more than {MOST_STEPS}"
        )
    _require_compiler(x)
    # Not the module, whose own call takes some microseconds more.
    call = torch.compile(gru.forward, dynamic=False, fullgraph=True)
    # No guard asks for allow_rnn: it is needed to compile, not to call. What would compile anew raises; so do inputs
    # made outside of inference_mode where x was made inside.
    with torch._dynamo.config.patch(allow_rnn=True, **_NO_LIMIT):
        call(x)
    return Ready(call, kernel="inductor", config=f"{steps} steps unrolled")


def _prepare_cells(gru: nn.GRU, x: Tensor) -> Ready:
    require_padded(x)
    require_one_direction(gru)
    _require_compiler(x)
    call = handwritten.bind(torch.compile(handwritten.step, dynamic=False, fullgraph=True), gru, x)
    with torch._dynamo.config.patch(_NO_LIMIT):
        call(x)
    return Ready(call, kernel="inductor", config="one step compiled")


def _require_compiler(x: Tensor) -> None:
    if not x.is_cuda:
        from torch._inductor.cpp_builder import get_cpp_compiler  # Inductor generates C++ for a CPU

        try:
            get_cpp_compiler()
        except RuntimeError as error:
            raise Unavailable("torch.compile needs a C++ compiler for a CPU: install g++ or set CXX") from error


PROVIDERS = {"torch.compile": _prepare, "torch.compile.cells": _prepare_cells}
