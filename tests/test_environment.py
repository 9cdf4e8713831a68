"""scripts/environment.sh: the output of an installation, and where torch comes from."""

import pathlib
import re
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "scripts/environment.sh"


@pytest.fixture
def run(tmp_path):
    """Return a function that sources a copy of the script and runs commands, in a folder with only this copy."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")

    def run_in_a_copy(commands: str) -> subprocess.CompletedProcess:
        command = ["bash", "-c", f"source {tmp_path}/scripts/environment.sh; {commands}"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run_in_a_copy


def test_steps_print_one_line_and_log_the_rest(run, tmp_path):
    done = run("begin_install; step one echo 'many words'; step 'the other' true; end_install")
    assert (done.returncode, done.stderr) == (0, "")
    steps = r"== installing into .venv, once .*log: .venv/install.log\)\n   one ... the other ... done in \d+ s\n"
    assert re.fullmatch(steps, done.stdout)
    assert "== one: echo many words\nmany words\n" in (tmp_path / ".venv/install.log").read_text()


def test_failed_step_ends_the_script_and_prints_why(run):
    done = run("begin_install; step broken bash -c 'echo the reason >&2; exit 7'; echo not reached")
    assert done.returncode == 7
    assert done.stdout.endswith("   broken ... failed\n")
    assert "\nthe reason\n" in done.stderr and "installing broken failed with exit status 7" in done.stderr


def test_installs_cpu_torch_from_pytorch_if_no_index_has_it(run):
    done = run("pip() { echo $*; [ $# -gt 2 ]; }; install_torch torch==1+cpu constraints pip")
    assert (done.returncode, done.stdout.splitlines()) == (
        0, ["--no-deps torch==1+cpu", "--no-deps --index-url https://download.pytorch.org/whl/cpu torch==1+cpu"],
    )  # fmt: skip
    done = run("pip() { echo $*; return 3; }; begin_install; step torch install_torch torch==1 constraints pip")
    assert done.returncode == 3 and "\n-c constraints torch==1\n" in done.stderr
