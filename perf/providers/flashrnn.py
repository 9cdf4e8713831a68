"""FlashRNN's GRU and LSTM in CUDA. nvcc compiles them for each H, B and dtype at the first use, which takes minutes.

If its fused kernel is requested for a GRU, FlashRNN runs its alternating kernel. There, each step is a product by
cuBLAS and a launch for the gates. A call waits for the device before and after the steps. Products of float32 are IEEE,
even if the case allows TF32. Products of float16 are accumulated in float16 (CUBLAS_COMPUTE_16F), which may be judged
wrong.

"flashrnn.lstm" is the fused LSTM of the same sizes, with its own weights. It shows the time of a fused kernel with four
gates. Its products of float32 are in TF32.

A call includes the product for the inputs of all steps. Weights and inputs are passed in the layout of the kernel, so
FlashRNN transposes nothing. Its GRU computes what `nn.GRU` does, with gates in another order and b_hn separate.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .interface import Call, Ready, Unavailable, allows_tf32, import_gpu_peer, layers_of, through_layers
from .torch_modules import make_module_like

# backend: (the kernel's name, the layouts of its arguments). In a layout, T is time, B batch, H heads, G gates, D
# units, and P units of the previous step.
KERNELS = {
    "cuda": ("alternating", {"input_shape": "TBHGD", "recurrent_shape": "HPGD", "bias_shape": "HGD"}),
    "cuda_fused": ("fused", {"input_shape": "TBHDG", "recurrent_shape": "HDGP", "bias_shape": "HDG"}),
}


def _prepare(function: str, gru: nn.GRU, x: Tensor) -> Ready:
    """Return FlashRNN's function "gru" or "lstm", ready for inputs like ``x``, compiled and called once."""
    peer = import_gpu_peer("flashrnn.flashrnn", "flashrnn", gru, x)
    from torch.utils.cpp_extension import CUDA_HOME  # FlashRNN imports this, too

    if CUDA_HOME is None:
        raise Unavailable("FlashRNN compiles its kernels at the first use, but finds no nvcc: set CUDA_HOME")
    sizes = {"batch_size": x.size(1), "head_dim": gru.hidden_size, "dtype": str(x.dtype)[6:]}
    backend = peer.FlashRNNConfig("cuda_fused", function, **sizes).backend
    kernel, layouts = KERNELS[backend]
    if kernel == "fused" and x.dtype == torch.float32 and not allows_tf32():
        raise Unavailable("FlashRNN's fused kernel computes products of float32 in TF32, but the case has IEEE")
    config = peer.FlashRNNConfig(backend, function, output_shape="STBHD", **layouts, **sizes)
    module, expected = make_module_like(nn.LSTM, gru) if function == "lstm" else (gru, None)
    call = bind(peer.flashrnn, config, module, x)
    try:
        call(x)
    except ValueError as error:
        raise Unavailable(f"FlashRNN has no {kernel} kernel of these sizes: {error}") from error
    description, no_graph_reason = f"asked for cuda_fused, got {backend}", ""
    if kernel == "alternating":
        description += ", float32 in IEEE" if x.dtype == torch.float32 else ""
        no_graph_reason = "FlashRNN's alternating kernel waits for the device in each call"
    return Ready(call, kernel, description, expected=expected, no_graph_reason=no_graph_reason)


def bind(flashrnn: Callable, config: Any, module: nn.RNNBase, x: Tensor) -> Call:
    """Return a call that computes ``module``, a GRU or an LSTM of one direction, for inputs like ``x``.

    ``flashrnn`` is FlashRNN's function, or a function with the same arguments. ``config`` has the layouts of its
    arguments.
    """
    hidden, is_gates_first = module.hidden_size, config.input_shape == "TBHGD"
    # A GRU has the state h, an LSTM h and c. Of the returned states of all steps, those of h are the output.
    states = x.new_zeros(config.num_states, 1, x.size(1), 1, hidden)

    def layer(x: Tensor, w_ih: Tensor, b_ih: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
        gates = F.linear(x, w_ih, b_ih).unflatten(2, (1, -1, hidden) if is_gates_first else (1, hidden, -1))
        all_states, *_ = flashrnn(gates, recurrent, bias, states=states, config=config)  # [states, T, B, heads, H]
        return all_states[0, :, :, 0]

    def arrange(weight: Tensor, axes: str, layout: str) -> Tensor:
        """Return the weight, whose axes have the letters ``axes``, in ``layout`` with one head."""
        return weight.permute([axes.index(axis) for axis in layout.replace("H", "")]).contiguous().unsqueeze(0)

    layers = []
    for weights in layers_of(module):
        w_ih, w_hh, b_ih, b_hh = (weight.unflatten(0, (-1, hidden)) for weight in weights)
        if config.function == "gru":  # FlashRNN's order of gates is n, r, z. Its fourth bias belongs to n's inputs.
            w_hh, b_hh = w_hh.roll(1, 0), F.pad(b_hh.roll(1, 0), (0, 0, 0, 1))
        if not is_gates_first:
            w_ih, b_ih = w_ih.transpose(0, 1), b_ih.t()
        recurrent = arrange(w_hh, "GDP", config.recurrent_shape)
        layers.append([w_ih.flatten(0, 1), b_ih.flatten(), recurrent, arrange(b_hh, "GD", config.bias_shape)])
    return through_layers(layer, layers)


PROVIDERS = {"flashrnn": partial(_prepare, "gru"), "flashrnn.lstm": partial(_prepare, "lstm")}
