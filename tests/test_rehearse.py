"""tests/ptx/rehearse.py, which runs programs on an emulated GPU."""

import sys

import pytest
import torch

from triton_gru.plan.device import find_device

from .ptx import rehearse

# A program that imports a file beside it and prints its GPU and its arguments.
PROGRAM = """
import sys, torch
from triton_gru.plan.device import find_device
import beside
if __name__ == "__main__":
    print(find_device(torch.device("cpu")).name, *sys.argv[1:])
"""


@pytest.mark.parametrize("as_module", [False, True])
def test_program_gets_a_gpu_and_its_arguments(as_module, tmp_path, monkeypatch, capsys):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "beside.py").touch()
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", [str(tmp_path)] * as_module + sys.path)
    program = ["-m", "program"] if as_module else [str(tmp_path / "program.py")]
    rehearse.main([*program, "--words", "7"])
    assert capsys.readouterr().out == "H200 --words 7\n"
    assert find_device(torch.device("cpu")) is None


@pytest.mark.parametrize("arguments", [[], ["-m"]])
def test_without_a_program_it_prints_its_usage(arguments):
    with pytest.raises(SystemExit, match="usage"):
        rehearse.main(arguments)
