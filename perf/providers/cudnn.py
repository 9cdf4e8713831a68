"""cuDNN's own GRU with each of its algorithms forced: what it could do if torch let it."""

import functools

from torch import Tensor, nn

from .. import cudnn
from ..cudnn import Algorithm
from .interface import Prepare, Ready, Unavailable, require_padded


def _prepare(algorithm: Algorithm, gru: nn.GRU, x: Tensor) -> Ready:
    require_padded(x)
    math = cudnn.math_type(x.dtype)
    try:
        handle = cudnn.handle_of(x.device)
        call = cudnn.Gru(handle, gru, x, algorithm, math)
        call(x)  # some refusals come no sooner
    except cudnn.CudnnError as refusal:
        raise Unavailable(str(refusal)) from refusal
    config = f"algo={algorithm.name} math={math.name} cudnn={handle.library.version}"
    if call.maybe_standard:
        config += " (its workspace is CUDNN_RNN_ALGO_STANDARD's, which may run in its place)"
    return Ready(call, "cudnn", config, "forced")


PROVIDERS: dict[str, Prepare] = {
    "cudnn.standard": functools.partial(_prepare, Algorithm.CUDNN_RNN_ALGO_STANDARD),
    "cudnn.persist_static": functools.partial(_prepare, Algorithm.CUDNN_RNN_ALGO_PERSIST_STATIC),
    "cudnn.persist_dynamic": functools.partial(_prepare, Algorithm.CUDNN_RNN_ALGO_PERSIST_DYNAMIC),
    "cudnn.small_h": functools.partial(_prepare, Algorithm.CUDNN_RNN_ALGO_PERSIST_STATIC_SMALL_H),
}
