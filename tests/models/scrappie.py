"""Scrappie's network raw_r94, compiled from its sdist: unchanged, and layer by layer with our GRUs."""

import ctypes
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import triton_gru
from triton_gru import convert

VERSION = "1.4.2"
# The only CBLAS functions that scrappie calls. All calls compute y += transpose(w) x, with contiguous columns.
CBLAS = """
#include <stddef.h>
enum { CblasColMajor, CblasTrans, CblasNoTrans };

static void cblas_sgemm(int order, int yes, int no, int rows, int columns, int depth, float a,
                        const float *w, int w_stride, const float *x, int x_stride, float c, float *y, int y_stride) {
    for (int column = 0; column < columns; column++)
        for (int row = 0; row < rows; row++) {
            float sum = 0;
            for (int i = 0; i < depth; i++)
                sum += w[(size_t)row * w_stride + i] * x[(size_t)column * x_stride + i];
            y[(size_t)column * y_stride + row] += sum;
        }
}

static void cblas_sgemv(int order, int yes, int depth, int rows, float a, const float *w, int w_stride,
                        const float *x, int x_step, float c, float *y, int y_step) {
    cblas_sgemm(order, yes, CblasNoTrans, rows, 1, depth, a, w, w_stride, x, depth, c, y, rows);
}
"""
Floats = ctypes.POINTER(ctypes.c_float)


class Matrix(ctypes.Structure):
    """A scrappie_matrix: columns of ``rows`` elements, ``stride`` elements apart.

    A column is a time step, or in a weight an output.
    """

    _fields_ = [*((name, ctypes.c_size_t) for name in ("rows", "quads", "columns", "stride")), ("elements", Floats)]


class Signal(ctypes.Structure):
    """A raw_table of scrappie: ``size`` samples. The network reads the samples from ``start`` to ``end``."""

    _fields_ = [
        ("uuid", ctypes.c_char_p),
        *((name, ctypes.c_size_t) for name in ("size", "start", "end")),
        ("samples", Floats),
    ]


def _to_array(pointer) -> np.ndarray:
    """Return a copy of the elements of the `Matrix` at ``pointer``, [columns, rows]."""
    matrix = pointer.contents
    return np.ctypeslib.as_array(matrix.elements, (matrix.columns, matrix.stride))[:, : matrix.rows].copy()


def _to_signal(samples: np.ndarray) -> Signal:
    """Return a signal of all samples. It uses the memory of ``samples``, which has to stay alive."""
    return Signal(uuid=None, size=samples.size, start=0, end=samples.size, samples=samples.ctypes.data_as(Floats))


class Scrappie:
    """The compiled library, with scrappie's network raw_r94."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))

    def posterior(self, samples: np.ndarray) -> np.ndarray:
        """Return the result of scrappie's unchanged function: probabilities of the bases in the pore, [steps, 1025]."""
        min_probability, temperatures, as_logarithm = 0, (1, 1), False
        floats = map(ctypes.c_float, (min_probability, *temperatures))
        return _to_array(self._call("nanonet_raw_posterior", _to_signal(samples), *floats, as_logarithm))

    def posterior_with(self, layers: list[list[triton_gru.GRU]], samples: np.ndarray) -> np.ndarray:
        """Return the same probabilities as `posterior`, computed layer by layer with other GRUs.

        A layer has one bidirectional GRU, or a forward and a backward GRU.
        """
        stride = ctypes.c_size_t(ctypes.c_int.in_dll(self._library, "conv_raw_stride").value)
        features = self._call("nanonet_features_from_raw", _to_signal(samples))
        convolved = self._call("convolution", features, *self._weights("conv_raw", "W", "b"), stride, None)
        x = np.tanh(_to_array(convolved))
        for number, grus in enumerate(layers, 1):
            steps = torch.from_numpy(x).unsqueeze(1).to(grus[0].weight_hh_l0.device)
            with torch.no_grad():
                output = torch.cat([gru(steps)[0] for gru in grus], 2).squeeze(1).cpu().numpy()
            directions = [self._to_matrix(half) for half in np.split(output, 2, axis=1)]
            weights = self._weights(f"FF{number}_raw", "Wf", "Wb", "b")
            x = _to_array(self._call("feedforward2_tanh", *directions, *weights, None))
        weights, temperatures = self._weights("FF3_raw", "W", "b"), map(ctypes.c_float, (1, 1))
        return _to_array(self._call("softmax_with_temperature", self._to_matrix(x), *weights, *temperatures, None))

    def gru(self, name: str) -> triton_gru.GRU:
        """Return a GRU of the network as a forward GRU.

        ``name`` is F or B, for forward or backward, and the number of the layer. Scrappie's gates are in the order z,
        r, h. The recurrent product of h comes after the reset.
        """
        iW, b, sW, sW2 = map(_to_array, self._weights(f"gru{name}_raw", "iW", "b", "sW", "sW2"))
        by_gate = zip(np.split(iW, 3), [*np.split(sW, 2), sW2], np.split(b[0], 3))
        return convert.from_gates([array for W_x, W_h, bias in by_gate for array in (W_x.T, W_h.T, bias)])

    def _call(self, name: str, *args):
        """Call a function of the library that returns a pointer to a `Matrix`."""
        function = getattr(self._library, name)
        function.restype = ctypes.POINTER(Matrix)
        return function(*args)

    def _weights(self, layer: str, *names: str) -> list:
        """Return pointers to weights of a layer."""
        return [ctypes.POINTER(Matrix).in_dll(self._library, f"{layer}_{name}") for name in names]

    def _to_matrix(self, array: np.ndarray):
        """Return a pointer to a new `Matrix` with the elements of an array, [columns, rows]."""
        columns, rows = map(ctypes.c_size_t, array.shape)
        return self._call("mat_from_array", np.ascontiguousarray(array).ctypes.data_as(Floats), rows, columns)


def compile_scrappie(folder: Path) -> Scrappie:
    """Unpack scrappie's sdist into ``folder``, compile the network there, and return the loaded library.

    If the environment has no folder of sources, skip the test. If only this sdist is missing there, fail the test.
    """
    sdist = Path(sys.prefix) / "sources" / f"scrappie-{VERSION}.tar.gz"
    if not sdist.parent.exists():
        pytest.skip(f"{sdist.parent} is missing: scripts/test downloads the sources into its own environment")
    if not sdist.exists():
        command = f"pip download --no-deps --no-binary scrappie -d {sdist.parent} scrappie=={VERSION}"
        pytest.fail(f"{sdist} is missing: {command}, as scripts/test does")
    with tarfile.open(sdist) as archive:
        # Files in the folders of scrappie-VERSION, src among them, and one network's weights in src/models.
        members = [m for m in archive if m.name.count("/") == 2 or m.name.endswith("/raw_r94.h")]
        archive.extractall(folder, members, filter="data")
    source = folder / f"scrappie-{VERSION}" / "src"
    # Extract only this network: the weights of all networks take the compiler many times as long.
    networks = (source / "networks.c").read_text()
    start = networks.index("scrappie_matrix nanonet_raw_posterior(")
    headers = ("layers.h", "models/raw_r94.h", "networks.h", "nnfeatures.h", "scrappie_stdlib.h")
    includes = "".join(f'#include "{header}"\n' for header in headers)
    (source / "raw_r94.c").write_text(includes + networks[start : networks.index("\n}\n", start) + 3])
    (source / "cblas.h").write_text(CBLAS)
    files = ("raw_r94.c", "layers.c", "nnfeatures.c", "scrappie_matrix.c", "util.c")
    options = ["-std=gnu99", "-msse3", "-O1", "-w", "-fPIC", "-shared", "-I.", "-o", "scrappie.so"]
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, *options, *files, "-lm"], cwd=source, check=True)
    return Scrappie(source / "scrappie.so")
