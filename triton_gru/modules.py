"""The modules `GRU` and `GRUCell`: `nn.GRU` and `nn.GRUCell`, run by the kernels of this package."""

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

        gru = triton_gru.GRU(40, 64, device="cuda").eval()
        with torch.inference_mode():
            output, h_n = gru(torch.randn(50, 16, 40, device="cuda"))  # [T, B, I] -> [T, B, H], [1, B, H]

    The constructor, parameters, `state_dict`, shapes, defaults and errors are those of `torch.nn.GRU`
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html). Its formula is

    .. math::
        r = \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \qquad
        z = \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n = \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \qquad
        h' = (1 - z) \odot n + z \odot h

    The kernels are for inference. In `train()` with grad mode on, `nn.GRU` serves the call, or plain torch if `nn.GRU`
    cannot. In `eval()` on a GPU, the kernels run whether grad mode is on or off. A backward through their output
    raises, as with cuDNN. Exception: torch computes bfloat16 without cuDNN, so `nn.GRU` serves a call in bfloat16 that
    autograd records.

    Args:
        input_size: number of features I of the input.
        hidden_size: number of features H of the hidden state.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as in torch.nn.GRU.
        reset_after: whether the reset gate applies after the recurrent product, as in the formula above. False is the
            GRU of Cho et al. (arXiv:1406.1078v3): n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).
        reverse: whether all layers go backward in time, like the second direction of a bidirectional GRU. ``output[t]``
            belongs to ``input[t]``, and h_n is the state after the step at t = 0. Not with ``bidirectional``.
        backend: what serves the calls. It may be assigned later.

            - ``"auto"``: the kernel or `nn.GRU`, as measured or estimated to be fastest. Plain torch if neither can.
              Never refuses a call.
            - ``"block"``, ``"grid"``, ``"step"``: this kernel.
            - ``"torch"``: `nn.GRU`.
            - ``"reference"``: plain torch, step by step. Slow.

    Shapes, with T steps, B batch rows, D = 2 if bidirectional else 1:
        input: [T, B, I], [B, T, I] if batch_first, [T, I] unbatched, or a PackedSequence.
        hx: [D * num_layers, B, H], or [D * num_layers, H] unbatched. Zeros if not given.
        lengths: [B], integers on any device. They are clamped to [0, T].
        resets: [T, B], [B, T] if batch_first, or [T] unbatched; bool.
        output: [T, B, D * H], [B, T, D * H], [T, D * H], or a PackedSequence, as input.
        h_n: as hx.

    dtypes: float32, float16 and bfloat16 run on the kernels, float64 on `nn.GRU`. The dtypes of input, hx and
    parameters agree. Exception: under autocast they may differ.

    Beyond torch.nn.GRU:
        lengths: sequence b ends after ``lengths[b]`` steps. Its outputs are zero from there on. Its h_n is the state at
            its end, which is hx for length 0. A backward direction begins at the end. Needs dense batched input. The
            host does not wait for lengths on the GPU. Exception: `nn.GRU` serves the call.
        resets: where True, the state of every layer is zero before this step, even if it was NaN. Not with packed
            input, ``bidirectional`` or ``reverse``.

    Raises:
        ValueError, RuntimeError: as torch.nn.GRU for the same arguments, before any launch.
        ValueError, TypeError, RuntimeError: the shape, dtype or device of lengths or resets is wrong, or they cannot be
            combined with this input or these options.
        ValueError: the backend is unknown, or ``reverse`` is combined with ``bidirectional``.
        RuntimeError: a backend other than "auto" cannot serve the call.
        RuntimeError: an earlier call on the device has given up waiting (see `triton_gru.raise_if_hung`).
    """

    torch_class = nn.GRU
    # input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device
    _empty_args = 1, 1, 1, True, False, 0.0, False, "meta"
    _empty_torch_args = *_empty_args[:-1], 0, "meta"  # nn.GRU has proj_size (0) before device

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
        """Return ``output, h_n``, of the shapes in the docstring of `GRU`."""
        if lengths is None and resets is None and (serve := route.find_cached_gru_route(self, input, hx)) is not None:
            return serve(self, input, hx)
        return route.route_gru(self, input, hx, lengths, resets)(self, input, hx, lengths, resets)

    def plan(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> Plan:
        """Return the plan of ``self(input, hx, lengths, resets)``, without computing the GRU.

        The plan has the kernel and its configuration. It tells whether the configuration was tuned, and why the other
        kernels were not chosen. ``print(plan)`` writes a report.

        Raises what the call itself raises before it runs. Exception: an earlier call that gave up is not reported.
        """
        return route.plan_call(bind_gru(self, input, hx, lengths, resets))

    def stream(self, batch_size: int) -> Stream:
        """Return a `Stream`, which runs this GRU frame by frame and keeps the state of ``batch_size`` sequences."""
        return Stream(self, batch_size)

    def extra_repr(self) -> str:
        return super().extra_repr() + _format_extra_options(self)

    def _must_break_graph(self) -> bool:
        """Return whether torch.compile must break the graph at this GRU, because `nn.GRU` serves its calls.

        torch.compile breaks the graph at every `nn.GRU`, too. With fullgraph=True, the result is False.
        """
        return route.stops_compiler(self)


class GRUCell(StandIn, nn.RNNCellBase):
    """A single GRU step, interchangeable with `torch.nn.GRUCell`.

        cell = triton_gru.GRUCell(40, 64, device="cuda").eval()
        with torch.inference_mode():
            h = cell(torch.randn(16, 40, device="cuda"))  # [B, I] -> [B, H]

    The parameters, `state_dict`, shapes, defaults and errors are those of `torch.nn.GRUCell`. The formula is that of
    `GRU`.

    `nn.GRUCell` serves a call that autograd records, in `eval()` too. To use the kernels, call the cell under
    ``torch.no_grad()`` or ``torch.inference_mode()``. Exception: in `eval()` the kernels also serve recorded calls if
    ``reset_after`` is False or ``backend`` names a kernel. A backward then raises.

    Args:
        input_size: number of features I of the input.
        hidden_size: number of features H of the hidden state.
        bias, device, dtype: as in torch.nn.GRUCell.
        reset_after, backend: as in `GRU`.

    Shapes:
        input: [B, I], or [I] unbatched.
        hx: [B, H], or [H] unbatched. Zeros if not given.
        result: as hx.

    dtypes: as `GRU`.

    Raises:
        ValueError, RuntimeError: as torch.nn.GRUCell for the same arguments, before any launch.
        ValueError, RuntimeError: the backend is unknown or cannot serve the call, as in `GRU`.
        RuntimeError: an earlier call on the device has given up waiting (see `triton_gru.raise_if_hung`).
    """

    torch_class = nn.GRUCell
    _empty_args = _empty_torch_args = 1, 1, True, "meta"  # input_size, hidden_size, bias, device

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
        """Return the next state, of the shape in the docstring of `GRUCell`."""
        if (serve := route.find_cached_cell_route(self, input, hx)) is not None:
            return serve(self, input, hx)
        return route.route_cell(self, input, hx)(self, input, hx)

    def plan(self, input: Tensor, hx: Tensor | None = None) -> Plan:
        """Return the plan of ``self(input, hx)``, as `GRU.plan`."""
        return route.plan_call(bind_cell(self, input, hx))

    def extra_repr(self) -> str:
        return super().extra_repr() + _format_extra_options(self)


def _format_extra_options(module: GRU | GRUCell) -> str:
    """Return the end of a module's repr: the options that nn.GRU lacks, if set, or ''."""
    unsupported = Options.from_module(module).unsupported_by_nn_gru
    text = f", {unsupported}" if unsupported else ""
    return text if module.backend == "auto" else f"{text}, backend={module.backend!r}"
