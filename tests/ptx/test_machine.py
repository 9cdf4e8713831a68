"""Tests of the machine: it reports each kind of fault and nothing else, and schedules and counts are as documented."""

import dataclasses
import itertools
import math
import re
import shutil

import numpy as np
import pytest

from . import machine
from .machine import FAULTS, NOTES, Counts, Fault, Outcome, Schedule, Traffic, execute
from .snippets import kernel
from .translate import UnknownInstruction, translate

# Registers in addition to those of snippets.py. %to and %own point to the thread's word of the first array and of
# shared memory. %cta0, %warp0 and %lane0 are set in the first CTA, warp and lane. %low is set in lanes 0 to 15, and
# %never in no lane.
PRELUDE = """
.reg .b16 %h; .reg .b32 %cta, %warp, %x, %y, %z, %i, %n, %own, %at; .reg .b64 %to, %on, %now, %then, %matrix;
.reg .f32 %f0, %f1, %f2, %f3; .reg .pred %cta0, %warp0, %lane0, %low, %never, %p, %q, %unset;
mov.u32 %cta, %ctaid.x; mov.u32 %warp, %warpid; mad.wide.u32 %to, %thread, 4, %d0; mad.lo.u32 %own, %thread, 4, %smem;
setp.eq.u32 %cta0, %cta, 0; setp.eq.u32 %warp0, %warp, 0; setp.eq.u32 %lane0, %lane, 0; setp.lt.u32 %low, %lane, 16;
setp.gt.u32 %never, %lane, 31; mov.b32 %x, 1; cvt.u16.u32 %h, %x;
"""
# Abbreviations for the kernels here. AFTER copies to the next warp's words. NEXT sets %at and %on to the neighbouring
# lane's words. WGMMA multiplies ones in registers by 8 x 16 halves in shared memory, which FILL writes.
ABBREVIATIONS = {
    "LOAD": "ld.global.b32", "STORE": "st.global.b32", "GET": "ld.shared.b32", "PUT": "st.shared.b32",
    "SEND": "st.relaxed.gpu.global.b32", "RECEIVE": "ld.relaxed.gpu.global.b32",
    "LDM": "ldmatrix.sync.aligned.m8n8", "ASYNC": "cp.async.ca.shared.global",
    "TOGETHER": "bar.warp.sync -1;", "BARRIER": "bar.sync 0;", "FENCE": "fence.proxy.async.shared::cta;",
    "COPY": "cp.async.ca.shared.global [%own], [%to], 4;", "AFTER": "cp.async.ca.shared.global [%own+128], [%to], 4;",
    "COMMIT": "cp.async.commit_group;", "COPIED": "cp.async.wait_group 0;",
    "NEXT": "xor.b32 %at, %own, 4; xor.b64 %on, %to, 4;", "SHUFFLE": "shfl.sync.bfly.b32 %y, %x, 1, 31, -1;",
    "FILL": "mad.lo.u32 %at, %thread, 2, %smem; st.shared.b16 [%at], %h;",
    "MATRIX": "mov.b32 %y, 0x3c003c00; cvt.u64.u32 %matrix, %smem; shr.u64 %matrix, %matrix, 4;"
    "or.b64 %matrix, %matrix, 0x0000000800080000;",
    "WGMMA": "wgmma.fence.sync.aligned; wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f0,%f1,%f2,%f3},"
    "{%y,%y,%y,%y}, %matrix, %never, 1, 1, 0; wgmma.commit_group.sync.aligned;",
    "MULTIPLIED": "wgmma.wait_group.sync.aligned 0;",
}  # fmt: skip
ABBREVIATIONS["READY"] = " ".join(ABBREVIATIONS[name] for name in ("FILL", "FENCE", "BARRIER", "MATRIX"))
ABBREVIATIONS["PRODUCT"] = " ".join(ABBREVIATIONS[name] for name in ("MATRIX", "WGMMA", "MULTIPLIED"))
ABBREVIATIONS["ADDING"] = ABBREVIATIONS["WGMMA"].replace("%never", "%low")
BYTES = 1024  # of each array, and of shared memory
# Schedules without and with delayed stores, with short and long turns, and with any order of diverged lanes.
SCHEDULES = [Schedule(1), Schedule(2, quantum=1, delay=30), Schedule(3, quantum=1000, delay=3, reconverge_late=True)]
SCHEDULES += [Schedule(4, quantum=8, delay=300, sleeps=True, reconverge_late=True)]


def make_zeros() -> np.ndarray:
    """Return an array of `BYTES` zero bytes, as 32-bit words, that begins at a multiple of 64 bytes."""
    memory = np.zeros(BYTES // 4 + 16, np.uint32)
    return memory[-memory.ctypes.data % 64 // 4 :][: BYTES // 4]


def expand(body: str) -> str:
    """Return a kernel that takes two arrays. `ABBREVIATIONS` in ``body`` are replaced."""
    return kernel(PRELUDE + re.sub(r"\b[A-Z]+\b", lambda match: ABBREVIATIONS.get(match[0], match[0]), body), 2)


def run(body, schedule, a=None, b=None, grid=1, warps=1, max_instructions=50_000, ranges=None, forgiven=()) -> Outcome:
    """Execute ``body`` on two arrays, of zeros if None.

    The kernel may touch both arrays, or only ``ranges``: pairs of byte offsets in the first array, start and end.
    """
    a, b = (make_zeros() if array is None else array for array in (a, b))
    pointers = [a.ctypes.data, b.ctypes.data]
    if ranges is None:
        memory = {name: (pointer, pointer + BYTES) for name, pointer in zip("ab", pointers)}
    else:
        memory = {str(span): (pointers[0] + span[0], pointers[0] + span[1]) for span in ranges}
    return execute(expand(body), pointers, memory, (grid, 1, 1), warps, BYTES, schedule, max_instructions, forgiven)


# Kernels with a fault, one a line, after the kind of the fault. <one|other> is a choice of two texts: with the left
# text the kernel has the fault, and with the right text it is correct. `launch_size` tells how many CTAs and warps run
# it.
PLANTED = """
OUT_OF_BOUNDS: ld.global.b8 %h, [%d0+<-1|0>];
OUT_OF_BOUNDS: ld.global.b8 %h, [%d0+<1024|1023>];
OUT_OF_BOUNDS: SEND [%d0+<1024|1020>], %x;
OUT_OF_BOUNDS: <@%lane0|@%never> trap;
OUT_OF_BOUNDS: mov.b32 %n, <4|0>; @%lane0 ASYNC [%smem], [%d0+1024], 4, %n; COMMIT COPIED
MISALIGNED: ld.global.v4.b32 {%x,%y,%z,%n}, [%d0+<8|16>];
MISALIGNED: @%lane0 ASYNC [%smem], [%d0+<8|16>], 16; COMMIT COPIED
RACE_BETWEEN_CTAS: @%cta0 STORE [%to], %x; @!%cta0 LOAD %y, [<%to|%d1>];
RACE_BETWEEN_CTAS: @%cta0 <STORE|SEND> [%to], %x; @!%cta0 RECEIVE %y, [%to];
RACE_BETWEEN_CTAS: @%cta0 SEND [%to], %x; @!%cta0 <LOAD|RECEIVE> %y, [%to];
RACE_BETWEEN_CTAS: <STORE|SEND> [%d0], 1; mov.u32 %y, %cta;
RACE_BETWEEN_CTAS: <|@%cta0> LOAD %y, [%to]; RECEIVE %y, [%to]; @%cta0 SEND [%to], %x;
RACE_BETWEEN_CTAS: @%cta0 <STORE|SEND> [%to], %x; @%cta0 SEND [%to], %x; @!%cta0 RECEIVE %y, [%to];
RACE_BETWEEN_CTAS: mad.wide.u32 %on, <0|%cta>, 2, %d0; @%lane0 st.global.b16 [%on], %h; mov.u32 %y, %cta;
RACE_IN_CTA: @%warp0 STORE [%d0], %x; <|BARRIER> @!%warp0 LOAD %y, [%d0];
RACE_IN_CTA: @%warp0 LOAD %y, [%d0]; <|BARRIER> @!%warp0 STORE [%d0], %x;
RACE_IN_CTA: @%warp0 STORE [%d0], 1; <|BARRIER> @!%warp0 STORE [%d0], 2;
RACE_IN_CTA: @%warp0 SEND [%d0], %x; @!%warp0 <LOAD|RECEIVE> %y, [%d0];
RACE_IN_CTA: @%warp0 <LOAD|RECEIVE> %y, [%d0]; @!%warp0 SEND [%d0], %x;
RACE_IN_CTA: STORE [%to], %x; NEXT <|TOGETHER> LOAD %y, [%on];
RACE_IN_CTA: cvt.u16.u32 %h, %warp; mad.wide.u32 %on, <0|%warp>, 2, %d0; @%lane0 st.global.b16 [%on], %h;
CONSTANT_WRITTEN: STORE [%to], %x; ld.global<.nc|>.b32 %y, [%to];
CONSTANT_WRITTEN: ld.global<.nc|>.b32 %y, [%to]; STORE [%to], %x;
CONSTANT_WRITTEN: @%warp0 STORE [%d0], %x; BARRIER ld.global<.nc|>.b32 %y, [%d0];
SHARED_OUT_OF_BOUNDS: PUT [%smem+<1024|1020>], %x;
SHARED_OUT_OF_BOUNDS: st.shared.b16 [%smem+<-2|0>], %h;
SHARED_OUT_OF_BOUNDS: mad.lo.u32 %at, %lane, 16, %smem; stmatrix.sync.aligned.m8n8.x1.shared.b16 [%at+<912|896>], {%x};
SHARED_MISALIGNED: st.shared.v2.b32 [%smem+<4|8>], {%x,%x};
SHARED_MISALIGNED: PUT [%own], %x; TOGETHER LDM.x1.shared.b16 {%y}, [%smem+<8|16>];
SHARED_UNWRITTEN: <|PUT [%own], %x;> GET %y, [%own];
SHARED_NOT_WAITED_FOR: COPY COMMIT <|COPIED> GET %y, [%own]; COPIED
SHARED_NOT_WAITED_FOR: COPY <|COMMIT> COPIED GET %y, [%own]; COMMIT COPIED
SHARED_NOT_WAITED_FOR: COPY COMMIT AFTER COMMIT cp.async.wait_group <1|0>; GET %y, [%own+128]; COPIED
SHARED_NOT_WAITED_FOR: COPY COMMIT <|COPIED> PUT [%own], %x; COPIED
SHARED_NOT_WAITED_FOR: COPY COMMIT <|COPIED> COPY COMMIT COPIED
SHARED_NOT_FENCED: FILL <|FENCE> BARRIER PRODUCT
SHARED_NOT_FENCED: FENCE FILL BARRIER <|FENCE> PRODUCT
SHARED_NOT_FENCED: @%warp0 PUT [%own], 1; @%warp0 PUT [%own+128], 1; <|FENCE> BARRIER @%warp0 FENCE PRODUCT
SHARED_READ_AFTER_WRITE: @%warp0 PUT [%smem], %x; <|BARRIER> @!%warp0 GET %y, [%smem];
SHARED_WRITE_AFTER_READ: PUT [%smem], 1; BARRIER @%warp0 GET %y, [%smem]; <|BARRIER> @!%warp0 PUT [%smem], 2;
SHARED_WRITE_AFTER_READ: PUT [%own], 1; BARRIER @!%warp0 GET %y, [%own]; <|BARRIER> @%warp0 AFTER COMMIT COPIED
SHARED_WRITE_AFTER_READ: READY WGMMA <|MULTIPLIED> BARRIER FILL FENCE BARRIER MULTIPLIED
SHARED_WRITE_AFTER_WRITE: mov.b32 %y, <%warp|5>; PUT [%smem], %y; mov.u32 %y, %warp;
SHARED_WRITE_AFTER_WRITE: cvt.u16.u32 %h, %warp; mad.lo.u32 %at, <0|%warp>, 2, %smem; st.shared.b16 [%at], %h;
SHARED_RACE_IN_WARP: PUT [%own], %lane; NEXT <|TOGETHER> GET %y, [%at];
SHARED_RACE_IN_WARP: PUT [%own], 1; NEXT TOGETHER GET %y, [%at]; <|TOGETHER> PUT [%own],2;
SHARED_RACE_IN_WARP: @%lane0 PUT [%smem], 1; <|TOGETHER> @!%low PUT [%smem], 2;
SHARED_RACE_IN_WARP: COPY COMMIT COPIED NEXT <|TOGETHER> GET %y, [%at];
UNDEFINED: <|mov.u32 %z, 1;> add.u32 %y, %z, 1; STORE [%to], %y;
UNDEFINED: <|mov.u64 %on, 0;> add.u64 %on, %on, %to; LOAD %y, [%on];
UNDEFINED: selp.b32 %y, %z, %x, <%low|%never>; STORE [%to], %y;
UNDEFINED: <|setp.eq.u32 %unset, %x, 0;> @%unset STORE [%to], %x;
UNDEFINED: @%low mov.u32 %z, 1; add.u32 %y, %z, 1; <|@%low> STORE [%to], %y;
UNDEFINED: @%low mov.u32 %z, 1; shfl.sync.idx.b32 %y, %z, <16|15>, 31, -1; STORE [%to], %y;
UNDEFINED: READY WGMMA <|MULTIPLIED> mov.b32 %z, %f0; MULTIPLIED STORE [%to], %z;
UNDEFINED: READY <|WGMMA MULTIPLIED> ADDING MULTIPLIED
UNDEFINED: READY WGMMA <|MULTIPLIED> mov.f32 %f0, 0f00000000; MULTIPLIED
UNDEFINED: READY WGMMA <|MULTIPLIED> mov.b32 %y, 0; MULTIPLIED
UNDEFINED: PUT [%own], 1; @%low mov.u32 %at, %smem; TOGETHER LDM.<x4|x1>.shared.b16 {%y<,%z,%n,%i|>}, [%at];
DIVERGED: <@%low|> bra OVER; TOGETHER OVER: TOGETHER
DIVERGED: <@%low|> bra OVER; BARRIER OVER: TOGETHER
DIVERGED: <@%low|@%never> bra OVER; SHUFFLE OVER: mov.u32 %z, 1;
DIVERGED: <@%low|@%never> ret; SHUFFLE
DIVERGED: <@%low|@%cta0> SHUFFLE
LEFT_BARRIER: <@%warp0|@%never> ret; BARRIER mov.u32 %y, %warp;
LEFT_UNDERWAY: COPY COMMIT <|COPIED>
LEFT_UNDERWAY: READY WGMMA <|MULTIPLIED>
ENDLESS: @%cta0 SEND [%d0+<4|0>], %x; WAIT: RECEIVE %y, [%d0]; setp.eq.u32 %p, %y, 0; @%p bra WAIT;
ENDLESS: @!%low bra SET; WAIT: RECEIVE %y, [%d0]; setp.eq.u32 %p, %y, 0; @%p bra WAIT; ret; SET: SEND [%d0+<4|0>], 1;
"""
PLANTED = [line.split(": ", 1) for line in PLANTED.strip().splitlines()]
# Kind of a fault -> kinds that some schedules report for the same fault, or for a consequence of the fault.
ALSO_REPORTED = {
    "SHARED_READ_AFTER_WRITE": {"SHARED_UNWRITTEN", "SHARED_WRITE_AFTER_READ"},
    "SHARED_WRITE_AFTER_READ": {"SHARED_READ_AFTER_WRITE", "SHARED_NOT_WAITED_FOR"},
    "UNDEFINED": {"OUT_OF_BOUNDS", "MISALIGNED", "SHARED_OUT_OF_BOUNDS", "SHARED_MISALIGNED"},
}
CHOICE = re.compile(r"<(?P<faulty>[^|<>]*)\|(?P<correct>[^<>]*)>")


def make_faulty(text: str) -> str:
    """Return a line of `PLANTED` with the left text of its choices."""
    return CHOICE.sub(r"\g<faulty>", text)


def make_correct(text: str) -> str:
    """Return a line of `PLANTED` with the right text of its choices."""
    return CHOICE.sub(r"\g<correct>", text)


def launch_size(text: str) -> dict[str, int]:
    """Return how many CTAs and warps execute a text: two of each that it names, and four warps for wgmma."""
    return {"grid": 1 + ("%cta" in text), "warps": 4 if re.search("PRODUCT|WGMMA", text) else 1 + ("%warp" in text)}


@pytest.mark.parametrize("kind, text", [pytest.param(*case, id=f"{i}-{case[0]}") for i, case in enumerate(PLANTED)])
def test_a_planted_fault_is_reported_and_its_correct_twin_is_not(kind, text, seed):
    allowed, reported = {kind} | ALSO_REPORTED.get(kind, set()), set()
    for schedule in [*SCHEDULES, Schedule.draw(seed, cooperative=True)]:
        run(make_correct(text), schedule, **launch_size(text))
        with pytest.raises(Fault) as fault:
            run(make_faulty(text), schedule, **launch_size(text))
        *reports, schedule_line = str(fault.value).splitlines()
        kinds = {line.split()[0] for line in reports}
        assert kinds <= allowed and schedule_line == str(schedule)
        reported |= kinds
    assert kind in reported


def test_every_kind_of_fault_is_planted():
    assert {kind for kind, _ in PLANTED} | NOTES == set(FAULTS)


def test_an_access_that_is_not_in_one_tensor_is_reported():
    for text, ranges in (
        ("LOAD %y, [%d0+<1020|1016>];", [(0, 1023)]),
        ("LOAD %y, [%d0+<0|4>];", [(1, 1024)]),
        ("<ld.global.v2.b32 {%y,%z}|LOAD %y>, [%d0+512];", [(0, 516), (516, 1024)]),
        ("<LOAD %y, [%d0];|>", []),
    ):
        run(make_correct(text), SCHEDULES[0], ranges=ranges)
        with pytest.raises(Fault, match="^OUT_OF_BOUNDS"):
            run(make_faulty(text), SCHEDULES[0], ranges=ranges)


def test_storing_the_same_value_twice_is_noted_and_hides_no_fault():
    line_info = ".loc 1 7 3 // kernels/some.py:7:3\n"
    for schedule in SCHEDULES:
        assert run(f"{line_info} STORE [%d0], 5;", schedule, warps=2).notes == [("STORED_TWICE", "kernels/some.py:7")]
        assert run(f"{line_info} @%warp0 STORE [%d0], 5;", schedule, warps=2).notes == []
    # The notes of a hundred stores leave room for the report of a fault (see `report` in machine.h).
    stores = "".join(f"STORE [%d0+{4 * i}], 5;" for i in range(100))
    with pytest.raises(Fault, match="OUT_OF_BOUNDS"):
        run(stores + "BARRIER STORE [%d0+1024], 5;", schedule, warps=2)


def test_unknown_instructions_raise():
    for text in (
        "bar.sync 1;", "bar.warp.sync 0x0000ffff;", "shfl.sync.bfly.b32 %y, %x, 1, 31, 0xffff;",
        "setp.eq.u32 %p|%q, %x, 0;", "redux.sync.add.s32 %y, %x, 0xffff;", "ld.acquire.gpu.global.b32 %y, [%d0];",
        "ASYNC [%smem], [%d0], 4, %p;", "ASYNC [%smem], [%d0], 3;", "cp.async.cg.shared.global [%smem], [%d0], 4;",
    ):  # fmt: skip
        with pytest.raises(UnknownInstruction):
            translate(expand(f"setp.eq.u32 %p, %x, 0; {text}"))


@pytest.mark.parametrize("first, second", [(0, 4), (0, 512), (768, 0)])
def test_stores_to_two_addresses_arrive_in_any_order(first, second):
    # CTA 0 stores two words. CTA 1 waits for the first and CTA 2 for the second. Each then reads the word for which it
    # did not wait, and stores that word plus 1: 1 if the word has not arrived yet, else 2.
    text = f"""
    @!%lane0 bra END; @!%cta0 bra READ; SEND [%d0+{first}], 1; SEND [%d0+{second}], 1; bra END;
    READ: setp.eq.u32 %q, %cta, 1; selp.b64 %now, {first}, {second}, %q; selp.b64 %then, {second}, {first}, %q;
    add.u64 %now, %now, %d0; add.u64 %then, %then, %d0; mad.wide.u32 %on, %cta, 4, %d1;
    WAIT: RECEIVE %y, [%now]; setp.eq.u32 %p, %y, 0; @%p bra WAIT; RECEIVE %z, [%then]; add.u32 %z, %z, 1;
    STORE [%on], %z; END: mov.u32 %y, 0;"""
    # Without a delay, stores arrive at once: the second word is there only after the first.
    for delay, expected in ((30, [{1, 2}, {1, 2}]), (0, [{1, 2}, {2}])):
        results = []
        for schedule_seed in range(60):
            a, b = make_zeros(), make_zeros()
            run(text, Schedule(schedule_seed, quantum=4, delay=delay), a, b, grid=3)
            assert a[first // 4] == a[second // 4] == 1
            results.append(b[1:3].tolist())
        assert [set(values) for values in zip(*results)] == expected


def test_stores_to_one_address_arrive_in_order(seed):
    # CTA 0 stores 1 to 40. CTA 1 counts how often it reads a smaller number than before, and how many different
    # numbers.
    text = f"""@!%lane0 bra END; @!%cta0 bra READ; {"".join(f"SEND [%d0], {i};" for i in range(1, 41))} bra END;
    READ: mov.u32 %z, 0; mov.u32 %i, 0; mov.u32 %n, 0;
    WAIT: RECEIVE %y, [%d0]; setp.lt.u32 %p, %y, %z; @%p add.u32 %i, %i, 1; setp.ne.u32 %p, %y, %z;
    @%p add.u32 %n, %n, 1; mov.u32 %z, %y; setp.lt.u32 %p, %z, 40; @%p bra WAIT; st.global.v2.b32 [%d1], {{%i,%n}};
    END: mov.u32 %y, 0;"""
    numbers_read = set()
    for i in range(40):
        b = make_zeros()
        run(text, Schedule(seed + i, delay=30, quantum=3), b=b, grid=2)
        assert b[0] == 0
        numbers_read.add(int(b[1]))
    assert len(numbers_read) > 3  # schedules differ


@pytest.mark.parametrize(
    "text, expected",
    [
        ("SEND [%d0+12], 5; RECEIVE %y, [%d0+12];", [0, 0, 0, 5]),
        ("SEND [%d0+12], 5; SEND [%d0+12], 6; LOAD %y, [%d0+12];", [0, 0, 0, 6]),
        ("SEND [%d0+8], 5; SEND [%d0+12], 6; RECEIVE %y, [%d0+12];", [0, 0, 5, 6]),
        ("SEND [%d0+12], 5; SEND [%d0+8], 6; RECEIVE %y, [%d0+12];", [0, 0, 6, 5]),
        ("SEND [%d0+12], 5; ld.global.v4.b32 {%x,%z,%n,%y}, [%d0];", [0, 0, 0, 5]),
        ("SEND [%d0+12], 5; st.global.v4.b32 [%d0], {%x,%x,%x,7}; LOAD %y, [%d0+12];", [1, 1, 1, 7]),
        ("st.relaxed.gpu.global.v2.b32 [%d0+8], {%x,5}; ld.global.v2.b32 {%z,%y}, [%d0+8];", [0, 0, 1, 5]),
        ("SEND [%d0+12], 5; ASYNC [%smem], [%d0+12], 4; COMMIT COPIED GET %y, [%smem];", [0, 0, 0, 5]),
    ],
)
def test_a_cta_reads_its_stores_at_once_and_the_last_store_remains(text, expected):
    for schedule in [
        *SCHEDULES,
        Schedule(seed=5, delay=10**9),
    ]:  # with the last, only reads let a store arrive before the end
        a, b = make_zeros(), make_zeros()
        run(f"@!%lane0 bra END; {text} STORE [%d1], %y; END: mov.u32 %y, 0;", schedule, a, b)
        assert a[:4].tolist() == expected and b[0] == expected[3]


# CTA 0 sends the words 1 and 2. Every other CTA waits for two words z0, z1 of the CTA before it, and sends 3 z0 + z1
# and 3 z1 + z0, which two lanes compute.
CHAIN = """
and.b32 %n, %lane, 1; mad.wide.u32 %to, %n, 4, %d0; mad.wide.u32 %to, %cta, 8, %to; setp.lt.u32 %q, %lane, 2;
add.u32 %z, %n, 1; @%cta0 bra DONE; WAIT: RECEIVE %z, [%to+-8]; setp.eq.u32 %p, %z, 0; @%p bra WAIT;
TOGETHER shfl.sync.bfly.b32 %y, %z, 1, 31, -1; mad.lo.u32 %z, %z, 3, %y; DONE: @%q SEND [%to], %z;
"""


def test_a_chain_of_ctas_computes_the_same_under_every_schedule(seed):
    choices = itertools.product((1, 8, 64, 1000), (0, 3, 300), (False, True), (False, True))
    for quantum, delay, sleeps, reconverge_late in choices:
        schedule = Schedule(seed, quantum, delay, sleeps, reconverge_late)
        a = make_zeros()
        run(CHAIN, schedule, a, grid=3, max_instructions=50_000_000)
        assert a[:6].tolist() == [1, 2, 3 * 1 + 2, 3 * 2 + 1, 3 * 5 + 7, 3 * 7 + 5]


def test_a_seed_repeats_its_schedule(seed):
    # Ten schedules, each of them twice.
    outcomes = [run(CHAIN, Schedule(seed + i % 10, quantum=8, delay=30, sleeps=True), grid=4) for i in range(20)]
    assert outcomes[:10] == outcomes[10:] and len({outcome.executed for outcome in outcomes}) > 5


# A loop with a branch and an inner loop, whose numbers of passes depend on the lane. `compute_nested` has the same in
# Python. Then neighbouring lanes combine their results by XOR, and lanes 16 to 31 invert the bits.
NESTED = """
LOAD %n, [%to]; mov.u32 %i, 0; mov.u32 %z, %lane;
OUTER: setp.ge.u32 %p, %i, %n; @%p bra END; xor.b32 %y, %i, %lane; and.b32 %y, %y, 1; setp.eq.u32 %p, %y, 0;
  @%p bra EVEN; add.u32 %y, %i, %lane; rem.u32 %y, %y, 5;
  INNER: setp.eq.u32 %p, %y, 0; @%p bra ADD; mad.lo.u32 %z, %z, 3, %y; sub.u32 %y, %y, 1; bra INNER;
  EVEN: add.u32 %z, %z, 7; setp.lt.u32 %p, %z, 5000; @%p bra ADD; shr.u32 %z, %z, 3;
ADD: add.u32 %i, %i, 1; bra OUTER; END: TOGETHER shfl.sync.bfly.b32 %y, %z, 1, 31, -1; xor.b32 %z, %z, %y;
@%low bra LAST; not.b32 %z, %z; LAST: STORE [%to], %z;
"""


def compute_nested(lane: int, trips: int) -> int:
    """Return what a lane of `NESTED` computes before lanes combine their results. ``trips`` is the lane's word."""
    z = lane
    for i in range(trips):
        if (i ^ lane) & 1:
            for y in range((i + lane) % 5, 0, -1):
                z = (z * 3 + y) % 2**32
        elif (z := (z + 7) % 2**32) >= 5000:
            z >>= 3
    return z


def test_diverged_lanes_compute_what_each_would_alone(seed):
    for i, (quantum, reconverge_late) in enumerate(itertools.product((1, 8, 64, 1000), (False, True))):
        a, lanes = make_zeros(), np.arange(256) % 32
        a[:] = np.random.default_rng(seed + i).integers(0, 20, 256)
        results = np.array([compute_nested(int(lane), int(trips)) for lane, trips in zip(lanes, a)], np.uint32)
        results ^= results[np.arange(256) ^ 1]  # in NESTED each lane combines its result with its neighbour's
        run(NESTED, Schedule(seed + i, quantum, reconverge_late=reconverge_late), a, warps=8)
        assert (a == np.where(lanes < 16, results, ~results)).all()


def test_reconverging_early_executes_shared_instructions_once(seed):
    text = """@%low bra EVEN; mov.u32 %y, 1; mov.u32 %z, 1; bra JOIN; EVEN: mov.u32 %y, 2; JOIN: mov.u32 %z, 2;
    mov.u32 %x, 3; mov.u32 %i, 4;"""
    base, executed = run("", SCHEDULES[0]).executed, set()
    expected = base + 8  # two branches, and six moves: those after JOIN once for all lanes
    for i in range(200):
        assert run(text, Schedule(seed + i, quantum=1000, reconverge_early=True)).executed == expected
        executed.add(run(text, Schedule(seed + i, quantum=1000)).executed)
    assert {expected} < executed  # other schedules sometimes execute more


MMA = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3}, {%x,%x,%x,%x}, {%x,%x}, {%f0,%f0,%f0,%f0};"
COPIES = "".join(f"@%lane0 ASYNC [%smem+{4 * i}], [%d0], 4; COMMIT " for i in range(200)) + "COPIED"
ZERO = "mov.u32 %i, 0; mov.f32 %f0, 0f00000000;"
STEPS = """STEP: RECEIVE %y, [%to]; fma.rn.f32 %f0, %f0, %f0, %f0; SEND [%to], %f0;
add.u32 %i, %i, 1; setp.lt.u32 %p, %i, 4; @%p bra STEP;"""
# Text, the counts that it adds, and a text before it that is not counted. If the counts have no number of instructions,
# the text adds one.
COUNTED = [
    ("@%never STORE [%d0], %x;", {}, ""),
    ("LOAD %y, [%to];", {"read": 128}, ""),
    ("LOAD %y, [%d0];", {"read": 32}, ""),
    ("LOAD %y, [%on];", {"read": 1024}, "mad.wide.u32 %on, %thread, 32, %d0;"),
    ("RECEIVE %y, [%to];", {"received": 128}, ""),
    ("@%low SEND [%to], %x;", {"written": 64}, ""),
    ("st.shared.v2.b32 [%at], {%x,%x};", {"shared_written": 256}, "mad.lo.u32 %at, %lane, 8, %smem;"),
    ("ld.shared.b16 %h, [%own];", {"shared_read": 64}, "PUT [%own], %x;"),
    ("LDM.x1.shared.b16 {%x}, [%smem];", {"shared_read": 128}, "PUT [%own], %x; TOGETHER "),
    ("COPY COMMIT COPIED", {"instructions": 3, "read": 128, "shared_written": 128}, ""),
    (COPIES, {"instructions": 401, "read": 200 * 32, "shared_written": 200 * 4}, ""),
    ("BARRIER", {"barriers": 1}, ""),
    ("fma.rn.f32 %f0, %f0, %f0, %f0;", {"fma": 1}, "mov.f32 %f0, 0f3F800000;"),
    ("fma.rn.f32x2 %on, %on, %on, %on;", {"fma": 2}, "mov.u64 %on, 0;"),
    # A loop that receives and computes: none of its passes counts as waited.
    (STEPS, {"instructions": 4 * 6, "received": 4 * 128, "written": 4 * 128, "fma": 4}, ZERO),
    ("WGMMA MULTIPLIED", {"instructions": 16, "matrix": 4, "flops": 2 * 64 * 8 * 16, "shared_read": 256}, "READY "),
    (MMA, {"matrix": 1, "flops": 2 * 16 * 8 * 16}, ZERO),
]


def make_counts(**counts: int) -> Counts:
    """Return `Counts` with these numbers, and zero for all others."""
    return Counts(**dict.fromkeys((field.name for field in dataclasses.fields(Counts)), 0) | counts)


@pytest.mark.parametrize("text, expected, setup", COUNTED)
def test_a_text_adds_its_counts_and_no_others(text, expected, setup):
    before, after = (
        dataclasses.asdict(run(body, SCHEDULES[0], **launch_size(text)).made) for body in (setup, setup + text)
    )
    added = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert added == {"instructions": 1} | expected


def test_the_busiest_warp_and_the_cta_that_reads_most_are_found():
    base = run("", SCHEDULES[0]).executed
    text = "@!%warp0 bra END; RECEIVE %y, [%to]; @!%cta0 bra END; LOAD %y, [%d1]; END: mov.u32 %z, 1;"
    for schedule in SCHEDULES:
        a, b = make_zeros(), make_zeros()
        outcome = run(text, schedule, a, b, grid=3, warps=2)
        assert outcome.busiest == make_counts(instructions=base + 5, read=32, received=128)
        assert outcome.most_bytes_read == 32 + 128
        # Beyond the empty kernel, one of the six warps executes five instructions, two execute four, and three two.
        assert outcome.made.instructions == outcome.executed == 6 * base + 5 + 2 * 4 + 3 * 2
        assert outcome.by_warp == (base + 5, base + 2)
        of_a, of_b = Traffic(read=0, received=3 * 128, written=0), Traffic(read=32, received=0, written=0)
        assert outcome.memory == {"a": of_a, "b": of_b}


def test_overlapping_arguments_share_their_traffic():
    a, b = make_zeros(), make_zeros()
    first, other = a.ctypes.data, b.ctypes.data
    memory = {"a": (first, first + 64), "overlapping": (first + 60, first + 128), "after": (first + 128, first + 256)}
    memory |= {"b": (other, other + 4), "nothing": (0, 0)}
    # A store to "a", a load from "overlapping", and a load from "after".
    text = expand("@%lane0 STORE [%d0], 1; @%lane0 LOAD %y, [%d0+124]; @%lane0 LOAD %y, [%d0+128];")
    outcome = execute(text, [first, other], memory, grid=(1, 1, 1), num_warps=1, shared=BYTES, schedule=SCHEDULES[0])
    shared = Traffic(read=32, received=0, written=4)
    assert outcome.memory == {
        "a": shared, "overlapping": shared, "after": Traffic(read=32, received=0, written=0),
        "b": Traffic(read=0, received=0, written=0),
    }  # fmt: skip


def test_a_waiting_loop_counts_only_its_best_pass_as_made(seed):
    text = "@%cta0 bra OVER; WAIT: RECEIVE %y, [%d0]; setp.eq.u32 %p, %y, 0; @%p bra WAIT; OVER: SEND [%to], 1;"
    base, passes = run("", SCHEDULES[0]).executed, set()
    for i in range(20):
        outcome = run(text, Schedule(seed + i, quantum=8, delay=30), grid=2)
        # Two CTAs execute the branch and the store, and one of them a pass of three instructions.
        assert outcome.made == make_counts(instructions=2 * base + 2 * 2 + 3, received=32, written=2 * 128)
        other_passes = (outcome.executed - outcome.made.instructions) // 3
        assert outcome.waited == make_counts(instructions=3 * other_passes, received=32 * other_passes)
        passes.add(other_passes)
    assert len(passes) > 3


@pytest.mark.parametrize(
    "text, exchanges",
    [
        ("RECEIVE %y, [%d0]; STORE [%d1], 1; LOAD %y, [%d1]; RECEIVE %y, [%d0];", 0),
        ("RECEIVE %y, [%d0]; SEND [%d0], 1; SEND [%d0+4], 1; RECEIVE %y, [%d0]; RECEIVE %y, [%d0];", 1),
        ("SEND [%d0], 1; RECEIVE %y, [%d0]; SEND [%d0], 2; RECEIVE %y, [%d0]; SEND [%d0], 3;", 2),
        ("SEND [%d0], 1; @!%warp0 bra END; RECEIVE %y, [%d0]; END: @%never RECEIVE %y, [%d0];", 1),
    ],
)
def test_receiving_after_sending_counts_as_an_exchange(text, exchanges):
    races = {"RACE_BETWEEN_CTAS", "RACE_IN_CTA"}
    outcome = run(f"@!%lane0 bra LAST; {text} LAST: mov.u32 %y, 0;", SCHEDULES[0], warps=2, forgiven=races)
    assert outcome.exchanges == exchanges


# Every CTA stores a word, increments a counter and waits until it is 4. Then it copies the word of its neighbour.
COUNTER = """@!%lane0 bra END; mad.wide.u32 %on, %cta, 4, %d1; STORE [%on], %cta; mov.u32 %z, 1;
atom.global.gpu.release.add.u32 %y, [%d0], %z; WAIT: ld.global.gpu.acquire.b32 %y, [%d0]; setp.lt.u32 %p, %y, 4;
@%p bra WAIT; xor.b32 %x, %cta, 1; mad.wide.u32 %on, %x, 4, %d1; LOAD %y, [%on]; mad.wide.u32 %on, %cta, 4, %d0;
STORE [%on+4], %y; END: mov.u32 %y, 0;"""


def test_atomics_are_executed_if_races_between_ctas_are_forgiven():
    for schedule in SCHEDULES:
        with pytest.raises(UnknownInstruction, match="atom"):
            run(COUNTER, schedule, grid=4)
        a = make_zeros()
        outcome = run(COUNTER, schedule, a, grid=4, forgiven={"RACE_BETWEEN_CTAS"})
        assert a[:6].tolist() == [4, 1, 0, 3, 2, 0]  # the counter, the words of the four CTAs' neighbours, and no more
        assert outcome.exchanges == 1 and outcome.length == len(translate(expand(COUNTER), peers=True).instructions)
        assert {kind for kind, _ in outcome.notes} == {"RACE_BETWEEN_CTAS"}
        assert outcome.memory["a"].written == 8 * 4 and outcome.memory["a"].received >= 8 * 32
    with pytest.raises(Fault, match="^OUT_OF_BOUNDS"):
        run(COUNTER + "LOAD %y, [%d0+1024];", SCHEDULES[0], grid=4, forgiven={"RACE_BETWEEN_CTAS"})


@pytest.mark.parametrize("ns", [0.5, 1, 10, 1000])
def test_a_loop_that_reads_the_clock_ends_in_time(ns):
    text = """mov.u64 %then, %globaltimer;
    WAIT: mov.u64 %now, %globaltimer; sub.u64 %now, %now, %then; setp.lt.u64 %p, %now, 1000; @%p bra WAIT;"""
    # The first pass reads the time one instruction after the start, and each later pass four instructions after the
    # pass before it.
    passes = 1 + max(0, math.ceil((1000 / ns - 1) / 4))
    base, executed = (run(body, Schedule(1, ns_per_instruction=ns)).executed for body in ("", text))
    assert executed == base + 1 + 4 * passes


def test_a_wrong_number_of_arguments_raises():
    for count in (0, 1, 3):
        with pytest.raises(ValueError, match=f"takes 2 arguments, got {count}"):
            execute(kernel("", 2), [0] * count, {}, grid=(1, 1, 1), num_warps=1, shared=0, schedule=SCHEDULES[0])


def test_a_missing_gcc_and_a_failed_build_raise(monkeypatch, tmp_path):
    shutil.copytree(machine._SOURCES, tmp_path / "sources")
    (tmp_path / "sources" / "machine.c").write_text("int broken = nowhere;")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "_SOURCES", tmp_path / "sources")
    machine._machine.cache_clear()  # Errors are not cached, so the next test loads the real machine again.
    with pytest.raises(RuntimeError, match="(?s)gcc could not build.*nowhere.* undeclared"):
        run("", SCHEDULES[0])
    assert list((tmp_path / "triton_gru").iterdir()) == []
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="needs gcc.*apt install gcc"):
        run("", SCHEDULES[0])
