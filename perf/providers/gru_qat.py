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


def _scan(gru: nn.GRU, x: Tensor) -> Ready:
    peer = _import(gru, x, (torch.float32,))
    call = bind(peer.gru_scan_forward, gru, x)
    tuned = peer.gru_scan_fwd_kernel.cache
    tuned.clear()  # The peer tunes once for each T and B, for all H. Forget other sizes.
    call(x)
    return Ready(call, "scan", config=", ".join(map(str, tuned.values())), config_source="autotuned")


def _persistent(gru: nn.GRU, x: Tensor) -> Ready:
    """Prepare the fastest of `blocks`. The peer's default is at most 4 programs at H = 512 and B <= 8."""
    peer, calls = _import(gru, x, FLOATS), {}
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    for sizes in blocks(x.size(1), gru.hidden_size, processors):
        calls[str(sizes)] = [partial(bind(partial(peer.gru_scan_forward_persistent, **sizes), gru, x), x)]
    if not calls:
        raise Unavailable(
            f"with 64 rows and 128 hidden units a program, it has more programs than {processors} processors"
        )
    times = samples(calls, 8, gpu_clock)
    fastest = min(times, key=lambda sizes: quantiles(times[sizes]).p50)
    return Ready(calls[fastest][0].func, "persistent", config=fastest, config_source="timed here")


def blocks(batch: int, hidden: int, processors: int) -> list[dict[str, int]]:
    """Return sizes of blocks, one for each number of hidden units. All blocks run at once, as they wait for each other.

    Sizes are powers of two, as Triton requires, and at most H, because the peer replaces larger sizes by H.
    """
    most = max(16, 1 << hidden.bit_length() - 1)
    by_units = {
        units: {"block_b": rows, "block_oh": units, "block_k": min(32, most)}
        for units in (16, 32, 64, 128)
        for rows in (64, 32, 16, 8)  # the fewest rows that fit remain
        if units <= most and -(-batch // rows) * -(-hidden // units) <= processors
    }
    return [*by_units.values()]


def _import(gru: nn.GRU, x: Tensor, dtypes: tuple[torch.dtype, ...]) -> ModuleType:
    peer = import_gpu_peer("gru_qat.triton_kernels.scan", "gru-qat", gru, x, dtypes)
    if x.dtype == torch.float32 and not allows_tf32():
        raise Unavailable("gru-qat computes products of float32 in TF32, but the case has IEEE")
    return peer


def bind(scan: Callable, gru: nn.GRU, x: Tensor) -> Call:
    """Return a call that computes ``gru`` for inputs like ``x`` by ``scan``, a forward function of gru-qat."""
    h_0 = x.new_zeros(x.size(1), gru.hidden_size)

    def layer(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        return scan(F.linear(x, w_ih, b_ih), h_0, w_hh, b_hh)

    return through_layers(layer, layers_of(gru))


PROVIDERS = {"gru_qat.scan": _scan, "gru_qat.persistent": _persistent}
