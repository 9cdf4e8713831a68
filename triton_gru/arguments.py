"""From a module and its call to a `Call`: checked, as torch.nn.GRU checks, and without a copy where possible."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .plan import Problem
from .reference import Weights


@dataclass
class Call:
    """One call, batched.

    Attributes:
        input: [T, B, I], a time-first view of what the caller passed.
        hx: [layers * directions, B, H], or None for zeros.
        weights: of layer 0 (forward, then reverse if bidirectional), layer 1, and so on.
        batch_first: the output is to be laid out batch first.
        dropout: the probability in force between layers; zero outside training.
    """

    problem: Problem
    input: Tensor
    hx: Tensor | None
    weights: list[Weights]
    batch_first: bool = False
    dropout: float = 0.0

    def initial_state(self) -> Tensor:
        """hx, made of zeros where the caller passed none."""
        if self.hx is not None:
            return self.hx
        return self.input.new_zeros(len(self.weights), self.input.size(1), self.problem.hidden_size)


def bind_gru(gru, input: Tensor | PackedSequence, hx: Tensor | None) -> Call:
    """The `Call` for ``gru(input, hx)``. ``gru`` is a `torch.nn.RNNBase` in GRU mode.

    Raises what torch.nn.GRU raises for the same arguments; where it would fail inside a matrix product, a
    clearer error of the same type. Of packed input only the data's dtype and width are looked at.
    """
    gru._update_flat_weights()
    flat = gru._flat_weights
    per_layer = 4 if gru.bias else 2
    weights = [
        (*flat[i : i + 2], *(flat[i + 2 : i + 4] if gru.bias else (None, None))) for i in range(0, len(flat), per_layer)
    ]
    if isinstance(input, PackedSequence):
        gru.check_input(input.data, input.batch_sizes)
        steps, batch_size = len(input.batch_sizes), int(input.batch_sizes[0])
        problem = _problem(gru, input.data, hx, steps, batch_size, "packed input is not supported yet")
        return Call(problem, input.data, hx, weights)

    if input.dim() not in (2, 3):
        raise ValueError(f"GRU: Expected input to be 2D or 3D, got {input.dim()}D instead")
    kind, expected = ("batched 3-D", 3) if input.dim() == 3 else ("unbatched 2-D", 2)
    if hx is not None and hx.dim() != expected:
        raise RuntimeError(f"For {kind} input, hx should also be {expected}-D but got {hx.dim()}-D tensor")
    if input.dim() == 2:
        input = input.unsqueeze(0 if gru.batch_first else 1)
        hx = None if hx is None else hx.unsqueeze(1)
    gru.check_input(input, None)
    if hx is not None:
        gru.check_hidden_size(hx, gru.get_expected_hidden_size(input, None))
    if gru.batch_first:
        input = input.transpose(0, 1)
    steps, batch_size, _ = input.shape
    if steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    _check_same_place(input, hx, flat[0])
    dropout = gru.dropout if gru.training else 0.0
    return Call(_problem(gru, input, hx, steps, batch_size), input, hx, weights, gru.batch_first, dropout)


def bind_cell(cell, input: Tensor, hx: Tensor | None) -> Call:
    """The `Call` of one step for ``cell(input, hx)``. Raises what torch.nn.GRUCell raises, likewise."""
    if input.dim() not in (1, 2):
        raise ValueError(f"GRUCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if hx is not None and hx.dim() not in (1, 2):
        raise ValueError(f"GRUCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
    if input.dim() == 1:
        input = input.unsqueeze(0)
        hx = None if hx is None else hx.unsqueeze(0)
    if input.size(1) != cell.input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {cell.input_size}")
    if hx is not None:
        if hx.size(0) != input.size(0):
            raise RuntimeError(f"Input batch size {input.size(0)} doesn't match hidden0 batch size {hx.size(0)}")
        if hx.size(1) != cell.hidden_size:
            raise RuntimeError(f"hidden0 has inconsistent hidden_size: got {hx.size(1)}, expected {cell.hidden_size}")
        if hx.dim() != 2:
            raise RuntimeError("hidden0 must have as many dimensions as input: both with a batch, or neither")
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    _check_same_place(input, hx, cell.weight_ih)
    if input.dtype != cell.weight_ih.dtype and not _autocast(input.device):
        raise RuntimeError(f"input dtype {input.dtype} does not match weight dtype {cell.weight_ih.dtype}")
    problem = _problem(cell, input, hx, 1, input.size(0))
    return Call(problem, input.unsqueeze(0), None if hx is None else hx.unsqueeze(0), [weights])


def _check_same_place(input: Tensor, hx: Tensor | None, weight: Tensor) -> None:
    if input.device != weight.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, "
            f"found input tensor at {input.device} and parameter tensor at {weight.device}"
        )
    if hx is not None and hx.device != input.device:
        raise RuntimeError(
            "Input and hidden tensors are not at the same device, "
            f"found input tensor at {input.device} and hidden tensor at {hx.device}"
        )
    if hx is not None and hx.dtype != input.dtype and not _autocast(input.device):
        raise RuntimeError(f"hx dtype ({hx.dtype}) does not match input dtype ({input.dtype})")


def _problem(module, input: Tensor, hx: Tensor | None, steps: int, batch_size: int, obstacle: str = "") -> Problem:
    return Problem(
        steps=steps,
        batch_size=batch_size,
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        num_layers=getattr(module, "num_layers", 1),
        bidirectional=getattr(module, "bidirectional", False),
        dtype=input.dtype,
        precision=_fp32_precision() if input.dtype == torch.float32 else "ieee",
        reset_after=module.reset_after,
        obstacle=obstacle or _obstacle(module, input, hx),
    )


def _fp32_precision() -> str:
    """How torch multiplies fp32 numbers in recurrent networks, which is not how it does elsewhere."""
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee"


def _autocast(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def _obstacle(module, input: Tensor, hx: Tensor | None) -> str:
    """Why no kernel can serve the call, whatever its shape."""
    if module.training:
        if torch.is_grad_enabled():
            return "the module is in training mode with grad enabled, and the kernels are for inference"
        if getattr(module, "dropout", 0.0) > 0 and module.num_layers > 1:
            return "the module is in training mode with dropout between layers"
    if module.backend == "auto" and not torch.backends.cudnn.enabled:
        return "torch.backends.cudnn.enabled is False"
    if _autocast(input.device):
        return "autocast is enabled, which is not supported yet"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "the model is being compiled or traced, which is not supported yet"
    # Where torch shows a tensor that stands for others, its memory is not what the call is about.
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._len_torch_dispatch_stack() > 0:
        return "a torch.func transform or a dispatch mode is active"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active, and the kernels are for inference"
    for tensor in (input, hx):
        if tensor is not None and type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"{type(tensor).__name__} is a tensor subclass"
    return ""
