"""Random calls of a module, with changes of the module in between, against float64."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import triton_gru
from triton_gru import accuracy
from triton_gru.plan.planner import KERNELS

from .conftest import poison_memory
from .oracle import PRECISIONS, assert_accurate, compute_baseline, set_precision

pytest.importorskip("hypothesis", reason="hypothesis is not installed; scripts/test installs it")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Functions that return a tensor of the same shape, most in another memory layout. "one for all" and "a constant" also
# change values.
VIEWS = {
    "contiguous": torch.clone,
    "transposed": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "strided": lambda t: torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0],
    "sliced": lambda t: torch.cat([t, torch.full_like(t, torch.nan)], -1)[..., : t.size(-1)],
    "at an odd address": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
    "one for all": lambda t: t[:1].expand_as(t),
    "a constant": lambda t: t[..., :1].expand_as(t),
    "negated": lambda t: torch._neg_view(t.neg()),
}
# Changes of a module's weight between calls, given the module, the weight's name, and the weight.
CHANGES = {
    "in place": lambda module, name, weight: 0 in weight.stride() or weight.mul_(-0.9),
    "another": lambda module, name, weight: setattr(module, name, nn.Parameter(-weight)),
    "other data": lambda module, name, weight: setattr(weight, "data", -weight.data),
    "a tensor": lambda module, name, weight: delattr(module, name) or setattr(module, name, -weight.detach()),
    "transposed": lambda module, name, weight: setattr(module, name, nn.Parameter(VIEWS["transposed"](weight))),
    "one for all": lambda module, name, weight: setattr(module, name, nn.Parameter(VIEWS["one for all"](weight))),
    "loaded": lambda module, name, weight: module.load_state_dict({name: -weight}, assign=True, strict=False),
    # torch prunes no weight that is not contiguous.
    "pruned": lambda module, name, weight: not weight.is_contiguous() or prune.random_unstructured(module, name, 0.5),
    "frozen": lambda module, name, weight: weight.requires_grad_(False),
}
MODES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16),
}
SIZES = st.integers(1, 40)
OPTIONS = st.fixed_dictionaries({"bias": st.booleans(), "reset_after": st.booleans()})
LAYERS = st.fixed_dictionaries({"num_layers": st.integers(1, 3), "batch_first": st.booleans()})
DIRECTIONS = st.sampled_from([{}, {"reverse": True}, {"bidirectional": True}])
KINDS = st.sampled_from(["dense", "unbatched", "lengths", "dense", "packed", "resets", "dense"])
# Shared by all calls of a module: the kind, the number of steps and rows, with_hx, the mode.
CALLS = st.tuples(
    KINDS, st.integers(1, 2), st.sampled_from([3, 1, 2, 0]), st.booleans(), st.sampled_from(["no_grad", *MODES])
)
# Layouts of the input and the state, one after the other.
LAYOUTS = st.lists(st.tuples(*[st.sampled_from(list(VIEWS))] * 2), min_size=3, max_size=3, unique=True)


@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_random_calls_with_changes_between(kernel, cell, device, launched):
    @settings(deadline=None, max_examples=2, suppress_health_check=list(HealthCheck))
    @given(
        st.tuples(SIZES, SIZES), OPTIONS, LAYERS, DIRECTIONS, st.sampled_from(list(PRECISIONS)), CALLS, LAYOUTS,
        st.lists(st.sampled_from(list(CHANGES)), max_size=2), st.integers(0, 2**31),
    )  # fmt: skip
    def run_example(sizes, options, layers, directions, precision, call, layouts, changes, seed):
        """Draw one module. Call it three times in each layout, then once in each layout after each change."""
        torch.manual_seed(seed)
        options |= {"dtype": set_precision(precision), "device": device}
        options |= {} if cell else layers | directions
        module = (triton_gru.GRUCell if cell else triton_gru.GRU)(*sizes, **options, backend=kernel).eval()
        for change in (None, None, None, *changes):  # the third call uses what the second has prepared
            if change is not None:
                names = [name for name in _get_weights(module) if name in module._parameters]
                with torch.no_grad():
                    CHANGES[change](module, names[0], module._parameters[names[0]]) if names else None
            for layout in layouts:
                launched.clear()
                batch = _call_checked(module, precision, *call, *layout)
                assert launched.has_only(kernel) if batch else not launched

    run_example()


def _get_weights(module):
    """Return a module's weights by name. The first, which changes, is the recurrent one of the first layer."""
    if isinstance(module, triton_gru.GRU):
        names = sorted(module._flat_weights_names, key=lambda name: name != "weight_hh_l0")
    else:
        names = ["weight_hh", "weight_ih", *(["bias_ih", "bias_hh"] if module.bias else [])]
    return {name: getattr(module, name) for name in names}


def _call_checked(module, precision, kind, steps, batch, with_hx, mode, x_view, hx_view):
    """Call the module on random values. Assert that the results are accurate. Return the number of rows.

    A kind that the module does not support becomes "dense". ``x_view`` and ``hx_view`` are keys of `VIEWS`.
    """
    cell, weight = isinstance(module, triton_gru.GRUCell), next(iter(_get_weights(module).values()))
    is_forward_only = not cell and not module.bidirectional and not module.reverse
    if (kind == "resets" and not is_forward_only) or (cell and kind != "unbatched"):
        kind = "dense"
    batch_first, steps = not cell and module.batch_first, 1 if cell else steps
    batch = 1 if kind == "unbatched" else max(batch, 1) if kind == "packed" else batch
    states = 1 if cell else module.num_layers * (1 + module.bidirectional)
    draw = lambda *shape: torch.randn(shape, device=weight.device).to(weight.dtype)  # noqa: E731
    x = VIEWS[x_view](draw(*((batch, steps) if batch_first else (steps, batch)), module.input_size))
    hx = None if not with_hx else VIEWS[hx_view](draw(states, batch, module.hidden_size))
    sequence_options, call_x, call_hx = {}, x, hx
    if kind in ("lengths", "packed"):
        sequence_options["lengths"] = torch.randint(int(kind == "packed"), steps + 1, (batch,), device=x.device)
        sequence_options["lengths"][:1] = steps
    if kind == "packed":
        call_x = pack_padded_sequence(
            x.resolve_neg(), sequence_options["lengths"].cpu(), batch_first, enforce_sorted=False
        )
    elif kind == "resets":
        sequence_options["resets"] = torch.rand(x.shape[:2], device=x.device) < 0.4
    time = 1 if batch_first else 0
    if cell:
        call_x, call_hx = call_x[0], None if hx is None else hx[0]
    if kind == "unbatched":
        call_x, call_hx = call_x.squeeze(0 if cell else 1 - time), None if hx is None else call_hx.squeeze(-2)
    with MODES[mode](), poison_memory(), torch.no_grad() if mode == "autocast" else contextlib.nullcontext():
        result = module(call_x, call_hx, **({} if kind == "packed" else sequence_options))
        is_recorded = torch.is_grad_enabled() and any(
            parameter.requires_grad for parameter in _get_weights(module).values()
        )
    output, h_n = (result, result) if cell else result
    assert output.data.dtype == (torch.bfloat16 if mode == "autocast" else weight.dtype)
    assert h_n.requires_grad == is_recorded and h_n.is_inference() == (mode == "inference")
    if kind == "packed":
        output, _ = pad_packed_sequence(output, batch_first, total_length=steps)
    if kind == "unbatched":
        output, h_n = output.unsqueeze(0 if cell else 1 - time), h_n.unsqueeze(-2)
    if cell:
        output, h_n = output.unsqueeze(0), h_n.unsqueeze(0)
    dtype, precision = (torch.bfloat16, "bf16") if mode == "autocast" else (weight.dtype, precision)
    x, hx = x.to(dtype), None if hx is None else hx.to(dtype)
    baseline = compute_baseline(_copy_to_plain_gru(module, dtype), x, hx, precision, **sequence_options)
    with torch.no_grad():
        double_gru = _copy_to_plain_gru(module, dtype).double()
        exact = accuracy.compute_baseline(
            double_gru, x.double(), None if hx is None else hx.double(), **sequence_options
        )
    for results in zip((output, h_n), baseline, exact):
        assert_accurate(*results, precision)
    return batch


def _copy_to_plain_gru(module, dtype):
    """Return a GRU in ``dtype`` with copies of the module's current weights. For a cell it has one layer."""
    options = {name: getattr(module, name) for name in ("input_size", "hidden_size", "bias", "reset_after")}
    if isinstance(module, triton_gru.GRU):
        options |= {name: getattr(module, name) for name in ("num_layers", "batch_first", "bidirectional", "reverse")}
        suffix = ""
    else:
        suffix = "_l0"
    weights = {name + suffix: weight for name, weight in _get_weights(module).items()}
    plain = triton_gru.GRU(**options, dtype=dtype, device=next(iter(weights.values())).device)
    plain.load_state_dict(weights)
    return plain.eval()
