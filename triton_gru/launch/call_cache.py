"""A call made again without binding and planning it anew, as long as all stays as it was in the calls before.

To check, bind and plan a call and to take its launches through Triton takes the host longer than it takes the GPU to
run them. So what a module's calls have found out is kept, by the signature of a call: all that decides how it is
served. The next call of that signature only asks whether it still holds, and passes on the addresses that are new.
"""

import threading
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..call.bind import Call, flatten_weights
from ..call.options import Options
from ..call.readable import is_plain
from ..call.torch_state import TorchState, records_gradient
from ..plan.device import is_on_other_gpu
from ..plan.planner import Plan
from ..plan.validity import too_many_rows_reason
from . import hang
from .execute import launches
from .prepared import Memory, ModuleWeights, PreparedCall, prepare

# Signatures that are kept of a module, the latest ones.
MAX_SIGNATURES = 32
# Stands for a call that was seen once. Inputs of varying length mostly have signatures that never recur, so that a call
# is prepared on its second use.
_SEEN_ONCE = object()


class RouteCache:
    """What serves the calls of a module, by signature, oldest first.

    That is a function called as ``module.forward`` is; or `_SEEN_ONCE`; or None where a call cannot be prepared.
    """

    def __init__(self):
        self.routes: dict[object, object] = {}
        self._lock = threading.Lock()

    def find(self, module: nn.Module, signature: object) -> Callable | None:
        """Return what serves a call of this signature, None if that has to be found out."""
        serves = self.routes.get(signature)
        if type(serves) is not PreparedCall:
            return None if serves is _SEEN_ONCE else serves
        if not serves.weights.is_unchanged(module):
            self.routes.clear()
            return None
        return serves

    def add(self, signature: object, serves: object) -> None:
        """Keep what serves calls of this signature."""
        with self._lock:
            self.routes[signature] = serves
            if len(self.routes) > MAX_SIGNATURES:
                del self.routes[next(iter(self.routes))]


_caches: weakref.WeakKeyDictionary[nn.Module, RouteCache] = weakref.WeakKeyDictionary()


def find_route(module, input, hx: Tensor | None) -> Callable | None:
    """Return what serves ``module(input, hx)`` and is called as ``module.forward`` is; None if nothing is kept.

    ``module`` is a `triton_gru.GRU` or `triton_gru.GRUCell`.
    """
    if torch.compiler.is_compiling():  # no graph is to see more of this
        return None
    cache = _caches.get(module)
    serves = cache and cache.find(module, signature_of(module, input, hx))
    return None if type(serves) is PreparedCall and is_on_other_gpu(serves.device) else serves


def keep_route(module, input, hx: Tensor | None, call: Call, plan: Plan, output: Tensor, h_n: Tensor) -> None:
    """Keep that ``module(input, hx)`` was bound and planned so; of the results of a kernel, where it has left them.

    ``output`` and ``h_n`` as `execute.run` returns them, or one and the same [1, B, H] where the caller gets but one.
    """
    data = input.data if isinstance(input, PackedSequence) else input
    if plan.config is None or h_n.numel() == 0 or is_on_other_gpu(data.device):
        return
    if records_gradient((data, hx, *flatten_weights(call.weights))):
        return
    signature = signature_of(module, input, hx)
    if signature is None:
        return
    cache = _caches.setdefault(module, RouteCache())
    if signature not in cache.routes:
        cache.add(signature, _SEEN_ONCE)
        return
    if cache.routes.get(signature) is not _SEEN_ONCE:
        return
    weights = ModuleWeights(module)
    if not weights.has_all(module, call.weights):
        return
    if isinstance(input, PackedSequence) and input.sorted_indices is not None and hx is not None:
        # The launches read the state in the order of the packed rows.
        hx = call.hx if TorchState.current(data.device).autocast is None else None
    held = [hang.get_watchdog(data.device).watch] if plan.kernel == "grid" else []
    memory = Memory(data, hx, output, h_n, weights.of(module), held)
    if call.sequences.layout == "packed":
        memory.add_table(call.sequences)
    made = launches(call, plan.config, plan.device, output, h_n, memory.new, plan.projection)
    cache.add(signature, prepare(made, weights, memory) if weights.is_unchanged(module) else None)


def keep_nn_gru_route(module, input, hx: Tensor | None, forward: Callable) -> None:
    """Keep that torch's own ``forward(module, input, hx)`` serves the call.

    It has done so once, and asks for the weights itself: whatever becomes of them, the answer is torch's.
    """
    if (signature := signature_of(module, input, hx)) is not None:
        _caches.setdefault(module, RouteCache()).add(signature, forward)


def clear_call_cache() -> None:
    """Forget everything kept: for when calls may be planned otherwise from here on."""
    _caches.clear()


def signature_of(module, input, hx: Tensor | None) -> tuple | None:
    """Return all that decides how a call is served beside the weights.

    None stands for tensors that are not what they seem, of whose calls nothing is kept.
    """
    data = input.data if isinstance(input, PackedSequence) else input
    if not is_plain(data) or (hx is not None and not is_plain(hx)):
        return None
    state = TorchState.current(data.device)
    if state.is_wrapping or state.is_tracing:  # first: wrappers have no memory, and a trace would record what is asked
        return None
    options = Options.from_module(module)
    layout = _layout(data) if data is input else _packed_layout(options, input)
    if layout is None:
        return None
    records = state.is_grad_enabled and records_gradient((data, hx, *module._parameters.values()))
    return options, state, records, layout, None if hx is None else _layout(hx)


def _layout(tensor: Tensor) -> tuple:
    """Return how a tensor lies in memory; of its address what a kernel was compiled for, and whether there is one."""
    address = tensor.data_ptr()
    alignment = address % 16 if address else None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_neg(), alignment


def _packed_layout(options: Options, input: PackedSequence) -> tuple | None:
    """Return all that decides how packed input is served, None where that cannot be told.

    Where its sequences end is left out. So are its rows, unless layers write by turns into the output and into room
    of as many rows.
    """
    sizes, order = input.batch_sizes, input.sorted_indices
    plain = is_plain(sizes) and (order is None or is_plain(order))
    if not plain or sizes.device.type != "cpu" or len(sizes) == 0:
        return None
    (rows, *features), *layout = _layout(input.data)
    if not (options.bidirectional and options.num_layers > 1):
        # A single row has no stride that counts.
        rows = rows > 1, too_many_rows_reason(rows)
    return len(sizes), int(sizes[0]), rows, *features, *layout, None if order is None else order.shape
