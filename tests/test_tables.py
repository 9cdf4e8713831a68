"""Tuned tables: their lookup for a call, and their survival of bad files, full disks, locks and kills."""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import signal
import time
import warnings

import filelock
import pytest
import torch

import triton_gru
from triton_gru import cli
from triton_gru.commands import info
from triton_gru.kernels import grid
from triton_gru.launch import execute
from triton_gru.launch.kernel_launch import Launch
from triton_gru.plan.config import BlockConfig
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.heuristic import heuristic
from triton_gru.plan.planner import KERNELS, choose
from triton_gru.plan.tables import lookup, revision, store
from triton_gru.plan.tables.entries import parse_config
from triton_gru.plan.validity import unsupported_config_reason
from triton_gru.tuning.space import candidates

from .planted import (
    H200,
    ONE_CONFIG,
    OTHER_CONFIG,
    PROBLEM,
    PlantedBench,
    change_problem,
    fill_disk,
    make_entry,
    plant_times,
    start_python,
)

GRID = heuristic("grid", PROBLEM, H200)


def save_table(directory, *entries, device=H200):
    """Save entries as the table of ``device``. Clear the caches. Return the path."""
    path = store.save(list(entries), device, directory)
    clear_caches()
    return path


def clear_caches():
    """Clear the caches of tables and plans."""
    lookup.clear_table_cache()
    triton_gru.plan.planner.clear_plan_cache()


# Lookup.


def test_saved_table_loads_unchanged(tables):
    entry = make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0))
    loaded = store.load(save_table(tables, entry))
    assert (loaded.entries, loaded.skipped, loaded.device) == ([entry], [], {"name": "H200", "cc": 90, "sms": 132})


def test_sources_of_tables_have_an_order(tables, monkeypatch):
    shipped = tables / "shipped"
    monkeypatch.setattr(lookup, "SHIPPED_DIRECTORY", shipped)
    variant = dataclasses.replace(H200, name="NVIDIA H200 NVL")
    grids = [candidate.config for candidate in candidates(PROBLEM, H200) if candidate.kernel == "grid"]
    of_process, of_user, of_package, of_variant = grids[-4:]

    def choose_config():
        plan = choose(PROBLEM, H200)
        return plan.config, plan.source

    assert choose_config() == (GRID, "heuristic")
    save_table(shipped, make_entry(PROBLEM, "grid", grid=(of_variant, 0.5), torch=(None, 1.0)), device=variant)
    assert choose_config()[0] == of_variant and "shipped table of a similar device" in choose_config()[1]
    save_table(shipped, make_entry(PROBLEM, "grid", grid=(of_package, 0.5), torch=(None, 1.0)))
    assert choose_config()[0] == of_package and choose_config()[1].startswith("shipped table /")
    save_table(tables, make_entry(PROBLEM, "grid", grid=(of_user, 0.5), torch=(None, 1.0)))
    assert choose_config()[0] == of_user and choose_config()[1].startswith(
        f"table {tables / 'H200.json'}, of 2026-01-02"
    )
    lookup.add_process_entries(H200, [make_entry(PROBLEM, "grid", grid=(of_process, 0.5), torch=(None, 1.0))])
    triton_gru.plan.planner.clear_plan_cache()
    assert choose_config() == (of_process, "this process, of 2026-01-02")
    # Stale entries come after all fresh ones.
    stale = make_entry(PROBLEM, "grid", grid=(of_process, 0.5), torch=(None, 1.0))
    lookup.add_process_entries(H200, [dataclasses.replace(stale, env=stale.env | {"triton": "3.5.1"})])
    triton_gru.plan.planner.clear_plan_cache()
    assert choose_config()[0] == of_user
    assert choose(PROBLEM, KNOWN_DEVICES["A100"]).source == "heuristic"


@pytest.mark.parametrize("made_with, is_stale", [("3.9.1", False), ("3.8.0", True), ("3.10.0", True), ("", True)])
def test_another_triton_makes_an_entry_stale_and_the_plan_tells_so(made_with, is_stale, tables, monkeypatch):
    monkeypatch.setitem(revision.environment(), "triton", "3.9.0")
    entry = make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0))
    save_table(tables, dataclasses.replace(entry, env=entry.env | {"triton": made_with}))
    plan = choose(PROBLEM, H200)
    assert (plan.kernel, plan.config, plan.is_tuned) == ("grid", ONE_CONFIG, True)
    message = (
        f"stale: made with triton {made_with[:-2] or 'unknown'}, this is 3.9 (`triton-gru tune` measures it again)"
    )
    assert (message in plan.source) == (message in str(plan)) == is_stale
    save_table(tables, entry)  # as `triton-gru tune` would do
    assert choose(PROBLEM, H200).source == f"table {tables / 'H200.json'}, of 2026-01-02"


@pytest.mark.parametrize(
    "fields, has_config, has_verdict",
    [
        ({}, True, True),
        ({"batch_size": 9}, True, True),
        ({"batch_size": 8}, False, False),
        ({"batch_size": 17}, False, False),
        ({"hidden_size": 400}, False, False),
        ({"dtype": torch.bfloat16}, False, False),
        ({"reset_after": False}, False, False),
        ({"steps": 5000}, True, True),
        ({"steps": 50}, True, True),
        ({"steps": 49}, True, False),  # costs of a call have more weight with fewer steps
        ({"steps": 1}, False, False),
        ({"input_size": 2048}, True, True),
        ({"input_size": 64}, True, False),
        ({"num_layers": 2}, True, False),
        ({"layout": "packed"}, True, False),
        ({"bidirectional": True}, True, False),
    ],
    ids=str,
)
def test_configuration_and_verdict_hold_for_a_range_of_problems(fields, has_config, has_verdict, tables):
    save_table(tables, make_entry(PROBLEM, "torch", grid=(ONE_CONFIG, 2.0), torch=(None, 1.0)))
    problem = change_problem(**fields)
    by_name = choose(problem, H200, "grid")
    assert by_name.is_tuned == has_config
    if has_config:
        expected = dataclasses.replace(ONE_CONFIG, copies=by_name.config.copies, directions=by_name.config.directions)
        assert by_name.config == expected
    assert (choose(problem, H200).kernel == "torch") == has_verdict


def test_nearest_entry_is_used(tables):
    save_table(
        tables,
        make_entry(change_problem(steps=16), "torch", grid=(ONE_CONFIG, 2.0), torch=(None, 1.0)),
        make_entry(change_problem(steps=1000), "grid", grid=(OTHER_CONFIG, 0.5), torch=(None, 1.0)),
    )
    plans = {steps: choose(change_problem(steps=steps), H200) for steps in (8, 100, 499, 500, 5000)}
    assert [plan.kernel for plan in plans.values()] == ["torch", "torch", "torch", "grid", "grid"]
    assert choose(change_problem(steps=100), H200, "grid").config == ONE_CONFIG
    assert choose(change_problem(steps=300), H200, "grid").config == OTHER_CONFIG


def test_configuration_that_cannot_run_is_ignored(tables):
    too_many = dataclasses.replace(ONE_CONFIG, copies=9)
    save_table(tables, make_entry(PROBLEM, "grid", grid=(too_many, 0.5), torch=(None, 1.0)))
    assert choose(PROBLEM, H200, "grid").config.copies == 1, "copies follow the batch, not the table"
    save_table(
        tables, make_entry(PROBLEM, "grid", grid=(dataclasses.replace(ONE_CONFIG, programs=31), 0.5), torch=(None, 1.0))
    )
    assert choose(PROBLEM, H200, "grid").source == "heuristic"
    assert choose(PROBLEM, H200).kernel == "torch", "of the measured implementations only nn.GRU can run"


def test_info_lists_active_and_stale_tables(tables, monkeypatch, capsys):
    monkeypatch.setattr(info, "list_gpus", lambda: [H200])
    fresh = make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0))
    changed = dataclasses.replace(fresh.results["grid"], revision="0123456789ab")
    key = dataclasses.replace(fresh.key, batch=1)
    path = save_table(tables, fresh, dataclasses.replace(fresh, key=key, results=fresh.results | {"grid": changed}))
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert f"table {path}: 2 shapes, 1 of them stale (grid has changed since)" in printed


def test_comments_do_not_change_a_revision():
    normalized = revision.normalize_source('def f(x):\n    "What it does."\n    return x + 1  # why\n')
    assert normalized == revision.normalize_source(
        'def f(x):\n\n    """What it\n    does, at length."""\n    return x + 1\n'
    )
    assert normalized != revision.normalize_source('def f(x):\n    "What it does."\n    return x + 2  # why\n')
    assert len({revision.revision(kernel) for kernel in KERNELS}) == 3


def test_revision_covers_all_modules_of_a_kernel():
    names = {module.__name__.rpartition(".")[2] for module in revision.find_kernel_modules(grid)}
    assert names >= {"grid", "exchange", "fragments", "isa", "lanes", "reserve", "sequences", "slices"}
    assert "block" not in names


# Invalid tables and entries.

ENTRY = json.loads(
    json.dumps(dataclasses.asdict(make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0))))
)


def make_table(**fields):
    """Return the JSON content of a table of an H200 with one entry. ``fields`` replaces fields of the content."""
    return {"schema": 1, "device": store.describe_device(H200), "entries": [ENTRY]} | fields


# Contents of files that are no table of an H200.
NO_TABLES = {
    "empty": b"",
    "cut off": json.dumps(make_table()).encode()[:-40],
    "binary": bytes(range(256)) * 16,
    "other text": "nicht JSON: ä".encode("latin-1"),
    "a list": b"[1, 2]",
    "another schema": json.dumps(make_table(schema=2)).encode(),
    "a schema that is true": json.dumps(make_table(schema=True)).encode(),
    "no schema": b"{}",
    "no entries": json.dumps(make_table(entries={"grid": 1})).encode(),
    "nested": b'{"schema": 1, "entries": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of 5000 digits": json.dumps(make_table()).replace("132", "1" * 5000).encode(),
    "17 MiB": json.dumps(make_table()).encode() + b" " * (17 << 20),
    "a device of a later version": json.dumps(make_table(device=store.describe_device(H200) | {"mig": 1})).encode(),
    "a device without a name": json.dumps(make_table(device=store.describe_device(H200) | {"name": "../"})).encode(),
    "a device whose sms is a text": json.dumps(
        make_table(device=store.describe_device(H200) | {"sms": "132"})
    ).encode(),
    "another device": json.dumps(make_table(device={"name": "A100", "cc": 80, "sms": 108})).encode(),
}


@pytest.mark.parametrize("name", NO_TABLES)
def test_invalid_table_is_reported_once_and_unchanged(name, tables):
    path = tables / "H200.json"
    path.write_bytes(NO_TABLES[name])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in (16, 17):
            assert choose(change_problem(batch_size=batch), H200).source == "heuristic"
    assert len(caught) == 1 and str(path) in str(caught[0].message), [str(warning.message) for warning in caught]
    bench = PlantedBench(plant_times(lambda candidate: 0.5))
    with pytest.raises(store.UnusableTableError, match="H200.json"):
        triton_gru.tune([PROBLEM], bench=bench)
    assert bench.compiled == [], "before anything is measured"
    with pytest.raises(store.UnusableTableError):
        store.save([], H200, tables)
    assert path.read_bytes() == NO_TABLES[name]


def test_table_of_a_later_version_is_reported_as_such(tables):
    path = tables / "H200.json"
    path.write_text(json.dumps({"schema": 7, "made_by": "a later version"}))
    bytes_before = path.read_bytes()
    message = (
        "it has schema 7, this version reads schema 1: upgrade triton_gru, or tune into another TRITON_GRU_CONFIG_DIR"
    )
    with pytest.raises(store.NewerTableError) as load_error:
        store.load(path)
    assert str(load_error.value) == message
    with pytest.warns(UserWarning, match=f"{message}; it is not used, and not changed"):
        assert choose(PROBLEM, H200).source == "heuristic"
    with pytest.raises(store.NewerTableError) as tune_error:
        triton_gru.tune([PROBLEM], bench=PlantedBench(plant_times(lambda candidate: 0.5)))
    assert str(tune_error.value) == f"{path}: {message}"
    with pytest.raises(store.NewerTableError) as save_error:
        store.save([], H200, tables)
    assert str(save_error.value) == f"{path}: {message}"
    assert path.read_bytes() == bytes_before


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing", "endless"])
def test_special_files_do_not_block(kind, tables):
    path = tables / "H200.json"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link to nothing": lambda: path.symlink_to("nowhere"),
     "endless": lambda: path.symlink_to("/dev/zero")}[kind]()  # fmt: skip
    with pytest.warns(UserWarning, match="not used, and not changed"):
        assert choose(PROBLEM, H200).source == "heuristic"


def make_invalid_entries():
    """Yield entries that this version cannot read: without fields, then `ENTRY` with one wrong field each."""

    def change_entry(path, value):
        """Return `ENTRY` with the field at ``path``, a sequence of keys, set to ``value``."""
        entry = json.loads(json.dumps(ENTRY))
        parent = entry
        for name in path[:-1]:
            parent = parent[name]
        parent[path[-1]] = value
        return entry

    config = ("results", "grid", "config")
    yield from ([], None, 1, "entry", {}, {"key": {}})
    for path, value in (
        (("key",), {}), (("key", "batch"), "16"), (("key", "batch"), 0), (("key", "batch"), True),
        (("key", "hidden_size"), 1 << 70), (("key", "layout"), "scattered"), (("key", "dtype"), 16),
        (("winner",), "step"), (("winner",), ["grid"]), (("winner",), None), (("results",), []),
        (("results", "nonsense"), ENTRY["results"]["grid"]), (("results", "grid"), None),
        ((*config, "units"), -16), ((*config, "units"), 16.0), ((*config, "units"), 10**30),
        ((*config, "handover"), "counter"), ((*config, "handover"), "tag"), ((*config, "handover"), 1),
        ((*config, "more"), 1), (config, None),
        (("results", "grid", "eager_ms"), [0.5]), (("results", "grid", "eager_ms"), [3, 2, 1]),
        (("results", "grid", "eager_ms"), [0.5, 0.5, 1e400]), (("results", "grid", "eager_ms"), ["a", "b", "c"]),
        (("results", "grid", "graph_ms"), [-1.0, 1.0, 2.0]), (("results", "grid", "heuristic_ms"), "fast"),
        (("results", "grid", "revision"), {}), (("failed",), {"spills": -1}), (("candidates",), 1.5),
        (("env",), {"triton": 3.6}), (("tuned_at",), 2026), (("tuned_at",), "x" * 10_000),
        (("power",), 300), (("key", "power"), 300), (("results", "grid", "power"), 300),
    ):  # fmt: skip
        yield change_entry(path, value)


def test_configuration_is_parsed_from_its_fields():
    for kernel in KERNELS:
        config = heuristic(kernel, change_problem(hidden_size=64), H200)
        assert parse_config(kernel, dataclasses.asdict(config)) == config
    for fields in ({"handover": "tag"}, {"units": 0}, {"units": True}, {"units": 1 << 32}, {"more": 1}):
        with pytest.raises((ValueError, TypeError)):
            parse_config("grid", dataclasses.asdict(ONE_CONFIG) | fields)
    with pytest.raises(KeyError):
        parse_config("nonsense", dataclasses.asdict(ONE_CONFIG))


def test_invalid_entries_are_skipped_and_preserved(tables):
    path = tables / "H200.json"
    invalid = list(make_invalid_entries())
    good = make_entry(PROBLEM, "grid", grid=(OTHER_CONFIG, 0.5), torch=(None, 1.0))
    text = json.dumps(make_table(entries=[*invalid, dataclasses.asdict(good)]))
    path.write_text(text)
    with pytest.warns(UserWarning, match=f"ignored {len(invalid)} of {len(invalid) + 1} entries that") as caught:
        assert choose(PROBLEM, H200).config == OTHER_CONFIG
    assert len(caught) == 1
    assert path.read_text() == text
    # Adding an entry preserves the unknown ones, as another version may know them.
    store.save([make_entry(change_problem(batch_size=1), "torch", torch=(None, 1.0))], H200, tables)
    assert json.loads(path.read_text())["entries"][: len(invalid)] == json.loads(text)["entries"][: len(invalid)]
    assert len(store.load(path).entries) == 2


def test_field_missing_in_an_older_table_has_its_default(tables):
    path = save_table(
        tables,
        make_entry(PROBLEM, "grid", grid=(dataclasses.replace(ONE_CONFIG, handover="flag"), 0.5), torch=(None, 1.0)),
    )
    text = json.loads(path.read_text())
    del text["entries"][0]["results"]["grid"]["config"]["handover"]
    path.write_text(json.dumps(text))
    assert choose(PROBLEM, H200).config == dataclasses.replace(ONE_CONFIG, handover="flag")


def test_huge_numbers_in_a_configuration_are_ignored(tables):
    """A huge number would make an impossible launch, or a loop without end."""
    for name in ("programs", "units", "batch", "tiles", "slices", "register_tiles", "rows", "copies"):
        huge_config = dataclasses.replace(ONE_CONFIG, **{name: 1 << 31})
        save_table(tables, make_entry(PROBLEM, "grid", grid=(huge_config, 0.5), torch=(None, 1.0)))
        plan = choose(PROBLEM, H200, "grid")
        assert plan.config == (ONE_CONFIG if name in ("rows", "copies") else GRID)  # rows and copies follow the batch


# Concurrency and failures of the machine.

# A program that saves an entry for each number of steps of a range.
SAVES = """
import dataclasses, pathlib, sys
from tests.planted import H200, ONE_CONFIG, PROBLEM, make_entry
from triton_gru.plan.tables import store
first, last, folder = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
print("ready", flush=True)
for steps in range(first, last):
    problem = dataclasses.replace(PROBLEM, steps=steps)
    store.save([make_entry(problem, "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0))], H200, folder)
"""


def test_concurrent_and_killed_writers_lose_nothing(tables):
    writers = [start_python(SAVES, first, first + 15, tables) for first in (1, 16)]
    assert [writer.wait() for writer in writers] == [0, 0], [writer.stderr.read() for writer in writers]
    path = tables / "H200.json"
    assert sorted(entry.key.steps for entry in store.load(path).entries) == list(range(1, 31))
    killed = start_python(SAVES, 100, 100_000, tables)
    assert killed.stdout.readline() == "ready\n"
    time_before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == time_before:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    steps = sorted(entry.key.steps for entry in store.load(path).entries)
    assert steps == [*range(1, 31), *range(100, 70 + len(steps))]
    store.save([], H200, tables)  # the lock ended with the killed process
    for process in (*writers, killed):
        process.stdout.close(), process.stderr.close()


def test_lock_held_by_another_process_times_out(tables, monkeypatch):
    path = save_table(tables, make_entry(PROBLEM, "torch", grid=(ONE_CONFIG, 2.0), torch=(None, 1.0)))
    bytes_before = path.read_bytes()
    code = "import sys, time, fcntl; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('ready', flush=True); "
    holder = start_python(code + "time.sleep(1000)", tables / ".lock")
    assert holder.stdout.readline() == "ready\n"
    monkeypatch.setattr(store, "LOCK_TIMEOUT_S", 0.2)
    with pytest.warns(UserWarning, match="this process only.* another process holds"):
        triton_gru.tune([change_problem(batch_size=1)], bench=PlantedBench(plant_times(lambda candidate: 1.5)))
    assert path.read_bytes() == bytes_before
    holder.kill()
    holder.communicate()


@pytest.mark.parametrize("reason", ["a folder at the path", "no folder around the path", "no locks"])
def test_impossible_lock_fails_at_once(reason, tables, monkeypatch):
    path = tables / ".lock"
    if reason == "a folder at the path":
        path.mkdir()
    elif reason == "no folder around the path":
        path = pathlib.Path("/proc/self/fdinfo/tables/.lock")
    else:  # filelock 3 raises this on a file system without locks
        monkeypatch.setattr(filelock.FileLock, "_acquire", lambda lock: (_ for _ in ()).throw(NotImplementedError))
    start = time.monotonic()
    with pytest.raises(OSError) as caught, store.locked(path):
        pass
    assert not isinstance(caught.value, TimeoutError) and time.monotonic() - start < 10


def test_full_disk_leaves_the_old_table(tables):
    path = save_table(
        tables,
        *(make_entry(change_problem(steps=n), "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0)) for n in range(1, 20)),
    )
    bytes_before = path.read_bytes()

    def limit_file_size():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(bytes_before) // 2, len(bytes_before) // 2))

    done = start_python(SAVES, 100, 101, tables, preexec_fn=limit_file_size)
    _, errors = done.communicate()
    assert done.returncode == 1 and "OSError" in errors and "File too large" in errors
    assert path.read_bytes() == bytes_before
    assert {path.name for path in tables.iterdir()} == {"H200.json", ".lock"}, "nothing half-written stays"


# A program that sleeps after it has written the new table, and before this table replaces the old one.
SLEEPS_IN_A_WRITE = """
import os, pathlib, sys, time
from tests.planted import H200, ONE_CONFIG, PROBLEM, make_entry
from triton_gru.plan.tables import store
os.fsync = lambda handle: (print("ready", flush=True), time.sleep(1000))
store.save([make_entry(PROBLEM, "torch", grid=(ONE_CONFIG, 2.0), torch=(None, 1.0))], H200, pathlib.Path(sys.argv[1]))
"""


def test_leftover_of_a_killed_writer_is_removed(tables):
    path = save_table(tables, make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0)))
    bytes_before = path.read_bytes()
    writer = start_python(SLEEPS_IN_A_WRITE, tables)
    assert writer.stdout.readline() == "ready\n"
    writer.kill()
    writer.communicate()
    (left_over,) = tables.glob("*.tmp")
    assert json.loads(left_over.read_text())["entries"][0]["winner"] == "torch"
    assert path.read_bytes() == bytes_before
    assert choose(PROBLEM, H200).config == ONE_CONFIG, "the leftover file is not read as a table"
    save_table(tables, make_entry(change_problem(batch_size=1), "torch", grid=(ONE_CONFIG, 2.0), torch=(None, 1.0)))
    assert {path.name for path in tables.iterdir()} == {"H200.json", ".lock"}
    assert len(store.load(path).entries) == 2


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_rewrite_replaces_all_tables_or_none(step, tables, monkeypatch):
    """The disk is full when the second of two tables is written."""
    a100 = KNOWN_DEVICES["A100"]
    paths = [
        save_table(tables, make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5)), device=device)
        for device in (H200, a100)
    ]
    bytes_before = [path.read_bytes() for path in paths]
    fill_disk(monkeypatch, step, writes_before=1)
    rules = [(store.describe_device(device), lambda entries: entries * 2) for device in (H200, a100)]
    with pytest.raises(OSError, match="No space left on device; it is left as it was: .*A100.json"):
        store.rewrite(rules, tables)
    assert [path.read_bytes() for path in paths] == bytes_before
    assert {path.name for path in tables.iterdir()} == {"H200.json", "A100.json", ".lock"}
    monkeypatch.undo()
    store.rewrite(rules, tables)
    assert [len(store.load(path).raw) for path in paths] == [2, 2]


def test_table_keeps_its_permissions(tables):
    path = save_table(tables, make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5)))
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask, "other users may read the table"
    path.chmod(0o640)
    save_table(tables, make_entry(PROBLEM, "grid", grid=(OTHER_CONFIG, 0.4)))
    assert path.stat().st_mode & 0o777 == 0o640


def test_protected_table_is_not_replaced(tables, monkeypatch):
    path = save_table(tables, make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5)))
    bytes_before = path.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # a test run by root could write otherwise
    with pytest.raises(PermissionError, match=f"Permission denied; it is left as it was: '{path}'"):
        store.save([make_entry(PROBLEM, "grid", grid=(OTHER_CONFIG, 0.4))], H200, tables)
    assert path.read_bytes() == bytes_before


@pytest.mark.parametrize("depth", [100, *range(900, 1000, 10), 3000, 9000])
def test_deeply_nested_entry_is_preserved(depth, tables):
    """Python reads deeper nested lists than it writes."""
    path = save_table(tables, make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5)))
    path.write_text(json.dumps(make_table(entries=["deep"])).replace('"deep"', "[" * depth + "]" * depth))
    bytes_before = path.read_bytes()
    with contextlib.suppress(store.UnusableTableError):
        store.save([make_entry(PROBLEM, "grid", grid=(OTHER_CONFIG, 0.4))], H200, tables)
    assert path.read_text().count("[") > depth
    assert (path.read_bytes() != bytes_before) or depth > 100


@pytest.mark.parametrize("where", ["read-only", "a file", "no home"])
def test_result_that_cannot_be_written_holds_for_the_process(where, tables, monkeypatch):
    if where == "no home":
        monkeypatch.delenv("TRITON_GRU_CONFIG_DIR")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(pathlib.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        (tables / "file").touch()
        folder = {"read-only": "/proc/self/fdinfo/tables", "a file": tables / "file" / "tables"}[where]
        monkeypatch.setenv("TRITON_GRU_CONFIG_DIR", str(folder))
    with pytest.warns(UserWarning, match="kept for this process only") as caught:
        (tuned,) = triton_gru.tune([PROBLEM], bench=PlantedBench(plant_times(lambda candidate: 1.5)))
    assert len(caught) == 1 and tuned.table_path is None
    assert choose(PROBLEM, H200).kernel == "torch"
    assert "this process" in choose(PROBLEM, H200).source
    clear_caches()
    assert choose(PROBLEM, H200).kernel == "grid"


def test_configuration_that_fails_is_replaced_with_one_warning(tables, kernels_on_cpu, monkeypatch):
    """After an upgrade of Triton, the compiler may fail on the configuration of a table."""
    problem = change_problem(hidden_size=20, input_size=7, batch_size=3, steps=2, dtype=torch.float32, precision="tf32")
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    config = heuristic("block", problem, H200)
    broken = dataclasses.replace(config, batch=16)
    save_table(tables, make_entry(problem, "block", block=(broken, 0.5), torch=(None, 1.0)), device=H200)
    bytes_before = (tables / store.file_name(H200)).read_bytes()
    gru = triton_gru.GRU(7, 20, backend="block").eval()
    x = torch.randn(2, 3, 7)
    assert gru.plan(x).config == broken
    start = execute.start

    def start_or_fail(launches):
        for launch in launches:
            if launch.constants["cut"].BATCH.value == 16:
                raise RuntimeError("PassManager::run failed")
            start(iter([launch]))

    monkeypatch.setattr(execute, "start", start_or_fail)
    with torch.no_grad():
        with pytest.warns(
            UserWarning, match="does not run as BlockConfig.*PassManager::run failed.*heuristic"
        ) as caught:
            output, _ = gru(x)
        assert sum(warning.category is UserWarning for warning in caught) == 1
        assert torch.allclose(output, torch.nn.GRU.forward(gru, x)[0], atol=1e-2)
        gru(x), gru(x)  # no second warning
        assert gru.plan(x).config == config
        triton_gru.plan.planner.clear_plan_cache()
        gru.backend = "step"
        monkeypatch.setattr(execute, "start", lambda launches: (_ for _ in ()).throw(RuntimeError("a fault of ours")))
        with pytest.raises(RuntimeError, match="a fault of ours"):  # without a table the error is raised
            gru(x)
    assert (tables / store.file_name(H200)).read_bytes() == bytes_before


@pytest.mark.parametrize("is_prepared", [True, False])
def test_stream_replaces_a_configuration_that_fails(is_prepared, tables, kernels_on_cpu, launched, monkeypatch):
    """Frames are prepared unless a parametrization computes the weights for each frame."""
    problem = change_problem(hidden_size=20, input_size=7, batch_size=3, steps=1, dtype=torch.float32, precision="tf32")
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    broken = dataclasses.replace(heuristic("step", problem, H200), num_stages=2)
    save_table(tables, make_entry(problem, "step", step=(broken, 0.5), torch=(None, 1.0)), device=H200)
    gru = triton_gru.GRU(7, 20, backend="step").eval()
    if not is_prepared:
        torch.nn.utils.parametrizations.weight_norm(gru, "weight_hh_l0")
    stream = gru.stream(3)
    frames = torch.randn(3, 3, 7)
    assert stream.plan(frames[0]).config == broken
    make_starter, start = Launch.make_starter, Launch.start

    def start_or_fail(launch):
        if launch.constants["num_stages"] == 2:
            raise RuntimeError("PassManager::run failed")
        return (make_starter if is_prepared else start)(launch)

    monkeypatch.setattr(Launch, "make_starter" if is_prepared else "start", start_or_fail)
    with pytest.warns(UserWarning, match="step does not run as StepConfig"):
        outputs = [stream(frames[0])]
    outputs += [stream(frame) for frame in frames[1:]]
    expected = torch.nn.GRU.forward(stream._gru, frames)[0]
    assert torch.allclose(torch.stack(outputs), expected, atol=1e-2)
    # Three frames. A failed launch that is not prepared is recorded too.
    assert launched == ["whole_step"] * (3 if is_prepared else 4)


def test_tables_ship_with_the_package_and_are_valid():
    """pyproject.toml installs the tables in triton_gru/plan/tables/data, and all their entries are known."""
    root = pathlib.Path(__file__).parents[1]
    assert '"triton_gru.plan.tables" = ["data/*.json"]' in (root / "pyproject.toml").read_text()
    assert root / "triton_gru/plan/tables/data" == lookup.SHIPPED_DIRECTORY
    for path in lookup.SHIPPED_DIRECTORY.glob("*.json"):
        assert store.load(path).skipped == []


def test_block_configuration_of_another_chip_is_refused():
    config = BlockConfig(units=64, tiles=3, batch=8, ahead=1, register_tiles=6, num_warps=4)
    problem = change_problem(hidden_size=192)
    assert unsupported_config_reason(config, problem, H200) == ""
    reason = unsupported_config_reason(config, problem, KNOWN_DEVICES["RTX 5090"])
    assert reason.startswith("too little shared memory: ")
