"""`triton-gru table`: its output, and the merge of tables from other machines without loss."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
import time

import pytest
import torch

from triton_gru import cli
from triton_gru.commands import table
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.heuristic import heuristic
from triton_gru.plan.planner import choose
from triton_gru.plan.tables import lookup, store
from triton_gru.plan.tables.merge import Merge

from .planted import H200, ONE_CONFIG, PROBLEM, fill_disk, make_entry, start_python

A100 = KNOWN_DEVICES["A100"]
CHIP = dataclasses.replace(H200, name="Chip X")
OF_H200, OF_A100 = "H200 (sm_90, 132 multiprocessors)", "A100 (sm_80, 108 multiprocessors)"
NEWER = "it has schema 7, this version reads schema 1: upgrade triton_gru, or tune into another TRITON_GRU_CONFIG_DIR"
JANUARY, FEBRUARY = "2026-01-02T03:04:05+00:00", "2026-02-01T00:00:00+00:00"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    """Let the command find no GPU, unless a test plants one."""
    plant_gpus(monkeypatch)


def plant_gpus(monkeypatch, *gpus):
    """Let the command find these GPUs in this machine, or none."""
    monkeypatch.setattr(table, "list_gpus", lambda: list(gpus))


@pytest.fixture
def run(tables, capsys):
    """Return a function that runs the command. It returns the exit status, and the texts of stdout and stderr."""

    def run_table(*arguments):
        status = cli.main(["table", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run_table


def make_measured(steps=100, ms=0.5, config=ONE_CONFIG, tuned_at=JANUARY, triton=None, heuristic_ms=None):
    """Return an entry of `PROBLEM` with other steps: ``grid`` took ``ms``, and nn.GRU 1 ms."""
    entry = make_entry(
        dataclasses.replace(PROBLEM, steps=steps), "grid", grid=(config, ms, heuristic_ms), torch=(None, 1.0)
    )
    return dataclasses.replace(entry, tuned_at=tuned_at, env=entry.env | ({"triton": triton} if triton else {}))


def make_raw(*arguments, **fields):
    """Return the entry of `make_measured` as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(make_measured(*arguments, **fields))))


def write_table(path, *entries, **fields):
    """Write a table of raw entries. ``fields`` replaces fields of the file, such as the device. Return its path."""
    content = {"schema": 1, "device": store.describe_device(H200), "entries": list(entries)} | fields
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def read_contents(folder):
    """Return the bytes of each file in a folder by its name, except those of the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def read_milliseconds(path):
    """Return the median milliseconds of ``grid`` in a table, by the number of steps."""
    return {entry["key"]["steps"]: entry["results"]["grid"]["eager_ms"][1] for entry in store.load(path).raw}


# Show and check.


def test_show_lists_tables_with_their_entries(run, tables, monkeypatch):
    monkeypatch.setattr(lookup, "SHIPPED_DIRECTORY", tables / "shipped")
    old = make_raw(1000, ms=123.4, triton="3.5.1", tuned_at="2025-12-01T00:00:00+00:00")
    unknown_entry = make_raw(7) | {"power": 300}
    path = write_table(tables / "H200.json", old, make_raw(ms=0.41234, heuristic_ms=0.613), unknown_entry)
    shipped = write_table(tables / "shipped" / "A100.json", device=store.describe_device(A100))
    status, printed, errors = run("show")
    assert (status, errors) == (0, "")
    assert printed.splitlines() == [
        f"{path}: {OF_H200}",
        "2 shapes, 1 stale, 1 not understood",
        "not understood: entry 2: ValueError unknown fields of Entry: 'power'",
        "shape                    fastest    time  vs untuned  vs nn.GRU  tuned",
        "fp16 H=512 B<=16 T=100   grid     412 us       1.49x      2.43x  2026-01-02",
        "fp16 H=512 B<=16 T=1000  grid     123 ms           -   0.00810x  2025-12-01  "
        "stale: made with triton 3.5, this is 3.6",
        "",
        f"{shipped}: {OF_A100}",
        "0 shapes, 0 stale, 0 not understood",
        "",
    ]
    assert run("show", shipped)[1] == "\n".join(printed.splitlines()[-3:]) + "\n"


def test_show_compares_with_the_plan_without_a_table(run, tables):
    """The untuned plan may take another kernel than the winner. `triton-gru tune` prints the same ratio."""
    problem = dataclasses.replace(PROBLEM, hidden_size=2048, dtype=torch.float32, precision="tf32", steps=64)
    assert choose(problem, H200, use_tables=False).implementation == "torch"
    step = heuristic("step", problem, H200), 0.5, 0.6
    path = store.save([make_entry(problem, "step", step=step, torch=(None, 1.0))], H200, tables)
    assert run("show", path)[1].splitlines()[-2].split()[-3:-1] == ["2.00x", "2.00x"]


def test_show_reports_which_tables_apply_to_this_gpu(run, tables, monkeypatch):
    for device in (H200, A100, dataclasses.replace(H200, name="H200 NVL")):
        store.save([make_measured()], device, tables)
    plant_gpus(monkeypatch, H200)
    heads = [line for line in run("show")[1].splitlines() if "json: " in line]
    assert [line.partition("multiprocessors)")[2] for line in heads] == [
        "",
        ", in force here for shapes that the tables of H200 lack",
        ", in force here",
    ]


def test_show_without_tables_reports_that(run, tables):
    no_tables = f"there are no tables in {tables}, and none come with the package\n"
    assert run("show") == (0, no_tables, "")
    assert run("check") == (1, no_tables, "")


def test_show_reports_invalid_tables_and_shows_the_others(run, tables):
    good, newer = write_table(tables / "H200.json", make_raw()), write_table(tables / "newer.json", schema=7)
    status, printed, errors = run("show", tables / "nothing.json", newer, good)
    assert status == 2 and "1 shape, 0 stale" in printed
    assert errors == (
        f"triton-gru table: {tables / 'nothing.json'} is not a table: No such file or directory\n"
        f"triton-gru table: {newer} is not a table: {NEWER}\n"
    )


@pytest.mark.parametrize("command", ["show", "check"])
def test_control_characters_of_a_file_are_escaped(command, run, tables):
    evil = "\x1b]0;evil\x07\n"
    evil_values = make_raw() | {"tuned_at": evil}
    evil_values["key"]["dtype"] = evil
    evil_field = make_raw() | {evil: 1}
    path = write_table(
        tables / "H200.json", evil_values, evil_field, device=store.describe_device(H200) | {"name": f"H200 {evil}"}
    )
    _, printed, errors = run(command, path)
    assert "evil" in printed and "\x1b" not in printed and "\x07" not in printed + errors


@pytest.mark.parametrize(
    "entries, status, report",
    [
        ([make_raw()], 0, "1 in force, 0 stale, 0 not understood\n"),
        (
            [],
            1,
            "0 in force, 0 stale, 0 not understood\n  nothing was checked: the table has no entries\n",
        ),
        # Copies follow the batch, so those of a table are ignored.
        ([make_raw(config=dataclasses.replace(ONE_CONFIG, copies=9))], 0, "1 in force, 0 stale, 0 not understood\n"),
        (
            [make_raw(), make_raw(16, triton="3.5.1")],
            1,
            "1 in force, 1 stale, 0 not understood\n"
            "  stale: fp16 H=512 B<=16 T=16: made with triton 3.5, this is 3.6\n",
        ),
        (
            [make_raw() | {"power": 300}],
            1,
            "0 in force, 0 stale, 1 not understood\n"
            "  not understood: entry 0: ValueError unknown fields of Entry: 'power'\n",
        ),
        (
            [make_raw(config=dataclasses.replace(ONE_CONFIG, programs=31))],
            1,
            "1 in force, 0 stale, 0 not understood\n"
            "  cannot run: fp16 H=512 B<=16 T=100: "
            "grid: programs must be 32 with units=16, to hold hidden_size, got 31\n",
        ),
    ],
)
def test_check_reports_stale_unknown_and_impossible_entries(entries, status, report, run, tables):
    path = write_table(tables / "H200.json", *entries)
    assert run("check") == run("check", path) == (status, f"{path}: {OF_H200}: {report}", "")


def test_check_reports_invalid_tables(run, tables):
    good, newer = write_table(tables / "H200.json", make_raw()), write_table(tables / "newer.json", schema=7)
    status, printed, _ = run("check", newer, good)
    assert status == 2
    assert printed == (f"{newer}: not a table: {NEWER}\n{good}: {OF_H200}: 1 in force, 0 stale, 0 not understood\n")
    assert run("check", tables / "nothing.json") == (
        2,
        f"{tables / 'nothing.json'}: not a table: No such file or directory\n",
        "",
    )


@pytest.mark.parametrize(
    "device, is_known",
    [
        (dataclasses.replace(H200, name="NVIDIA H200"), True),
        (dataclasses.replace(H200, name="NVIDIA GH200 480GB"), True),
        (dataclasses.replace(H200, name="NVIDIA H200", sms=66), False),
        (dataclasses.replace(H200, name="NVIDIA H2000"), False),
        (CHIP, False),
    ],
)
def test_check_recognises_a_device_by_name_and_size(device, is_known, run, tables, monkeypatch):
    store.save([make_measured(config=dataclasses.replace(ONE_CONFIG, programs=31))], device, tables)
    not_known = "not checked: whether configurations can run on that device"
    status, printed, _ = run("check")
    assert (status, "cannot run" in printed, not_known in printed) == (is_known, is_known, not is_known)
    plant_gpus(monkeypatch, device)
    status, printed, _ = run("check")
    assert (status, "cannot run" in printed, not_known in printed) == (1, True, False)


def test_check_survives_huge_numbers(run, tables):
    integer_fields = [name for name, value in vars(ONE_CONFIG).items() if type(value) is int]
    huge_configs = [make_raw(config=dataclasses.replace(ONE_CONFIG, **{name: 1 << 31})) for name in integer_fields]
    huge_sizes = [make_raw() for _ in range(4)]
    for entry, name in zip(huge_sizes, ("hidden_size", "input_size", "batch", "steps")):
        entry["key"][name] = 1 << 31
    invalid_keys = [make_raw(), make_raw()]
    invalid_keys[0]["key"]["directions"], invalid_keys[1]["key"]["dtype"] = 3, "float8"
    status, printed, _ = run("check", write_table(tables / "H200.json", *huge_configs, *huge_sizes, *invalid_keys))
    assert status == 1 and f"{len(huge_configs) + 6} in force" in printed
    assert "no kernel serves float16 in 3 directions" in printed and "no kernel serves float8" in printed


def test_show_survives_the_largest_number_of_layers(run, tables):
    """Estimating the untuned plan computes equal layers once."""
    deep = make_raw()
    deep["key"]["layers"] = 1 << 31
    status, printed, _ = run("show", write_table(tables / "H200.json", deep))
    assert status == 0 and f"{1 << 31} layers" in printed


# Export.


def test_export_writes_every_entry_unchanged(run, tables, tmp_path_factory):
    entries = [make_raw(), 5, None, {"key": 1}, make_raw(16) | {"power": 300}, make_raw(17, triton="3.5.1")]
    write_table(tables / "H200.json", *entries)
    file = tmp_path_factory.mktemp("other") / "h200.json"
    status, printed, errors = run("export", file, "--device", "H200")
    assert (status, errors) == (0, "")
    assert printed == (
        f"{file}: {OF_H200}, 6 shapes\n"
        "On the other machine, one of:\n"
        "  triton-gru table merge h200.json\n"
        "  cp h200.json FOLDER/H200.json  # and TRITON_GRU_CONFIG_DIR=FOLDER\n"
    )
    assert json.loads(file.read_text()) == {"schema": 1, "device": store.describe_device(H200), "entries": entries}
    assert [path.name for path in file.parent.iterdir()] == ["h200.json"]


def test_export_takes_the_table_of_the_present_gpu(run, tables, monkeypatch):
    for device in (H200, A100):
        store.save([make_measured()], device, tables)
    plant_gpus(monkeypatch, A100, A100)
    assert run("export", tables / "here.json")[0] == 0
    assert store.load(tables / "here.json").device == store.describe_device(A100)
    assert run("export", tables / "again.json")[0] == 0, "an exported file in the folder is not taken for a tuned table"


@pytest.mark.parametrize(
    "gpus, arguments, message",
    [
        ([], [], "this machine has no GPU whose table could be exported. Name a device with --device: 'A100', 'H200'"),
        ([CHIP], [], "there is no table of 'Chip X' in FOLDER. Name a device with --device: 'A100', 'H200'"),
        ([H200, A100], [], "there are 2 tables of 'A100', 'H200' in FOLDER. Name a device with --device"),
        ([H200], ["--device", "B200"], "there is no table of 'B200' in FOLDER. Name a device with --device"),
    ],
)
def test_export_asks_for_a_device_if_the_table_is_unclear(gpus, arguments, message, run, tables, monkeypatch):
    for device in (H200, A100):
        store.save([make_measured()], device, tables)
    plant_gpus(monkeypatch, *gpus)
    status, printed, errors = run("export", tables / "out", *arguments)
    assert (status, printed) == (2, "") and errors.startswith(
        f"triton-gru table: {message}".replace("FOLDER", str(tables))
    )
    assert not (tables / "out").exists()


def test_export_without_tables_fails(run, tables):
    newer = write_table(tables / "newer.json", schema=7)
    _, _, errors = run("export", tables / "out")
    assert errors.endswith(f"There are no tables in {tables}; {newer.name} is not a table: {NEWER}\n")


def test_export_overwrites_only_with_force_and_never_newer_tables(run, tables):
    h200_table = write_table(tables / "H200.json", make_raw())
    existing, newer, folder = tables / "there", write_table(tables / "newer", schema=7), tables / "folder"
    existing.write_text("something else")
    folder.mkdir()
    before = {path: path.read_bytes() for path in (h200_table, existing, newer)}

    def fail_to_export(file, *arguments):
        status, _, errors = run("export", file, "--device", "H200", *arguments)
        assert status == 2 and {path: path.read_bytes() for path in before} == before
        return errors.removeprefix("triton-gru table: ").removesuffix("\n")

    assert fail_to_export(existing) == f"{existing} exists: name another file, or overwrite it with --force"
    assert fail_to_export(h200_table, "--force") == f"{h200_table} is the table to export itself: name another file"
    assert fail_to_export(newer, "--force") == f"{newer} is not overwritten: {NEWER}"
    assert fail_to_export(folder, "--force") == f"{folder} is not a file: name another file"
    assert fail_to_export(tables / "no" / "out") == f"no folder {tables / 'no'} to write out to"
    assert run("export", existing, "--device", "H200", "--force")[0] == 0
    assert store.load(existing) == store.load(h200_table)


@pytest.mark.parametrize("step", ["write", "fsync"])
@pytest.mark.parametrize("force", [False, True])
def test_export_to_a_full_disk_changes_nothing(step, force, run, tables, monkeypatch):
    write_table(tables / "H200.json", make_raw())
    if force:
        (tables / "out").write_text("something else")
    contents_before = read_contents(tables)
    fill_disk(monkeypatch, step)
    status, printed, errors = run("export", tables / "out", "--device", "H200", *(["--force"] * force))
    reason = "No space left on device; it is left as it was"
    assert (status, printed, errors) == (2, "", f"triton-gru table: cannot write {tables / 'out'}: {reason}\n")
    assert read_contents(tables) == contents_before


# Merge.


@pytest.fixture
def in_tokyo(monkeypatch):
    """Let the machine's time zone not be UTC."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "JST-9")
        time.tzset()
        yield
    time.tzset()


NOT_UNDERSTOOD = make_raw() | {"power": 300}


@pytest.mark.parametrize(
    "old, new, result, counts",
    [
        ([], [make_raw()], [make_raw()], {"added": 1}),
        ([make_raw()], [make_raw()], [make_raw()], {"kept": 1}),
        ([make_raw()], [make_raw(16)], [make_raw(), make_raw(16)], {"added": 1}),
        ([make_raw(16), make_raw()], [make_raw(16, 0.7, tuned_at=FEBRUARY)],
         [make_raw(16, 0.7, tuned_at=FEBRUARY), make_raw()], {"replaced": 1}),
        ([make_raw(tuned_at=FEBRUARY)], [make_raw(ms=0.7)], [make_raw(tuned_at=FEBRUARY)], {"kept": 1}),
        ([make_raw()], [make_raw(ms=0.7)], [make_raw()], {"kept": 1}),  # equal times
        # 01:00 in Tokyo is the day before in UTC. A date without a time zone is in UTC.
        ([make_raw(tuned_at="2026-01-01T23:00:00+00:00")], [make_raw(ms=0.7, tuned_at="2026-01-02T01:00:00+09:00")],
         [make_raw(tuned_at="2026-01-01T23:00:00+00:00")], {"kept": 1}),
        ([make_raw(tuned_at="2026-01-02T01:00:00+09:00")], [make_raw(ms=0.7, tuned_at="2026-01-01T23:00:00Z")],
         [make_raw(ms=0.7, tuned_at="2026-01-01T23:00:00Z")], {"replaced": 1}),
        ([make_raw(tuned_at="2026-01-02T01:00:00+09:00")], [make_raw(ms=0.7, tuned_at="2026-01-01T23:00:00")],
         [make_raw(ms=0.7, tuned_at="2026-01-01T23:00:00")], {"replaced": 1}),
        ([make_raw(tuned_at="2026-01-01T23:00:00")], [make_raw(ms=0.7, tuned_at="2026-01-02T01:00:00+09:00")],
         [make_raw(tuned_at="2026-01-01T23:00:00")], {"kept": 1}),
        ([make_raw(tuned_at="soon")], [make_raw(ms=0.7, tuned_at="0001-01-01T00:00:00+14:00")],
         [make_raw(ms=0.7, tuned_at="0001-01-01T00:00:00+14:00")], {"replaced": 1}),
        ([make_raw()], [make_raw(ms=0.7, tuned_at="tomorrow")], [make_raw()], {"kept": 1}),
        # Stale entries.
        ([make_raw(triton="3.5.1", tuned_at=FEBRUARY)], [make_raw(ms=0.7)], [make_raw(ms=0.7)], {"replaced": 1}),
        ([make_raw()], [make_raw(triton="3.5.1", tuned_at=FEBRUARY)], [make_raw()], {"kept": 1}),
        ([make_raw(triton="3.5.1")], [make_raw(triton="3.4.0", tuned_at=FEBRUARY)],
         [make_raw(triton="3.4.0", tuned_at=FEBRUARY)], {"replaced": 1}),
        # Entries that this version does not know.
        ([], [NOT_UNDERSTOOD], [NOT_UNDERSTOOD], {"added": 1, "not understood": 1}),
        ([NOT_UNDERSTOOD], [NOT_UNDERSTOOD], [NOT_UNDERSTOOD], {"kept": 1}),
        ([make_raw()], [NOT_UNDERSTOOD], [make_raw()], {"kept": 1}),
        ([NOT_UNDERSTOOD], [make_raw()], [NOT_UNDERSTOOD, make_raw()], {"added": 1}),
        ([NOT_UNDERSTOOD], [NOT_UNDERSTOOD | {"power": 400}], [NOT_UNDERSTOOD], {"kept": 1}),
        ([5, {"a": 1}], [5, True, 1, None, {"a": 1}, {"a": True}],
         [5, {"a": 1}, True, 1, None, {"a": True}], {"kept": 2, "added": 4, "not understood": 4}),
        # Files with one key twice.
        ([make_raw(), make_raw(tuned_at=FEBRUARY)], [make_raw(ms=0.7, tuned_at="2026-01-20T00:00:00+00:00")],
         [make_raw(), make_raw(tuned_at=FEBRUARY)], {"kept": 1}),
        ([], [make_raw(), make_raw(ms=0.7, tuned_at=FEBRUARY)],
         [make_raw(ms=0.7, tuned_at=FEBRUARY)], {"added": 1, "replaced": 1}),
    ],
)  # fmt: skip
def test_merge_keeps_the_best_entry_of_each_key(old, new, result, counts, in_tokyo):
    old_text, merge = json.dumps(old), Merge(old)
    for entry in new:
        merge.take(entry)
    # Compared as JSON, because True equals 1 in Python.
    assert [json.dumps(entry) for entry in merge.entries] == [json.dumps(entry) for entry in result]
    assert merge.counts == counts
    assert json.dumps(old) == old_text
    second_merge = Merge(merge.entries)
    for entry in new:
        second_merge.take(entry)
    assert json.dumps(second_merge.entries) == json.dumps(merge.entries), "a second time changes nothing"
    assert second_merge.counts == {"kept": len(new)}


def test_merge_adds_entries_to_the_table_of_their_device(run, tables, tmp_path_factory):
    h200_table = write_table(tables / "H200.json", make_raw(ms=0.9), make_raw(1000), 5)
    other_folder = tmp_path_factory.mktemp("other")
    files = [
        write_table(
            other_folder / "1", make_raw(16), make_raw(ms=0.4, tuned_at=FEBRUARY), make_raw(1000, ms=7), {"later": 1}
        ),
        write_table(other_folder / "2", make_raw(), make_raw(16), device=store.describe_device(A100)),
        write_table(other_folder / "3", make_raw(17), device=dict(reversed(store.describe_device(H200).items()))),
    ]
    contents_before = read_contents(other_folder)
    assert run("merge", *files) == (
        0,
        f"{h200_table}: {OF_H200}: 3 added, 1 replaced, 1 kept as they were; not understood by this version: 1\n"
        f"{tables / 'A100.json'}: {OF_A100}: 2 added, 0 replaced, 0 kept as they were\n",
        "",
    )
    assert store.load(h200_table).raw == [
        make_raw(ms=0.4, tuned_at=FEBRUARY),
        make_raw(1000),
        5,
        make_raw(16),
        {"later": 1},
        make_raw(17),
    ]
    assert read_milliseconds(tables / "A100.json") == {100: 0.5, 16: 0.5}
    merged = read_contents(tables)
    status, printed, _ = run("merge", *files, h200_table)
    assert status == 0 and printed.count("0 added, 0 replaced, ") == 2
    assert read_contents(tables) == merged, "a second time changes nothing, nor does the table itself"
    assert read_contents(other_folder) == contents_before


def test_merge_of_the_table_itself_writes_nothing(run, tables):
    h200_table = write_table(
        tables / "H200.json", make_raw(), make_raw(), NOT_UNDERSTOOD, 5
    )  # `store` would format the JSON otherwise
    file_before = h200_table.read_bytes(), h200_table.stat().st_ino
    assert run("merge", h200_table) == (
        0,
        f"{h200_table}: {OF_H200}: 0 added, 0 replaced, 4 kept as they were\n",
        "",
    )
    assert (h200_table.read_bytes(), h200_table.stat().st_ino) == file_before


def test_merge_into_another_folder(run, tables):
    h200_table = write_table(tables / "H200.json", make_raw())
    folder = tables / "new" / "folder"
    status, printed, _ = run("merge", h200_table, "--into", folder)
    assert status == 0 and printed.startswith(f"{folder / 'H200.json'}: ")
    assert store.load(folder / "H200.json") == store.load(h200_table)


def make_broken_files(folder):
    """Yield each path that is no readable table, with the message that merge must print."""
    yield folder / "nothing", "is not a table: No such file or directory. Nothing was merged"
    yield write_table(folder / "newer", schema=7), f"is not a table: {NEWER}. Nothing was merged"
    yield folder, "is not a table: it is not a regular file. Nothing was merged"
    (folder / "text").write_text("{")
    yield folder / "text", "is not a table: it is not JSON: "


def test_merge_reads_all_files_before_it_writes_any(run, tables, tmp_path_factory):
    h200_table = write_table(tables / "H200.json", make_raw())
    other_folder = tmp_path_factory.mktemp("other")
    good = write_table(other_folder / "good", make_raw(16))
    for broken, message in make_broken_files(other_folder):
        contents_before = read_contents(tables)
        status, printed, errors = run("merge", good, broken)
        assert (status, printed) == (2, "") and errors.startswith(f"triton-gru table: {broken} {message}")
        assert read_contents(tables) == contents_before
    # An unusable table is also found before another table is written.
    newer = write_table(tables / "A100.json", schema=7)
    contents_before = read_contents(tables)
    status, _, errors = run(
        "merge", good, write_table(other_folder / "a100", make_raw(), device=store.describe_device(A100))
    )
    assert (status, errors) == (2, f"triton-gru table: {newer}: {NEWER}\n")
    assert read_contents(tables) == contents_before
    assert h200_table.exists()


def test_merge_refuses_two_devices_with_one_file_name(run, tables):
    half_gpu = dataclasses.replace(H200, sms=66)
    write_table(tables / "H200.json", make_raw())
    contents_before = read_contents(tables)
    half_gpu_table = write_table(tables / "other" / "1", make_raw(), device=store.describe_device(half_gpu))
    status, _, errors = run("merge", half_gpu_table)
    assert status == 2 and f"{tables / 'H200.json'}: it is for {store.describe_device(H200)}, not for" in errors
    status, _, errors = run("merge", half_gpu_table, tables / "H200.json", "--into", tables / "new")
    assert status == 2 and f"{tables / 'new' / 'H200.json'}: it would hold two devices" in errors
    assert (tables / "H200.json").read_bytes() == contents_before["H200.json"]
    assert not (tables / "new" / "H200.json").exists()


@pytest.mark.parametrize("step", ["write", "fsync"])
@pytest.mark.parametrize("writes_before", [0, 1])
def test_merge_to_a_full_disk_changes_nothing(step, writes_before, run, tables, tmp_path_factory, monkeypatch):
    write_table(tables / "H200.json", make_raw())
    other_folder = tmp_path_factory.mktemp("other")
    files = [
        write_table(other_folder / "1", make_raw(16)),
        write_table(other_folder / "2", make_raw(), device=store.describe_device(A100)),
    ]
    contents_before = read_contents(tables)
    fill_disk(monkeypatch, step, writes_before)
    status, printed, errors = run("merge", *files)
    path = tables / ("A100.json" if writes_before else "H200.json")
    assert (status, printed) == (2, "")
    assert errors == (
        f"triton-gru table: cannot merge into {tables}: [Errno 28] No space left on device; "
        f"it is left as it was: '{path}'\n"
    )
    assert read_contents(tables) == contents_before


@contextlib.contextmanager
def another_user():
    """Run the block as a user who owns nothing, if this process is root. Yield whether it is root."""
    if os.geteuid() != 0:
        yield False
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield True
    finally:
        os.setresuid(0, 0, 0)


def test_merge_without_permission_fails(run, monkeypatch):
    """Merge changes nothing if the folder or the file is not writable."""
    folder = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))  # other users cannot read pytest's folders
    try:
        monkeypatch.setenv("TRITON_GRU_CONFIG_DIR", str(folder))
        path = write_table(folder / "H200.json", make_raw())
        file = write_table(folder / "other" / "1", make_raw(16))
        bytes_before = path.read_bytes()
        for mode_of_folder, mode_of_file in ((0o755, 0o666), (0o777, 0o644)):
            folder.chmod(mode_of_folder), path.chmod(mode_of_file)
            with another_user() as is_other_user:
                if not is_other_user:
                    pytest.skip("needs to be root, to be another user")
                status, printed, errors = run("merge", file)
            assert (status, printed) == (2, "")
            assert (
                errors.startswith(f"triton-gru table: cannot merge into {folder}: ") and "Permission denied" in errors
            )
            assert path.read_bytes() == bytes_before and not list(folder.glob("*.tmp"))
    finally:
        shutil.rmtree(folder)


def test_merge_without_a_home_needs_a_folder(run, tables, monkeypatch):
    file = write_table(tables / "1", make_raw())
    monkeypatch.setattr(store, "user_directory", lambda: None)
    message = "triton-gru table: no home folder for tables: set TRITON_GRU_CONFIG_DIR to a folder\n"
    assert run("merge", file) == run("export", tables / "out") == (2, "", message)
    assert run("merge", file, "--into", tables / "new")[0] == 0
    assert run("show")[0] == 0


# A program that merges files into a folder, one after the other.
MERGES = """
import sys
from triton_gru import cli
files, folder = sys.argv[1:-1], sys.argv[-1]
print("ready", flush=True)
for file in files:
    assert cli.main(["table", "merge", file, "--into", folder]) == 0
"""
# A program that saves thirty entries into a folder, as tuning does.
SAVES = """
import dataclasses, pathlib, sys
from tests.planted import H200, ONE_CONFIG, PROBLEM, make_entry
from triton_gru.plan.tables import store
print("ready", flush=True)
for steps in range(1, 31):
    problem = dataclasses.replace(PROBLEM, steps=steps)
    entry = make_entry(problem, "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0))
    store.save([entry], H200, pathlib.Path(sys.argv[1]))
"""


def test_concurrent_merge_and_tune_lose_nothing(tables, tmp_path_factory):
    other_folder = tmp_path_factory.mktemp("other")
    files = [write_table(other_folder / str(steps), make_raw(steps), {"later": steps}) for steps in range(101, 131)]
    processes = [start_python(MERGES, *files, tables), start_python(SAVES, tables)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    table = store.load(tables / "H200.json")
    assert sorted(entry.key.steps for entry in table.entries) == [*range(1, 31), *range(101, 131)]
    assert sorted(entry["later"] for entry in table.raw if "later" in entry) == list(range(101, 131))
    assert {path.name for path in tables.iterdir()} == {"H200.json", ".lock"}


@pytest.mark.parametrize("arguments", [(), ("merge",), ("export",)])
def test_usage_errors_exit_with_2(arguments, run, capsys):
    with pytest.raises(SystemExit) as exit:
        run(*arguments)
    assert exit.value.code == 2
    assert "usage: triton-gru table" in capsys.readouterr().err
