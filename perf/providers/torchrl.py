"""TorchRL's GRU in Triton, made to train on sequences with resets in them; here there are none.

Called is `gru_triton`, which its GRUModule(recurrent_backend="triton") calls layer by layer between TensorDicts. It
rounds H up to a power of two. Up to 256 a launch goes through all steps of a layer, each program with all hidden units
of a few batch rows; from 512 on there is a launch a step. What it demands of every call is left in the time:
a state [B, T, H] read at every step, and recurrent weights that it transposes each time. Its layout is batch first, in
which it is given its inputs.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .interface import Call, Ready, Unavailable, require_one_direction, require_padded

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LEAST = 16  # hidden units that it computes with


def _prepare(gru: nn.GRU, x: Tensor) -> Ready:
    require_padded(x)
    require_one_direction(gru)
    try:
        rnn = importlib.import_module("torchrl.modules.tensordict_module._rnn_triton")
    except ImportError as error:
        raise Unavailable(f"TorchRL with a GRU in Triton (0.13.1 or later): pip install torchrl ({error})") from error
    if not x.is_cuda:
        raise Unavailable("TorchRL's GRU in Triton needs a CUDA device")
    if x.dtype not in DTYPES:
        raise Unavailable(f"TorchRL's GRU in Triton computes in float32, float16 and bfloat16, not in {x.dtype}")
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
    layers = [_weights(gru, names, padded) for names in gru._all_weights]
    # float32 also beside 16-bit inputs: the kernel that goes through all steps keeps its state in it, and with an
    # initial one of another type Triton refuses to compile it.
    state = x.new_zeros(batch, steps, padded, dtype=torch.float32)
    no_resets = torch.zeros(batch, steps, dtype=torch.bool, device=x.device)
    # Its default depends on a setting of torch's that fp32_precision does not change.
    precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        output, last = x.transpose(0, 1), []
        for weights in layers:
            output, _ = gru_triton(output, state, *weights, no_resets, x.dtype, input_precision=precision)
            output = output[..., :hidden]
            last.append(output[:, -1:].transpose(0, 1))  # what it returns beside is in float32 from H = 512 on
        return output.transpose(0, 1), last[0] if len(last) == 1 else torch.cat(last)

    return call


def _weights(gru: nn.GRU, names: list[str], padded: int) -> list[Tensor]:
    """Return a layer's W_ih [3 padded, inputs], W_hh [3 padded, padded], b_ih and b_hh [3 padded], with zeros added."""
    more = padded - gru.hidden_size
    w_ih, w_hh, *biases = (getattr(gru, name).unflatten(0, (3, gru.hidden_size)) for name in names)
    biases = biases or [w_ih.new_zeros(3, gru.hidden_size)] * 2
    wider = [pad(w_ih, (0, 0, 0, more)), pad(w_hh, (0, more, 0, more)), *(pad(bias, (0, more)) for bias in biases)]
    return [weight.flatten(0, 1).contiguous() for weight in wider]


PROVIDERS = {"torchrl": _prepare}
