"""`GRU` and `GRUCell`: what torch.nn's modules of those names are, on the kernels of this package."""

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from .call.bind import (
    BOTH_AND_REVERSE,
    Call,
    beyond_torch,
    bind_cell,
    bind_gru,
    records_gradient,
    weights_of_cell,
)
from .call.sequences import as_packed
from .launch import call_cache, execute, operator
from .plan import device as devices
from .plan.device import find
from .plan.planner import Plan, check_backend, choose
from .stand_in import StandIn, is_as_accelerated, traced
from .stream import Stream

_gru, _cell = nn.GRU.forward, nn.GRUCell.forward


class GRU(StandIn, nn.RNNBase):
    r"""A multi-layer gated recurrent unit, interchangeable with `torch.nn.GRU`.

    Constructor, parameters, `state_dict`, shapes, defaults and errors are those of `torch.nn.GRU`
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html), whose formula is

    .. math::
        r = \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \qquad
        z = \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n = \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \qquad
        h' = (1 - z) \odot n + z \odot h

    The kernels are for inference: a call in training mode with grad enabled goes to torch's own GRU. In
    `eval()` on a GPU they run whether grad mode is on or not; a backward through their output raises, as through
    that of cuDNN. Exception: torch computes bfloat16 without cuDNN, so a call that autograd records goes to torch.

    Args:
        input_size: features I of the input.
        hidden_size: features H of the hidden state.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as torch.nn.GRU.
        reset_after: True is torch's GRU. False resets before the recurrent product, as Cho et al.
            (arXiv:1406.1078v3) do: n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).
        reverse: with one direction, all layers go backward in time, as the second direction of a bidirectional GRU
            does: outputs stand at the times of their inputs, and h_n is the state after the first time.
        backend: ``"auto"`` takes what serves a call best and never refuses one. ``"torch"`` is torch's own GRU,
            ``"reference"`` plain torch step by step, ``"block"``, ``"grid"`` and ``"step"`` those kernels. May be
            assigned later.

    Shapes, with T steps, B batch rows, D = 2 if bidirectional else 1:
        input: [T, B, I], [B, T, I] if batch_first, [T, I] unbatched, or a PackedSequence.
        hx: [D * num_layers, B, H], [D * num_layers, H] unbatched; zeros if not given.
        lengths: [B], integers on any device, clamped to [0, T]; for dense batched input.
        resets: [T, B], [B, T] or [T], as input without its features; bool. Not with packed input, nor backward.
        output: [T, B, D * H], [B, T, D * H] or [T, D * H]; a PackedSequence for packed input.
        h_n: as hx.

    dtypes: float32, float16 and bfloat16 on the kernels; float64 through torch. input, hx and parameters agree.

    Beyond torch.nn.GRU: with ``lengths`` sequence b ends after lengths[b] steps: its outputs from there on are zero,
    its h_n is the state at its end (hx where its length is 0), and backward it begins there. Nothing waits for
    lengths on the GPU. Where ``resets`` is True, the state of every layer is zero, whatever it was, before that step.

    Raises:
        ValueError, RuntimeError: what torch.nn.GRU raises for the same arguments, before anything is launched;
            ValueError and TypeError for lengths and resets that are not as above; ValueError for an unknown backend;
            RuntimeError where a backend asked for by name cannot serve the call,
            and where an earlier call on the device turns out to have given up (see `triton_gru.check`).
    """

    torch_class = nn.GRU
    _empty = 1, 1, 1, True, False, 0.0, False, "meta"
    _empty_torch_class = *_empty[:-1], 0, "meta"  # 0 is proj_size
    # The class's, so that a torch.nn.GRU whose class is changed to this one (accelerate) needs nothing set.
    reset_after = True
    reverse = False
    backend = "auto"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device=None,
        dtype=None,
        *,
        reset_after: bool = True,
        reverse: bool = False,
        backend: str = "auto",
    ) -> None:
        check_backend(backend)
        if reverse and bidirectional:
            raise ValueError(BOTH_AND_REVERSE)
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.reset_after = reset_after
        self.reverse = reverse
        self.backend = backend

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ):
        """``output, h_n``; shapes as in the class's docstring."""
        whole = lengths is None and resets is None
        if whole:
            # Torch's on a CPU, the soonest: it is a matter of microseconds there.
            plain = type(input) is Tensor and input.is_cpu and self.backend == "auto" and self.reset_after
            if plain and devices.on_cpu is None and not (self.reverse or torch.compiler.is_compiling()):
                return _gru(self, input, hx)
            if (serves := call_cache.found(self, input, hx)) is not None:
                return serves(self, input, hx)
        if isinstance(input, Proxy):
            return traced(self, input, hx, lengths=lengths, resets=resets)
        torchs = whole and _is_torchs(self, input, hx)
        if torchs and not operator.in_graph():
            return _gru(self, input, hx)
        if operator.unseen(input) or (torchs and not operator.graph_is_whole()):
            return operator.outside(self, input, hx, lengths, resets)
        if operator.wanted(input):
            return operator.gru(self, input, hx, lengths, resets)
        call = bind_gru(self, input, hx, lengths, resets)
        plan = _plan(call, self.backend)
        if plan.kernel == "torch" and lengths is None and not self.reverse:
            results = _gru(self, input, hx)
            call_cache.keep_torchs(self, input, hx, _gru)
            return results
        output, h_n = execute.run(call, plan)
        packed = isinstance(input, PackedSequence)
        if not packed and input.dim() == 2:
            return output.squeeze(0 if self.batch_first else 1), h_n.squeeze(1)
        if whole:
            call_cache.keep(self, input, hx, call, plan, output, h_n)
        return as_packed(self, input, output, h_n) if packed else (output, h_n)

    def plan(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> Plan:
        """What ``self(input, hx, lengths, resets)`` would run: kernel, configuration, its source, and why nothing else.

        Prints well. Raises what the call itself would raise; launches no GRU.
        """
        return _plan(bind_gru(self, input, hx, lengths, resets), self.backend)

    def stream(self, batch_size: int) -> Stream:
        """A `Stream`: this GRU frame by frame, on ``batch_size`` sequences whose state it keeps."""
        return Stream(self, batch_size)

    def extra_repr(self) -> str:
        return super().extra_repr() + _own_repr(self)

    def _stops_compiler(self) -> bool:
        served = self.backend == "torch" or _trains(self) or _has_no_kernels(self.weight_ih_l0.device)
        return served and self.backend in ("auto", "torch") and not operator.graph_is_whole()


class GRUCell(StandIn, nn.RNNCellBase):
    """One GRU step, interchangeable with `torch.nn.GRUCell`: parameters, `state_dict`, shapes and errors.

    Formula, `reset_after` and `backend` are those of `GRU`. A call that autograd records goes to torch's own cell, in
    `eval()` too: call it under ``torch.no_grad()`` or ``torch.inference_mode()`` to have it on the kernels.

    Shapes: input [B, I] or [I]; hx and the result [B, H] or [H]; hx is zeros if not given.

    Raises:
        ValueError, RuntimeError: as torch.nn.GRUCell and, for backends, `GRU`.
    """

    torch_class = nn.GRUCell
    _empty = _empty_torch_class = 1, 1, True, "meta"
    reset_after = True
    backend = "auto"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device=None,
        dtype=None,
        *,
        reset_after: bool = True,
        backend: str = "auto",
    ) -> None:
        check_backend(backend)
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        self.reset_after = reset_after
        self.backend = backend

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state; shapes as in the class's docstring."""
        # Torch's on a CPU, the soonest: it is a matter of microseconds there.
        plain = type(input) is Tensor and input.is_cpu and self.backend == "auto" and self.reset_after
        if plain and devices.on_cpu is None:
            return _cell(self, input, hx)
        if (serves := call_cache.found(self, input, hx)) is not None:
            return serves(self, input, hx)
        if isinstance(input, Proxy):
            return traced(self, input, hx)
        if _is_torchs(self, input, hx):
            return _cell(self, input, hx)
        if operator.wanted(input):
            return operator.cell(self, input, hx)
        call = bind_cell(self, input, hx)
        plan = _plan(call, self.backend)
        if plan.kernel == "torch":
            h = _cell(self, input, hx)
            call_cache.keep_torchs(self, input, hx, _cell)
            return h
        h_n = execute.run(call, plan)[1]
        h = h_n.squeeze(0)
        if input.dim() == 1:
            return h.squeeze(0)
        call_cache.keep(self, input, hx, call, plan, h_n, h_n)
        return h

    def plan(self, input: Tensor, hx: Tensor | None = None) -> Plan:
        """What ``self(input, hx)`` would run, as `GRU.plan`."""
        return _plan(bind_cell(self, input, hx), self.backend)

    def extra_repr(self) -> str:
        return super().extra_repr() + _own_repr(self)


def _plan(call: Call, backend: str) -> Plan:
    return choose(call.problem, find(call.input.device), backend)


def _is_torchs(module: GRU | GRUCell, input: Tensor | PackedSequence, hx: Tensor | None) -> bool:
    """Return whether torch's own module serves the call whatever its sizes: then no plan is made."""
    if module.backend not in ("auto", "torch") or beyond_torch(module):
        return False
    # A trace would not show a kernel; and a model that is compiled in training is to train.
    if module.backend == "torch" or torch.jit.is_tracing() or _trains(module):
        return True
    if torch.compiler.is_exporting():
        # An accelerated model goes to those who may not have this package.
        return is_as_accelerated(module) or not (operator.wanted(input) or operator.unseen(input))
    if torch.compiler.is_compiling() and not (operator.wanted(input) or operator.unseen(input)):
        return True
    device = (input.data if isinstance(input, PackedSequence) else input).device
    if _has_no_kernels(device):
        return True
    # torch's cell has a backward in eval(), where its GRU on a GPU has none.
    return isinstance(module, GRUCell) and records_gradient((input, hx, *weights_of_cell(module)))


def _trains(module: GRU | GRUCell) -> bool:
    return module.training and torch.is_grad_enabled()


def _has_no_kernels(device: torch.device) -> bool:
    # A CUDA device may be one that a fake tensor says it is on: there is none to be found.
    return device.type != "cuda" and find(device) is None


def _own_repr(module: GRU | GRUCell) -> str:
    own = beyond_torch(module)
    text = f", {own}" if own else ""
    return text if module.backend == "auto" else f"{text}, backend={module.backend!r}"
