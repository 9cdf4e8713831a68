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
    """A call whose arguments have one form: batched and time first.

    Attributes:
        problem: what a plan depends on.
        input: [T, B, I], a view of the caller's input if autocast does not cast it. For packed input, the data [N, I]
            of the PackedSequence.
        hx: [layers * directions, B, H], or None for zeros. For packed input, in the order of the packed rows.
        weights: an entry for layer 0 (forward, then backward if bidirectional), layer 1, and so on.
        sequences: where the sequences end.
        resets: uint8 [T, B], or None. Where it is not 0, the state becomes zero before the step.
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
        """Return the probability of dropout between layers. In `eval()` it is 0."""
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
    our error has the same type and a clearer message. Raises also if lengths or resets are wrong (`check_gru`), or if
    lengths or batch sizes cannot be copied in the capture of a CUDA graph.
    """
    check_gru(gru, input, hx, lengths, resets)
    options, weights = Options.from_module(gru), weights_of_gru(gru)
    if isinstance(input, PackedSequence):
        data, hx, sequences = unpack_input(gru, input, hx)
        return _bind(options, data, hx, weights, sequences)
    input, hx, resets = add_batch_dim(gru.batch_first, input, hx, resets)
    return bind_dense(options, input, hx, weights, lengths, resets)


def bind_cell(cell, input: Tensor, hx: Tensor | None) -> Call:
    """Return the `Call` for ``cell(input, hx)``: a call of a GRU with one layer and one step.

    Raises what torch.nn.GRUCell raises for the same arguments. As in `bind_gru`, the message is clearer where torch
    fails inside a matrix product.
    """
    check_cell(cell, input, hx)
    input, hx = to_gru_arguments(input, hx)
    sequences = Sequences("dense", steps=1, batch_size=input.size(1))
    return _bind(Options.from_module(cell), input, hx, [weights_of_cell(cell)], sequences, is_cell=True)


def bind_dense(
    options: Options,
    input: Tensor,
    hx: Tensor | None,
    weights: list[LayerWeights],
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    records_grad: bool | None = None,
) -> Call:
    """Return the `Call` for dense, batched arguments, which the caller has checked.

    ``input`` and ``resets`` are [B, T, ...] if ``options.batch_first``, otherwise [T, B, ...]. ``records_grad`` tells
    whether autograd records the call. By default, autograd is asked.
    """
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
    return _bind(options, input, hx, weights, sequences, resets, records_grad=records_grad)


def _bind(
    options: Options,
    input: Tensor,
    hx: Tensor | None,
    weights: list[LayerWeights],
    sequences: Sequences,
    resets: Tensor | None = None,
    is_cell: bool = False,
    records_grad: bool | None = None,
) -> Call:
    """Return the `Call` of arguments that are time first: cast for autocast, ``input`` and ``hx`` materialized.

    If no kernel can serve the call, its problem has the reason. ``records_grad`` is that of `bind_dense`.
    """
    input, hx, weights = cast_for_autocast(input, hx, weights)
    input, hx = materialize(input), materialize(hx)
    problem = options.to_problem(
        sequences.steps, sequences.batch_size, input.dtype, layout=sequences.layout, resets=resets is not None
    )
    call = Call(problem, input, hx, weights, sequences, resets, options)
    if reason := _unsupported_reason(call, is_cell, records_grad):
        call.problem = dataclasses.replace(problem, unsupported_reason=reason)
    return call


def _unsupported_reason(call: Call, is_cell: bool, records_grad: bool | None) -> str:
    """Return why no kernel of any configuration can serve this call, or ''.

    Limits of one kernel, such as the largest hidden size, are not checked here. If this function reads a global setting
    of torch, `TorchState` must have the setting, too. Otherwise a cached route serves calls under another setting.
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
    # A backward through a kernel's output raises. In eval(), a backward through cuDNN's output raises, too, so kernels
    # may replace cuDNN. But torch computes some calls without cuDNN: cells, dtypes that it does not pass to cuDNN
    # (bfloat16), and empty input. These calls have a backward in eval(). So if autograd records such a call, and nn.GRU
    # can serve the call, no kernel does. Exception: a backend that names a kernel.
    is_served_without_cudnn = is_cell or input.dtype not in CUDNN_TENSOR_DTYPES or input.numel() == 0
    can_nn_gru_serve = options.backend == "auto" and options.reset_after and call.resets is None
    if can_nn_gru_serve and is_served_without_cudnn:
        if records_grad is None:
            records_grad = records_gradient((input, hx, *flatten_weights(call.weights)))
        if records_grad:
            return "autograd records the call, and torch can compute its backward: call it under torch.no_grad()"
    return too_many_rows_reason(input.size(0)) if call.sequences.layout == "packed" else ""


def to_gru_arguments(input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return a cell's input and state as those of a GRU with one step and one layer: [1, B, I] and [1, B, H]."""
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

    The module's list ``_flat_weights`` has older weights if newer weights were not assigned as attributes. torch then
    updates the list in ``_init_flat_weights`` only, which also moves the parameters to new memory. A CUDA graph of
    another module with the same parameters would then read the old memory. So this function updates the list without
    moving parameters. Exception: not while torch.compile runs.
    """
    weights = [getattr(gru, name) for name in gru._flat_weights_names]
    if not torch.compiler.is_compiling() and any(map(operator.is_not, weights, gru._flat_weights)):
        _update_flat_weights(gru, weights)
    return group_weights(weights, gru.bias)


def _update_flat_weights(gru, weights: list[Tensor]) -> None:
    """Replace the module's ``_flat_weights`` by ``weights``, so that the list does not keep old parameters in memory.

    Exception: a weight that is no Parameter, but computed at each call, does not replace the entry.
    """
    pairs = zip(weights, gru._flat_weights)
    gru._flat_weights = [weight if isinstance(weight, torch.nn.Parameter) else entry for weight, entry in pairs]


def weights_of_cell(cell) -> LayerWeights:
    """Return the four weights of a cell. Without biases, the last two are None."""
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


def group_weights(flat: list[Tensor], bias: bool) -> list[LayerWeights]:
    """Return torch's flat list of weights as a tuple of four for each layer and direction, with None for no bias."""
    size = 4 if bias else 2
    groups = [flat[start : start + size] for start in range(0, len(flat), size)]
    return [tuple(group) if bias else (*group, None, None) for group in groups]


def make_weights_contiguous(weights: list[LayerWeights]) -> list[LayerWeights]:
    """Return the weights, with a contiguous copy in place of each weight that is not contiguous."""
    return [tuple(None if w is None else w.contiguous() for w in layer) for layer in weights]


def flatten_weights(weights: list[LayerWeights]) -> list[Tensor]:
    """Return the weights as one flat list without the missing biases, as torch has it. Undoes `group_weights`."""
    return [w for layer in weights for w in layer if w is not None]
