"""A GRU frame by frame: the stream keeps the state, and each frame repeats launches that were prepared once."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .call.bind import bind_dense, make_weights_contiguous, weights_of_gru
from .call.options import Options
from .call.readable import materialize
from .call.sequences import Sequences
from .call.torch_state import autocast_dtype
from .launch import call_cache, execute, step
from .launch.kernel_launch import Launch
from .launch.prepared import Memory, ModuleWeights, prepare
from .launch.scan import Scan
from .plan.device import find_device, is_capturing, is_on_other_gpu
from .plan.planner import Plan, choose
from .reference import LayerWeights

# A cache entry in place of a function that runs a frame. The stream has no launches for the frame, so it calls the
# module.
_CALL_MODULE = object()


class Stream:
    """The state of ``batch_size`` sequences, and a `triton_gru.GRU` that runs on them one frame at a time.

        stream = gru.stream(batch_size=3)
        for x_t in x:  # x [T, B, I]
            y_t = stream(x_t)  # [B, I] -> [B, H]

    ``stream(x_t)`` returns the output of the last layer for this time step. The outputs of all frames are those of the
    module for the whole sequence. The stream keeps the state of all layers in float32.

    A frame is one launch of the kernel `step` a layer, or two with ``reset_after=False``. The launches are prepared
    once. If `step` cannot serve the module, the stream calls the module itself, and rounds the state to the dtype of
    the result after each frame. The same holds for backend ``"torch"`` or ``"reference"``, and for autocast to another
    dtype. Parameters may be replaced or change in place.

    A stream records no gradient in any mode. It belongs to one thread and one CUDA stream at a time. It cannot be
    captured in a CUDA graph: the state alternates between two buffers, and a replay would always use the same buffer.

    Shapes:
        x_t: [B, I], in the module's dtype and on its device. Under autocast any dtype is cast.
        y_t: [B, H].
        state: [layers, B, H], float32.

    Raises:
        ValueError: the GRU is bidirectional or runs in reverse, ``batch_size`` is not a positive integer, or x_t has
            another shape, dtype or device.
        RuntimeError: the backend cannot serve a stream, or the module's dtype or device has changed since.
        RuntimeError: a CUDA graph is being captured, and a kernel serves the stream.
        RuntimeError: an earlier call on the device has given up waiting (see `triton_gru.raise_if_hung`).
    """

    def __init__(self, gru, batch_size: int):
        if gru.bidirectional or gru.reverse:
            kind = "bidirectional" if gru.bidirectional else "reverse"
            raise ValueError(f"a stream runs forward, frame by frame: a {kind} GRU needs the whole sequence at once")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
        self._gru = gru
        weight = gru.weight_hh_l0
        self._shape = (batch_size, gru.input_size)
        # Normal tensors, even if the stream is made in inference_mode: a tensor made there cannot change outside of it.
        with torch.inference_mode(False), torch.no_grad():
            # Two buffers of a state [layers, B, H]. A launch reads the state from one buffer and writes the next state
            # to the other buffer. `_state_index` is the index of the buffer with the current state.
            shape = gru.num_layers, batch_size, gru.hidden_size
            self._states = [weight.new_zeros(shape, dtype=torch.float32) for _ in range(2)]
            # The same state, rounded to the module's dtype. The kernel multiplies the rounded state.
            self._rounded_states = [state.to(weight.dtype) for state in self._states]
        self._state_index = 0
        self._cache = call_cache.RouteCache()

    @property
    def state(self) -> Tensor:
        """Return a copy of the state after the last frame, float32 [layers, B, H]. May be assigned."""
        return self._states[self._state_index].clone()

    @state.setter
    @torch.no_grad()
    def state(self, value: Tensor) -> None:
        state = self._states[self._state_index]
        if value.shape != state.shape:
            raise ValueError(f"the state must be of shape {list(state.shape)}, got {list(value.shape)}")
        state.copy_(value)
        self._round_state()

    @torch.no_grad()
    def reset(self, mask: Tensor | None = None) -> None:
        """Set the state to zero: of all sequences, or of those where ``mask`` (bool [B]) is True."""
        state = self._states[self._state_index]
        if mask is None:
            state.zero_()
        elif mask.dtype != torch.bool or mask.shape != self._shape[:1]:
            raise ValueError(f"mask must be bool of shape [{self._shape[0]}], got {mask.dtype} {list(mask.shape)}")
        else:
            state.masked_fill_(mask[:, None], 0)
        self._round_state()

    def _round_state(self) -> None:
        """Round the current state to the module's dtype, after the float32 state was set."""
        state, rounded_state = self._states[self._state_index], self._rounded_states[self._state_index]
        if rounded_state is not state:
            rounded_state.copy_(state)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Run one frame: x [B, I] -> the last layer's output [B, H]. Replace the state by that after the frame."""
        self._check_frame(x)
        # Cast the frame to the module's dtype. Only under autocast may a frame have another dtype.
        x = materialize(x.to(self._rounded_states[0].dtype))
        gru = self._gru
        # The launches of a frame have the addresses of both buffers, so each state index has its own launches.
        signature = call_cache.signature_of(gru, x, None), self._state_index
        with torch.cuda.device(x.device) if is_on_other_gpu(x.device) else contextlib.nullcontext():
            run_frame = self._cache.find(gru, signature) or self._make_frame_runner(x, signature)
            if run_frame is _CALL_MODULE:
                return self._call_module(x)
            _raise_if_capturing(x.device)
            output = run_frame(gru, x, None)
        self._state_index = 1 - self._state_index
        return output

    def _check_frame(self, x: Tensor) -> None:
        """Raise an error if ``x`` does not fit the stream, or if the module has changed its dtype or device."""
        if x.shape != self._shape:
            raise ValueError(f"a frame must be of shape {list(self._shape)}, got {list(x.shape)}")
        weight = self._gru.weight_hh_l0
        if x.device != weight.device or (x.dtype != weight.dtype and autocast_dtype(weight.device) is None):
            raise ValueError(
                f"frames must be {weight.dtype} on {weight.device}, as the weights are, got {x.dtype} on {x.device}"
            )
        made_for = self._rounded_states[0]
        if weight.dtype != made_for.dtype or weight.device != made_for.device:
            raise RuntimeError(
                f"the stream was made for {made_for.dtype} on {made_for.device}, and the module is now {weight.dtype} "
                f"on {weight.device}: make another stream"
            )

    @torch.no_grad()
    def plan(self, x: Tensor) -> Plan:
        """Return the plan of a frame like ``x``, as `GRU.plan`.

        If the plan's kernel is not `step`, or autocast's dtype is not the module's, the module serves the frame.
        """
        gru, device = self._gru, find_device(x.device)
        frame = x.unsqueeze(1 if gru.batch_first else 0)
        problem = bind_dense(Options.from_module(gru), frame, None, weights_of_gru(gru)).problem
        if gru.backend not in ("auto", "torch", "reference", "step"):
            raise RuntimeError(
                f"backend={gru.backend!r} cannot serve a stream, as nothing stays on chip between frames: "
                "set backend='auto' or 'step'"
            )
        if gru.backend == "auto" and device is not None:
            try:  # Take `step` if it can serve the frame, even if nn.GRU or another kernel is estimated to be faster.
                return choose(problem, device, "step")
            except RuntimeError:
                pass
        return choose(problem, device, gru.backend)

    def _call_module(self, x: Tensor) -> Tensor:
        """Run one frame by a call of the module with one time step, and return the output, as `__call__`."""
        gru = self._gru
        time_dim = 1 if gru.batch_first else 0
        output, h_n = gru(x.unsqueeze(time_dim), self._states[self._state_index].to(x.dtype))
        self._states[self._state_index].copy_(h_n)
        self._round_state()
        return output.squeeze(time_dim)

    def _make_frame_runner(self, x: Tensor, signature: tuple) -> Callable:
        """Return the function that runs a frame like ``x``, or `_CALL_MODULE` if the module has to run the frame.

        The function is called with the module, the frame and None for hx. It is cached under ``signature``, unless the
        launches cannot be repeated (`_prepare_frame`) or the call has no signature (``signature[0]`` is None).
        """
        plan = find_step_plan(self, x)
        if plan is None:
            run_frame = _CALL_MODULE
        else:
            _raise_if_capturing(x.device)
            try:
                run_frame = self._prepare_frame(x, plan)
            except Exception as failure:
                plan = execute.replace_failing_plan(plan, failure, x.device)
                run_frame = self._prepare_frame(x, plan)
            if run_frame is None:
                return functools.partial(self._run_once, plan)
        if signature[0] is not None:
            self._cache.add(signature, run_frame)
        return run_frame

    def _prepare_frame(self, x: Tensor, plan: Plan) -> Callable | None:
        """Return the prepared launches of a frame like ``x``, or None if they cannot be repeated for later frames.

        Launches cannot be repeated if they read tensors that were made for this frame only, such as weights that
        are computed at each call.
        """
        gru = self._gru
        weights, module_weights = weights_of_gru(gru), ModuleWeights(gru)
        if not (module_weights.has_all(gru, weights) and module_weights.is_unchanged(gru)):
            return None
        output = x.new_empty(1, x.size(0), gru.hidden_size)
        state_buffers = [*self._states, *self._rounded_states]
        # To `Memory`, a call with one result has this result as its output and as its h_n.
        memory = Memory(x, None, output, output, module_weights.tensors_of(gru), state_buffers)
        return prepare(self._iterate_launches(x, plan, weights, output[0], memory.new), module_weights, memory)

    def _run_once(self, plan: Plan, gru, x: Tensor, hx: None) -> Tensor:
        """Run a frame by launches that are not cached. ``hx`` is ignored: the stream has the state."""
        output, weights = x.new_empty(x.size(0), gru.hidden_size), weights_of_gru(gru)
        try:
            execute.start(self._iterate_launches(x, plan, weights, output, Tensor.new_empty))
        except Exception as failure:
            plan = execute.replace_failing_plan(plan, failure, x.device)
            execute.start(self._iterate_launches(x, plan, weights, output, Tensor.new_empty))
        return output

    def _iterate_launches(
        self, x: Tensor, plan: Plan, weights: list[LayerWeights], output: Tensor, new_empty: Callable[..., Tensor]
    ) -> Iterator[Launch]:
        """Yield the launches of a frame. Those of the last layer write to ``output``.

        ``new_empty(tensor, *shape)`` allocates a tensor of the dtype and device of ``tensor``.
        """
        problem = plan.problem
        sequences = Sequences("dense", steps=1, batch_size=x.size(0))
        # A step in the middle of a call reads and writes the carry only, so hx and h_n are not used.
        scan = Scan(problem, sequences, None, self._states, self._states[0])
        states = step.States(problem, self._states, self._rounded_states, new_empty)
        for layer, layer_weights in enumerate(make_weights_contiguous(weights)):
            layer_output = output if layer == len(weights) - 1 else new_empty(output, *output.shape)
            scan.begin_layer(layer, [layer_weights], layer_output)
            scan.set_middle_step(self._state_index)
            yield from step.fused_step_launches(scan, x, plan.config, states)
            x = layer_output


def find_step_plan(stream: Stream, x: Tensor) -> Plan | None:
    """Return the plan of a frame like ``x`` if the kernel `step` serves the frame, or None if the module does."""
    plan = stream.plan(x)
    # Under autocast, the plan has autocast's dtype. If it is not the dtype of the stream, the module serves the frame.
    return plan if plan.kernel == "step" and plan.problem.dtype == stream._rounded_states[0].dtype else None


def _raise_if_capturing(device: torch.device) -> None:
    if is_capturing(device):
        raise RuntimeError("a stream cannot be captured in a CUDA graph: its state alternates between two buffers")
