"""``triton-gru tune`` with planted times: its output, interrupts and kills, and its rehearsal."""

import errno
import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch

from triton_gru import cli
from triton_gru.commands import rehearsal, screen
from triton_gru.commands import tune as tune_command
from triton_gru.commands.tune import parse_seconds
from triton_gru.plan import device as devices
from triton_gru.plan.cost import estimate_call_cost
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.heuristic import heuristic
from triton_gru.plan.tables import store
from triton_gru.tuning import tuner
from triton_gru.tuning.progress import Progress
from triton_gru.tuning.shapes import Recorded
from triton_gru.tuning.standard import standard_problems

from .planted import H200, PROBLEM, T4, PlantedBench, change_problem, fill_disk, plant_times

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def planted(monkeypatch):
    """Replace the bench of the command by a bench of planted times, for an emulated H200. Return the bench."""
    bench = PlantedBench(plant_times(lambda candidate: 0.5))
    monkeypatch.setattr(tuner, "Bench", lambda device: bench)
    monkeypatch.setattr(devices, "emulated_device", H200)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return bench


@pytest.fixture
def no_gpu(monkeypatch):
    """Let torch find no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_sizes_are_tuned_once(tables, planted, capsys):
    arguments = ["tune", "--hidden", "512", "--batch", "1", "16", "--budget", "120"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "[4/4] tf32 H=512 B<=16 T=100: 11 candidates, about " in printed and " s left\n" in printed
    assert printed.count(" as fast as untuned (") == 4
    assert "\n4 of 4 shapes tuned in " in printed
    assert f"\nkept in {tables / 'H200.json'}\n" in printed
    assert "TRITON_GRU_CONFIG_DIR names there" in printed and "  triton-gru table export FILE" in printed
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "4 of 4 shapes already in the table, and not measured again\n" in printed
    assert "0 of 4 shapes tuned in 0 s; already in the table: 4" in printed
    assert len(planted.problems) == 4
    assert cli.main([*arguments, "--remeasure"]) == 0
    assert len(planted.problems) == 8
    capsys.readouterr()
    assert cli.main(["explain", "--hidden", "512", "--device", "H200"]) == 0
    assert "  measured   500 us in a CUDA graph (this process, of " in capsys.readouterr().out


def test_without_arguments_the_standard_shapes_are_tuned(tables, planted, capsys):
    assert cli.main(["tune"]) == 0
    assert planted.problems == standard_problems(H200)
    printed = capsys.readouterr().out
    table = printed[printed.rindex("  fastest  ") :].splitlines()
    assert len(table) <= 24
    assert table[11] == f"and {len(standard_problems(H200)) - 10} more, which gained less"
    # `nn.GRU` takes 1 ms and every kernel 0.5 ms: two shapes gain, because untuned plans take `nn.GRU`.
    assert [line.split()[-2:] for line in table[1:3]] == [["2.00x", "2.00x"]] * 2
    assert "2 of 68 faster than untuned by more than 3 %: at most 2.00x, tf32 H=2048 B=1 T=64" in table
    assert max(map(len, table)) <= 120


def test_table_has_a_row_for_each_shape(tables, planted, capsys):
    planted._ms = plant_times(lambda candidate: 0.0123456 if candidate.kernel == "grid" else 1.0)
    assert cli.main(["tune", "--hidden", "512", "--batch", "16", "--dtype", "fp16", "--steps", "64", "1"]) == 0
    table = capsys.readouterr().out.split("\n\n")[-2].splitlines()
    assert table[0].split("  ")[-1].strip() == "vs nn.GRU"
    assert [line.split() for line in table[1:]] == [
        ["fp16", "H=512", "B<=16", "T=64", "grid", "12.3", "us", "1.00x", "81.0x"],
        ["fp16", "H=512", "B<=16", "T=1", "grid", "12.3", "us", "81.0x", "81.0x"],  # the untuned plan takes step
    ]


def test_long_shapes_stay_in_their_column(tables, planted, capsys):
    sizes = ["--hidden", "2048", "64", "--input", "1000", "--layers", "2", "--bidirectional", "--layout", "packed"]
    assert cli.main(["tune", "--list", *sizes, "--steps", "1000"]) == 0
    listed = capsys.readouterr().out.splitlines()[1:-2]
    assert cli.main(["tune", *sizes, "--steps", "1000"]) == 0
    assert len({len(line) for line in listed}) == 1
    assert len({len(line) for line in capsys.readouterr().out.split("\n\n")[-2].splitlines()}) == 1


@pytest.mark.parametrize(
    "sizes, ms, is_printed",
    [("--steps 64", 0.1, True), ("--steps 64 --dtype fp16", 0.1, False), ("--steps 64", 0.9, False)],
)
def test_condition_of_cublas_in_tf32_is_printed(sizes, ms, is_printed, tables, planted, capsys):
    planted._ms = plant_times(lambda candidate: ms if candidate.name == "grid+cublas" else 0.5)
    assert cli.main(["tune", "--hidden", "512", *sizes.split()]) == 0
    out = capsys.readouterr().out
    assert is_printed == ("taken only with torch.backends.cuda.matmul.fp32_precision = " in out)
    assert (ms == 0.1) == (" grid+cublas " in out)


def test_recorded_run_is_tuned_most_steps_first(tables, planted, tmp_path, capsys):
    recorded = Recorded()
    recorded.count_call(PROBLEM, calls=2)
    recorded.count_call(
        change_problem(steps=5, batch_size=3, input_size=8, hidden_size=96, bidirectional=True, dtype=torch.bfloat16),
        calls=1000,
    )
    recorded.save(tmp_path / "shapes.json")
    assert cli.main(["tune", "--recorded", str(tmp_path / "shapes.json")]) == 0
    assert [(problem.hidden_size, problem.steps) for problem in planted.problems] == [(96, 8), (512, 128)]


@pytest.mark.parametrize(
    "text, reason",
    [
        (None, "No such file"),
        ("my notes", "shapes.json was not written by record_shapes' save(): it is not JSON"),
        ('{"schema": 1, "problems": []}', "shapes.json: no call was recorded"),
    ],
)
def test_invalid_recording_is_refused(text, reason, tables, planted, tmp_path, capsys):
    if text is not None:
        (tmp_path / "shapes.json").write_text(text)
    assert cli.main(["tune", "--recorded", str(tmp_path / "shapes.json")]) == 2
    assert reason in capsys.readouterr().err
    assert not planted.compiled


def test_grus_of_a_model_are_tuned(tables, planted, tmp_path, monkeypatch, capsys):
    (tmp_path / "built.py").write_text(
        "from torch import nn\ndef build():\n    return nn.GRU(8, 96, 2)\nnumber = int\nnone = nn.Identity\n"
        "def fails():\n    {}['path']\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tune", "--model", "built:build", "--batch", "4", "--steps", "50", "--dtype", "fp16", "bf16"]) == 0
    assert [(problem.dtype, problem.num_layers, problem.batch_size) for problem in planted.problems] == [
        (torch.float16, 2, 4), (torch.bfloat16, 2, 4),
    ]  # fmt: skip
    reasons = {
        "built:nothing": "no attribute", "built:number": "must return an nn.Module, got int", "no:x": "No module",
        "built:none": "no shape to tune in built:none: it has no GRU", "built": "as MODULE:FUNCTION",
        "built:fails": f"built:fails failed with KeyError: 'path' ({tmp_path / 'built.py'}:7)\n",
    }  # fmt: skip
    for model, reason in reasons.items():
        assert cli.main(["tune", "--model", model]) == 2
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ("--hidden 8 --model a:b", "not allowed with argument"),
        ("--hidden 8 --recorded a", "not allowed with argument"),
        ("--list --rehearse", "not allowed with argument"),
        ("--batch 4 --layers 2", "--batch, --layers: only allowed with --hidden or --model"),
        ("--bidirectional", "--bidirectional: only allowed with --hidden or --model"),
        ("--layout packed --recorded a", "--layout: not allowed with --recorded, as the file has these for each shape"),
        ("--model a:b --batch 4 --input 3 --reset-before", "--input, --reset-before: not allowed with --model"),
        ("--device A100", "--device needs --list on this machine, as tuning is for its GPU, H200"),
        ("--device A100 --rehearse", "--device: not allowed with --rehearse"),
        ("--hidden 0", "must be a whole number of 1 or more, got '0'"),
        ("--hidden many", "must be a whole number of 1 or more, got 'many'"),
        ("--budget 10x", "must be a time above 0, such as 90, 90s, 10m or 2h, got '10x'"),
        ("--budget 0", "must be a time above 0"),
        ("--budget -5", "must be a time above 0"),
        ("--dtype fp64 --hidden 8", "invalid choice"),
    ],
)
def test_invalid_and_conflicting_options_are_refused(arguments, reason, tables, planted, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["tune", *arguments.split()])
    assert exit.value.code == 2
    assert reason in capsys.readouterr().err
    assert not planted.compiled


@pytest.mark.parametrize(
    "text, expected", [("90", 90), ("1.5", 1.5), ("90s", 90), ("10m", 600), ("2h", 7200), ("0.5h", 1800)]
)
def test_budget_is_parsed_as_a_time(text, expected):
    assert parse_seconds(text) == expected


def test_unusable_table_is_reported(tables, planted, capsys):
    (tables / "H200.json").write_text("my notes")
    assert cli.main(["tune"]) == 2
    assert "H200.json: it is not JSON" in capsys.readouterr().err
    assert (tables / "H200.json").read_text() == "my notes"


def test_interrupt_keeps_finished_shapes(tables, planted, capsys):
    planted._stop_at = 1
    assert cli.main(["tune"]) == 130
    assert "results so far are kept (`triton-gru table show`), and the same" in capsys.readouterr().err
    assert len(store.load(tables / "H200.json").entries) == 1


@pytest.mark.parametrize(
    "arguments, is_folder_named, expected_suffix",
    [
        ([], False, "; results so far are kept (`triton-gru table show`), and the same command continues"),
        (["--remeasure"], False, "; results so far are kept (`triton-gru table show`)"),
        (["--list"], False, ""),
        (["--rehearse"], False, ""),
        (
            ["--rehearse"],
            True,
            "; results so far are kept (`triton-gru table show`), and the same command continues",
        ),
    ],
)
def test_interrupt_tells_what_is_kept(
    arguments, is_folder_named, expected_suffix, tables, planted, monkeypatch, capsys
):
    planted._stop_at = 0
    if "--list" in arguments:
        monkeypatch.setattr(tune_command, "format_listing", raise_interrupt)
    if "--rehearse" in arguments and not is_folder_named:
        monkeypatch.delenv("TRITON_GRU_CONFIG_DIR")
    assert cli.main(["tune", *arguments]) == 130
    assert capsys.readouterr().err == f"triton-gru tune: interrupted{expected_suffix}\n"


def raise_interrupt(*_):
    raise KeyboardInterrupt


def test_unwritable_folder_stops_tuning_before_it_begins(tables, planted, monkeypatch, capsys):
    (tables / "file").touch()
    monkeypatch.setenv("TRITON_GRU_CONFIG_DIR", str(tables / "file"))
    assert cli.main(["tune"]) == 2
    message = f"cannot keep results in {tables / 'file'}: it is not a folder. Fix that, or set TRITON_GRU_CONFIG_DIR"
    assert message in capsys.readouterr().err
    monkeypatch.setenv("TRITON_GRU_CONFIG_DIR", str(tables / "folder"))
    with monkeypatch.context() as full:
        fill_disk(full, "fsync")
        assert cli.main(["tune"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not planted.compiled and not list((tables / "folder").iterdir())


@pytest.mark.filterwarnings("default")
def test_failed_write_is_reported_and_repeated_with_the_next_shape(tables, planted, monkeypatch, capsys):
    arguments = ["tune", "--hidden", "512", "--batch", "1", "4", "16", "--steps", "64", "--dtype", "fp16"]
    original_save, calls = store.save, []

    def save_or_fail(entries, *options):
        calls.append(len(entries))
        if len(calls) in failing_calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original_save(entries, *options)

    monkeypatch.setattr(store, "save", save_or_fail)
    failing_calls = [1, 2]
    assert cli.main(arguments) == 0
    assert calls == [1, 2, 3] and len(store.load(tables / "H200.json").entries) == 3
    out, err = capsys.readouterr()
    assert (
        "\nwarning: results are kept for this process only, as the table cannot be written: [Errno 28] No space" in out
    )
    assert not err and "as warned" not in out
    calls.clear()
    failing_calls = [2, 3]
    assert cli.main([*arguments, "--anew"]) == 1
    out = capsys.readouterr().out
    assert "\nnot written to the table, as warned: 2 shapes. Fix that" in out and "\nkept in " in out


def test_shape_that_does_not_fit_into_memory_is_skipped(tables, planted, capsys):
    open_problem = planted.open_problem

    def open_if_small(problem):
        if problem.batch_size == 4:
            raise torch.OutOfMemoryError("no memory")
        return open_problem(problem)

    planted.open_problem = open_if_small
    assert cli.main(["tune", "--hidden", "512", "--batch", "1", "4", "16", "--steps", "64", "--dtype", "fp16"]) == 0
    out = capsys.readouterr().out
    assert "fp16 H=512 B<=4 T=64: left out, its tensors do not fit into the GPU's memory\n" in out
    assert "2 of 3 shapes tuned" in out and len(store.load(tables / "H200.json").entries) == 2


def test_too_little_time_is_reported(tables, planted, monkeypatch, capsys):
    arguments = ["tune", "--hidden", "512", "--batch", "1", "4", "--steps", "64", "--dtype", "fp16"]
    with monkeypatch.context() as late:
        late.setattr(planted, "compile", lambda problem, todo, seconds: ((candidate, "") for candidate in todo[:2]))
        assert cli.main(arguments) == 0
    assert (
        "\ntoo little time for all candidates: 2 shapes; the same command measures them again\n"
        in capsys.readouterr().out
    )
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 of 2 shapes had too little time before: measured again, last\n")
    assert "2 of 2 shapes tuned" in out and "too little time for all" not in out


def test_exits_with_1_if_nothing_runs(tables, planted, capsys):
    planted._out = lambda candidate: "no compiler"
    assert cli.main(["tune", "--hidden", "512", "--steps", "64", "--reset-before"]) == 1
    printed = capsys.readouterr().out
    assert "nothing runs" in printed and "0 of 1 shape tuned" in printed


def test_gpu_without_kernels_is_refused(tables, planted, monkeypatch, capsys):
    monkeypatch.setattr(devices, "emulated_device", T4)
    assert cli.main(["tune"]) == 2
    assert (
        "no kernel serves the standard shapes on T4: needs compute capability 8.0 or later" in capsys.readouterr().err
    )


# A program that tunes four shapes with planted times, and sleeps in the shape that its argument numbers.
KILLED = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from tests.planted import H200, PlantedBench, plant_times
from triton_gru import cli
from triton_gru.plan import device
from triton_gru.tuning import tuner

class Bench(PlantedBench):
    def time_candidates(self, *arguments):
        if len(self.problems) == int(sys.argv[1]):
            print("in the middle", flush=True)
            time.sleep(1000)
        return super().time_candidates(*arguments)

bench = Bench(plant_times(lambda candidate: 0.5))
device.emulated_device, tuner.Bench = H200, lambda device: bench
status = cli.main("tune --hidden 512 --batch 1 4 16 64 --steps 64 --dtype fp16".split())
print("measured", [problem.batch_size for problem in bench.problems])
sys.exit(status)
"""


def test_kill_loses_only_the_current_shape(tables):
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen([*command, "3"], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "in the middle" in line:
                process.kill()
    assert process.returncode == -9
    assert [entry.key.batch for entry in store.load(tables / "H200.json").entries] == [1, 4]
    second_run = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    assert "2 of 4 shapes already in the table" in second_run.stdout and "measured [16, 64]\n" in second_run.stdout
    assert [entry.key.batch for entry in store.load(tables / "H200.json").entries] == [1, 4, 16, 64]


# Output.


def make_progress(number=12, doing="compiling 34 of 80"):
    """Return a progress report of the shape ``number`` of 64."""
    return Progress(number, 64, PROBLEM.key(), doing, 0.4, 540.0)


def test_terminal_shows_progress_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "95")
    with screen.show_progress() as show:
        show(make_progress())
        show("found")
        show(make_progress(13, doing="x" * 100))
    out, err = capsys.readouterr()
    assert out == "found\n"
    assert "\n" not in err
    shown, cleared_for_result, shortened, cleared_at_end = err.split("\r")[1:]
    assert shown == "[#####.........] 12/64  about 9 min left  fp16 H=512 B<=16 T=100  compiling 34 of 80\x1b[K"
    assert cleared_for_result == cleared_at_end == "\x1b[K"
    assert len(shortened.removesuffix("\x1b[K")) == 94 and "13/64  about 9 min left  fp16" in shortened


def test_other_output_has_a_line_every_ten_seconds(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    with screen.show_progress() as show:
        for number in (1, 2):
            for second in range(25):
                now[0] += 1
                show(make_progress(number, f"at {second}"))
        show("found")
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"\[(\d+)/64\].*: at (\d+),", line).groups() for line in lines[:-1]] == [
        (number, second) for number in "12" for second in ("0", "10", "20")
    ]
    assert lines[-1] == "found"


def test_without_a_gpu_the_list_is_printed(tables, no_gpu, capsys):
    assert cli.main(["tune"]) == 2
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "`triton-gru tune` on H200, in this order:"
    assert [line.split()[0] for line in lines[2:-2]] == [str(number) for number in range(1, 69)]
    *first, us, unit = lines[2].split()
    assert first == ["1", "fp16", "H=512", "B=1", "T=64", "9", "grid"]
    first = standard_problems(H200)[0]
    cost = estimate_call_cost(first, heuristic("grid", first, H200), H200, True)
    assert (float(us), unit) == (pytest.approx(cost.total, rel=0.01), "us")
    assert err == (
        "triton-gru tune: nothing was tuned: the kernels need an NVIDIA GPU of compute capability 8.0 or later. "
        "The list is for the GPU H200; --device names another. In a checkout, `python -m triton_gru tune --rehearse` "
        "tunes small sizes on this CPU\n"
    )
    assert cli.main(["tune", "--hidden", "64", "--device", "A100", "--steps", "9", "--dtype", "fp16"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert "on A100" in lines[0] and "fp16 H=64 B=1 T=9" in lines[2] and len(lines) == 5
    assert not list(tables.iterdir())


def test_list_does_not_depend_on_the_table(tables, planted, capsys):
    arguments = ["--hidden", "512", "--steps", "64"]
    assert cli.main(["tune", "--list", *arguments]) == 0
    listing = capsys.readouterr()
    assert "on H200" in listing.out and not listing.err and not planted.compiled
    planted._ms = plant_times(lambda candidate: 1.5)
    assert cli.main(["tune", *arguments]) == 0
    capsys.readouterr()
    assert cli.main(["tune", "--list", *arguments]) == 0
    assert capsys.readouterr().out == listing.out
    assert cli.main(["tune", "--list", "--device", "A100"]) == 0
    assert "on A100" in capsys.readouterr().out


# The rehearsal.


def test_rehearsal_takes_small_sizes_and_keeps_nothing(planted, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("TRITON_GRU_CONFIG_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["tune", "--rehearse"]) == 0
    sizes = {
        (problem.hidden_size, problem.input_size, problem.batch_size, problem.steps) for problem in planted.problems
    }
    assert sizes == {(16, 16, batch, steps) for batch in (1, 2) for steps in (1, 3)}
    keys = [problem.key() for problem in planted.problems]
    assert len(keys) == len(set(keys)) == 16
    assert {problem.layout for problem in planted.problems} == {"dense", "packed"}
    printed = capsys.readouterr().out
    assert printed.startswith("rehearsing 16 shapes in small sizes on an emulated GPU, in about 60 s\n")
    assert printed.splitlines()[-1] == "Rehearsed. Nothing was kept."
    assert "kept in" not in printed and not list(tmp_path.iterdir())
    assert cli.main(["tune", "--rehearse", "--hidden", "4", "--steps", "2", "--layers", "2"]) == 0
    assert (planted.problems[-1].hidden_size, planted.problems[-1].num_layers) == (4, 2)


def test_rehearsal_keeps_the_table_in_a_named_folder(tables, planted, capsys):
    assert cli.main(["tune", "--rehearse"]) == 0
    assert len(store.load(tables / "H200.json").entries) == 16
    assert f"Delete the table in {tables}, which TRITON_GRU_CONFIG_DIR names, before" in capsys.readouterr().out


def test_rehearsal_needs_a_checkout(no_gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(rehearsal, "_CHECKOUT", tmp_path)
    assert cli.main(["tune", "--rehearse"]) == 2
    assert "--rehearse needs a checkout" in capsys.readouterr().err


def test_rehearsal_from_a_shell(tmp_path):
    """The rehearsal runs in a folder with another package `tests` and with a recording named by a relative path."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/__init__.py").touch()
    recorded = Recorded()
    recorded.count_call(change_problem(steps=2, batch_size=1, input_size=4, hidden_size=4))
    recorded.save(tmp_path / "shapes.json")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_GRU_CONFIG_DIR"}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "triton_gru", "tune", "--rehearse", "--recorded", "shapes.json", "--budget", "5"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fp16 H=4 B=1 T=2: " in done.stdout and "1 of 1 shape tuned" in done.stdout
    assert done.stdout.endswith("Rehearsed. Nothing was kept.\n")
    assert not (tmp_path / "cache/triton_gru/H200.json").exists()


def test_kill_of_a_rehearsal_ends_the_emulator(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_GRU_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "triton_gru", "tune", "--rehearse", "--hidden", "16", "--budget", "100"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("[1/"):
                process.kill()
                break
        process.communicate(timeout=20)  # waits until the emulator has closed the pipe too


def test_interrupt_while_the_emulator_loads_prints_no_traceback(tmp_path):
    (tmp_path / "tests/ptx").mkdir(parents=True)
    (tmp_path / "tests/__init__.py").touch()
    (tmp_path / "tests/ptx/rehearse.py").write_text("raise KeyboardInterrupt")
    code = "import pathlib, sys; from triton_gru.commands import rehearsal\n"
    code += "rehearsal._CHECKOUT = pathlib.Path(sys.argv[1]); rehearsal.run_in_emulator(['tune', '--rehearse'])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "triton-gru tune: interrupted\n")


def test_list_works_for_every_known_gpu(no_gpu, capsys):
    for name in KNOWN_DEVICES:
        assert cli.main(["tune", "--list", "--device", name]) == 0
        assert f"on {name}, in this order" in capsys.readouterr().out
