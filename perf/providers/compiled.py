"""torch.compile of torch.nn.GRU, which Dynamo leaves alone unless its ``allow_rnn`` is set.

No cuDNN is left in it: tracing takes torch's decomposition of ``aten.gru``, which asks for no device, and unrolls the
recurrence. For each layer that is one product for the inputs of all steps, then for each step a product (``addmm``,
on a GPU by cuBLAS) and the gates in kernels that Inductor generates, launched one after the other. In fp32 the
products follow torch.backends.cuda.matmul.fp32_precision.
"""

import torch
from torch import Tensor, nn

from .interface import Ready, Unavailable, require_padded

# Layers times directions times steps. Compiling takes time in proportion: for 1, 4, 16 and 64 steps of one layer with
# H = 64 it took 1.1, 3.4, 12 and 48 s for a CPU (torch 2.13 on two cores). 32 of the 48 s went by in the C++ compiler,
# which a GPU does not need.
MOST_STEPS = 64


def _prepare(gru: nn.GRU, x: Tensor) -> Ready:
    require_padded(x)
    steps = gru.num_layers * (1 + gru.bidirectional) * x.size(0)
    if steps > MOST_STEPS:
        raise Unavailable(
            f"torch.compile unrolls the recurrence: compiling took 48 s for 64 steps of one layer on a CPU, and it "
            f"takes time in proportion; layers times directions times steps are {steps}, more than {MOST_STEPS}"
        )
    if not x.is_cuda:
        from torch._inductor.cpp_builder import get_cpp_compiler  # Inductor generates C++ for a CPU

        try:
            get_cpp_compiler()
        except RuntimeError as error:
            raise Unavailable("torch.compile needs a C++ compiler for a CPU: install g++ or set CXX") from error
    # All modules share the code of forward, of which Dynamo keeps 8 versions (recompile_limit) before it gives up.
    torch.compiler.reset()
    # Not the module, whose own call takes some microseconds more.
    call = torch.compile(gru.forward, dynamic=False, fullgraph=True)
    # No guard asks for allow_rnn: it is needed to compile, not to call. What would compile anew raises; so do inputs
    # made outside of inference_mode where x was made inside.
    with torch._dynamo.config.patch(allow_rnn=True):
        call(x)
    return Ready(call, kernel="inductor", config=f"{steps} steps unrolled")


PROVIDERS = {"torch.compile": _prepare}
