"""Tests of the work of one time step: by formulas of the configuration, no product, store or read is repeated.

The tests run a pairwise choice of cases. `count_all` checks all cases and returns an updated `TABLE`.
"""

import itertools
import math
import re
import sys
from collections import Counter

import pytest
import triton

from triton_gru.call.bind import bind_gru
from triton_gru.plan.config import Config
from triton_gru.plan.cost import estimate_call_cost
from triton_gru.plan.device import KNOWN_DEVICES, Device
from triton_gru.plan.heuristic import HEURISTICS

from ..calls import PRECISIONS, make_call
from ..compiled.harness import PINNED_TRITON
from ..pairwise import pairwise
from . import count
from .count import Case, count_step
from .device import emulate_gpu

HIDDEN, BATCH = (64, 128, 192, 256, 512, 1024, 2048), (1, 4, 16, 64)
PRECISION = ("fp16", "tf32", "fp32")
SECTOR = 32  # the fewest bytes that a warp reads

# Instructions of the busiest warp / barriers of a step, by precision, kernel, H and (columns) batch size. They are
# exact. If a loop makes several steps at a time, the numbers are those of the loop, divided by the steps. "-": "auto"
# chooses another kernel.
TABLE = """
fp16 block   64   60.25/1   60.25/1   60.25/1   60.25/1
fp16 block  128      74/1      74/1      74/1      74/1
fp16 grid   192     112/2     112/2     112/2     112/2
fp16 grid   256     108/2     108/2     107/2     107/2
fp16 grid   512     130/2     130/2     129/2     143/2
fp16 grid  1024     198/2     198/2     210/2     456/4
fp16 grid  2048     233/2     233/2     444/4    1328/8
fp16 step    64     316/3     316/3     316/3    637/12
fp16 step   128     314/3     314/3     314/3    844/16
fp16 step   192     364/3     364/3     364/3    952/18
fp16 step   256     364/3     364/3     364/3   1067/20
fp16 step   512     499/7     499/7     499/7   1475/28
fp16 step  1024    678/11    678/11    678/11   2291/44
fp16 step  2048    986/19    986/19    986/19   3923/76
fp16 whole   64     362/5     362/5     362/5    768/10
fp16 whole  128     358/5     358/5     358/5   1105/16
fp16 whole  192     454/5     454/5     454/5   1335/20
fp16 whole  256     451/5     451/5     451/5   1560/24
fp16 whole  512    715/13    715/13    715/13   2370/40
fp16 whole 1024   1076/21   1076/21   1076/21   4146/72
fp16 whole 2048   1708/37   1708/37   1708/37  7572/136
fp32 grid    64     139/2     266/2     350/6     350/6
fp32 grid   128     155/2     326/2     348/6     348/6
fp32 grid   192     170/2     386/2    596/10    596/10
fp32 grid   256     185/2     446/2    595/10    595/10
fp32 grid   512     245/2     686/2   1085/18   2170/36
fp32 grid  1024     372/2   2070/34   2070/34         -
fp32 step    64     750/5     772/9     750/5   1476/11
fp32 step   128     747/5     747/5     747/5   2622/15
fp32 step   192    1549/9    1549/9    1549/9   3748/19
fp32 step   256    1547/9    1547/9    1547/9   4878/23
fp32 step   512   2792/13   2792/13   2792/13   9390/39
fp32 step  1024   5232/21   5232/21   5232/21  18414/71
fp32 step  2048  10112/37  10112/37  10112/37 36462/135
fp32 whole   64    1391/7   1419/11    1391/7   2744/15
fp32 whole  128    1386/7    1386/7    1386/7   5102/23
fp32 whole  192   2965/15   2965/15   2965/15   7428/31
fp32 whole  256   2964/15   2964/15   2964/15   9747/39
fp32 whole  512   5598/23   5598/23   5598/23  19123/71
fp32 whole 1024  10774/39  10774/39  10774/39 37812/135
fp32 whole 2048  21126/71  21126/71  21126/71 75188/263
tf32 block   64      78/1      78/1      78/1      78/1
tf32 block  128     107/1     107/1     107/1     107/1
tf32 grid   192     116/2     115/2     117/2     117/2
tf32 grid   256     127/2     126/2     128/2     128/2
tf32 grid   512     195/2     194/2     196/2     216/2
tf32 grid  1024     217/2     223/2     225/2     660/4
tf32 step    64     430/9     430/9     454/9   1086/10
tf32 step   128     427/9     427/9     427/9   1565/14
tf32 step   192     624/7     624/7     624/7   2404/18
tf32 step   256     622/7     622/7     622/7   2997/22
tf32 step   512    929/11    929/11    929/11   5349/38
tf32 step  1024   1749/19   1749/19   1749/19  10053/70
tf32 step  2048   3133/35   3133/35   3133/35 19461/134
tf32 whole   64    585/17    585/17    615/17   1591/13
tf32 whole  128    580/17    580/17    580/17   2558/21
tf32 whole  192    962/13    962/13    962/13   4244/29
tf32 whole  256    961/13    961/13    961/13   5426/37
tf32 whole  512   1579/21   1579/21   1579/21  10136/69
tf32 whole 1024   3235/37   3235/37   3235/37 19832/133
tf32 whole 2048   6035/69   6035/69   6035/69 38969/261
"""


def count_tiles(case: Case, config: Config) -> int:
    """Return how many tiles of the batch are computed in all directions."""
    group = config.tiles if case.kernel == "grid" else 1  # tiles beyond the batch fill the last group
    return -(-case.batch // (config.batch * group)) * group * (1 + case.is_bidirectional)


def pad_depth(case: Case, config: Config) -> int:
    """Return the number of hidden units that a product sums over, padding included."""
    if case.kernel == "block":
        return config.padded_hidden
    itemsize = PRECISIONS[case.precision][0].itemsize
    chunk = config.slices * config.depth(itemsize) if case.kernel == "grid" else config.depth
    units = config.padded_hidden if case.kernel == "grid" else case.hidden
    return -(-units // chunk) * chunk


def is_by_lanes(case: Case, config: Config) -> bool:
    """Return whether lanes compute the products (kernels/lanes.py), not the matrix unit."""
    return case.kernel == "grid" and case.precision == "fp32" and config.register_tiles > 0


def count_products(case: Case, config: Config) -> int:
    """Return the multiply-adds of a step: all gates of all units, padded to full tiles, once."""
    if case.precision == "fp32":
        columns = config.rows if is_by_lanes(case, config) else config.batch  # lanes compute no padding of a tile
    else:
        columns = max(config.batch, 8)  # the fewest columns of the matrix unit
    operands = 2 if case.kernel == "whole" else 1  # the state, and x, which has H features here
    return 3 * config.padded_hidden * pad_depth(case, config) * columns * count_tiles(case, config) * operands


def max_other_fma(case: Case, config: Config) -> int:
    """Return an upper bound of the multiply-adds outside of products: four for each result of each thread."""
    programs = getattr(config, "programs", 1)
    results = max(config.padded_hidden // programs * config.batch, 32 * count_warps(case, config))
    return 4 * results * programs * count_tiles(case, config)


def count_warps(case: Case, config: Config) -> int:
    """Return the number of warps of a program."""
    return config.slices if case.kernel == "grid" else config.num_warps


def count_bytes_written(case: Case, config: Config) -> dict[str, int]:
    """Return the bytes that a step writes, by argument: its output, and the state for other programs or launches."""
    itemsize = PRECISIONS[case.precision][0].itemsize
    state = case.batch * case.hidden * (1 + case.is_bidirectional)
    sizes = {"out": state * itemsize}
    if case.kernel == "grid":
        handover = config.rows * config.padded_hidden * itemsize * count_tiles(case, config)
        sizes["mailbox"] = handover if case.reset_after else 2 * handover
    elif case.kernel != "block":
        if not case.reset_after:
            sizes["r_h"] = state * itemsize
        if case.kernel == "whole":
            sizes["h_n"] = state * itemsize
        else:
            sizes["carry_out"] = state * 4
            if itemsize == 2:
                sizes["rounded_out"] = state * itemsize
    return sizes


def max_bytes_read(case: Case, config: Config) -> dict[str, int]:
    """Return the most bytes that a step of a dense sequence may read, by argument. No cache is modelled."""
    itemsize, hidden = PRECISIONS[case.precision][0].itemsize, config.padded_hidden
    tiles, warps = count_tiles(case, config), count_warps(case, config)
    if case.kernel == "block":
        # Gate inputs, padded to the rows of their tiles. W_hh and the state stay on chip.
        return {"gi": 3 * hidden * -(-case.batch // config.rows) * config.rows * itemsize}
    if case.kernel == "grid":
        # Every warp that has a result reads its gate inputs. If lanes compute the products, that is one warp.
        holders = 1 if is_by_lanes(case, config) else max(1, 32 * warps // (config.units * config.batch))
        gate = config.rows * config.units * itemsize * holders
        # Every program reads the full state. A slice beyond its end reads the last word of each row.
        beyond = (pad_depth(case, config) - hidden) * itemsize // SECTOR
        state = config.rows * hidden * itemsize + beyond * max(SECTOR, 8 * config.rows)
        return {"gi": config.programs * tiles * 3 * gate, "mailbox": config.programs * tiles * state}
    # Weights are read once for each tile of the batch. Every program reads their full operand, and every warp the bias.
    weights = tiles * 3 * case.hidden * case.hidden * itemsize
    operand = config.programs * case.batch * case.hidden * itemsize
    # Without slices, results have the layout of the matrix unit. Then several instructions of a warp read a sector of
    # the arguments.
    parts = 1 if config.slices > 1 else 4 if itemsize == 2 else 2
    bias = parts * config.programs * tiles * warps * max(SECTOR, config.units * itemsize)
    state = case.batch * case.hidden
    carry = state * (8 if parts == 4 else 4)  # the old state, from which a unit's new one is computed
    if case.kernel == "whole":
        of_x = {"x": operand, "w_ih": weights, "b_ih": 3 * bias}
        return of_x | {"hx": operand + state * itemsize, "w_hh": weights, "b_hh": 3 * bias}
    sizes = {"gi": 3 * hidden * tiles * config.batch * itemsize, "w_hh": weights, "b_hh": bias}
    if itemsize == 2:
        return sizes | {"rounded_in": operand, "carry_in": carry}
    return sizes | {"carry_in": operand + carry}


def find_waste(case: Case, config: Config, step: Counter) -> list[str]:
    """Return a line for each kind of work that a step does too often or not at all.

    ``step`` has the numbers of `count_step`.
    """
    messages = []
    product_fma = count_products(case, config)
    if case.precision == "fp32":
        max_fma = product_fma + max_other_fma(case, config)
        if step["fma"] > max_fma:
            messages.append(f"{step['fma'] / max_fma:.3g} times the {max_fma} multiply-adds that it needs")
    elif step["flops"] != 2 * product_fma:
        messages.append(f"{step['flops'] / 2 / product_fma:.3g} times the {product_fma} multiply-adds that it needs")
    if step["twice"]:
        messages.append(f"{step['twice']} stores write what another warp has written")
    due = count_bytes_written(case, config)
    writes = {name: step[f"written {name}"] for name in due}
    messages += [
        f"{name}: {writes[name]:.0f} bytes are written, not {due[name]}" for name in due if writes[name] != due[name]
    ]
    if step["written"] != sum(writes.values()):
        messages.append(f"{step['written']:.0f} bytes are written in all, not only to {', '.join(due)}")
    # `max_bytes_read` knows only dense forward cases with ``reset_after``, without a tail of units.
    if case.ends != "dense" or case.is_bidirectional or not case.reset_after or case.hidden % config.units:
        return messages
    limits = max_bytes_read(case, config)
    reads = {name: step[f"read {name}"] + step[f"received {name}"] for name in limits}
    messages += [
        f"{name}: {reads[name]:.0f} bytes are read, not {limit}"
        for name, limit in limits.items()
        if reads[name] > limit
    ]
    bytes_read = step["read"] + step["received"]
    if bytes_read != sum(reads.values()):
        messages.append(f"{bytes_read:.0f} bytes are read in all, not only of {', '.join(limits)}")
    return messages


def make_cases(hidden: int, batch: int, precision: str, device: Device) -> list[Case]:
    """Return cases of the kernel with the lowest estimate for 512 steps, and of both kernels of ``step``.

    Without measured times, ``"auto"`` chooses the first of these kernels, unless nn.GRU serves the call.
    """
    dtype, fp32 = PRECISIONS[precision]
    gru, x, hx = make_call("auto", hidden, batch, 1, precision, "time_first", True, 1, True, True, "meta")
    problem = bind_gru(gru, x.expand(512, batch, x.size(2)), hx).problem
    configs = {kernel: choose(hidden, batch, 1, dtype, fp32, device) for kernel, choose in HEURISTICS.items()}
    costs = {
        kernel: estimate_call_cost(problem, config, device, True).total
        for kernel, config in configs.items()
        if not isinstance(config, str)
    }
    kernels = dict.fromkeys((min(costs, key=costs.get), "step", "whole"))
    return [Case(kernel, hidden, batch, precision) for kernel in kernels]


def format_entry(step: Counter) -> str:
    """Return an entry of `TABLE` for a step: the busiest warp's instructions / barriers."""
    return f"{step['busiest']:g}/{step['barriers']:g}"


def parse_table(table: str) -> dict[Case, str]:
    """Return the entries of a table like `TABLE`, by case."""
    by_case = {}
    for line in table.strip().splitlines():
        precision, kernel, hidden, *entries = line.split()
        by_case |= {Case(kernel, int(hidden), b, precision): entry for b, entry in zip(BATCH, entries) if entry != "-"}
    return by_case


def format_table(entries: dict[Case, str]) -> str:
    """Return the table that `parse_table` reads these entries from."""
    rows = {(case.precision, case.kernel, case.hidden): {} for case in entries}
    for case, entry in entries.items():
        rows[case.precision, case.kernel, case.hidden][case.batch] = entry
    lines = [
        f"{precision:4} {kernel:5} {hidden:4} " + " ".join(f"{row.get(batch, '-'):>9}" for batch in BATCH)
        for (precision, kernel, hidden), row in sorted(rows.items())
    ]
    return "\n".join(line.rstrip() for line in lines)


def count_all() -> str:
    """Check all cases, and return `TABLE` as this version of Triton compiles the kernels. This takes about an hour.

    The command is ``python -c "from tests.ptx.test_counts import *; print(count_all())"``.
    """
    entries = {}
    for hidden, batch, precision in itertools.product(HIDDEN, BATCH, PRECISION):
        for case in make_cases(hidden, batch, precision, KNOWN_DEVICES["H200"]):
            with emulate_gpu(KNOWN_DEVICES["H200"], 1) as gpu:
                step, config = count_step(gpu, case), case.config(gpu.device)
            messages = find_waste(case, config, step)
            assert not messages, f"{case}: {messages}"
            entries[case] = format_entry(step)
    return format_table(entries)


CASES = pairwise(("auto", "step", "whole"), HIDDEN, BATCH, PRECISION)


@pytest.mark.parametrize("which, hidden, batch, precision", CASES)
def test_a_step_repeats_no_work(which, hidden, batch, precision, gpu):
    """Check the numbers of `TABLE`, too, if this is the version of Triton that `TABLE` is for."""
    by_kernel = make_cases(hidden, batch, precision, gpu.device)
    of_auto = by_kernel[0]
    case = of_auto if which == "auto" else next(case for case in by_kernel if case.kernel == which)
    step = count_step(gpu, case)
    messages = find_waste(case, case.config(gpu.device), step)
    assert not messages, "\n".join(messages)
    if triton.__version__ == PINNED_TRITON:
        assert format_entry(step) == parse_table(TABLE).get(case)


# Cases with tails of units, rows or tiles.
EDGES = [
    Case("block", 96, 3, "fp16"), Case("block", 96, 9, "tf32", "packed"), Case("block", 96, 9, "fp32", "resets"),
    Case("block", 180, 3, "bf16", "lengths", is_bidirectional=True), Case("block", 96, 33, "tf32", reset_after=False),
    Case("grid", 96, 9, "fp16", "packed"), Case("grid", 200, 3, "tf32"),
    Case("grid", 400, 3, "bf16", is_bidirectional=True),
    Case("grid", 768, 3, "fp16", reset_after=False), Case("grid", 200, 9, "fp32", "lengths"),
    Case("grid", 96, 33, "bf16", "resets"), Case("step", 96, 3, "fp16", "packed"),
    Case("step", 200, 9, "tf32", is_bidirectional=True), Case("step", 96, 33, "fp32"),
    Case("step", 400, 3, "bf16", "resets", reset_after=False), Case("whole", 200, 3, "bf16", is_bidirectional=True),
    Case("whole", 400, 9, "tf32", reset_after=False),
]  # fmt: skip


@pytest.mark.parametrize("case", EDGES, ids=str)
def test_a_step_repeats_no_work_at_edges_of_tiles(case, gpu):
    messages = find_waste(case, case.config(gpu.device), count_step(gpu, case))
    assert not messages, "\n".join(messages)


@pytest.mark.parametrize(
    "kernel, precision", [("block", "fp16"), ("grid", "tf32"), ("step", "fp32"), ("whole", "fp16")]
)
def test_counting_one_program_equals_counting_all(kernel, precision, gpu, monkeypatch):
    case = Case(kernel, 64, 16, precision)
    by_one_program = count_step(gpu, case)
    monkeypatch.setattr(count, "_are_programs_alike", lambda *args: False)
    assert count_step(gpu, case) == by_one_program


@pytest.mark.parametrize(
    "case, exchanges, launches",
    [
        (Case("block", 64, 16, "fp16"), 0, 0), (Case("grid", 64, 16, "fp16"), 1, 0),
        (Case("grid", 64, 16, "fp16", reset_after=False), 2, 0), (Case("step", 64, 16, "fp16"), 0, 1),
    ],
    ids=str,
)  # fmt: skip
def test_programs_exchange_the_state_no_more_than_needed(case, exchanges, launches, gpu):
    step = count_step(gpu, case)
    assert (step["exchanges"], step["launches"]) == (exchanges, launches)
    assert step["programs"] == math.prod(case.config(gpu.device).launch_grid(16, 1))
    assert step["warps"] == count_warps(case, case.config(gpu.device))


# Kind of work -> a pattern of the PTX that does it, and the beginning of the message if that PTX is repeated.
REPEATED = {
    "products": (r"(?m)^\s*(wg)?mma\.\S*sync\S* \{.*;$", "2 times the"),
    "stores": (r"@p st\.global\S+ .*?;", "out:"),
    "reads": (r"(?m)^\s*ld\.global\.nc.*;$", "gi:"),
}


@pytest.mark.parametrize("work", REPEATED)
def test_repeated_work_is_found(work, gpu):
    pattern, expected = REPEATED[work]
    gpu.change_ptx = lambda kernel, ptx: re.sub(pattern, r"\g<0> \g<0>", ptx)
    case = Case("block", 64, 16, "fp16")
    (message,) = find_waste(case, case.config(gpu.device), count_step(gpu, case))
    assert message.startswith(expected)


def test_formatting_a_parsed_table_gives_it_back():
    assert format_table(parse_table(TABLE)) == TABLE.strip()


def test_count_all_returns_the_table(monkeypatch):
    expected = parse_table(TABLE)
    for name, value in {"HIDDEN": (64,), "BATCH": (16,), "PRECISION": ("fp16",)}.items():
        monkeypatch.setattr(sys.modules[__name__], name, value)
    counted = parse_table(count_all())
    assert [case.kernel for case in counted] == ["block", "step", "whole"]
    if triton.__version__ == PINNED_TRITON:
        assert counted.items() <= expected.items()
