"""Convert the GRU node of an ONNX model, by default of a model that the program makes, or of your own file.

By ONNX's default the reset gate comes before the recurrent product (`linear_before_reset=0`). In `nn.GRU` it comes
after the product. The weights have the same shapes in both, so a mistake raises no error, but the results are wrong.
`from_onnx` reads the position of the reset gate from the node:

    python scripts/examples/from_onnx.py [MODEL.onnx [NODE]]
"""

import copy
import sys

import numpy as np
import onnx.reference
import torch
from onnx import helper, numpy_helper

import triton_gru

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_model(inputs: int, hidden: int) -> onnx.ModelProto:
    """Return a model of one GRU node that leaves `linear_before_reset` at ONNX's default."""
    draw = np.random.default_rng(0)
    shapes = {"W": (1, 3 * hidden, inputs), "R": (1, 3 * hidden, hidden), "B": (1, 6 * hidden)}
    arrays = {name: draw.uniform(-1, 1, shape) * hidden**-0.5 for name, shape in shapes.items()}
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    node = helper.make_node("GRU", ["X", *shapes], ["Y", "Y_h"], "encoder", hidden_size=hidden)
    float32 = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("X", "Y", "Y_h")]
    graph = helper.make_graph([node], "speech", float32[:1], float32[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@torch.no_grad()
def main(
    path: str | None = None, node: str | None = None, device: str = DEVICE, steps: int = 50, hidden: int = 96
) -> None:
    """Convert the GRU ``node`` of the file ``path`` and run it. Without a file, check a small model against ONNX."""
    torch.manual_seed(0)
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # not TF32, so that results differ only by rounding in fp32
    model = path or make_model(40, hidden)
    gru = triton_gru.convert.from_onnx(model, node).to(device)
    x = torch.randn(steps, 4, gru.input_size, device=device, dtype=gru.weight_hh_l0.dtype)
    output, _ = gru(x)
    served_by = gru.plan(x).kernel
    descriptions = {"torch": "nn.GRU itself", "reference": "plain torch, step by step"}
    print(f"{gru}\nserved by: {served_by} ({descriptions.get(served_by, 'a Triton kernel')})")
    if path is None:
        (onnx_output,) = onnx.reference.ReferenceEvaluator(model).run(["Y"], {"X": x.cpu().numpy()})
        expected = torch.from_numpy(onnx_output[:, 0]).to(device)  # Y is [steps, directions, batch, hidden]
        as_nn_gru = copy.deepcopy(gru)
        as_nn_gru.reset_after = True
        error, error_as_nn_gru = ((result - expected).abs().max().item() for result in (output, as_nn_gru(x)[0]))
        tolerance = 4 * hidden**0.5 * torch.finfo(x.dtype).eps  # rounding grows like the root of the number of terms
        print(f"largest difference from ONNX: {error:.1e} (allowed: {tolerance:.1e})")
        print(f"the same weights with the reset gate after the product, as in nn.GRU: {error_as_nn_gru:.1e}")
        assert error <= tolerance < 1e-2 < error_as_nn_gru


if __name__ == "__main__":
    main(*sys.argv[1:])
