"""`GRU` and `GRUCell`: what torch.nn's modules of those names are, on the kernels of this package."""

from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .call.bind import bind_cell, bind_gru
from .call.checks import REVERSE_BIDIRECTIONAL_ERROR
from .call.options import Options
from .launch import route
from .plan.planner import Plan, check_backend
from .stand_in import StandIn
from .stream import Stream


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
            and where an earlier call on the device turns out to have given up (see `triton_gru.raise_if_hung`).
    """

    torch_class = nn.GRU
    _empty = 1, 1, 1, True, False, 0.0, False, "meta"
    _empty_torch_class = *_empty[:-1], 0, "meta"  # 0 is proj_size

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        reverse: bool = False,
        backend: str = "auto",
    ) -> None:
        check_backend(backend)
        if reverse and bidirectional:
            raise ValueError(REVERSE_BIDIRECTIONAL_ERROR)
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.reset_after = reset_after
        self.reverse = reverse
        self.backend = backend

    if TYPE_CHECKING:  # nn.Module declares the results of a call as Any

        @overload
        def __call__(
            self,
            input: Tensor,
            hx: Tensor | None = None,
            lengths: Tensor | None = None,
            resets: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]: ...

        @overload
        def __call__(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...

        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """``output, h_n``; shapes as in the class's docstring."""
        if lengths is None and resets is None and (known := route.find_gru_route(self, input, hx)) is not None:
            return known(self, input, hx)
        return route.route_gru(self, input, hx, lengths, resets)(self, input, hx, lengths, resets)

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
        return route.plan_call(bind_gru(self, input, hx, lengths, resets))

    def stream(self, batch_size: int) -> Stream:
        """A `Stream`: this GRU frame by frame, on ``batch_size`` sequences whose state it keeps."""
        return Stream(self, batch_size)

    def extra_repr(self) -> str:
        return super().extra_repr() + _own_repr(self)

    def _stops_compiler(self) -> bool:
        return route.stops_compiler(self)


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

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        backend: str = "auto",
    ) -> None:
        check_backend(backend)
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        self.reset_after = reset_after
        self.backend = backend

    if TYPE_CHECKING:  # nn.Module declares the results of a call as Any

        def __call__(self, input: Tensor, hx: Tensor | None = None) -> Tensor: ...

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state; shapes as in the class's docstring."""
        if (known := route.find_cell_route(self, input, hx)) is not None:
            return known(self, input, hx)
        return route.route_cell(self, input, hx)(self, input, hx)

    def plan(self, input: Tensor, hx: Tensor | None = None) -> Plan:
        """What ``self(input, hx)`` would run, as `GRU.plan`."""
        return route.plan_call(bind_cell(self, input, hx))

    def extra_repr(self) -> str:
        return super().extra_repr() + _own_repr(self)


def _own_repr(module: GRU | GRUCell) -> str:
    own = Options.from_module(module).unsupported_by_nn_gru
    text = f", {own}" if own else ""
    return text if module.backend == "auto" else f"{text}, backend={module.backend!r}"
