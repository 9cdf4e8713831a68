"""torch.compile of torch.nn.GRU, and of a single step. Dynamo compiles nn.GRU only if its ``allow_rnn`` is set.

The compiled code has no cuDNN. Tracing takes torch's decomposition of ``aten.gru`` on every device, and unrolls the
recurrence. Each layer has one product for the inputs of all steps. Then each step has a product (``addmm``, on a GPU by
cuBLAS) and the gates in kernels that Inductor generates, launched one after the other. In fp32 the products follow
torch.backends.cuda.matmul.fp32_precision.

"torch.compile.cells" makes the same launches from a loop in Python around one compiled step. Its compile time does not
depend on T. Each step adds Dynamo's guards to the host's time.
"""

import torch
from torch import Tensor, nn

from . import handwritten
from .interface import Ready, Unavailable, require_one_direction, require_padded

# Limit of layers times directions times steps. Compile time is proportional to this product: for 1, 4, 16 and 64 steps
# of one layer with H = 64 it was 1.1, 3.4, 12 and 48 s for a CPU (torch 2.13 on two cores). Of the 48 s, the C++
# compiler took 32, which a GPU does not need.
MAX_UNROLLED_STEPS = 64
# Modules share the code of `forward`, and cases the code of a step. Dynamo gives up at 8 versions of one code, and at
# 256 in total. Resetting Dynamo instead would drop code that other providers have compiled for this case.
_NO_LIMIT = {"recompile_limit": 1 << 20, "accumulated_recompile_limit": 1 << 20}


def _prepare_module(gru: nn.GRU, x: Tensor) -> Ready:
    """Return `nn.GRU` compiled by torch.compile, ready for inputs like ``x``. Compilation may take a minute."""
    require_padded(x)
    steps = gru.num_layers * (1 + gru.bidirectional) * x.size(0)
    if steps > MAX_UNROLLED_STEPS:
        raise Unavailable(
            f"torch.compile unrolls the recurrence, and its compile time is proportional to layers times directions "
            f"times steps: at most {MAX_UNROLLED_STEPS} here (48 s on a CPU), got {steps}"
        )
    _require_compiler(x)
    # Compile `forward`, because calling the module takes some microseconds more.
    call = torch.compile(gru.forward, dynamic=False, fullgraph=True)
    # allow_rnn is needed only to compile: no guard checks it. A later call that would compile again raises, for example
    # a call whose input was made outside of inference_mode, if x was made inside.
    with torch._dynamo.config.patch(allow_rnn=True, **_NO_LIMIT):
        call(x)
    return Ready(call, kernel="inductor", config=f"{steps} steps unrolled")


def _prepare_compiled_step(gru: nn.GRU, x: Tensor) -> Ready:
    """Return a loop over one step that torch.compile has compiled, ready for inputs like ``x``."""
    require_padded(x)
    require_one_direction(gru)
    _require_compiler(x)
    call = handwritten.bind(torch.compile(handwritten.step, dynamic=False, fullgraph=True), gru, x)
    with torch._dynamo.config.patch(_NO_LIMIT):
        call(x)
    return Ready(call, kernel="inductor", config="one step compiled")


def _require_compiler(x: Tensor) -> None:
    """Raise Unavailable if Inductor would need a C++ compiler for ``x``'s device, and there is none."""
    if not x.is_cuda:
        from torch._inductor.cpp_builder import get_cpp_compiler  # Inductor generates C++ for a CPU

        try:
            get_cpp_compiler()
        except RuntimeError as error:
            raise Unavailable("torch.compile needs a C++ compiler on a CPU: install g++ or set CXX") from error


PROVIDERS = {"torch.compile": _prepare_module, "torch.compile.cells": _prepare_compiled_step}
