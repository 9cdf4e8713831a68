"""The table in triton_gru/convert/README.md: weights in the layout of a row convert to the GRU of that row."""

import pathlib

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx", reason="a machine lent for its GPU may not have it; scripts/test installs it")
from onnx import TensorProto, helper, numpy_helper

from triton_gru import convert, reference

README = pathlib.Path(__file__).parent.parent / "triton_gru/convert/README.md"
INPUTS, HIDDEN = 4, 5
SIZES = {"I": INPUTS, "H": HIDDEN, "3H": 3 * HIDDEN, "6H": 6 * HIDDEN, "D": 1, "2": 2}


def read_table() -> dict[str, list[str]]:
    """Return the cells of each row by its first cell."""
    lines = README.read_text().split("| converted by |\n|---|---|---|---|---|---|\n")[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name.replace("`", "").split("[")[0]: cells for name, *cells in rows}


class Gates:
    """The random weights of each gate, in the layout of the formula W x or of a row of the table."""

    def __init__(self, order: str, product: str):
        self.order = [gate.strip().replace("h", "n") for gate in order.removesuffix(", apart").split(",")]
        self.is_transposed = product.startswith("`x @ W`")
        assert self.is_transposed or product.startswith("`W x`")
        shapes = {"ih": (HIDDEN, INPUTS), "hh": (HIDDEN, HIDDEN), "b_ih": (HIDDEN,), "b_hh": (HIDDEN,)}
        self.by_gate = {
            gate: {name: torch.randn(shape) for name, shape in shapes.items()} for gate in ("r", "z", "n")
        }  # fmt: skip

    def zero_recurrent_biases(self, *biases: str) -> None:
        """Set the recurrent biases of these gates to zero, because the row's layout has none."""
        for gate in biases:
            self.by_gate[gate]["b_hh"] = torch.zeros(HIDDEN)

    def lay_out(self, name: str, gate: str | None = None) -> np.ndarray:
        """Return the weights ``name`` (ih, hh, b_ih or b_hh) of one gate, or of all gates in the order of the row."""
        gates = [gate] if gate else self.order
        joined = torch.cat([self.by_gate[gate][name] for gate in gates])
        return (joined.t() if self.is_transposed else joined).numpy()  # t() leaves a bias as it is

    def run(self, x: torch.Tensor, reset_after: bool) -> torch.Tensor:
        """Return the output of the oracle, which takes the order of torch."""
        weights = tuple(
            torch.cat([self.by_gate[gate][name] for gate in "rzn"]) for name in ("ih", "hh", "b_ih", "b_hh")
        )
        return reference.compute_gru(x, torch.zeros(1, x.size(1), HIDDEN), [weights], reset_after=reset_after)[0]


def from_torch(gates: Gates, reset_after: bool):
    module = nn.GRU(INPUTS, HIDDEN)
    names = {"weight_ih_l0": "ih", "weight_hh_l0": "hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}
    arrays = {name: gates.lay_out(short) for name, short in names.items()}
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return list(arrays.values()), lambda: convert.from_torch(module)


def from_keras(gates: Gates, reset_after: bool):
    bias = np.stack([gates.lay_out("b_ih"), gates.lay_out("b_hh")])
    if not reset_after:
        gates.zero_recurrent_biases("r", "z", "n")
        bias = gates.lay_out("b_ih")
    arrays = [gates.lay_out("ih"), gates.lay_out("hh"), bias]
    return arrays, lambda: convert.from_keras(arrays)


def from_onnx(gates: Gates, reset_after: bool):
    W, R = gates.lay_out("ih")[None], gates.lay_out("hh")[None]
    B = np.concatenate([gates.lay_out("b_ih"), gates.lay_out("b_hh")])[None]
    attributes = {"linear_before_reset": 1} if reset_after else {}  # the default is 0
    node = helper.make_node("GRU", ["X", "W", "R", "B"], ["Y"], hidden_size=HIDDEN, **attributes)
    initializers = [numpy_helper.from_array(array, name) for name, array in (("W", W), ("R", R), ("B", B))]
    X, Y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "XY")
    model = helper.make_model(helper.make_graph([node], "g", [X], [Y], initializers))
    return [W, R, B], lambda: convert.from_onnx(model)


def from_linen(gates: Gates, reset_after: bool):
    gates.zero_recurrent_biases("r", "z")
    params = {
        f"i{gate}": {"kernel": gates.lay_out("ih", gate), "bias": gates.lay_out("b_ih", gate)} for gate in gates.order
    }
    params |= {f"h{gate}": {"kernel": gates.lay_out("hh", gate)} for gate in gates.order}
    params["hn"]["bias"] = gates.lay_out("b_hh", "n")
    return [params["in"]["kernel"], params["hn"]["kernel"], params["hn"]["bias"]], lambda: convert.from_flax(params)


def from_nnx(gates: Gates, reset_after: bool):
    gates.zero_recurrent_biases("r", "z", "n")
    params = {"dense_i": {"kernel": gates.lay_out("ih"), "bias": gates.lay_out("b_ih")}}
    params["dense_h"] = {"kernel": gates.lay_out("hh")}
    arrays = [params["dense_i"]["kernel"], params["dense_h"]["kernel"], params["dense_i"]["bias"]]
    return arrays, lambda: convert.from_flax(params)


def from_gates(gates: Gates, reset_after: bool):
    gates.zero_recurrent_biases("r", "z", "n")
    arrays = [gates.lay_out(name, gate) for gate in gates.order for name in ("ih", "hh", "b_ih")]
    return arrays[:3], lambda: convert.from_gates(arrays)


# Functions that lay out the weights of ``gates`` as their row describes. They return arrays whose shapes the row states
# (two weights, then biases), and a function that converts the weights.
ROWS = {
    "torch.nn.GRU, GRUCell": from_torch,
    "keras.layers.GRU": from_keras,
    "ONNX GRU": from_onnx,
    "flax.linen.GRUCell": from_linen,
    "flax.nnx.GRUCell": from_nnx,
    "by hand, as ": from_gates,
}


def test_every_row_of_the_table_is_tested():
    assert list(read_table()) == list(ROWS)


def parse_shapes(cell: str) -> list[tuple[int, ...]]:
    """Return the shapes that a cell of the table has in brackets."""
    return [tuple(SIZES[size] for size in shape.split("]")[0].split(", ")) for shape in cell.split("[")[1:]]


def list_variants():
    """Yield the name and reset_after of each GRU that a row of the table describes."""
    for name, (_, _, _, reset, _) in read_table().items():
        for variant in ("after", "before"):
            if reset == variant or reset.startswith("either"):
                yield name, variant == "after"


@pytest.mark.parametrize("name, reset_after", list(list_variants()))
def test_weights_in_the_layout_of_a_row_convert_to_its_gru(name, reset_after):
    order, weights, biases, _, converter = read_table()[name]
    gates = Gates(order, weights)
    arrays, convert_weights = ROWS[name](gates, reset_after)
    assert [array.shape for array in arrays[:2]] == parse_shapes(weights)
    assert all(array.shape in parse_shapes(biases) for array in arrays[2:])
    assert ROWS[name].__name__ in converter or "`from_flax`" in converter
    gru = convert_weights()
    assert gru.reset_after == reset_after
    x = torch.randn(6, 3, INPUTS)
    with torch.no_grad():
        output = gru(x.transpose(0, 1) if gru.batch_first else x)[0]
    output = output.transpose(0, 1) if gru.batch_first else output
    torch.testing.assert_close(output, gates.run(x, reset_after), rtol=0, atol=5e-6)
    assert not torch.allclose(output, gates.run(x, not reset_after), atol=0.1), "the other variant would pass too"
