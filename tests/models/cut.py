"""ONNX models cut at their GRU nodes: these by this package, everything else by onnxruntime."""

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from triton_gru import convert


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(part: onnxruntime.InferenceSession, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of ``part`` by name; ``values`` may hold more than its inputs."""
    names = [each.name for each in part.get_outputs()]
    return dict(zip(names, part.run(names, {each.name: values[each.name] for each in part.get_inputs()})))


class Cut:
    """A model as parts, each of which ends where a GRU begins, and the GRUs: ``grus``, by the names of their nodes."""

    def __init__(self, model: onnx.ModelProto, device: str, backend: str):
        self.grus = nn.ModuleDict()
        self._device = device
        self._parts = []
        extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
        constants = {each.name for each in model.graph.initializer}
        known = [each.name for each in model.graph.input]
        for node in model.graph.node:
            if node.op_type != "GRU":
                continue
            assert len(node.input) == 6 and not node.input[4], "it has initial_h, and no sequence_lens"
            self.grus[node.name] = gru = convert.from_onnx(model, node.name).to(device)
            gru.backend = backend
            # An initial_h that is a constant is zero, or from_onnx would have refused the node.
            wanted = [name for name in (node.input[0], node.input[5]) if name not in constants]
            self._parts.append((session(extractor.extract_model(known, wanted)), node))
            known += node.output
        self._last = session(extractor.extract_model(known, [each.name for each in model.graph.output]))

    def __call__(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs by name."""
        values = dict(feed)
        for part, node in self._parts:
            values |= run(part, values)
            x, hx = (
                torch.from_numpy(values[name]).to(self._device) if name in values else None
                for name in (node.input[0], node.input[5])
            )
            with torch.no_grad():
                output, h_n = self.grus[node.name](x, hx)
            Y = output.unflatten(2, (h_n.size(0), h_n.size(2))).transpose(1, 2)
            values |= zip(node.output, (Y.cpu().numpy(), h_n.cpu().numpy()))
        return run(self._last, values)

    def reset_before(self) -> "Cut":
        """The same with GRUs that do what they should not."""
        for gru in self.grus.values():
            gru.reset_after, gru.backend = False, "reference"
        return self
