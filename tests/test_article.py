"""The article's two models and its comparison, as scripts/article runs them."""

import pathlib
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "scripts"))

import article

from triton_gru.plan.planner import KERNELS

from .oracle import set_precision


def test_both_models_on_every_kernel(kernels_on_cpu, launched, capsys):
    article.compare_models(KERNELS)
    printed = capsys.readouterr().out
    for kernel in KERNELS:
        assert printed.count(f"\n    {kernel} ") == 2
    assert set(launched) == {"input_projection", "block_scan", "grid_scan", "step_scan"}


@pytest.mark.parametrize("index", range(11))
def test_every_parameter_is_mapped(index):
    """Check that each parameter changes the output, so that the comparison with `gru_by_hand` covers its mapping."""
    set_precision("fp32")
    torch.manual_seed(0)
    parameters = article.make_parameters(5, 6, 4)
    X, H = torch.randn(3, 2, 5), torch.randn(2, 6)
    unchanged_output = article.gru_by_hand(X, H, parameters)[0]
    parameters[index] = parameters[index].flip(0) * 2
    model = article.Converted(parameters)
    with torch.no_grad():
        torch.testing.assert_close(model(X, H), article.gru_by_hand(X, H, parameters), rtol=0, atol=2e-6)
        assert not torch.allclose(model(X, H)[0], unchanged_output, atol=1e-2)


def test_compare_raises_on_a_difference(capsys):
    with pytest.raises(SystemExit, match="more than"):
        article.compare("block", [torch.ones(3)], [torch.full((3,), 1.001)])
    with pytest.raises(SystemExit, match="more than"):
        article.compare("block", [torch.zeros(1), torch.full((1,), float("nan"))], [torch.zeros(1)] * 2)


def test_comparison_has_a_row_for_each_implementation(capsys, tmp_path):
    article.print_comparison(False, tmp_path)
    header, *lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("RNN", "("))]
    assert "gates  parameters  kFLOP a step and row  weight KB a step" in header
    gates = {line.split()[0]: line.split()[6] for line in lines}
    assert gates == {
        "torch.nn.RNN": "1", "torch.nn.LSTM": "4", "torch.nn.GRU": "3", "triton_gru": "3", "handwritten": "3",
    }  # fmt: skip
