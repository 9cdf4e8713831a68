"""Tuned tables: what is found in them for a call, and that nothing a file can hold or a machine can do loses one."""

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
from triton_gru.launch import call_cache, execute
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
    fill_disk,
    make_entry,
    plant_times,
    start_python,
)

GRID = heuristic("grid", PROBLEM, H200)


def change(**fields):
    return dataclasses.replace(PROBLEM, **fields)


def saved(directory, *entries, device=H200):
    path = store.save(list(entries), device, directory)
    forget()
    return path


def forget():
    lookup.clear_table_cache()
    triton_gru.plan.planner.clear_plan_cache()


# What is found.


def test_it_comes_back_as_it_was(tables):
    whole = make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0))
    loaded = store.load(saved(tables, whole))
    assert (loaded.entries, loaded.skipped, loaded.device) == ([whole], [], {"name": "H200", "cc": 90, "sms": 132})


def test_where_it_comes_from_and_in_which_order(tables, monkeypatch):
    shipped = tables / "shipped"
    monkeypatch.setattr(lookup, "SHIPPED_DIRECTORY", shipped)
    like = dataclasses.replace(H200, name="NVIDIA H200 NVL")
    grids = [each.config for each in candidates(PROBLEM, H200) if each.kernel == "grid"]
    of_process, of_user, of_package, of_like = grids[-4:]

    def found():
        plan = choose(PROBLEM, H200)
        return plan.config, plan.source

    assert found() == (GRID, "heuristic")
    saved(shipped, make_entry(PROBLEM, "grid", grid=(of_like, 0.5), torch=(None, 1.0)), device=like)
    assert found()[0] == of_like and "shipped table of a like device" in found()[1]
    saved(shipped, make_entry(PROBLEM, "grid", grid=(of_package, 0.5), torch=(None, 1.0)))
    assert found()[0] == of_package and found()[1].startswith("shipped table /")
    saved(tables, make_entry(PROBLEM, "grid", grid=(of_user, 0.5), torch=(None, 1.0)))
    assert found()[0] == of_user and found()[1].startswith(f"table {tables / 'H200.json'}, of 2026-01-02")
    lookup.remember(H200, [make_entry(PROBLEM, "grid", grid=(of_process, 0.5), torch=(None, 1.0))])
    triton_gru.plan.planner.clear_plan_cache()
    assert found() == (of_process, "this process, of 2026-01-02")
    # What is stale comes after all that is fresh.
    old = make_entry(PROBLEM, "grid", grid=(of_process, 0.5), torch=(None, 1.0))
    lookup.remember(H200, [dataclasses.replace(old, env=old.env | {"triton": "3.5.1"})])
    triton_gru.plan.planner.clear_plan_cache()
    assert found()[0] == of_user
    assert choose(PROBLEM, KNOWN_DEVICES["A100"]).source == "heuristic"


@pytest.mark.parametrize("made_with, is_stale", [("3.9.1", False), ("3.8.0", True), ("3.10.0", True), ("", True)])
def test_another_triton_makes_an_entry_stale_and_the_plan_says_so(made_with, is_stale, tables, monkeypatch):
    monkeypatch.setitem(revision.environment(), "triton", "3.9.0")
    whole = make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0))
    saved(tables, dataclasses.replace(whole, env=whole.env | {"triton": made_with}))
    plan = choose(PROBLEM, H200)
    assert (plan.kernel, plan.config, plan.is_tuned) == ("grid", ONE_CONFIG, True)
    words = f"stale: made with triton {made_with[:-2] or 'unknown'}, this is 3.9 (`triton-gru tune` measures it again)"
    assert (words in plan.source) == (words in str(plan)) == is_stale
    saved(tables, whole)  # which `triton-gru tune` would do
    assert choose(PROBLEM, H200).source == f"table {tables / 'H200.json'}, of 2026-01-02"


@pytest.mark.parametrize(
    "fields, of_config, of_verdict",
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
        ({"steps": 49}, True, False),  # what a call costs once counts more
        ({"steps": 1}, False, False),
        ({"input_size": 2048}, True, True),
        ({"input_size": 64}, True, False),
        ({"num_layers": 2}, True, False),
        ({"layout": "packed"}, True, False),
        ({"bidirectional": True}, True, False),
    ],
    ids=str,
)
def test_what_a_measurement_holds_for(fields, of_config, of_verdict, tables):
    saved(tables, make_entry(PROBLEM, "torch", grid=(ONE_CONFIG, 2.0), torch=(None, 1.0)))
    problem = change(**fields)
    by_name = choose(problem, H200, "grid")
    assert by_name.is_tuned == of_config
    if of_config:
        expected = dataclasses.replace(ONE_CONFIG, copies=by_name.config.copies, directions=by_name.config.directions)
        assert by_name.config == expected
    assert (choose(problem, H200).kernel == "torch") == of_verdict


def test_the_nearest_counts(tables):
    saved(
        tables,
        make_entry(change(steps=16), "torch", grid=(ONE_CONFIG, 2.0), torch=(None, 1.0)),
        make_entry(change(steps=1000), "grid", grid=(OTHER_CONFIG, 0.5), torch=(None, 1.0)),
    )
    plans = {steps: choose(change(steps=steps), H200) for steps in (8, 100, 499, 500, 5000)}
    assert [plan.kernel for plan in plans.values()] == ["torch", "torch", "torch", "grid", "grid"]
    assert choose(change(steps=100), H200, "grid").config == ONE_CONFIG
    assert choose(change(steps=300), H200, "grid").config == OTHER_CONFIG


def test_what_no_longer_fits_is_passed_over(tables):
    too_many = dataclasses.replace(ONE_CONFIG, copies=9)
    saved(tables, make_entry(PROBLEM, "grid", grid=(too_many, 0.5), torch=(None, 1.0)))
    assert choose(PROBLEM, H200, "grid").config.copies == 1, "copies are of the batch, not of the table"
    saved(
        tables, make_entry(PROBLEM, "grid", grid=(dataclasses.replace(ONE_CONFIG, programs=31), 0.5), torch=(None, 1.0))
    )
    assert choose(PROBLEM, H200, "grid").source == "heuristic"
    assert choose(PROBLEM, H200).kernel == "torch", "of what was measured, it alone can run"


def test_info_says_what_is_in_force_and_what_is_stale(tables, monkeypatch, capsys):
    monkeypatch.setattr(info, "list_gpus", lambda: [H200])
    fresh = make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0))
    changed = dataclasses.replace(fresh.results["grid"], revision="0123456789ab")
    key = dataclasses.replace(fresh.key, batch=1)
    path = saved(tables, fresh, dataclasses.replace(fresh, key=key, results=fresh.results | {"grid": changed}))
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert f"table {path}: 2 shapes, 1 of them stale (grid has changed since)" in printed


def test_a_comment_discards_no_table():
    before = revision.normalize_source('def f(x):\n    "What it does."\n    return x + 1  # why\n')
    assert before == revision.normalize_source(
        'def f(x):\n\n    """What it\n    does, at length."""\n    return x + 1\n'
    )
    assert before != revision.normalize_source('def f(x):\n    "What it does."\n    return x + 2  # why\n')
    assert len({revision.revision(kernel) for kernel in KERNELS}) == 3


def test_a_kernels_revision_is_of_all_that_it_calls():
    names = {module.__name__.rpartition(".")[2] for module in revision.find_kernel_modules(grid)}
    assert names >= {"grid", "exchange", "fragments", "isa", "lanes", "reserve", "sequences", "slices"}
    assert "block" not in names


# What is no table.

ENTRY = json.loads(
    json.dumps(dataclasses.asdict(make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0))))
)


def table(**fields):
    return {"schema": 1, "device": store.describe_device(H200), "entries": [ENTRY]} | fields


NO_TABLES = {
    "empty": b"",
    "cut off": json.dumps(table()).encode()[:-40],
    "binary": bytes(range(256)) * 16,
    "other text": "nicht JSON: ä".encode("latin-1"),
    "a list": b"[1, 2]",
    "another schema": json.dumps(table(schema=2)).encode(),
    "a schema that is true": json.dumps(table(schema=True)).encode(),
    "no schema": b"{}",
    "no entries": json.dumps(table(entries={"grid": 1})).encode(),
    "nested": b'{"schema": 1, "entries": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of 5000 digits": json.dumps(table()).replace("132", "1" * 5000).encode(),
    "17 MiB": json.dumps(table()).encode() + b" " * (17 << 20),
    "a device of a later version": json.dumps(table(device=store.describe_device(H200) | {"mig": 1})).encode(),
    "a device without a name": json.dumps(table(device=store.describe_device(H200) | {"name": "../"})).encode(),
    "a device of a text": json.dumps(table(device=store.describe_device(H200) | {"sms": "132"})).encode(),
    "another device": json.dumps(table(device={"name": "A100", "cc": 80, "sms": 108})).encode(),
}


@pytest.mark.parametrize("name", NO_TABLES)
def test_what_is_no_table_is_said_once_and_left_alone(name, tables):
    path = tables / "H200.json"
    path.write_bytes(NO_TABLES[name])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in (16, 17):
            assert choose(change(batch_size=batch), H200).source == "heuristic"
    assert len(caught) == 1 and str(path) in str(caught[0].message), [str(each.message) for each in caught]
    planted = PlantedBench(plant_times(lambda candidate: 0.5))
    with pytest.raises(store.UnusableTableError, match="H200.json"):
        triton_gru.tune([PROBLEM], bench=planted)
    assert planted.compiled == [], "before anything is measured"
    with pytest.raises(store.UnusableTableError):
        store.save([], H200, tables)
    assert path.read_bytes() == NO_TABLES[name]


def test_a_table_of_a_later_version_is_said_to_be_one(tables):
    path = tables / "H200.json"
    path.write_text(json.dumps({"schema": 7, "made_by": "a later version"}))
    before = path.read_bytes()
    words = (
        "it is of schema 7, this version knows schema 1: upgrade triton_gru, or tune into another TRITON_GRU_CONFIG_DIR"
    )
    with pytest.raises(store.NewerTableError) as of_load:
        store.load(path)
    assert str(of_load.value) == words
    with pytest.warns(UserWarning, match=f"{words}; it is left alone and not used"):
        assert choose(PROBLEM, H200).source == "heuristic"
    with pytest.raises(store.NewerTableError) as of_tune:
        triton_gru.tune([PROBLEM], bench=PlantedBench(plant_times(lambda candidate: 0.5)))
    assert str(of_tune.value) == f"{path}: {words}"
    with pytest.raises(store.NewerTableError) as of_save:
        store.save([], H200, tables)
    assert str(of_save.value) == f"{path}: {words}"
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing", "endless"])
def test_what_is_no_file_is_not_waited_for(kind, tables):
    path = tables / "H200.json"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link to nothing": lambda: path.symlink_to("nowhere"),
     "endless": lambda: path.symlink_to("/dev/zero")}[kind]()  # fmt: skip
    with pytest.warns(UserWarning, match="left alone and not used"):
        assert choose(PROBLEM, H200).source == "heuristic"


def entries_of_the_wrong_kind():
    def changed(at, value):
        whole = json.loads(json.dumps(ENTRY))
        place = whole
        for name in at[:-1]:
            place = place[name]
        place[at[-1]] = value
        return whole

    config = ("results", "grid", "config")
    yield from ([], None, 1, "entry", {}, {"key": {}})
    for at, value in (
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
        yield changed(at, value)


def test_a_configuration_is_read_from_its_fields():
    for kernel in KERNELS:
        config = heuristic(kernel, change(hidden_size=64), H200)
        assert parse_config(kernel, dataclasses.asdict(config)) == config
    for wrong in ({"handover": "tag"}, {"units": 0}, {"units": True}, {"units": 1 << 32}, {"more": 1}):
        with pytest.raises((ValueError, TypeError)):
            parse_config("grid", dataclasses.asdict(ONE_CONFIG) | wrong)
    with pytest.raises(KeyError):
        parse_config("nonsense", dataclasses.asdict(ONE_CONFIG))


def test_an_entry_that_is_none_is_left_out_alone(tables):
    path = tables / "H200.json"
    wrong = list(entries_of_the_wrong_kind())
    good = make_entry(PROBLEM, "grid", grid=(OTHER_CONFIG, 0.5), torch=(None, 1.0))
    text = json.dumps(table(entries=[*wrong, dataclasses.asdict(good)]))
    path.write_text(text)
    with pytest.warns(UserWarning, match=f"{len(wrong)} of {len(wrong) + 1} entries are none") as caught:
        assert choose(PROBLEM, H200).config == OTHER_CONFIG
    assert len(caught) == 1
    assert path.read_text() == text
    # Who adds to such a table keeps them all: another version may know what they are.
    store.save([make_entry(change(batch_size=1), "torch", torch=(None, 1.0))], H200, tables)
    assert json.loads(path.read_text())["entries"][: len(wrong)] == json.loads(text)["entries"][: len(wrong)]
    assert len(store.load(path).entries) == 2


def test_what_an_earlier_version_did_not_have_has_its_default(tables):
    path = saved(
        tables,
        make_entry(PROBLEM, "grid", grid=(dataclasses.replace(ONE_CONFIG, handover="flag"), 0.5), torch=(None, 1.0)),
    )
    text = json.loads(path.read_text())
    del text["entries"][0]["results"]["grid"]["config"]["handover"]
    path.write_text(json.dumps(text))
    assert choose(PROBLEM, H200).config == dataclasses.replace(ONE_CONFIG, handover="flag")


def test_numbers_that_are_possible_and_mean_harm(tables):
    """Each would be a launch that cannot be, or an arithmetic that does not end."""
    for name in ("programs", "units", "batch", "tiles", "slices", "register_tiles", "rows", "copies"):
        harm = dataclasses.replace(ONE_CONFIG, **{name: 1 << 31})
        saved(tables, make_entry(PROBLEM, "grid", grid=(harm, 0.5), torch=(None, 1.0)))
        plan = choose(PROBLEM, H200, "grid")
        assert plan.config == (ONE_CONFIG if name in ("rows", "copies") else GRID)  # those two are of the batch


# What a machine can do.

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


def test_two_at_once_lose_nothing_and_one_that_is_killed_breaks_nothing(tables):
    both = [start_python(SAVES, first, first + 15, tables) for first in (1, 16)]
    assert [each.wait() for each in both] == [0, 0], [each.stderr.read() for each in both]
    path = tables / "H200.json"
    assert sorted(each.key.steps for each in store.load(path).entries) == list(range(1, 31))
    killed = start_python(SAVES, 100, 100_000, tables)
    assert killed.stdout.readline() == "ready\n"
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    steps = sorted(each.key.steps for each in store.load(path).entries)
    assert steps == [*range(1, 31), *range(100, 70 + len(steps))]
    store.save([], H200, tables)  # its lock went with it
    for each in (*both, killed):
        each.stdout.close(), each.stderr.close()


def test_a_lock_that_another_holds_is_not_waited_for_for_ever(tables, monkeypatch):
    path = saved(tables, make_entry(PROBLEM, "torch", grid=(ONE_CONFIG, 2.0), torch=(None, 1.0)))
    before = path.read_bytes()
    code = "import sys, time, fcntl; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('ready', flush=True); "
    holder = start_python(code + "time.sleep(1000)", tables / ".lock")
    assert holder.stdout.readline() == "ready\n"
    monkeypatch.setattr(store, "LOCK_TIMEOUT_S", 0.2)
    with pytest.warns(UserWarning, match="this process alone.* another process holds"):
        triton_gru.tune([change(batch_size=1)], bench=PlantedBench(plant_times(lambda candidate: 1.5)))
    assert path.read_bytes() == before
    holder.kill()
    holder.communicate()


@pytest.mark.parametrize("obstacle", ["a folder of its name", "a folder that is not there", "no locks"])
def test_where_there_can_be_no_lock_it_is_not_waited_for(obstacle, tables, monkeypatch):
    path = tables / ".lock"
    if obstacle == "a folder of its name":
        path.mkdir()
    elif obstacle == "a folder that is not there":
        path = pathlib.Path("/proc/self/fdinfo/tables/.lock")
    else:  # as filelock 3 says that a file system has none
        monkeypatch.setattr(filelock.FileLock, "_acquire", lambda lock: (_ for _ in ()).throw(NotImplementedError))
    before = time.monotonic()
    with pytest.raises(OSError) as caught, store.locked(path):
        pass
    assert not isinstance(caught.value, TimeoutError) and time.monotonic() - before < 10


def test_a_full_disk_leaves_the_old_table(tables):
    path = saved(
        tables, *(make_entry(change(steps=n), "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0)) for n in range(1, 20))
    )
    before = path.read_bytes()

    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    done = start_python(SAVES, 100, 101, tables, preexec_fn=full)
    _, errors = done.communicate()
    assert done.returncode == 1 and "OSError" in errors and "File too large" in errors
    assert path.read_bytes() == before
    assert {each.name for each in tables.iterdir()} == {"H200.json", ".lock"}, "nothing half-written stays"


SLEEPS_IN_A_WRITE = """
import os, pathlib, sys, time
from tests.planted import H200, ONE_CONFIG, PROBLEM, make_entry
from triton_gru.plan.tables import store
os.fsync = lambda handle: (print("ready", flush=True), time.sleep(1000))
store.save([make_entry(PROBLEM, "torch", grid=(ONE_CONFIG, 2.0), torch=(None, 1.0))], H200, pathlib.Path(sys.argv[1]))
"""


def test_what_is_left_of_a_process_that_is_killed_while_it_writes(tables):
    path = saved(tables, make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5), torch=(None, 1.0)))
    before = path.read_bytes()
    writer = start_python(SLEEPS_IN_A_WRITE, tables)
    assert writer.stdout.readline() == "ready\n"
    writer.kill()
    writer.communicate()
    (left_over,) = tables.glob("*.tmp")
    assert json.loads(left_over.read_text())["entries"][0]["winner"] == "torch"
    assert path.read_bytes() == before
    assert choose(PROBLEM, H200).config == ONE_CONFIG, "what is left over is no table"
    saved(tables, make_entry(change(batch_size=1), "torch", grid=(ONE_CONFIG, 2.0), torch=(None, 1.0)))
    assert {each.name for each in tables.iterdir()} == {"H200.json", ".lock"}
    assert len(store.load(path).entries) == 2


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_all_tables_are_replaced_or_none(step, tables, monkeypatch):
    """The disk is full for the second of two."""
    a100 = KNOWN_DEVICES["A100"]
    paths = [
        saved(tables, make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5)), device=device) for device in (H200, a100)
    ]
    before = [path.read_bytes() for path in paths]
    fill_disk(monkeypatch, step, writes_before=1)
    rules = [(store.describe_device(device), lambda old: old * 2) for device in (H200, a100)]
    with pytest.raises(OSError, match="No space left on device; it is left as it was: .*A100.json"):
        store.rewrite(rules, tables)
    assert [path.read_bytes() for path in paths] == before
    assert {each.name for each in tables.iterdir()} == {"H200.json", "A100.json", ".lock"}
    monkeypatch.undo()
    store.rewrite(rules, tables)
    assert [len(store.load(path).raw) for path in paths] == [2, 2]


def test_a_table_keeps_its_permissions(tables):
    path = saved(tables, make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5)))
    before = os.umask(0)
    os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~before, "who serves may read what another has tuned"
    path.chmod(0o640)
    saved(tables, make_entry(PROBLEM, "grid", grid=(OTHER_CONFIG, 0.4)))
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_table_that_is_protected_is_not_replaced(tables, monkeypatch):
    path = saved(tables, make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5)))
    before = path.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # as root has all rights
    with pytest.raises(PermissionError, match=f"Permission denied; it is left as it was: '{path}'"):
        store.save([make_entry(PROBLEM, "grid", grid=(OTHER_CONFIG, 0.4))], H200, tables)
    assert path.read_bytes() == before


@pytest.mark.parametrize("depth", [100, *range(900, 1000, 10), 3000, 9000])
def test_an_entry_that_cannot_be_written_again_stays(depth, tables):
    """Python may read more brackets within each other than it writes."""
    path = saved(tables, make_entry(PROBLEM, "grid", grid=(ONE_CONFIG, 0.5)))
    path.write_text(json.dumps(table(entries=["deep"])).replace('"deep"', "[" * depth + "]" * depth))
    before = path.read_bytes()
    with contextlib.suppress(store.UnusableTableError):
        store.save([make_entry(PROBLEM, "grid", grid=(OTHER_CONFIG, 0.4))], H200, tables)
    assert path.read_text().count("[") > depth
    assert (path.read_bytes() != before) or depth > 100


@pytest.mark.parametrize("where", ["read-only", "a file", "no home"])
def test_where_nothing_can_be_kept_it_holds_for_the_process(where, tables, monkeypatch):
    if where == "no home":
        monkeypatch.delenv("TRITON_GRU_CONFIG_DIR")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(pathlib.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        (tables / "file").touch()
        folder = {"read-only": "/proc/self/fdinfo/tables", "a file": tables / "file" / "tables"}[where]
        monkeypatch.setenv("TRITON_GRU_CONFIG_DIR", str(folder))
    with pytest.warns(UserWarning, match="holds for this process alone") as caught:
        (found,) = triton_gru.tune([PROBLEM], bench=PlantedBench(plant_times(lambda candidate: 1.5)))
    assert len(caught) == 1 and found.table_path is None
    assert choose(PROBLEM, H200).kernel == "torch"
    assert "this process" in choose(PROBLEM, H200).source
    forget()
    assert choose(PROBLEM, H200).kernel == "grid"


def test_what_does_not_run_after_all_is_replaced_with_one_warning(tables, kernels_on_cpu, monkeypatch):
    """As after an upgrade of Triton: of the table's configuration the compiler makes nothing any more."""
    problem = change(hidden_size=20, input_size=7, batch_size=3, steps=2, dtype=torch.float32, precision="tf32")
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    config = heuristic("block", problem, H200)
    broken = dataclasses.replace(config, batch=16)
    saved(tables, make_entry(problem, "block", block=(broken, 0.5), torch=(None, 1.0)), device=H200)
    before = (tables / store.file_name(H200)).read_bytes()
    gru = triton_gru.GRU(7, 20, backend="block").eval()
    x = torch.randn(2, 3, 7)
    assert gru.plan(x).config == broken
    start = execute.start

    def fails(launches):
        for each in launches:
            if each.constants["cut"].BATCH.value == 16:
                raise RuntimeError("PassManager::run failed")
            start(iter([each]))

    monkeypatch.setattr(execute, "start", fails)
    with torch.no_grad():
        with pytest.warns(
            UserWarning, match="does not run as BlockConfig.*PassManager::run failed.*heuristic"
        ) as caught:
            output, _ = gru(x)
        assert sum(each.category is UserWarning for each in caught) == 1
        assert torch.allclose(output, torch.nn.GRU.forward(gru, x)[0], atol=1e-2)
        gru(x), gru(x)  # without another word
        assert gru.plan(x).config == config
        call_cache.clear_call_cache()
        gru.backend = "step"
        monkeypatch.setattr(execute, "start", lambda launches: (_ for _ in ()).throw(RuntimeError("a fault of ours")))
        with pytest.raises(RuntimeError, match="a fault of ours"):  # where there is no table to blame
            gru(x)
    assert (tables / store.file_name(H200)).read_bytes() == before


@pytest.mark.parametrize("kept", [True, False])
def test_a_stream_goes_on_without_what_does_not_run(kept, tables, kernels_on_cpu, launched, monkeypatch):
    """Frames are kept unless weights are made anew for each."""
    problem = change(hidden_size=20, input_size=7, batch_size=3, steps=1, dtype=torch.float32, precision="tf32")
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    broken = dataclasses.replace(heuristic("step", problem, H200), num_stages=2)
    saved(tables, make_entry(problem, "step", step=(broken, 0.5), torch=(None, 1.0)), device=H200)
    gru = triton_gru.GRU(7, 20, backend="step").eval()
    if not kept:
        torch.nn.utils.parametrizations.weight_norm(gru, "weight_hh_l0")
    stream = gru.stream(3)
    frames = torch.randn(3, 3, 7)
    assert stream.plan(frames[0]).config == broken
    prepared, start = Launch.make_starter, Launch.start

    def fails(launch):
        if launch.constants["num_stages"] == 2:
            raise RuntimeError("PassManager::run failed")
        return (prepared if kept else start)(launch)

    monkeypatch.setattr(Launch, "make_starter" if kept else "start", fails)
    with pytest.warns(UserWarning, match="step does not run as StepConfig"):
        outputs = [stream(frames[0])]
    outputs += [stream(each) for each in frames[1:]]
    expected = torch.nn.GRU.forward(stream._gru, frames)[0]
    assert torch.allclose(torch.stack(outputs), expected, atol=1e-2)
    assert launched == ["whole_step"] * (3 if kept else 4)  # the one that fails is noted as it comes


def test_the_tables_come_with_the_package():
    """What is in triton_gru/plan/tables/data is listed to be installed, and is in order."""
    root = pathlib.Path(__file__).parents[1]
    assert '"triton_gru.plan.tables" = ["data/*.json"]' in (root / "pyproject.toml").read_text()
    assert root / "triton_gru/plan/tables/data" == lookup.SHIPPED_DIRECTORY
    for path in lookup.SHIPPED_DIRECTORY.glob("*.json"):
        assert store.load(path).skipped == []


def test_a_block_configuration_for_another_chip_is_refused():
    config = BlockConfig(64, 3, 8, 1, 6, 4)
    problem = change(hidden_size=192)
    assert unsupported_config_reason(config, problem, H200) == ""
    assert unsupported_config_reason(config, problem, KNOWN_DEVICES["RTX 5090"]) == "too little shared memory"
