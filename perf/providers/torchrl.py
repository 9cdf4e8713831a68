"""TorchRL's GRU in Triton, which is made to train on sequences with resets. Here there are no resets.

The provider calls `gru_triton`, which TorchRL's GRUModule(recurrent_backend="triton") calls layer by layer between
TensorDicts. It rounds H up to a power of two. Up to 256, a launch runs all steps of a layer. Then each program has all
hidden units of a few batch rows. From 512 on, each step is a launch.

Two costs of every call are part of its time: a state [B, T, H] that is read at every step, and the transposition of
recurrent weights. Inputs are passed in its layout, batch first.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .interface import Call, Ready, allows_tf32, import_gpu_peer, layers_of, through_layers

_MIN_HIDDEN = 16  # TorchRL's kernels compute with at least this many hidden units


def _prepare(gru: nn.GRU, x: Tensor) -> Ready:
    """Return TorchRL's GRU with ``gru``'s weights, ready for inputs like ``x``, after its kernel is tuned for them."""
    rnn = import_gpu_peer("torchrl.modules.tensordict_module._rnn_triton", "torchrl, 0.13.1 or later", gru, x)
    call = bind(rnn.gru_triton, gru, x)
    # TorchRL tunes the rows of a program once for all batch sizes, so forget other sizes. The first tuning is slow: its
    # 6 to 10 kernels took 8 to 190 s to compile for sm_90 on one CPU core, with H from 64 to 256.
    tuned_configs = rnn._gru_fwd_kernel.cache
    tuned_configs.clear()
    call(x)
    if not tuned_configs:  # from H = 512 on, another kernel runs, which is not tuned
        return Ready(call, kernel="step", lay_out=_arrange_batch_first)
    config = ", ".join(map(str, tuned_configs.values()))
    return Ready(call, kernel="fused", config=config, config_source="autotuned", lay_out=_arrange_batch_first)


def _arrange_batch_first(x: Tensor) -> Tensor:
    """Return x [T, B, I] with memory in the order [B, T, I]."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def bind(gru_triton: Callable, gru: nn.GRU, x: Tensor) -> Call:
    """Return a call that computes ``gru`` for inputs like ``x`` by ``gru_triton``, TorchRL's function of one layer.

    Weights are padded here to the number of hidden units that ``gru_triton`` computes with. Otherwise ``gru_triton``
    would pad them on each call. The state of a unit with zero weights stays zero.
    """
    steps, batch, _ = x.shape
    hidden = gru.hidden_size
    padded_hidden = max(_MIN_HIDDEN, 1 << (hidden - 1).bit_length())
    # The state is float32 even for 16-bit inputs. The kernel that runs all steps keeps its state in float32, and does
    # not compile with an initial state of another type.
    state = x.new_zeros(batch, steps, padded_hidden, dtype=torch.float32)
    no_resets = torch.zeros(batch, steps, dtype=torch.bool, device=x.device)
    # The default depends on a setting of torch that fp32_precision does not change.
    precision = "tf32" if allows_tf32() else "ieee"

    def layer(x: Tensor, *weights: Tensor) -> Tensor:
        # The second result, the last state, is unused: it is float32 from H = 512 on.
        output, _ = gru_triton(x.transpose(0, 1), state, *weights, no_resets, x.dtype, input_precision=precision)
        return output[..., :hidden].transpose(0, 1)

    return through_layers(layer, [_pad_weights(weights, padded_hidden) for weights in layers_of(gru)])


def _pad_weights(weights: list[Tensor], padded_hidden: int) -> list[Tensor]:
    """Return [W_ih, W_hh, b_ih, b_hh] of a layer with zeros added, as weights of ``padded_hidden`` hidden units."""
    w_ih, w_hh, *biases = (weight.unflatten(0, (3, -1)) for weight in weights)
    added = padded_hidden - w_hh.size(2)
    padded = [pad(w_ih, (0, 0, 0, added)), pad(w_hh, (0, added, 0, added)), *(pad(bias, (0, added)) for bias in biases)]
    return [weight.flatten(0, 1).contiguous() for weight in padded]


PROVIDERS = {"torchrl": _prepare}
