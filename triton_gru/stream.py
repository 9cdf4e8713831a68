"""A GRU frame by frame: the state kept, one CUDA graph replayed a frame."""

import torch
from torch import Tensor

from .call.bind import autocast_dtype, bind_dense, flat, grouped, places, surroundings, weights_of_gru
from .call.sequences import Sequences
from .launch import execute
from .launch.scans import Scan, room_for_reset_state, whole_step_launches
from .plan.device import capturing, find
from .plan.planner import Plan, choose
from .reference import Weights


class Stream:
    """Runs a `triton_gru.GRU` on ``batch_size`` sequences one frame at a time; made by ``gru.stream(batch_size)``.

    ``stream(x_t)``, x_t [B, I] in the module's dtype and on its device, is the output y_t [B, H] of the last layer:
    what the module gives for the whole sequence, a step at a time. The state of all layers is kept in float32. On a GPU
    a frame is one replay of a CUDA graph of one launch a layer (two with ``reset_after=False``), made anew when the
    module's parameters are replaced (not when they change in place). Where no kernel serves the module, the module
    itself is called, and the state rounded to its dtype from frame to frame.

    No gradient is recorded, whatever the mode. A stream belongs to one thread and one CUDA stream at a time, and
    cannot itself be captured in a graph.

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
        self._key: tuple | None = None
        self._frames: _Frames | None = None

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
        if x.shape != self._shape:
            raise ValueError(f"a frame is of shape {list(self._shape)}, got {list(x.shape)}")
        gru = self._gru
        weight = gru.weight_hh_l0
        # What was found out holds as long as this.
        weights = weights_of_gru(gru)
        key = (surroundings(gru, weight), places(flat(weights)))
        autocast = autocast_dtype(weight.device) is not None
        if x.device != weight.device or (x.dtype != weight.dtype and not autocast):
            raise ValueError(
                f"frames must be {weight.dtype} on {weight.device}, as the weights are, got {x.dtype} on {x.device}"
            )
        if key != self._key:
            if weight.dtype != self._rounded.dtype or weight.device != self._rounded.device:
                raise RuntimeError(
                    f"the module has become {weight.dtype} on {weight.device} since the stream was made, with "
                    f"{self._rounded.dtype} on {self._rounded.device}: make another"
                )
            plan = self.plan(x)
            by_kernel = plan.kernel == "step" and plan.problem.dtype == weight.dtype  # autocast may have another
            self._frames = _Frames(plan, weights, self._carry, self._rounded) if by_kernel else None
            self._key = key
        if self._frames is None:
            return self._call_module(x)
        if capturing(x.device):
            raise RuntimeError("a stream cannot be captured in a CUDA graph: it replays graphs of its own")
        try:
            output = self._frames(x, self._parity, weights)
        except Exception as failure:
            plan = execute.untuned(self._frames.plan, failure, x.device)
            self._frames = _Frames(plan, weights, self._carry, self._rounded)
            output = self._frames(x, self._parity, weights)
        self._parity ^= 1
        return output

    @torch.no_grad()
    def plan(self, x: Tensor) -> Plan:
        """What a frame like ``x`` runs, as `GRU.plan`; ``"step"`` is the graph, another the module itself."""
        gru, device = self._gru, find(x.device)
        frame = x.unsqueeze(1 if gru.batch_first else 0)
        problem = bind_dense(gru, frame, None, weights_of_gru(gru), None, None).problem
        if gru.backend not in ("auto", "torch", "reference", "step"):
            raise RuntimeError(
                f"backend={gru.backend!r} cannot serve a stream: it keeps nothing on chip between frames"
            )
        if gru.backend == "auto" and device is not None and device.isa == "ptx":
            try:  # in a graph, wherever it can
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


class _Frames:
    """The launches of a frame: on a GPU in two graphs, one for each parity.

    They read the module's weights where they lie, and do not keep them alive. Exception: of a weight that is not
    contiguous they read a copy, which every frame brings up to date.
    """

    def __init__(self, plan: Plan, weights: list[Weights], carry: Tensor, rounded: Tensor):
        self.plan, self._carry, self._rounded = plan, carry, rounded
        batch, inputs = plan.problem.batch_size, plan.problem.input_size
        self._sequences = Sequences("dense", 1, batch)
        with torch.inference_mode(False):
            self._x = rounded.new_empty(batch, inputs)
            self._outputs = rounded.new_empty(carry.size(1), batch, plan.problem.hidden_size)
            self._reset_state = room_for_reset_state(plan.problem, rounded)
            self._copies = {
                i: torch.empty_like(weight, memory_format=torch.contiguous_format)
                for i, weight in enumerate(flat(weights))
                if not weight.is_contiguous()
            }
        self._replays = [None, None]

    def __call__(self, x: Tensor, parity: int, weights: list[Weights]) -> Tensor:
        self._x.copy_(x)
        weights = self._contiguous(weights)
        if x.device.type != "cuda":
            execute.start(self._launches(parity, weights))
        else:
            with torch.cuda.device(x.device):
                if self._replays[parity] is None:
                    self._replays[parity] = self._captured(parity, weights)
                self._replays[parity].replay()
        return self._outputs[-1].clone()

    def _contiguous(self, weights: list[Weights]) -> list[Weights]:
        if not self._copies:
            return weights
        values = flat(weights)
        for i, copy in self._copies.items():
            values[i] = copy.copy_(values[i])
        return grouped(values, bias=weights[0][2] is not None)

    def _captured(self, parity: int, weights: list[Weights]) -> torch.cuda.CUDAGraph:
        execute.start(self._launches(parity, weights))  # compiled and loaded before the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            execute.start(self._launches(parity, weights))
        return graph

    def _launches(self, parity: int, weights: list[Weights]):
        problem, config, device = self.plan.problem, self.plan.config, self.plan.device
        shared = {"H": problem.hidden_size, "PRECISION": problem.precision, "ISA": device.isa}
        # A step in the middle of a sequence: the state comes from carry and goes there.
        scan = Scan(problem, self._sequences, None, self._carry, self._carry, None)
        source = self._x
        for layer, of_layer in enumerate(weights):
            scan.begin(layer, [of_layer], self._outputs[layer])
            scan.parity, scan.start, scan.total = parity, 1, 3
            yield from whole_step_launches(scan, source, config, shared, self._rounded, self._reset_state)
            source = self._outputs[layer]
