"""Modules of torch.nn, and gates written out by hand, convert to GRUs that compute the same."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import triton_gru
from triton_gru import convert

from .convert_models import SHAPES, assert_agree, make_draw, sigmoid, tensor

# ---- torch, both ways

LAYERS = [
    {},
    {"num_layers": 2, "dropout": 0.25},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True, "num_layers": 2},
    {"dtype": torch.float64},
    {"device": "meta"},
]


def has_same_parameters(module: nn.Module, other: nn.Module) -> bool:
    """Return whether the parameters have the same names and values, and share no memory."""
    return all(
        name == other_name and torch.equal(value, other_value) and value.data_ptr() != other_value.data_ptr()
        for (name, value), (other_name, other_value) in zip(
            module.named_parameters(), other.named_parameters(), strict=True
        )
    )


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_torch_layers_both_ways(options):
    theirs = nn.GRU(4, 6, **options).eval()
    ours = convert.from_torch(theirs)
    back = convert.to_torch(ours)
    assert (type(ours), type(back)) == (triton_gru.GRU, nn.GRU)
    assert repr(ours) == f"triton_gru.{theirs!r}" and repr(back) == repr(theirs)
    assert not ours.training and not back.training
    if options.get("device") == "meta":
        assert ours.weight_hh_l0.is_meta and back.weight_hh_l0.is_meta
        return
    assert has_same_parameters(ours, theirs) and has_same_parameters(back, ours)
    x = torch.randn(5, 5, 4, dtype=theirs.weight_hh_l0.dtype)
    for our_result, back_result, expected in zip(ours(x), back(x), theirs(x)):
        assert torch.equal(back_result, expected)
        assert_agree(our_result, expected)


@pytest.mark.parametrize("bias", [True, False])
def test_torch_cells_both_ways(bias):
    theirs = nn.GRUCell(4, 6, bias)
    ours = convert.from_torch(theirs)
    back = convert.to_torch(ours)
    assert (type(ours), type(back)) == (triton_gru.GRUCell, nn.GRUCell)
    assert has_same_parameters(ours, theirs) and has_same_parameters(back, ours)
    x, h = torch.randn(3, 4), torch.randn(3, 6)
    assert_agree(ours(x, h), theirs(x, h))
    assert_agree(back(x, h), theirs(x, h))


def test_conversion_keeps_mode_and_requires_grad():
    theirs = nn.GRU(4, 6).train()
    theirs.weight_hh_l0.requires_grad_(False)
    for converted in (convert.from_torch(theirs), convert.to_torch(theirs)):
        assert converted.training
        assert [parameter.requires_grad for parameter in converted.parameters()] == [True, False, True, True]


def test_from_torch_keeps_options_that_nn_gru_lacks():
    ours = triton_gru.GRU(3, 4, reset_after=False, reverse=True, backend="reference")
    assert repr(convert.from_torch(ours)) == repr(ours)
    cell = triton_gru.GRUCell(3, 4, reset_after=False, backend="reference")
    assert repr(convert.from_torch(cell)) == repr(cell)


def test_conversion_draws_no_random_numbers():
    theirs = nn.GRU(3, 4)
    random_state = torch.get_rng_state()
    convert.from_torch(theirs)
    convert.from_gates(make_gates())
    assert torch.equal(torch.get_rng_state(), random_state)


class Subclass(nn.GRU):
    pass


def make_with_replaced_forward() -> nn.GRU:
    """Return an nn.GRU whose ``forward`` a user has replaced."""
    gru = nn.GRU(3, 4)
    gru.forward = lambda *args: None
    return gru


@pytest.mark.parametrize("converter", [convert.from_torch, convert.to_torch])
@pytest.mark.parametrize(
    "module, text",
    [
        (nn.LSTM(3, 4), "got torch.nn.modules.rnn.LSTM"),
        (Subclass(3, 4), "got .*Subclass"),
        (parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0"), "got .*ParametrizedGRU"),
        (make_with_replaced_forward(), "forward .* has been replaced"),
        ([1], "got builtins.list"),
    ],
)
def test_refuses_other_modules(converter, module, text):
    with pytest.raises(TypeError, match=text):
        converter(module)


def test_from_torch_refuses_pruned_parameters():
    pruned = prune.l1_unstructured(nn.GRU(3, 4), "weight_hh_l0", 0.5)
    with pytest.raises(RuntimeError, match="weight_hh_l0_orig"):
        convert.from_torch(pruned)


@pytest.mark.parametrize(
    "module, text",
    [
        (triton_gru.GRU(3, 4, reset_after=False), "reset_after=False"),
        (triton_gru.GRU(3, 4, reverse=True), "reverse=True"),
        (triton_gru.GRUCell(3, 4, reset_after=False), "reset_after=False"),
    ],
)
def test_to_torch_refuses_options_that_nn_gru_lacks(module, text):
    with pytest.raises(ValueError, match=text):
        convert.to_torch(module)


# ---- gates written out by hand


def make_gates(I: int = 3, H: int = 4) -> list[np.ndarray]:
    """Return random weights as from_gates takes them: W_x [I, H], W_h [H, H] and b [H] of each gate z, r, h."""
    draw = make_draw()
    return [draw(*shape, scale=H**-0.5) for _ in range(3) for shape in ((I, H), (H, H), (H,))]


def run_by_hand(x: np.ndarray, h: np.ndarray, gates: list[np.ndarray]) -> np.ndarray:
    """Return the outputs [T, B, H] of a GRU that resets before the product, by its formula."""
    W_xz, W_hz, b_z, W_xr, W_hr, b_r, W_xh, W_hh, b_h = gates
    outputs = []
    for x_t in x:
        Z = sigmoid(x_t @ W_xz + h @ W_hz + b_z)
        R = sigmoid(x_t @ W_xr + h @ W_hr + b_r)
        h = Z * h + (1 - Z) * np.tanh(x_t @ W_xh + (R * h) @ W_hh + b_h)
        outputs.append(h)
    return np.stack(outputs)


@pytest.mark.parametrize("T, B, I, H", SHAPES)
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_from_gates_agrees_with_a_gru_by_hand(T, B, I, H, kind):
    draw, weights = make_draw(1), make_gates(I, H)
    x, h = draw(T, B, I), draw(B, H)
    gru = convert.from_gates([kind(weight) for weight in weights])
    assert repr(gru) == f"triton_gru.GRU({I}, {H}, reset_after=False)" and not gru.training
    assert not gru.bias_hh_l0.any()
    output, h_n = gru(tensor(x), tensor(h)[None])
    assert_agree(output, run_by_hand(x, h, weights))
    assert_agree(h_n[0], output[-1])


@pytest.mark.parametrize(
    "numpy_dtype, torch_dtype",
    [
        (np.float16, torch.float16),
        (np.float32, torch.float32),
        (np.float64, torch.float64),
        (ml_dtypes.bfloat16, torch.bfloat16),
    ],
)
def test_dtypes_are_kept(numpy_dtype, torch_dtype):
    weights = [weight.astype(numpy_dtype) for weight in make_gates()]
    gru = convert.from_gates(weights)
    assert all(parameter.dtype == torch_dtype for parameter in gru.parameters())
    expected = weights[3].astype(np.float64).T  # W_xr: nn.GRU has the gate r first
    assert torch.equal(gru.weight_ih_l0[:4].double(), torch.from_numpy(expected))


def test_arrays_of_any_memory_layout():
    weights = make_gates()
    weights[0] = np.asfortranarray(weights[0])[::-1]
    gru = convert.from_gates(weights)
    # W_xz becomes rows 4 to 7: nn.GRU has the gate z second.
    assert torch.equal(gru.weight_ih_l0[4:8], torch.from_numpy(weights[0].copy()).T)
    assert all(parameter.is_contiguous() for parameter in gru.parameters())


def alter_gates(index: int, change) -> list[np.ndarray]:
    """Return the weights of `make_gates` with ``change`` applied to the weight ``index``."""
    weights = make_gates()
    weights[index] = change(weights[index])
    return weights


@pytest.mark.parametrize(
    "weights, error, text",
    [
        (make_gates()[:8], ValueError, "9 entries W_xz, W_hz, b_z.*got 8"),
        (make_gates() + make_gates()[:2], ValueError, "output layer, got 11"),
        (alter_gates(0, lambda array: array[0]), ValueError, r"W_xz has the shape \(4,\), expected \(input, hidden\)"),
        (alter_gates(1, lambda array: array[:3]), ValueError, r"W_hz has the shape \(3, 4\), expected \(4, 4\)"),
        (alter_gates(3, lambda array: array.T), ValueError, r"W_xr has the shape \(4, 3\), expected \(3, 4\)"),
        (alter_gates(8, lambda array: array[None]), ValueError, r"b_h has the shape \(1, 4\), expected \(4,\)"),
        (
            alter_gates(4, lambda array: array.astype(np.float64)),
            TypeError,
            "W_hr is torch.float64 .*, but W_xz is torch.float32",
        ),
        (
            alter_gates(2, lambda array: torch.empty(4, device="meta")),
            TypeError,
            "b_z is torch.float32 on meta, but W_xz",
        ),
        (
            [weight.astype(np.int64) for weight in make_gates()],
            TypeError,
            "W_xz is torch.int64, expected one of torch.float16",
        ),
        (alter_gates(5, lambda array: "weights"), TypeError, "b_r is not an array"),
    ],
)
def test_from_gates_refuses_wrong_arrays(weights, error, text):
    with pytest.raises(error, match=text):
        convert.from_gates(weights)
