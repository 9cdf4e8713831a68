"""The parameters of Flax's GRUCells convert to GRUs that compute the same."""

import copy

import numpy as np
import pytest
import torch

from triton_gru import convert

from .convert_models import SHAPES, assert_agree, make_draw, sigmoid, tensor

# Results of flax.linen.GRUCell and flax.nnx.GRUCell of Flax 0.12.8 (jax 0.10.2) for these numbers. Flax itself is too
# large to install for a test.
LINEN = {
    "ir": {"kernel": [[0.3, -0.5], [-0.9, -1.0]], "bias": [0.2, -0.2]},
    "iz": {"kernel": [[0.6, 0.8], [0.2, 0.5]], "bias": [1.0, 1.0]},
    "in": {"kernel": [[0.1, 0.9], [0.6, -1.0]], "bias": [0.4, 0.3]},
    "hr": {"kernel": [[0.7, -0.9], [0.5, -0.6]]},
    "hz": {"kernel": [[0.7, 0.1], [-0.4, -0.2]]},
    "hn": {"kernel": [[-0.9, -0.8], [0.3, 0.3]], "bias": [0.4, -0.2]},
}
FLAX_X = [[[-0.7, 0.4]], [[0.1, -0.4]], [[0.0, 0.8]]]
FLAX_H = [[[0.9, -0.3]]]
FLAX_OUTPUTS = {
    "linen": [
        [0.7816776037216187, -0.44745081663131714],
        [0.6398244500160217, -0.237494558095932],
        [0.6407586336135864, -0.29798492789268494],
    ],
    "nnx": [
        [0.7420291900634766, -0.43972426652908325],
        [0.5654981136322021, -0.21017563343048096],
        [0.563911497592926, -0.27031266689300537],
    ],
}


def to_arrays(params: dict) -> dict:
    """Return the parameters with float32 arrays instead of lists."""
    return {name: {key: np.asarray(value, np.float32) for key, value in leaf.items()} for name, leaf in params.items()}


def to_nnx(params: dict) -> dict:
    """Return linen's parameters as those of an nnx cell, which has no bias at its recurrent product.

    So the bias of "hn" is left out.
    """
    joined = {
        side: {key: np.concatenate([params[side + gate][key] for gate in "rzn"], -1) for key in keys}
        for side, keys in (("i", ("kernel", "bias")), ("h", ("kernel",)))
    }
    return {"dense_i": joined["i"], "dense_h": joined["h"]}


def make_linen(I: int, H: int) -> dict:
    """Return random parameters of a flax.linen.GRUCell with I inputs and H units."""
    draw = make_draw()
    params = {
        f"{side}{gate}": {"kernel": draw(n, H, scale=H**-0.5)} for side, n in (("i", I), ("h", H)) for gate in "rzn"
    }
    for name in ("ir", "iz", "in", "hn"):
        params[name]["bias"] = draw(H)
    return params


def run_by_hand(x: np.ndarray, h: np.ndarray, params: dict) -> np.ndarray:
    """Return the outputs [T, B, H] of a GRU with linen's parameters, by its formula."""

    def dense(name, value):
        return value @ params[name]["kernel"] + params[name].get("bias", 0)

    outputs = []
    for x_t in x:
        r = sigmoid(dense("ir", x_t) + dense("hr", h))
        z = sigmoid(dense("iz", x_t) + dense("hz", h))
        h = (1 - z) * np.tanh(dense("in", x_t) + r * dense("hn", h)) + z * h
        outputs.append(h)
    return np.stack(outputs)


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_agrees_with_recorded_results_of_flax(api, wrapped):
    params = to_arrays(LINEN) if api == "linen" else to_nnx(to_arrays(LINEN))
    gru = convert.from_flax({"params": params} if wrapped else params)
    assert repr(gru) == "triton_gru.GRU(2, 2)" and not gru.training
    output, _ = gru(torch.tensor(FLAX_X), torch.tensor(FLAX_H))
    assert_agree(output[:, 0], torch.tensor(FLAX_OUTPUTS[api]))


@pytest.mark.parametrize("T, B, I, H", SHAPES)
def test_agrees_with_a_gru_by_hand(T, B, I, H):
    draw, params = make_draw(1), make_linen(I, H)
    x, h = draw(T, B, I), draw(B, H)
    assert_agree(convert.from_flax(params)(tensor(x), tensor(h)[None])[0], run_by_hand(x, h, params))
    del params["hn"]["bias"]
    assert_agree(convert.from_flax(to_nnx(params))(tensor(x), tensor(h)[None])[0], run_by_hand(x, h, params))


def without(params: dict, name: str, key: str) -> dict:
    """Return ``params`` without the entry ``key`` of the layer ``name``."""
    return {**params, name: {inner: value for inner, value in params[name].items() if inner != key}}


# The parameters of an LSTM cell: they have gates i, f, g, o.
LSTM = {f"{side}{gate}": {"kernel": np.ones((2, 2))} for side in "ih" for gate in "ifgo"}


@pytest.mark.parametrize(
    "params, error, text",
    [
        (LSTM, ValueError, "the parameters of one GRUCell.*got ii/kernel, if/kernel"),
        ({"cell": make_linen(3, 4)}, ValueError, "got cell/hn/hr/hz/in/ir/iz"),
        ({"params": {"i": {"kernel": np.ones((2, 2))}}}, ValueError, "got i/kernel"),
        (without(make_linen(3, 4), "hn", "bias"), ValueError, "hn/kernel$"),
        ({**make_linen(3, 4), "ir": np.ones(3)}, ValueError, "got ir, iz"),
        (
            {**make_linen(3, 4), "hn": make_linen(3, 5)["hn"]},
            ValueError,
            r"hn/bias has the shape \(5,\), expected \(4,\)",
        ),
        ({**make_linen(3, 4), "iz": make_linen(2, 4)["iz"]}, ValueError, r"iz/kernel .*expected \(3, 4\)"),
        (
            {**make_linen(3, 4), "ir": {"kernel": np.ones(3, "f"), "bias": np.ones(4, "f")}},
            ValueError,
            r"ir/kernel .*\(3,\)",
        ),
        (
            {**to_nnx(make_linen(3, 4)), "dense_h": to_nnx(make_linen(3, 5))["dense_h"]},
            ValueError,
            r"dense_i/kernel .*\(input, 15\)",
        ),
        (without(to_nnx(make_linen(3, 4)), "dense_i", "bias"), ValueError, "dense_i/kernel, dense_h/kernel$"),
        (
            {**to_nnx(make_linen(3, 4)), "dense_h": {"kernel": np.ones((12, 4), "f")}},
            ValueError,
            r"dense_h.*\(12, 36\)",
        ),
        ([make_linen(3, 4)], TypeError, "got list"),
        ({**make_linen(3, 4), "hz": {"kernel": np.ones((4, 4))}}, TypeError, "hz/kernel is torch.float64"),
    ],
)
def test_refuses_wrong_parameters(params, error, text):
    with pytest.raises(error, match=text):
        convert.from_flax(params)


def test_refuses_an_nnx_bias_of_another_shape():
    params = to_nnx(make_linen(3, 4))
    params["dense_i"]["bias"] = np.ones(4, "f")
    with pytest.raises(ValueError, match=r"dense_i/bias has the shape \(4,\), expected \(12,\)"):
        convert.from_flax(params)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_results_share_no_memory(kind):
    # One input and one unit, gates in torch's order: a conversion needs to move no element of these arrays.
    params = {
        outer: {inner: kind(array) for inner, array in leaf.items()} for outer, leaf in to_nnx(make_linen(1, 1)).items()
    }
    gru = convert.from_flax(params)
    weights_before = copy.deepcopy(gru.state_dict())
    for leaf in params.values():
        for array in leaf.values():
            array[...] = 7
    assert all(torch.equal(value, weights_before[name]) for name, value in gru.state_dict().items())
