"""Conversion of a module's arguments to a `Call`: checked, in autocast's dtype, and without a copy where possible."""

import dataclasses
import operator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.backends.cudnn import CUDNN_TENSOR_DTYPES
from torch.nn.utils.rnn import PackedSequence

from ..plan.problem import Problem
from ..plan.validity import too_many_rows_reason
from ..reference import LayerWeights
from .checks import add_batch_dim, add_cell_batch_dim, check_cell, check_gru, unsqueeze_if_given
from .options import Options
from .readable import materialize, unreadable_reason, unreadable_weights_reason
from .sequences import Sequences, sequences_from_lengths, unpack_input
from .torch_state import TorchState, autocast_dtype, records_gradient


@dataclass
class Call:
    """A call with its arguments in one form: batched and time first.

    Attributes:
        problem: what a plan depends on.
        input: [T, B, I], a view of the caller's input. For packed input, its data [N, I].
        hx: [layers * directions, B, H], or None for zeros. For packed input, in the order of its rows.
        weights: of layer 0 (forward, then backward if bidirectional), layer 1, and so on.
        sequences: where the sequences end.
        resets: uint8 [T, B], not 0 where a sequence restarts before a step; or None.
        options: the module's settings.
    """

    problem: Problem
    input: Tensor
    hx: Tensor | None
    weights: list[LayerWeights]
    sequences: Sequences
    resets: Tensor | None
    options: Options

    @property
    def batch_first(self) -> bool:
        """Return whether the output's memory is batch first."""
        return self.options.batch_first and self.sequences.layout != "packed"

    @property
    def dropout(self) -> float:
        """Return the probability of dropout between layers, which is 0 in `eval()`."""
        return self.options.dropout if self.options.training else 0.0

    def initial_state(self) -> Tensor:
        """Return hx, or zeros if the caller passed None."""
        if self.hx is not None:
            return self.hx
        return self.input.new_zeros(len(self.weights), self.sequences.batch_size, self.problem.hidden_size)


def bind_gru(
    gru, input: Tensor | PackedSequence, hx: Tensor | None, lengths: Tensor | None = None, resets: Tensor | None = None
) -> Call:
    """Return the `Call` for ``gru(input, hx, lengths, resets)`` of a `triton_gru.GRU`.

    Raises what torch.nn.GRU raises for the same arguments. Exception: where torch.nn.GRU fails inside a matrix product,
    our error has the same type and a clearer message.
    """
    check_gru(gru, input, hx, lengths, resets)
    options, weights = Options.from_module(gru), weights_of_gru(gru)
    if isinstance(input, PackedSequence):
        data, hx, sequences = unpack_input(gru, input, hx)
        return _bind(options, data, hx, weights, sequences)
    input, hx, resets = add_batch_dim(gru.batch_first, input, hx, resets)
    return bind_dense(options, input, hx, weights, lengths, resets)


def bind_cell(cell, input: Tensor, hx: Tensor | None) -> Call:
    """Return the `Call` of one step for ``cell(input, hx)``. Raises as `bind_gru`, by torch.nn.GRUCell."""
    check_cell(cell, input, hx)
    input, hx = to_gru_arguments(input, hx)
    sequences = Sequences("dense", 1, input.size(1))
    return _bind(Options.from_module(cell), input, hx, [weights_of_cell(cell)], sequences, is_cell=True)


def bind_dense(
    options: Options,
    input: Tensor,
    hx: Tensor | None,
    weights: list[LayerWeights],
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> Call:
    """Return the `Call` for dense, batched arguments that have been checked."""
    if options.batch_first:
        input = input.transpose(0, 1)
        resets = None if resets is None else resets.transpose(0, 1)
    if resets is not None:
        resets = resets.contiguous().view(torch.uint8)
    steps, batch_size, _ = input.shape
    if lengths is None:
        sequences = Sequences("dense", steps, batch_size)
    else:
        sequences = sequences_from_lengths(lengths, steps, input.device)
    return _bind(options, input, hx, weights, sequences, resets)


def _bind(
    options: Options,
    input: Tensor,
    hx: Tensor | None,
    weights: list[LayerWeights],
    sequences: Sequences,
    resets: Tensor | None = None,
    is_cell: bool = False,
) -> Call:
    input, hx, weights = cast_for_autocast(input, hx, weights)
    input, hx = materialize(input), materialize(hx)
    ends = {"layout": sequences.layout, "resets": resets is not None}
    problem = options.to_problem(sequences.steps, sequences.batch_size, input.dtype, **ends)
    call = Call(problem, input, hx, weights, sequences, resets, options)
    if reason := _unsupported_reason(call, is_cell):
        call.problem = dataclasses.replace(problem, unsupported_reason=reason)
    return call


def _unsupported_reason(call: Call, is_cell: bool) -> str:
    """Return why no kernel can serve this call at any shape, or ''.

    Any global setting read here must also be in `TorchState`, which is part of the signature of a kept call.
    """
    options, input, hx = call.options, call.input, call.hx
    if options.is_training_call:
        return "the module is in training mode with grad enabled, and the kernels are for inference"
    if call.dropout > 0 and options.num_layers > 1:
        return "the module is in training mode with dropout between layers"
    if reason := TorchState.current(input.device).unsupported_reason(options.backend):
        return reason
    for tensor in (input, hx, call.sequences.lengths, call.resets):
        if tensor is not None and (reason := unreadable_reason(tensor)):
            return reason
    if hx is not None and hx.dtype != input.dtype:
        return "input and hx differ in dtype"
    if reason := unreadable_weights_reason(options, call.weights, input):
        return reason
    # In eval(), torch can compute a backward of the calls that it does not give to cuDNN.
    is_without_cudnn = is_cell or input.dtype not in CUDNN_TENSOR_DTYPES or input.numel() == 0
    can_torch_serve = options.backend == "auto" and options.reset_after and call.resets is None
    if can_torch_serve and is_without_cudnn and records_gradient((input, hx, *flatten_weights(call.weights))):
        return "autograd records the call, and torch can compute its backward: call it under torch.no_grad()"
    return too_many_rows_reason(input.size(0)) if call.sequences.layout == "packed" else ""


def to_gru_arguments(input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return a cell's input and state in the shapes of a GRU of one layer: [1, B, I] and [1, B, H]."""
    input, hx = add_cell_batch_dim(input, hx)
    return input.unsqueeze(0), unsqueeze_if_given(hx, 0)


def cast_for_autocast(
    input: Tensor, hx: Tensor | None, weights: list[LayerWeights]
) -> tuple[Tensor, Tensor | None, list[LayerWeights]]:
    """Cast the arguments and weights to autocast's dtype if autocast is on. float64 stays, as for cuDNN's GRU."""
    dtype = autocast_dtype(input.device)
    if dtype is None:
        return input, hx, weights

    def cast(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)

    return cast(input), cast(hx), [tuple(map(cast, layer)) for layer in weights]


def weights_of_gru(gru) -> list[LayerWeights]:
    """Return the weights of each layer and direction, looked up by name.

    The list ``_flat_weights`` may be out of date, and torch only updates it by ``flatten_parameters``, which moves the
    parameters. If a module that shares the parameters has been captured in a CUDA graph, the graph would then read the
    old memory.
    """
    weights = [getattr(gru, name) for name in gru._flat_weights_names]
    if not torch.compiler.is_compiling() and any(map(operator.is_not, weights, gru._flat_weights)):
        _update_flat_weights(gru, weights)
    return group_weights(weights, gru.bias)


def _update_flat_weights(gru, weights: list[Tensor]) -> None:
    """Put replaced parameters into ``_flat_weights``. Otherwise this list keeps the old parameters alive."""
    pairs = zip(weights, gru._flat_weights)
    gru._flat_weights = [new if isinstance(new, torch.nn.Parameter) else old for new, old in pairs]


def weights_of_cell(cell) -> LayerWeights:
    """Return the weights of a cell."""
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


def group_weights(flat: list[Tensor], bias: bool) -> list[LayerWeights]:
    """Return torch's flat list of weights, grouped by layer and direction."""
    per_layer = 4 if bias else 2
    return [
        (*flat[i : i + 2], *(flat[i + 2 : i + 4] if bias else (None, None))) for i in range(0, len(flat), per_layer)
    ]


def make_weights_contiguous(weights: list[LayerWeights]) -> list[LayerWeights]:
    """Return contiguous weights. Those that are not contiguous are copied."""
    return [tuple(None if w is None else w.contiguous() for w in layer) for layer in weights]


def flatten_weights(weights: list[LayerWeights]) -> list[Tensor]:
    """Return weights as torch's flat list. Undoes `group_weights`."""
    return [w for layer in weights for w in layer if w is not None]
