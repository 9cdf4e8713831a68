"""TorchRL's GRU in Triton, made to train on sequences with resets in them; here there are none.

Called is `gru_triton`, which its GRUModule(recurrent_backend="triton") calls layer by layer between TensorDicts. It
rounds H up to a power of two. Up to 256 a launch goes through all steps of a layer, each program with all hidden units
of a few batch rows; from 512 on there is a launch a step. What it demands of every call is left in the time:
a state [B, T, H] read at every step, and recurrent weights that it transposes each time. Its layout is batch first, in
which it is given its inputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .interface import Call, Ready, allows_tf32, import_gpu_peer, layers_of, through_layers

_LEAST = 16  # hidden units that it computes with


def _prepare(gru: nn.GRU, x: Tensor) -> Ready:
    rnn = import_gpu_peer("torchrl.modules.tensordict_module._rnn_triton", "torchrl, 0.13.1 or later", gru, x)
    call = bind(rnn.gru_triton, gru, x)
    # It tunes the rows of a program, yet once for all batch sizes: as if no other had been met. The first time that is
    # slow: the 6 to 10 kernels that it tunes among took 8 to 190 s to compile for sm_90 on one CPU core, with H from 64
    # to 256.
    tuned = rnn._gru_fwd_kernel.cache
    tuned.clear()
    call(x)
    if not tuned:
        return Ready(call, kernel="step", lay_out=_batch_first)
    config = ", ".join(map(str, tuned.values()))
    return Ready(call, kernel="fused", config=config, config_source="autotuned", lay_out=_batch_first)


def _batch_first(x: Tensor) -> Tensor:
    """Return [T, B, I] in another layout: batch after batch in memory."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def bind(gru_triton: Callable, gru: nn.GRU, x: Tensor) -> Call:
    """Return a call that computes ``gru`` for inputs like ``x`` by ``gru_triton``.

    Weights are padded here to as many hidden units as it computes with, where it would pad them on each call. Units
    of zero weights stay zero.
    """
    steps, batch, _ = x.shape
    hidden = gru.hidden_size
    padded = max(_LEAST, 1 << (hidden - 1).bit_length())
    # float32 also beside 16-bit inputs: the kernel that goes through all steps keeps its state in it, and with an
    # initial one of another type Triton refuses to compile it.
    state = x.new_zeros(batch, steps, padded, dtype=torch.float32)
    no_resets = torch.zeros(batch, steps, dtype=torch.bool, device=x.device)
    # Its default depends on a setting of torch's that fp32_precision does not change.
    precision = "tf32" if allows_tf32() else "ieee"

    def layer(x: Tensor, *weights: Tensor) -> Tensor:
        # The last state that it returns beside is in float32 from H = 512 on.
        output, _ = gru_triton(x.transpose(0, 1), state, *weights, no_resets, x.dtype, input_precision=precision)
        return output[..., :hidden].transpose(0, 1)

    return through_layers(layer, [_padded(weights, padded) for weights in layers_of(gru)])


def _padded(weights: list[Tensor], padded: int) -> list[Tensor]:
    """Return a layer's W_ih [3 padded, inputs], W_hh [3 padded, padded], b_ih and b_hh [3 padded], with zeros added."""
    w_ih, w_hh, *biases = (weight.unflatten(0, (3, -1)) for weight in weights)
    more = padded - w_hh.size(2)
    wider = [pad(w_ih, (0, 0, 0, more)), pad(w_hh, (0, more, 0, more)), *(pad(bias, (0, more)) for bias in biases)]
    return [weight.flatten(0, 1).contiguous() for weight in wider]


PROVIDERS = {"torchrl": _prepare}
