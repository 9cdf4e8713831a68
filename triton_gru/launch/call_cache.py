"""A cache of routes, by which a repeated call skips checking, binding and planning.

To check, bind and plan a call, and to launch through Triton, takes the host longer than the GPU takes to run the
launches. So a route is cached for each module and call signature, which is all that decides how a call is served
besides the weights. A later call of a prepared signature only checks that the weights are those of the route, and
passes on the new data pointers.
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
from ..plan import planner
from ..plan.device import is_on_other_gpu
from ..plan.planner import Plan
from ..plan.validity import too_many_rows_reason
from . import hang
from .execute import launches
from .prepared import Memory, ModuleWeights, PreparedCall, prepare

# Most signatures that a `RouteCache` has. If there are more, the oldest is dropped.
MAX_SIGNATURES = 32
# Marks a signature that was seen once. A call is prepared on its second use, because inputs of varying length mostly
# have signatures that never recur.
_SEEN_ONCE = object()


class RouteCache:
    """The cached routes of a module's calls, or of a `Stream`'s frames.

    Attributes:
        routes: by signature, oldest first. A route is a function that is called with the module, input and hx.
            `_SEEN_ONCE` stands for a call that is not prepared yet, and None for one that cannot be prepared. A stream
            also has an entry for frames that the module serves.
    """

    def __init__(self):
        self.routes: dict[object, object] = {}
        self._generation = planner.generation
        self._lock = threading.Lock()

    def find(self, module: nn.Module, signature: object) -> Callable | None:
        """Return the cached route of this signature, or None if there is none, or none yet.

        Forget all routes and return None if plans were cleared since the last call of this method. Do the same if the
        route is a prepared call that `ModuleWeights` finds outdated.
        """
        # Note the generation here, before the call is planned. `add` may run after plans were cleared, though the
        # call was planned before.
        generation, route = planner.generation, self.routes.get(signature)
        is_outdated = self._generation is not generation
        if is_outdated or (type(route) is PreparedCall and not route.weights.is_unchanged(module)):
            self.routes.clear()
            self._generation = generation
            return None
        return None if route is _SEEN_ONCE else route

    @property
    def is_outdated(self) -> bool:
        """Return whether plans were cleared since the last call of `find`."""
        return self._generation is not planner.generation

    def add(self, signature: object, route: object) -> None:
        """Set the entry of `routes` for this signature. Drop the oldest entry if there are too many."""
        with self._lock:
            self.routes[signature] = route
            if len(self.routes) > MAX_SIGNATURES:
                del self.routes[next(iter(self.routes))]


_caches: weakref.WeakKeyDictionary[nn.Module, RouteCache] = weakref.WeakKeyDictionary()


def find_route(module, input, hx: Tensor | None) -> Callable | None:
    """Return the cached route of ``module(input, hx)``, or None. A route is called with the module, input and hx.

    Return None also while torch.compile or torch.export runs, and for a prepared call on another than the current GPU.
    ``module`` is a `triton_gru.GRU` or `triton_gru.GRUCell`.
    """
    if torch.compiler.is_compiling():  # a compiled graph must not trace the cache
        return None
    cache = _caches.get(module)
    route = cache and cache.find(module, signature_of(module, input, hx))
    return None if type(route) is PreparedCall and is_on_other_gpu(route.device) else route


def cache_route(module, input, hx: Tensor | None, call: Call, plan: Plan, output: Tensor, h_n: Tensor) -> None:
    """Note that kernels served ``module(input, hx)``. On the second call of its signature, prepare the call.

    Nothing is cached if no kernel served the call, if autograd recorded it, or if its GPU is not the current GPU. The
    same holds if its results are empty or it has no signature. A call is not prepared if a weight is no parameter.

    Args:
        module: a `triton_gru.GRU` or `triton_gru.GRUCell`.
        input, hx: the call's arguments.
        call, plan: the bound call and its plan.
        output, h_n: the results, as `execute.run` returns them. Both are one tensor [1, B, H] if the caller gets one
            result only.
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
    if cache.is_outdated:  # such as by `execute.replace_failing_plan`, so that ``plan`` did not run
        return
    if signature not in cache.routes:
        cache.add(signature, _SEEN_ONCE)
        return
    if cache.routes.get(signature) is not _SEEN_ONCE:
        return
    weights = ModuleWeights(module)
    if not weights.has_all(module, call.weights):
        return
    if isinstance(input, PackedSequence) and input.sorted_indices is not None and hx is not None:
        # The launches read a copy of the state, in the order of the packed rows. `PreparedCall` makes the same copy.
        # Exception: autocast may cast the copy. Without hx in `Memory`, such a call is not prepared.
        hx = call.hx if TorchState.current(data.device).autocast is None else None
    kept_alive = [hang.get_watchdog(data.device).watch] if plan.kernel == "grid" else []
    memory = Memory(data, hx, output, h_n, weights.tensors_of(module), kept_alive)
    if call.sequences.layout == "packed":
        memory.add_packed_offsets(call.sequences)
    all_launches = launches(call, plan.config, plan.device, output, h_n, memory.new, plan.projection)
    cache.add(signature, prepare(all_launches, weights, memory) if weights.is_unchanged(module) else None)


def cache_nn_gru_route(module, input, hx: Tensor | None, forward: Callable) -> None:
    """Add ``forward``, of `nn.GRU` or `nn.GRUCell`, to the cache as the route of ``module(input, hx)``.

    This route stays valid if weights change, because ``forward`` reads and checks them itself. A call without a
    signature is not cached.
    """
    if (signature := signature_of(module, input, hx)) is not None:
        _caches.setdefault(module, RouteCache()).add(signature, forward)


def signature_of(module, input, hx: Tensor | None) -> tuple | None:
    """Return a call's signature: all that decides how the call is served besides the weights.

    Return None if the tensors are not plain, or if the packed input has no `_packed_layout`. Return None also if a
    torch.func transform, a dispatch mode or torch.jit.trace is active. The routes of such calls are not cached.
    """
    data = input.data if isinstance(input, PackedSequence) else input
    if not is_plain(data) or (hx is not None and not is_plain(hx)):
        return None
    state = TorchState.current(data.device)
    # Check this before layouts are read: wrappers have no memory, and a trace would record the reads of shapes.
    if state.is_wrapping or state.is_tracing:
        return None
    options = Options.from_module(module)
    layout = _layout(data) if data is input else _packed_layout(options, input)
    if layout is None:
        return None
    records = state.is_grad_enabled and records_gradient((data, hx, *module._parameters.values()))
    return options, state, records, layout, None if hx is None else _layout(hx)


def _layout(tensor: Tensor) -> tuple:
    """Return a tensor's layout, as part of a signature.

    The layout includes the address modulo 16, or None if the tensor has no memory. Triton compiles other code for
    addresses that are multiples of 16.
    """
    address = tensor.data_ptr()
    alignment = address % 16 if address else None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_neg(), alignment


def _packed_layout(options: Options, input: PackedSequence) -> tuple | None:
    """Return all that decides how packed input is served.

    Return None if its batch sizes or sorted indices are not plain tensors. Return None also if its batch sizes are not
    on the CPU, or if it has no time step.

    The lengths of all sequences except the longest are left out, so that calls with other lengths share a route. Of the
    number of rows only two facts are kept: whether there are several, and whether there are too many for kernels.
    Exception: with two directions and several layers the number itself is kept, because the workspace then has a second
    output of this many rows.
    """
    sizes, order = input.batch_sizes, input.sorted_indices
    are_plain = is_plain(sizes) and (order is None or is_plain(order))
    if not are_plain or sizes.device.type != "cpu" or len(sizes) == 0:
        return None
    (rows, *features), *layout = _layout(input.data)
    if not (options.bidirectional and options.num_layers > 1):
        # The stride of a single row may have any value, so one row differs from several.
        rows = rows > 1, too_many_rows_reason(rows)
    return len(sizes), int(sizes[0]), rows, *features, *layout, None if order is None else order.shape
