"""The two Triton scans of a dense GRU in gru-qat, which is made for training, here without quantisation.

The providers call the forward functions of its `gru_scan` and `gru_scan_persistent`. As in its layer, `F.linear`
projects the inputs. Products of float32 are in TF32.

"gru_qat.scan" has one launch, in which a program has all hidden units of 16 or 32 batch rows. It serves only float32.
"gru_qat.persistent" also divides the hidden units among programs, which wait for each other at every step. It is
documented for float32, and also compiles for 16 bits.

The stores of "gru_qat.persistent" are not ordered before its counter. In 5 of 17 emulated runs at H >= 512 and B = 16
its results were wrong. Each case is compared with float64.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triton_gru.tuning.timing import gpu_clock, quantiles, samples

from .interface import FLOATS, Call, Ready, Unavailable, allows_tf32, import_gpu_peer, layers_of, through_layers


def _prepare_scan(gru: nn.GRU, x: Tensor) -> Ready:
    """Return "gru_qat.scan", ready for inputs like ``x``, with its kernel tuned for them."""
    peer = _import_peer(gru, x, (torch.float32,))
    call = bind(peer.gru_scan_forward, gru, x)
    tuned_configs = peer.gru_scan_fwd_kernel.cache
    # The peer tunes once for each T and B, and uses the result for every H. So forget results for another H.
    tuned_configs.clear()
    call(x)
    return Ready(call, "scan", config=", ".join(map(str, tuned_configs.values())), config_source="autotuned")


def _prepare_persistent(gru: nn.GRU, x: Tensor) -> Ready:
    """Return "gru_qat.persistent", ready for inputs like ``x``, with the fastest of the block sizes that fit.

    The peer's default sizes would use at most 4 programs at H = 512 and B <= 8.
    """
    peer, calls = _import_peer(gru, x, FLOATS), {}
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    for sizes in list_block_sizes(x.size(1), gru.hidden_size, processors):
        scan = partial(peer.gru_scan_forward_persistent, **sizes)
        calls[str(sizes)] = [partial(bind(scan, gru, x), x)]
    if not calls:
        raise Unavailable(
            f"with 64 rows and up to 128 hidden units a program, it has more programs than {processors} processors"
        )
    times = samples(calls, rounds=8, time_once=gpu_clock)
    fastest = min(times, key=lambda sizes: quantiles(times[sizes]).p50)
    (timed_call,) = calls[fastest]
    return Ready(timed_call.func, "persistent", config=fastest, config_source="timed here")


def list_block_sizes(batch: int, hidden: int, processors: int) -> list[dict[str, int]]:
    """Return the block sizes to try, as arguments of `gru_scan_forward_persistent`.

    A program computes a block: ``block_oh`` hidden units of ``block_b`` batch rows. For each number of units from 16 to
    128, the result has the fewest rows with which all programs run at once. They must, because programs wait for each
    other. A number of units is left out if even 64 rows a program make too many programs.

    Sizes are powers of two, as Triton requires. ``block_oh`` and ``block_k`` are at most H, because the peer replaces
    larger sizes by H. Exception: below H = 16 they are 16.
    """
    max_units = max(16, 1 << hidden.bit_length() - 1)  # the largest power of two up to H, but at least 16
    block_sizes = []
    for units in (16, 32, 64, 128):
        for rows in (8, 16, 32, 64):
            programs = -(-batch // rows) * -(-hidden // units)
            if units <= max_units and programs <= processors:
                block_sizes.append({"block_b": rows, "block_oh": units, "block_k": min(32, max_units)})
                break
    return block_sizes


def _import_peer(gru: nn.GRU, x: Tensor, dtypes: tuple[torch.dtype, ...]) -> ModuleType:
    """Return gru-qat's module of scans. Raise Unavailable if it cannot serve ``gru`` with ``x``."""
    peer = import_gpu_peer("gru_qat.triton_kernels.scan", "gru-qat", gru, x, dtypes)
    if x.dtype == torch.float32 and not allows_tf32():
        raise Unavailable("gru-qat computes products of float32 in TF32, but the case has IEEE")
    return peer


def bind(scan: Callable, gru: nn.GRU, x: Tensor) -> Call:
    """Return a call that computes ``gru`` for inputs like ``x``.

    ``scan`` is a forward function of gru-qat: (gate inputs [T, B, 3H], h_0, W_hh, b_hh) -> output [T, B, H].
    """
    h_0 = x.new_zeros(x.size(1), gru.hidden_size)

    def layer(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        return scan(F.linear(x, w_ih, b_ih), h_0, w_hh, b_hh)

    return through_layers(layer, layers_of(gru))


PROVIDERS = {"gru_qat.scan": _prepare_scan, "gru_qat.persistent": _prepare_persistent}
