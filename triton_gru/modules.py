"""`GRU` and `GRUCell`: what torch.nn's modules of those names are, on the kernels of this package."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from . import launch
from .arguments import Call, bind_cell, bind_gru
from .device import find
from .plan import Plan, check_backend, choose


class GRU(nn.RNNBase):
    r"""A multi-layer gated recurrent unit, interchangeable with `torch.nn.GRU`.

    Constructor, parameters, `state_dict`, shapes, defaults and errors are those of `torch.nn.GRU`
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html), whose formula is

    .. math::
        r = \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \qquad
        z = \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n = \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \qquad
        h' = (1 - z) \odot n + z \odot h

    The kernels are for inference: a call in training mode with grad enabled goes to torch's own GRU. In
    `eval()` on a GPU they run whether grad mode is on or not; a backward through their output raises.

    Args:
        input_size: features I of the input.
        hidden_size: features H of the hidden state.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as torch.nn.GRU.
        reset_after: True is torch's GRU. False resets before the recurrent product, as Cho et al.
            (arXiv:1406.1078v3) do: n = tanh(W_in x + b_in + W_hn (r * h) + b_hn). No kernel serves it yet: it
            runs as plain torch.
        backend: ``"auto"`` takes what serves a call best and never refuses one. ``"torch"`` is torch's own GRU,
            ``"reference"`` plain torch step by step, ``"block"``, ``"grid"`` and ``"step"`` those kernels. May be
            assigned later.

    Shapes, with T steps, B batch rows, D = 2 if bidirectional else 1:
        input: [T, B, I], [B, T, I] if batch_first, [T, I] unbatched, or a PackedSequence.
        hx: [D * num_layers, B, H], [D * num_layers, H] unbatched; zeros if not given.
        output: [T, B, D * H], [B, T, D * H] or [T, D * H]; a PackedSequence for packed input.
        h_n: as hx.

    dtypes: float32, float16 and bfloat16 on the kernels; float64 through torch. input, hx and parameters agree.

    Raises:
        ValueError, RuntimeError: what torch.nn.GRU raises for the same arguments, before anything is launched;
            ValueError for an unknown backend; RuntimeError where a backend asked for by name cannot serve the call,
            and where an earlier call on the device turns out to have given up (see `triton_gru.check`).
    """

    # The class's, so that a torch.nn.GRU whose class is changed to this one (accelerate) needs nothing set.
    reset_after = True
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
        backend: str = "auto",
    ) -> None:
        check_backend(backend)
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.reset_after = reset_after
        self.backend = backend

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None):
        """``output, h_n``; shapes as in the class's docstring."""
        if _is_torchs(self, input):
            return nn.GRU.forward(self, input, hx)
        call = bind_gru(self, input, hx)
        plan = _plan(call, self.backend)
        if plan.kernel == "torch":
            return nn.GRU.forward(self, input, hx)
        if isinstance(input, PackedSequence):
            return self._forward_sequences(input, hx)
        output, h_n = launch.run(call, plan)
        if input.dim() == 2:
            return output.squeeze(0 if self.batch_first else 1), h_n.squeeze(1)
        return output, h_n

    def _forward_sequences(self, packed: PackedSequence, hx: Tensor | None):
        """Packed input one sequence at a time, for what neither torch nor a kernel serves packed."""
        sequences = unpack_sequence(packed)
        results = [
            self(x.unsqueeze(0 if self.batch_first else 1), None if hx is None else hx[:, i : i + 1])
            for i, x in enumerate(sequences)
        ]
        outputs = [output.squeeze(0 if self.batch_first else 1) for output, _ in results]
        output = pack_sequence(outputs, enforce_sorted=packed.sorted_indices is None)
        return output, torch.cat([h_n for _, h_n in results], dim=1)

    def plan(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> Plan:
        """What ``self(input, hx)`` would run: kernel, configuration, its source, and why nothing else.

        Prints well. Raises what the call itself would raise; launches nothing.
        """
        return _plan(bind_gru(self, input, hx), self.backend)

    def extra_repr(self) -> str:
        return super().extra_repr() + _own_repr(self)


class GRUCell(nn.RNNCellBase):
    """One GRU step, interchangeable with `torch.nn.GRUCell`: parameters, `state_dict`, shapes and errors.

    Formula, `reset_after`, `backend` and the rule for training are those of `GRU`.

    Shapes: input [B, I] or [I]; hx and the result [B, H] or [H]; hx is zeros if not given.

    Raises:
        ValueError, RuntimeError: as torch.nn.GRUCell and, for backends, `GRU`.
    """

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
        if _is_torchs(self, input):
            return nn.GRUCell.forward(self, input, hx)
        call = bind_cell(self, input, hx)
        plan = _plan(call, self.backend)
        if plan.kernel == "torch":
            return nn.GRUCell.forward(self, input, hx)
        h = launch.run(call, plan)[1][0]
        return h.squeeze(0) if input.dim() == 1 else h

    def plan(self, input: Tensor, hx: Tensor | None = None) -> Plan:
        """What ``self(input, hx)`` would run, as `GRU.plan`."""
        return _plan(bind_cell(self, input, hx), self.backend)

    def extra_repr(self) -> str:
        return super().extra_repr() + _own_repr(self)


def _plan(call: Call, backend: str) -> Plan:
    return choose(call.problem, find(call.input.device), backend)


def _is_torchs(module: GRU | GRUCell, input: Tensor | PackedSequence) -> bool:
    """Whether the call is torch's whatever its arguments: then nothing is to be spent on a plan."""
    if module.backend not in ("auto", "torch") or not module.reset_after:
        return False
    # torch.compile, export and jit.trace get torch's own GRU; planning would be traced, sizes and all.
    if module.backend == "torch" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return find((input.data if isinstance(input, PackedSequence) else input).device) is None


def _own_repr(module: GRU | GRUCell) -> str:
    text = "" if module.reset_after else ", reset_after=False"
    return text if module.backend == "auto" else f"{text}, backend={module.backend!r}"
