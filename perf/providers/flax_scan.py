"""Flax's `nnx.GRUCell` in `jax.lax.scan`, compiled by `jax.jit`, with the inputs of all steps projected in one product.

The cell lacks b_hn. With `nn.GRU`'s b_hh in its `dense_h`, the cell computes what `nn.GRU` does. Inputs are converted
to JAX arrays before timing, and share torch's memory. Results become tensors without a copy.

JAX runs on its own stream and returns early. A call waits for its results, so its eager time includes this wait. The
memory in the row does not include JAX's.
"""

import os

import torch
from torch import Tensor, nn

from .interface import Ready, Unavailable, allows_tf32, import_peer, layers_of, require_padded


def _prepare(gru: nn.GRU, x: Tensor) -> Ready:
    """Return Flax's GRU with ``gru``'s weights, ready for inputs like ``x``."""
    require_padded(x)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # otherwise JAX takes 3/4 of the GPU's memory
    jax, nnx = import_peer("jax", "jax[cuda12]"), import_peer("flax.nnx", "flax")
    try:
        jax.devices(x.device.type)
    except RuntimeError as error:
        raise Unavailable(f"JAX finds no {x.device.type} device: pip install jax[cuda12] ({error})") from error
    jnp, hidden, directions = jax.numpy, gru.hidden_size, 1 + gru.bidirectional
    precision = "tensorfloat32" if allows_tf32() else "highest"
    cells = []
    for w_ih, w_hh, b_ih, b_hh in layers_of(gru):
        cell = nnx.GRUCell(w_ih.size(1), hidden, recurrent_kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
        cells.append(cell)
        for dense, weight, bias in ((cell.dense_i, w_ih, b_ih), (cell.dense_h, w_hh, b_hh)):
            dense.kernel = nnx.Param(jnp.from_dlpack(weight.t().contiguous()))
            dense.bias, dense.use_bias = nnx.Param(jnp.from_dlpack(bias)), True
    graphs, states = zip(*map(nnx.split, cells))

    @jax.jit
    @jax.default_matmul_precision(precision)
    def network(states, x):
        """Return the output and h_n, as `Call` does. ``states`` has the weights of each layer and direction."""
        last_states, outputs = [], []
        for i, state in enumerate(states):
            cell = nnx.merge(graphs[i], state)
            gates = cell.dense_i(x)
            cell.dense_i = lambda gates: gates  # the scan gets projected inputs
            h_0 = jnp.zeros_like(gates[0, :, :hidden])
            h_n, output = jax.lax.scan(cell, h_0, gates, reverse=i % directions == 1)
            last_states.append(h_n)
            outputs.append(output)
            if len(outputs) == directions:
                x, outputs = jnp.concatenate(outputs, -1), []
        return x, jnp.stack(last_states)

    def call(x) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_dlpack, jax.block_until_ready(network(states, x))))

    reason = "JAX runs on its own stream, and the call waits for it"
    return Ready(call, "xla", f"precision {precision}", lay_out=jnp.from_dlpack, no_graph_reason=reason)


PROVIDERS = {"flax.scan": _prepare}
