"""A GRU frame by frame: the state is kept, and a frame is a call made again."""

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
from .reference import LayerWeights as Layer

_BY_MODULE = object()  # stands in a stream's cache for frames that the module itself makes


class Stream:
    """Runs a `triton_gru.GRU` on ``batch_size`` sequences one frame at a time; made by ``gru.stream(batch_size)``.

    ``stream(x_t)``, x_t [B, I] in the module's dtype and on its device, is the output y_t [B, H] of the last layer:
    what the module gives for the whole sequence, a step at a time. The state of all layers is kept in float32. A frame
    is one launch a layer (two with ``reset_after=False``), which is prepared once. Parameters may be replaced or
    change in place. Where no kernel serves the module, the module itself is called, and the state rounded to its dtype
    from frame to frame.

    No gradient is recorded, whatever the mode. A stream belongs to one thread and one CUDA stream at a time. It cannot
    be captured in a CUDA graph: its state moves between two places, and a replay would always use the same one.

    Raises:
        ValueError: the GRU is bidirectional or runs in reverse, ``batch_size`` is not a positive integer, or x_t not of
            the shape.
        RuntimeError: the backend, asked for by name, cannot serve a stream; the module's dtype or device has changed.
    """

    def __init__(self, gru, batch_size: int):
        if gru.bidirectional or gru.reverse:
            kind = "bidirectional" if gru.bidirectional else "reverse"
            raise ValueError(f"a stream runs forward as frames come: a {kind} GRU needs them all")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
        self._gru = gru
        weight = gru.weight_hh_l0
        self._shape = (batch_size, gru.input_size)
        # Not of inference_mode, where the stream may be made, but not stay.
        with torch.inference_mode(False), torch.no_grad():
            # By parity of the frame: a launch reads all of one state while it writes the other.
            self._carry = weight.new_zeros(2, gru.num_layers, batch_size, gru.hidden_size, dtype=torch.float32)
            self._rounded = self._carry if weight.dtype == torch.float32 else self._carry.to(weight.dtype)
        self._parity = 0
        self._cache = call_cache.RouteCache()

    @property
    def state(self) -> Tensor:
        """float32 [layers, B, H]: a copy of the state after the last frame. May be assigned."""
        return self._carry[self._parity].clone()

    @state.setter
    @torch.no_grad()
    def state(self, value: Tensor) -> None:
        if value.shape != self._carry.shape[1:]:
            raise ValueError(f"the state is of shape {list(self._carry.shape[1:])}, got {list(value.shape)}")
        self._carry[self._parity].copy_(value)
        self._round()

    @torch.no_grad()
    def reset(self, mask: Tensor | None = None) -> None:
        """Forgets the state, of all sequences or of those where ``mask`` (bool [B]) is True."""
        state = self._carry[self._parity]
        if mask is None:
            state.zero_()
        elif mask.dtype != torch.bool or mask.shape != self._shape[:1]:
            raise ValueError(f"mask must be bool of shape [{self._shape[0]}], got {mask.dtype} {list(mask.shape)}")
        else:
            state.masked_fill_(mask[:, None], 0)
        self._round()

    def _round(self) -> None:
        if self._rounded is not self._carry:
            self._rounded[self._parity].copy_(self._carry[self._parity])

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        self._check(x)
        x = materialize(x.to(self._rounded.dtype))  # of another dtype under autocast alone
        gru = self._gru
        signature = call_cache.signature_of(gru, x, None), self._parity
        with torch.cuda.device(x.device) if is_on_other_gpu(x.device) else contextlib.nullcontext():
            frame = self._cache.find(gru, signature) or self._new_frame(x, signature)
            if frame is _BY_MODULE:
                return self._call_module(x)
            _refuse_capture(x.device)
            output = frame(gru, x, None)
        self._parity ^= 1
        return output

    def _check(self, x: Tensor) -> None:
        """Raise what is wrong with a frame."""
        if x.shape != self._shape:
            raise ValueError(f"a frame is of shape {list(self._shape)}, got {list(x.shape)}")
        weight = self._gru.weight_hh_l0
        if x.device != weight.device or (x.dtype != weight.dtype and autocast_dtype(weight.device) is None):
            raise ValueError(
                f"frames must be {weight.dtype} on {weight.device}, as the weights are, got {x.dtype} on {x.device}"
            )
        if weight.dtype != self._rounded.dtype or weight.device != self._rounded.device:
            raise RuntimeError(
                f"the module has become {weight.dtype} on {weight.device} since the stream was made, with "
                f"{self._rounded.dtype} on {self._rounded.device}: make another"
            )

    @torch.no_grad()
    def plan(self, x: Tensor) -> Plan:
        """Return what a frame like ``x`` runs, as `GRU.plan`: ``"step"``, or another by the module itself."""
        gru, device = self._gru, find_device(x.device)
        frame = x.unsqueeze(1 if gru.batch_first else 0)
        problem = bind_dense(Options.from_module(gru), frame, None, weights_of_gru(gru)).problem
        if gru.backend not in ("auto", "torch", "reference", "step"):
            raise RuntimeError(
                f"backend={gru.backend!r} cannot serve a stream: it keeps nothing on chip between frames"
            )
        if gru.backend == "auto" and device is not None:
            try:  # wherever it can
                return choose(problem, device, "step")
            except RuntimeError:
                pass
        return choose(problem, device, gru.backend)

    def _call_module(self, x: Tensor) -> Tensor:
        gru = self._gru
        time = 1 if gru.batch_first else 0
        output, h_n = gru(x.unsqueeze(time), self._carry[self._parity].to(x.dtype))
        self._carry[self._parity].copy_(h_n)
        self._round()
        return output.squeeze(time)

    def _new_frame(self, x: Tensor, signature: tuple) -> Callable:
        """Return what makes a frame like ``x``, and keep it for those to come if it can be made again."""
        plan = self.plan(x)
        if plan.kernel != "step" or plan.problem.dtype != x.dtype:  # autocast may have another dtype
            frame = _BY_MODULE
        else:
            _refuse_capture(x.device)
            try:
                frame = self._prepared(x, plan)
            except Exception as failure:
                frame = self._prepared(x, execute.replace_failing_plan(plan, failure, x.device))
        if frame is not None and signature[0] is not None:
            self._cache.add(signature, frame)
        return frame or functools.partial(self._run, plan)

    def _prepared(self, x: Tensor, plan: Plan) -> Callable | None:
        """Return the launches of a frame like ``x``; None if they read what was made for this frame alone."""
        gru = self._gru
        weights, own = weights_of_gru(gru), ModuleWeights(gru)
        if not (own.has_all(gru, weights) and own.is_unchanged(gru)):
            return None
        output = x.new_empty(1, x.size(0), gru.hidden_size)
        memory = Memory(x, None, output, output, own.of(gru), [*self._carry, *self._rounded])
        return prepare(self._launches(x, plan, weights, output[0], memory.new), own, memory)

    def _run(self, plan: Plan, gru, x: Tensor, hx: None) -> Tensor:
        """Make a frame with launches of its own."""
        output, weights = x.new_empty(x.size(0), gru.hidden_size), weights_of_gru(gru)
        try:
            execute.start(self._launches(x, plan, weights, output, Tensor.new_empty))
        except Exception as failure:
            plan = execute.replace_failing_plan(plan, failure, x.device)
            execute.start(self._launches(x, plan, weights, output, Tensor.new_empty))
        return output

    def _launches(
        self, x: Tensor, plan: Plan, weights: list[Layer], output: Tensor, new: Callable[..., Tensor]
    ) -> Iterator[Launch]:
        problem = plan.problem
        scan = Scan(problem, Sequences("dense", 1, x.size(0)), None, self._carry, self._carry)
        states = step.States(problem, self._carry, self._rounded, new)
        for layer, of_layer in enumerate(make_weights_contiguous(weights)):
            out = output if layer == len(weights) - 1 else new(output, *output.shape)
            scan.begin_layer(layer, [of_layer], out)
            scan.set_middle_step(self._parity)
            yield from step.fused_step_launches(scan, x, plan.config, states)
            x = out


def _refuse_capture(device: torch.device) -> None:
    if is_capturing(device):
        raise RuntimeError("a stream cannot be captured in a CUDA graph: its state moves between two places")
