"""From a module and its call to a `Call`: checked, as torch.nn.GRU checks, and without a copy where possible."""

import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.backends.cudnn import CUDNN_TENSOR_DTYPES
from torch.nn.utils.rnn import PackedSequence

from ..plan.problem import Problem
from ..plan.validity import why_too_many_rows
from ..reference import Weights
from .readable import materialize, unreadable_reason, unreadable_weights_reason
from .sequences import Sequences, of_lengths, unpacked


@dataclass
class Call:
    """One call, batched.

    Attributes:
        input: [T, B, I], a time-first view of what the caller passed; of packed input the data [N, I].
        hx: [layers * directions, B, H], or None for zeros; of packed input in the order of its rows.
        weights: of layer 0 (forward, then backward if bidirectional), layer 1, and so on.
        sequences: where they end.
        resets: uint8 [T, B], not 0 where a sequence restarts before a step; or None.
        batch_first: the output is to be laid out batch first.
        dropout: the probability in force between layers; zero outside training.
        training: the module's mode.
    """

    problem: Problem
    input: Tensor
    hx: Tensor | None
    weights: list[Weights]
    sequences: Sequences
    resets: Tensor | None = None
    batch_first: bool = False
    dropout: float = 0.0
    training: bool = False

    def initial_state(self) -> Tensor:
        """hx, made of zeros where the caller passed none."""
        if self.hx is not None:
            return self.hx
        return self.input.new_zeros(len(self.weights), self.sequences.batch_size, self.problem.hidden_size)


def bind_gru(
    gru, input: Tensor | PackedSequence, hx: Tensor | None, lengths: Tensor | None = None, resets: Tensor | None = None
) -> Call:
    """The `Call` for ``gru(input, hx, lengths, resets)``. ``gru`` is a `torch.nn.RNNBase` in GRU mode.

    Raises what torch.nn.GRU raises for the same arguments; where it would fail inside a matrix product, a
    clearer error of the same type.
    """
    check_gru(gru, input, hx, lengths, resets)
    weights = weights_of_gru(gru)
    if isinstance(input, PackedSequence):
        data, hx, sequences = unpacked(gru, input, hx)
        return _call(gru, data, hx, weights, sequences, None)
    input, hx, resets = batched(gru, input, hx, resets)
    return bind_dense(gru, input, hx, weights, lengths, resets)


def batched(gru, input: Tensor, hx: Tensor | None, resets: Tensor | None):
    """The three with a batch: as they are, or of one sequence where ``input`` has none."""
    if input.dim() == 3:
        return input, hx, resets
    batch = 0 if gru.batch_first else 1
    return input.unsqueeze(batch), _unsqueezed(hx, 1), _unsqueezed(resets, batch)


def _unsqueezed(tensor: Tensor | None, dim: int) -> Tensor | None:
    return None if tensor is None else tensor.unsqueeze(dim)


def bind_dense(
    gru, input: Tensor, hx: Tensor | None, weights: list[Weights], lengths: Tensor | None, resets: Tensor | None
) -> Call:
    """`bind_gru` of arguments that are batched, not packed, and have been checked."""
    if gru.batch_first:
        input = input.transpose(0, 1)
        resets = None if resets is None else resets.transpose(0, 1)
    if resets is not None:
        resets = resets.contiguous().view(torch.uint8)
    steps, batch_size, _ = input.shape
    dense = lengths is None
    sequences = Sequences("dense", steps, batch_size) if dense else of_lengths(lengths, steps, input.device)
    return _call(gru, input, hx, weights, sequences, resets)


def _call(
    gru, input: Tensor, hx: Tensor | None, weights: list[Weights], sequences: Sequences, resets: Tensor | None
) -> Call:
    input, hx, weights = autocast(input, hx, weights)
    input, hx = materialize(input), materialize(hx)
    problem = _problem(gru, input, hx, weights, sequences, resets)
    dropout = gru.dropout if gru.training else 0.0
    batch_first = gru.batch_first and sequences.layout != "packed"
    return Call(problem, input, hx, weights, sequences, resets, batch_first, dropout, gru.training)


def weights_of_gru(gru) -> list[Weights]:
    """Return the weights of each layer and direction, looked up by name.

    Not from ``_flat_weights``: torch brings that list up to date by ``flatten_parameters``, which moves the parameters.
    A CUDA graph that another module sharing them has captured would go on reading the memory that they left.
    """
    weights = [getattr(gru, name) for name in gru._flat_weights_names]
    if not torch.compiler.is_compiling() and any(map(operator.is_not, weights, gru._flat_weights)):
        _forget_old_weights(gru, weights)
    return grouped(weights, gru.bias)


def _forget_old_weights(gru, weights: list[Tensor]) -> None:
    """Put parameters that are new into ``_flat_weights``, which would keep those alive that they have replaced."""
    replaced = zip(weights, gru._flat_weights)
    gru._flat_weights = [new if isinstance(new, torch.nn.Parameter) else old for new, old in replaced]


def grouped(flat: list[Tensor], bias: bool) -> list[Weights]:
    """torch's flat list of weights, by layer and direction."""
    per_layer = 4 if bias else 2
    return [
        (*flat[i : i + 2], *(flat[i + 2 : i + 4] if bias else (None, None))) for i in range(0, len(flat), per_layer)
    ]


def flat(weights: list[Weights]) -> list[Tensor]:
    """The reverse of `grouped`."""
    return [w for layer in weights for w in layer if w is not None]


def beyond_torch(module) -> str:
    """What is set of a module, ours or torch's, that no GRU of torch's has; empty if nothing."""
    before, backward = not getattr(module, "reset_after", True), getattr(module, "reverse", False)
    if not (before or backward):
        return ""  # soon: every call asks
    return ", ".join(["reset_after=False"] * before + ["reverse=True"] * backward)


BOTH_AND_REVERSE = "reverse is for one direction: a bidirectional GRU goes both ways as it is"


def check_gru(
    gru, input: Tensor | PackedSequence, hx: Tensor | None, lengths: Tensor | None, resets: Tensor | None
) -> None:
    """Raises what is wrong with a call's arguments. Looks at shapes, dtypes and devices, which may be symbolic."""
    packed = isinstance(input, PackedSequence)
    if gru.reverse and gru.bidirectional:  # assigned later
        raise ValueError(BOTH_AND_REVERSE)
    if resets is not None and (packed or gru.bidirectional or gru.reverse):
        kind = "packed input" if packed else "a bidirectional GRU" if gru.bidirectional else "a reverse GRU"
        raise ValueError(f"resets cannot go with {kind}")
    if packed:
        if lengths is not None:
            raise ValueError("lengths cannot go with packed input, which has its own")
        data = input.data
        _check_input(gru, data, 2)
        if hx is not None:
            gru.check_hidden_size(hx, gru.get_expected_hidden_size(data, input.batch_sizes))
    else:
        if input.dim() not in (2, 3):
            raise ValueError(f"GRU: Expected input to be 2D or 3D, got {input.dim()}D instead")
        data = input
        if hx is not None and hx.dim() != input.dim():
            kind = "batched 3-D" if input.dim() == 3 else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor")
        whole, state, _ = batched(gru, input, hx, None)
        _check_input(gru, whole, 3)
        if state is not None:
            gru.check_hidden_size(state, gru.get_expected_hidden_size(whole, None))
        if whole.size(1 if gru.batch_first else 0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if lengths is not None:
            _check_lengths(lengths, whole.size(0 if gru.batch_first else 1) if input.dim() == 3 else None)
        if resets is not None:
            _check_resets(resets, input)
    _check_same_place(data, hx, getattr(gru, gru._all_weights[0][0]))


def _check_input(gru, input: Tensor, dimensions: int) -> None:
    """Raise what ``gru.check_input`` raises. That asks a list for the weights' dtype which may be of older weights."""
    weight = getattr(gru, gru._all_weights[0][0])
    if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )
    if input.dim() != dimensions:
        raise RuntimeError(f"input must have {dimensions} dimensions, got {input.dim()}")
    if input.size(-1) != gru.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {gru.input_size}, got {input.size(-1)}"
        )


def _check_lengths(lengths: Tensor, batch_size: int | None) -> None:
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be a tensor of integers, got {type(lengths).__name__}")
    if lengths.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"lengths must be a tensor of integers, got one of {lengths.dtype}")
    if batch_size is None:
        raise ValueError("lengths need batched input")
    if lengths.dim() != 1 or lengths.size(0) != batch_size:
        raise ValueError(f"lengths must be of shape [{batch_size}], one for each sequence, got {list(lengths.shape)}")


def _check_resets(resets: Tensor, input: Tensor) -> None:
    if not isinstance(resets, Tensor) or resets.dtype != torch.bool:
        raise TypeError(f"resets must be a tensor of bools, got {getattr(resets, 'dtype', type(resets).__name__)}")
    if resets.shape != input.shape[:-1]:
        raise ValueError(
            f"resets must be of input's shape without its features, {list(input.shape[:-1])}, got {list(resets.shape)}"
        )
    if resets.device != input.device:
        raise RuntimeError(f"resets and input are not at the same device: {resets.device} and {input.device}")


def bind_cell(cell, input: Tensor, hx: Tensor | None) -> Call:
    """The `Call` of one step for ``cell(input, hx)``. Raises what torch.nn.GRUCell raises, likewise."""
    check_cell(cell, input, hx)
    input, hx = as_one_step(input, hx)
    input, hx, weights = autocast(input, hx, [weights_of_cell(cell)])
    input, hx = materialize(input), materialize(hx)
    sequences = Sequences("dense", 1, input.size(1))
    return Call(_problem(cell, input, hx, weights, sequences, None), input, hx, weights, sequences)


def as_one_step(input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A cell's input and state as those of a GRU of one layer, [1, B, I] and [1, B, H]."""
    input, hx = _with_batch(input, hx)
    return input.unsqueeze(0), _unsqueezed(hx, 0)


def _with_batch(input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return (input, hx) if input.dim() == 2 else (input.unsqueeze(0), _unsqueezed(hx, 0))


def weights_of_cell(cell) -> Weights:
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


def check_cell(cell, input: Tensor, hx: Tensor | None) -> None:
    """As `check_gru`."""
    if input.dim() not in (1, 2):
        raise ValueError(f"GRUCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if hx is not None and hx.dim() not in (1, 2):
        raise ValueError(f"GRUCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
    whole, state = _with_batch(input, hx)
    if whole.size(1) != cell.input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {whole.size(1)} expected {cell.input_size}")
    if state is not None:
        if state.size(0) != whole.size(0):
            raise RuntimeError(f"Input batch size {whole.size(0)} doesn't match hidden0 batch size {state.size(0)}")
        if state.size(1) != cell.hidden_size:
            raise RuntimeError(
                f"hidden0 has inconsistent hidden_size: got {state.size(1)}, expected {cell.hidden_size}"
            )
        if state.dim() != 2:
            raise RuntimeError("hidden0 must have as many dimensions as input: both with a batch, or neither")
    _check_same_place(input, hx, cell.weight_ih)
    if input.dtype != cell.weight_ih.dtype and autocast_dtype(input.device) is None:
        raise RuntimeError(f"input dtype {input.dtype} does not match weight dtype {cell.weight_ih.dtype}")


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
    if hx is not None and hx.dtype != input.dtype and autocast_dtype(input.device) is None:
        raise RuntimeError(f"hx dtype ({hx.dtype}) does not match input dtype ({input.dtype})")


def _problem(
    module, input: Tensor, hx: Tensor | None, weights: list[Weights], sequences: Sequences, resets: Tensor | None
) -> Problem:
    ends = {"layout": sequences.layout, "resets": resets is not None}
    obstacle = _obstacle(module, input, hx, weights, sequences, resets)
    return problem_of(module, sequences.steps, sequences.batch_size, input.dtype, obstacle=obstacle, **ends)


def problem_of(module, steps: int, batch_size: int, dtype: torch.dtype, **ends) -> Problem:
    """A call of a GRU or a cell, ours or torch's, in this dtype; ``ends`` as `Problem` has them."""
    return Problem(
        steps=steps,
        batch_size=batch_size,
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        num_layers=getattr(module, "num_layers", 1),
        bidirectional=getattr(module, "bidirectional", False),
        dtype=dtype,
        precision=fp32_precision() if dtype == torch.float32 else "ieee",
        reset_after=getattr(module, "reset_after", True),
        reverse=getattr(module, "reverse", False),
        **ends,
    )


def surroundings(module, input: Tensor) -> tuple:
    """All that decides how a call of ``module`` is served beside its arguments and parameters."""
    device = input.device
    return (
        module.backend,
        module.training,
        module.reset_after,
        torch._C._get_cudnn_enabled(),  # torch.backends.cudnn.enabled, without the way there
        fp32_precision() if input.dtype == torch.float32 else "",
        autocast_dtype(device),
        torch.jit.is_tracing(),
        torch._C._functorch.peek_interpreter_stack() is None,
        torch._C._len_torch_dispatch_stack(),
        torch.autograd.forward_ad._current_level,
    )


def places(weights: Iterable[Tensor | None]) -> list:
    """Where they lie, and how, which may change in place."""
    return [(w.data_ptr(), w.stride(), w.dtype, w.is_neg()) for w in weights if w is not None]


# NVIDIA's libraries never use TF32 if this variable is 0, whatever torch asks for. They read it once as well.
_TF32_FORBIDDEN = os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"


def fp32_precision() -> str:
    """Return how torch multiplies fp32 numbers in recurrent networks on this machine: ``"tf32"`` or ``"ieee"``."""
    if _TF32_FORBIDDEN:
        return "ieee"
    # torch.backends.cudnn.rnn.fp32_precision, without the way there.
    return "tf32" if torch._C._get_fp32_precision_getter("cuda", "rnn") == "tf32" else "ieee"


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """That of torch.autocast on the device, None where it is not enabled."""
    if not torch._C._is_any_autocast_enabled():
        return None  # soon: every call asks
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


def autocast(input: Tensor, hx: Tensor | None, weights: list[Weights]) -> tuple[Tensor, Tensor | None, list[Weights]]:
    """Them in the dtype of torch.autocast where it is enabled: all but float64, as it does for cuDNN's GRU."""
    dtype = autocast_dtype(input.device)
    if dtype is None:
        return input, hx, weights

    def cast(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)

    return cast(input), cast(hx), [tuple(map(cast, layer)) for layer in weights]


def records_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether autograd would record a call of these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _torch_has_backward_in_eval(module, input: Tensor, resets: Tensor | None) -> bool:
    """Return whether torch serves the call and has its backward in `eval()` on a GPU: where it does not call cuDNN."""
    if not module.reset_after or resets is not None:
        return False
    is_cell = isinstance(module, torch.nn.RNNCellBase)
    return is_cell or input.dtype not in CUDNN_TENSOR_DTYPES or input.numel() == 0


def _obstacle(
    module, input: Tensor, hx: Tensor | None, weights: list[Weights], sequences: Sequences, resets: Tensor | None
) -> str:
    """Return why no kernel can serve the call, whatever its shape; empty if one can.

    Every global setting that is read here has to be in `surroundings` or in the form of a prepared call.
    """
    if module.training:
        if torch.is_grad_enabled():
            return "the module is in training mode with grad enabled, and the kernels are for inference"
        if getattr(module, "dropout", 0.0) > 0 and module.num_layers > 1:
            return "the module is in training mode with dropout between layers"
    if module.backend == "auto" and not torch.backends.cudnn.enabled:
        return "torch.backends.cudnn.enabled is False"
    if torch.jit.is_tracing():
        return "the model is being traced, in whose trace a kernel would leave no sign"
    # Where torch shows a tensor that stands for others, its memory is not what the call is about.
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._len_torch_dispatch_stack() > 0:
        return "a torch.func transform or a dispatch mode is active"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active, and the kernels are for inference"
    for tensor in (input, hx, sequences.lengths, resets):
        if tensor is not None and (reason := unreadable_reason(tensor)):
            return reason
    if hx is not None and hx.dtype != input.dtype:
        return "input and hx differ in dtype"
    if reason := unreadable_weights_reason(module, weights, input):
        return reason
    differentiable = module.backend == "auto" and _torch_has_backward_in_eval(module, input, resets)
    if differentiable and records_gradient((input, hx, *flat(weights))):
        return "autograd records the call, and torch has its backward: call it under torch.no_grad()"
    return why_too_many_rows(input.size(0)) if sequences.layout == "packed" else ""
