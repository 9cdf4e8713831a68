"""Translates the PTX of a kernel into a flat program for the machine in ``machine/``.

Every operand becomes a row of 32 values, one for each lane. That holds for registers, predicates (0 or 1), immediates,
kernel arguments and special registers. Labels become indices of instructions. An unknown instruction is an error.
"""

import functools
import re
from dataclasses import dataclass, field
from typing import NamedTuple

# The machine's operations, in the order in which machine.py numbers them for the C compiler.
OPERATIONS = """
nop bra ret barrier barrier_warp clock fence_async
load_parameter load_global store_global atom_add load_shared store_shared ldmatrix stmatrix cp_async cp_commit cp_wait
mma wgmma wgmma_commit wgmma_wait shuffle movmatrix redux mov unpack pack selp setp
add sub mul mad mul_hi_u mul_hi_s mul_wide_u mul_wide_s mad_wide_u mad_wide_s div_s div_u rem_s rem_u
min_s min_u max_s max_u max_u16x2 max_relu_s neg and or xor not shl shr_u shr_s bfe_u bfe_s prmt extend_s extend_u
add_f32 sub_f32 mul_f32 fma_f32 add_f32x2 sub_f32x2 mul_f32x2 fma_f32x2 div_f32 ex2 ex2_ftz rcp_ftz tanh
fma_ftz abs_ftz
add_f16 add_f16x2 add_bf16 add_bf16x2 fma_f16 fma_f16x2 fma_bf16 fma_bf16x2
add_f32_f16 add_f32_bf16
f16_to_f32 bf16_to_f32 f32_to_f16 f32_to_bf16 f32_to_f16x2 f32_to_bf16x2 f32_to_tf32 u32_to_f16
""".split()
_NUMBER = {name: i for i, name in enumerate(OPERATIONS)}

# Instructions that only compute a register from others: a pattern, the operation, and the bits of each source. N stands
# for the number of bits that the pattern matches, and W for twice N. N is the first of the instruction's extra numbers.
_COMPUTING = [
    ("add.[su]N", "add", "N N"),
    ("sub.[su]N", "sub", "N N"),
    ("mul.lo.[su]N", "mul", "N N"),
    ("mad.lo.[su]N", "mad", "N N N"),
    ("mul.hi.uN", "mul_hi_u", "N N"),
    ("mul.hi.sN", "mul_hi_s", "N N"),
    ("mul.wide.uN", "mul_wide_u", "N N"),
    ("mul.wide.sN", "mul_wide_s", "N N"),
    ("mad.wide.uN", "mad_wide_u", "N N W"),
    ("mad.wide.sN", "mad_wide_s", "N N W"),
    ("div.sN", "div_s", "N N"),
    ("div.uN", "div_u", "N N"),
    ("rem.sN", "rem_s", "N N"),
    ("rem.uN", "rem_u", "N N"),
    ("min.sN", "min_s", "N N"),
    ("min.uN", "min_u", "N N"),
    ("max.sN", "max_s", "N N"),
    ("max.uN", "max_u", "N N"),
    ("max.uNx2", "max_uNx2", "W W"),
    ("max.relu.sN", "max_relu_s", "N N"),
    ("neg.sN", "neg", "N"),
    ("and.(b|p)N", "and", "N N"),
    ("or.(b|p)N", "or", "N N"),
    ("xor.(b|p)N", "xor", "N N"),
    ("not.(b|p)N", "not", "N"),
    ("mov.[busfp]N", "mov", "N"),
    ("selp.[busf]N", "selp", "N N 1"),
    ("shl.bN", "shl", "N 32"),
    ("shr.[bu]N", "shr_u", "N 32"),
    ("shr.sN", "shr_s", "N 32"),
    ("bfe.uN", "bfe_u", "N 32 32"),
    ("bfe.sN", "bfe_s", "N 32 32"),
    ("prmt.bN", "prmt", "32 32 32"),
    ("add(.rn)?.fN", "add_fN", "N N"),
    ("sub(.rn)?.fN", "sub_fN", "N N"),
    ("mul(.rn)?.fN", "mul_fN", "N N"),
    ("fma.rn.fN", "fma_fN", "N N N"),
    ("add(.rn)?.fNx2", "add_fNx2", "W W"),
    ("sub(.rn)?.fNx2", "sub_fNx2", "W W"),
    ("mul(.rn)?.fNx2", "mul_fNx2", "W W"),
    ("fma.rn.fNx2", "fma_fNx2", "W W W"),
    ("add(.rn)?.bfN", "add_bfN", "N N"),
    ("fma.rn.bfN", "fma_bfN", "N N N"),
    ("add(.rn)?.bfNx2", "add_bfNx2", "W W"),
    ("fma.rn.bfNx2", "fma_bfNx2", "W W W"),
    ("add.rn.f32.f16", "add_f32_f16", "16 32"),
    ("add.rn.f32.bf16", "add_f32_bf16", "16 32"),
    ("div.full.f32", "div_f32", "32 32"),
    ("ex2.approx.f32", "ex2", "32"),
    ("ex2.approx.ftz.f32", "ex2_ftz", "32"),
    ("rcp.approx.ftz.f32", "rcp_ftz", "32"),
    ("tanh.approx.f32", "tanh", "32"),
    ("fma.rn.ftz.f32", "fma_ftz", "32 32 32"),
    ("abs.ftz.f32", "abs_ftz", "32"),
    ("cvt.f32.f16", "f16_to_f32", "16"),
    ("cvt.f32.bf16", "bf16_to_f32", "16"),
    ("cvt.rn.f16.f32", "f32_to_f16", "32"),
    ("cvt.rn.bf16.f32", "f32_to_bf16", "32"),
    ("cvt.rn.f16x2.f32", "f32_to_f16x2", "32 32"),
    ("cvt.rn.bf16x2.f32", "f32_to_bf16x2", "32 32"),
    ("cvt.rna.tf32.f32", "f32_to_tf32", "32"),
    ("cvt.rn.f16.u32", "u32_to_f16", "32"),
]
_COMPUTING = [
    (re.compile(pattern.replace(".", r"\.").replace("N", r"(?P<bits>16|32|64|red)")), operation, sources)
    for pattern, operation, sources in _COMPUTING
]


@functools.cache
def _match_computing(name: str) -> tuple[str, int, list[int]] | None:
    """Return an instruction's operation, its N, and the bits of its sources, or None if no pattern matches."""
    for pattern, operation, sources in _COMPUTING:
        if match := pattern.fullmatch(name):
            bits = match.groupdict().get("bits", "32")
            bits = 1 if bits == "red" else int(bits)
            widths = [{"N": bits, "W": 2 * bits}.get(width) or int(width) for width in sources.split()]
            return operation.replace("N", str(bits)), bits, widths
    return None


# The machine's numbers of comparisons. Numbers from 8 on are comparisons of floats that are true if one is NaN.
COMPARISONS = {name: i for i, name in enumerate("eq ne lt le gt ge num nan".split())}
COMPARISONS |= {f"{name}u": i + 8 for name, i in COMPARISONS.items() if i < 6}

# The orders of a global access, and the element types that the matrix unit multiplies, as the machine numbers them.
ORDERS = ["PLAIN", "CONSTANT", "RELAXED"]
PLAIN, CONSTANT, RELAXED = range(3)
ELEMENTS = ["F16", "BF16", "TF32"]

SPECIAL = (
    "%tid.x %tid.y %tid.z %ctaid.x %ctaid.y %ctaid.z %ntid.x %ntid.y %ntid.z %nctaid.x %nctaid.y %nctaid.z "
    "%laneid %warpid global_smem %dynamic_smem_size"
).split()
_SPECIAL = frozenset(SPECIAL)


class UnknownInstruction(Exception):
    """An error for PTX that the translator does not know."""


class Instruction(NamedTuple):
    """An instruction.

    Attributes:
        operation: the index of its operation in `OPERATIONS`.
        guard: the row of the predicate that the instruction depends on, or -1.
        negated: whether the instruction is executed where the predicate is 0, and not where it is 1.
        aligned: whether all lanes of a warp have to execute the instruction together.
        extra: four numbers, whose meaning depends on the operation.
        out, into: the rows that the instruction writes, and those that it reads.
        line, text: the number of its line in the PTX, and its text.
        where: the line of Python source that the instruction comes from, or "" if the PTX names none.
    """

    operation: int
    guard: int
    negated: bool
    aligned: bool
    extra: tuple[int, ...]
    out: list[int]
    into: list[int]
    line: int
    text: str
    where: str


@dataclass
class Program:
    """A kernel.

    Attributes:
        parameters: the names of the arguments, in order.
        rows: the number of rows.
        constants: rows that hold a value from the start: ("value", number), ("parameter", index) or ("special", name).
    """

    name: str
    parameters: list[str]
    instructions: list[Instruction] = field(default_factory=list)
    rows: int = 0
    constants: dict[int, tuple] = field(default_factory=dict)


def translate(text: str, peers: bool = False) -> Program:
    """Return the program of the PTX's one kernel.

    Args:
        peers: whether to accept instructions that only kernels of other libraries have. These are acquire loads, atomic
            additions, and accesses of single bytes of shared memory. Their order and their races are not modelled.

    Raises:
        UnknownInstruction: the PTX contains an instruction that the machine cannot execute.
    """
    return _Translator(text, peers).translate()


_SPACE = re.compile(r"\s+|//[^\n]*")
_LABEL = re.compile(r"([\w$]+):(?!:)")
_SOURCE = re.compile(r"//\s*(\S+\.py:\d+)")
_REGISTER = re.compile(r"%\w+")  # registers of the function; names in an inner scope have no "%"
_ADDRESS = re.compile(r"\[ ?([%\w]+) ?(?:\+ ?(-?\w+))? ?\]")


class _Translator:
    def __init__(self, text: str, peers: bool):
        self._text, self._peers = text, peers
        self._rows: dict[tuple, int] = {}
        self._scopes: list[tuple[int, set]] = []  # open braces: a number, and the registers declared inside
        self._labels: dict[tuple[int, str], int] = {}
        self._branches: list[tuple[int, str, list[int]]] = []
        self._where = ""

    def translate(self) -> Program:
        entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)", self._text, re.S)
        names = re.findall(r"\.param\s+\.\w+[^,]*?(\w+)\s*(?:,|$)", entry[2], re.S)
        self._parameters = {name: i for i, name in enumerate(names)}
        self._program = Program(entry[1], names)
        self._read_body(self._text.index("{", entry.end()))
        instructions = self._program.instructions
        for index, name, scopes in self._branches:
            targets = [self._labels[scope, name] for scope in reversed(scopes) if (scope, name) in self._labels]
            if not targets:
                branch = instructions[index]
                raise UnknownInstruction(f"line {branch.line} of the PTX, {branch.text!r}: no label {name}")
            if targets[0] == len(instructions):
                raise UnknownInstruction(f"a branch to the end, {name}")
            instructions[index] = instructions[index]._replace(extra=(targets[0], 0, 0, 0))
        if not instructions or OPERATIONS[instructions[-1].operation] != "ret" or instructions[-1].guard >= 0:
            raise UnknownInstruction("a kernel that does not end with ret")
        self._program.rows = len(self._rows)
        self._program.constants = {row: key for key, row in self._rows.items() if isinstance(key[0], str)}
        return self._program

    def _read_body(self, at: int) -> None:
        text, scopes, line, counted = self._text, 0, 1, 0
        while True:
            while match := _SPACE.match(text, at):
                at = match.end()
            if text[at] == "{":
                scopes += 1
                self._scopes.append((scopes, set()))
                at += 1
            elif text[at] == "}":
                self._scopes.pop()
                at += 1
                if not self._scopes:
                    return
            elif match := _LABEL.match(text, at):
                self._labels[self._scopes[-1][0], match[1]] = len(self._program.instructions)
                at = match.end()
            elif text.startswith(".loc", at):
                end = text.index("\n", at)
                if match := _SOURCE.search(text, at, end):
                    self._where = match[1]
                at = end
            else:
                end = text.index(";", at)
                line, counted = line + text.count("\n", counted, at), at
                self._read_statement(" ".join(text[at:end].split()), line)
                at = end + 1

    def _read_statement(self, text: str, line: int) -> None:
        if text.startswith(".reg "):
            # Numbered registers of the function, %r<40>, are recognized by their "%".
            names = text.split(None, 2)[2].split(",")
            self._scopes[-1][1].update(name.strip() for name in names if "<" not in name)
            return
        if text.startswith(".pragma"):
            return
        guard, negated, body = -1, False, text
        try:
            if text.startswith("@"):
                predicate, _, body = text[1:].partition(" ")
                guard, negated = self._row(predicate.lstrip("!"), 1), predicate.startswith("!")
            name, _, operands = body.partition(" ")
            self._emit_as = guard, negated, line, text, self._where
            self._decode(name, _split(operands))
        except (UnknownInstruction, KeyError, IndexError, ValueError, TypeError) as failure:
            raise UnknownInstruction(
                f"line {line} of the PTX, {text!r}: {type(failure).__name__} {failure}"
            ) from failure

    def _emit(self, operation: str, out=(), into=(), extra=(), aligned=False) -> None:
        guard, negated, line, text, where = self._emit_as
        extra = (*map(int, extra), 0, 0, 0, 0)[:4]
        self._program.instructions.append(
            Instruction(_NUMBER[operation], guard, negated, aligned, extra, list(out), list(into), line, text, where)
        )

    # Operands

    def _row_of(self, key: tuple) -> int:
        return self._rows.setdefault(key, len(self._rows))

    def _row(self, text: str, bits: int = 32) -> int:
        """Return the row of a register, or of a constant of ``bits`` bits."""
        if (_REGISTER.fullmatch(text) and text not in _SPECIAL) or text == "_":
            return self._row_of((0, text))
        if text in _SPECIAL:
            return self._row_of(("special", text))
        if match := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", text):
            return self._row_of(("value", int(match[1], 16)))
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            return self._row_of(("value", int(text.rstrip("U"), 0) & (1 << bits) - 1))
        for number, declared in reversed(self._scopes):
            if text in declared:
                return self._row_of((number, text))
        raise UnknownInstruction(f"the register {text}")

    def _vector(self, text: str, bits: int) -> list[int]:
        return [self._row(part, bits) for part in (_split(text[1:-1]) if text.startswith("{") else [text])]

    def _address(self, text: str) -> tuple[int, int]:
        """Return the row and the offset of ``[register + offset]``."""
        match = _ADDRESS.fullmatch(text)
        if not match:
            raise UnknownInstruction(f"the address {text}")
        return self._row(match[1], 64), int(match[2] or "0", 0)

    # Instructions

    def _decode(self, name: str, o: list[str]) -> None:
        special = getattr(self, "_" + name.partition(".")[0], None)
        if special and special(name, o):
            return
        if (match := _match_computing(name)) is None:
            raise UnknownInstruction(name)
        operation, bits, widths = match
        into = [self._row(text, width) for text, width in zip(o[1:], widths, strict=True)]
        self._emit(operation, [self._row(o[0])], into, (bits,))

    # Every method below emits an instruction, and returns whether it knows the instruction.

    def _mov(self, name: str, o: list[str]) -> bool:
        bits = {"mov.b16": 16, "mov.b32": 32, "mov.b64": 64}.get(name)
        if o[1] == "%globaltimer":
            self._emit("clock", [self._row(o[0])])
        elif bits and bits >= 32 and o[1] in self._parameters:  # its address: arguments are 8 bytes apart
            self._emit("mov", [self._row(o[0])], [self._row_of(("value", 8 * self._parameters[o[1]]))], (bits,))
        elif bits and o[0].startswith("{"):
            out = self._vector(o[0], bits)
            self._emit("unpack", out, [self._row(o[1], bits)], (bits // len(out),))
        elif bits and o[1].startswith("{"):
            parts = len(_split(o[1][1:-1]))
            self._emit("pack", [self._row(o[0])], self._vector(o[1], bits // parts), (bits // parts,))
        else:
            return False
        return True

    def _cvt(self, name: str, o: list[str]) -> bool:
        match = re.fullmatch(r"cvt\.([su])(\d+)\.([su])(\d+)", name)
        if match:
            to, source = int(match[2]), int(match[4])
            if to == 8:
                raise UnknownInstruction(name)
            self._emit(f"extend_{match[3]}", [self._row(o[0])], [self._row(o[1], source)], (source, to))
        return bool(match)

    def _setp(self, name: str, o: list[str]) -> bool:
        match = re.fullmatch(r"setp\.(\w+)\.([busf])(16|32|64)", name)
        kind, bits = match[2], int(match[3])
        if kind == "f" and bits != 32:
            raise UnknownInstruction(name)
        into = [self._row(text, bits) for text in o[1:]]
        if len(into) != 2 or (kind != "f" and COMPARISONS[match[1]] > 5):
            raise UnknownInstruction(name)
        self._emit("setp", [self._row(o[0])], into, (COMPARISONS[match[1]], "busf".index(kind), bits))
        return True

    def _bra(self, name: str, o: list[str]) -> bool:
        self._branches.append((len(self._program.instructions), o[0], [number for number, _ in self._scopes]))
        self._emit("bra")
        return name in ("bra", "bra.uni")

    def _ret(self, name: str, o: list[str]) -> bool:
        self._emit("ret")
        return name in ("ret", "ret.uni")

    def _trap(self, name: str, o: list[str]) -> bool:
        # A load from address 0, which is in no tensor: the machine reports it.
        self._emit("load_global", [self._row("_")], [self._row("0", 64)], (4, PLAIN))
        return name == "trap"

    def _bar(self, name: str, o: list[str]) -> bool:
        if name == "bar.warp.sync" and _is_whole_warp(o[0]):
            self._emit("barrier_warp", aligned=True)
        elif name == "bar.sync" and o == ["0"]:  # of all warps
            self._emit("barrier", aligned=True)
        else:
            raise UnknownInstruction(name)
        return True

    def _fence(self, name: str, o: list[str]) -> bool:
        self._emit("fence_async")
        return name == "fence.proxy.async.shared::cta"

    def _ld(self, name: str, o: list[str]) -> bool:
        if match := re.fullmatch(r"ld\.param\.([bsu])(\d+)", name):
            bits, where = int(match[2]), o[1].strip("[] ")
            if _REGISTER.fullmatch(where):
                rows = [self._row_of(("parameter", index)) for index in self._parameters.values()]
                self._emit("load_parameter", [self._row(o[0])], [self._row(where), *rows], (bits, match[1] == "s"))
            else:
                row = self._row_of(("parameter", self._parameters[where]))
                self._emit(f"extend_{'s' if match[1] == 's' else 'u'}", [self._row(o[0])], [row], (bits, 64))
            return True
        if self._peers:
            name = name.replace("ld.global.gpu.acquire.", "ld.relaxed.gpu.global.")
        space, order, bits = _read_access(name, self._peers)
        base, offset = self._address(o[1])
        self._emit(f"load_{space}", self._vector(o[0], bits), [base], (bits // 8, order, offset))
        return True

    def _st(self, name: str, o: list[str]) -> bool:
        space, order, bits = _read_access(name, self._peers)
        base, offset = self._address(o[0])
        self._emit(f"store_{space}", [], [base, *self._vector(o[1], bits)], (bits // 8, order, offset))
        return True

    def _atom(self, name: str, o: list[str]) -> bool:
        match = re.fullmatch(r"atom\.global\.gpu\.(?:relaxed|acquire|release|acq_rel)\.add\.[su](32|64)", name)
        if not (match and self._peers):
            raise UnknownInstruction(name)
        base, offset = self._address(o[1])
        into, bits = [base, self._row(o[2], int(match[1]))], int(match[1])
        self._emit("atom_add", [self._row(o[0])], into, (bits // 8, RELAXED, offset))
        return True

    def _ldmatrix(self, name: str, o: list[str]) -> bool:
        match = re.fullmatch(r"ldmatrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16", name)
        base, offset = self._address(o[1])
        self._emit("ldmatrix", self._vector(o[0], 32), [base], (bool(match[1]), 0, offset), aligned=True)
        return True

    def _stmatrix(self, name: str, o: list[str]) -> bool:
        match = re.fullmatch(r"stmatrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16", name)
        base, offset = self._address(o[0])
        self._emit("stmatrix", [], [base, *self._vector(o[1], 32)], (bool(match[1]), 0, offset), aligned=True)
        return True

    def _cp(self, name: str, o: list[str]) -> bool:
        if name == "cp.async.commit_group":
            self._emit("cp_commit")
        elif name == "cp.async.wait_group":
            self._emit("cp_wait", extra=(int(o[0], 0),))
        elif name in ("cp.async.ca.shared.global", "cp.async.cg.shared.global"):
            (to, to_offset), (source, source_offset) = self._address(o[0]), self._address(o[1])
            if (name[9:11], int(o[2], 0)) not in (("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)):
                raise UnknownInstruction(f"copies of {o[2]} bytes by {name}")
            if any(size.startswith("%p") for size in o[3:4]):  # a predicate to ignore the source, not a size
                raise UnknownInstruction(f"the operand {o[3]}")
            into = [to, source, *(self._row(size) for size in o[3:4])]
            self._emit("cp_async", [], into, (int(o[2], 0), to_offset, source_offset))
        else:
            raise UnknownInstruction(name)
        return True

    def _mma(self, name: str, o: list[str]) -> bool:
        match = re.fullmatch(r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.f32\.(\w+)\.(\w+)\.f32", name)
        depth, left, right = int(match[1]), match[2], match[3]
        if left != right or (left, depth) not in (("f16", 16), ("bf16", 16), ("tf32", 8)):
            raise UnknownInstruction(name)
        into = [row for text in o[1:4] for row in self._vector(text, 32)]
        extra = (ELEMENTS.index(left.upper()), depth)
        self._emit("mma", self._vector(o[0], 32), into, extra, aligned=True)
        return True

    def _wgmma(self, name: str, o: list[str]) -> bool:
        if name == "wgmma.fence.sync.aligned":
            self._emit("nop", aligned=True)
        elif name == "wgmma.commit_group.sync.aligned":
            self._emit("wgmma_commit", aligned=True)
        elif name == "wgmma.wait_group.sync.aligned":
            self._emit("wgmma_wait", extra=(int(o[0], 0),), aligned=True)
        else:
            match = re.fullmatch(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.f32\.(\w+)\.(\w+)", name)
            columns, depth = int(match[1]), int(match[2])
            if columns % 8 or not 8 <= columns <= 256 or depth != (8 if match[3] == "tf32" else 16):
                raise UnknownInstruction(name)
            in_registers = o[1].startswith("{")
            negated_a, negated_b, *transposed = (int(flag, 0) for flag in o[4:])
            if (negated_a, negated_b) != (1, 1) or match[3] != match[4]:
                raise UnknownInstruction(name)
            # The flags to transpose: none in TF32, and none for an operand in registers.
            transposed_b = transposed[-1] if transposed else 0
            transposed_a = transposed[0] if len(transposed) > 1 else 0
            kind = ELEMENTS.index(match[3].upper())
            into = [*self._vector(o[1], 64), self._row(o[2], 64), self._row(o[3], 1)]
            extra = (kind + 16 * transposed_a + 32 * transposed_b, columns, depth, in_registers)
            self._emit("wgmma", self._vector(o[0], 32), into, extra, aligned=True)
        return True

    def _shfl(self, name: str, o: list[str]) -> bool:
        mode = {"shfl.sync.bfly.b32": 0, "shfl.sync.idx.b32": 1}[name]
        if len(o) != 5 or o[3] not in ("31", "0x1f") or "|" in o[0] or not _is_whole_warp(o[4]):
            raise UnknownInstruction(name)
        self._emit("shuffle", [self._row(o[0])], [self._row(o[1]), self._row(o[2])], (mode,), aligned=True)
        return True

    def _movmatrix(self, name: str, o: list[str]) -> bool:
        if name != "movmatrix.sync.aligned.m8n8.trans.b16":
            raise UnknownInstruction(name)
        self._emit("movmatrix", [self._row(o[0])], [self._row(o[1])], aligned=True)
        return True

    def _vote(self, name: str, o: list[str]) -> bool:
        if name != "vote.sync.any.pred" or not _is_whole_warp(o[2]):
            raise UnknownInstruction(name)
        self._emit("redux", [self._row(o[0])], [self._row(o[1])], (1,), aligned=True)  # the maximum of 0 and 1
        return True

    def _redux(self, name: str, o: list[str]) -> bool:
        if not _is_whole_warp(o[2]):
            raise UnknownInstruction(name)
        reduction = {"redux.sync.add.s32": 0, "redux.sync.max.s32": 1}[name]
        self._emit("redux", [self._row(o[0])], [self._row(o[1])], (reduction,), aligned=True)
        return True


@functools.cache
def _read_access(name: str, peers: bool) -> tuple[str, int, int]:
    """Return the memory that a load or store accesses, its order, and the bits of an element."""
    match = re.fullmatch(
        r"(?:ld|st)(?P<relaxed>\.relaxed\.(?:gpu|sys))?\.(?P<space>global|shared)(?P<cached>\.nc|\.cg)?(?:\.v[24])?"
        r"\.[bu](?P<bits>8|16|32|64)",
        name.replace(".shared::cta.", ".shared."),  # without ::cta it is the same memory
    )
    if not match:
        raise UnknownInstruction(name)
    is_known = peers or ".v" in name if match["space"] == "shared" else name.startswith("ld")
    if match["bits"] == "8" and not is_known:
        raise UnknownInstruction(name)  # the machine tracks accesses of two bytes at a time
    order = RELAXED if match["relaxed"] else CONSTANT if match["cached"] == ".nc" else PLAIN
    return match["space"], order, int(match["bits"])


def _is_whole_warp(mask: str) -> bool:
    """Return whether a mask names all lanes. A register is assumed to, because Triton sets it to -1."""
    return mask in ("-1", "0xffffffff") or mask.startswith("%")


def _split(text: str) -> list[str]:
    """Return the operands of an instruction. Commas in braces do not separate operands."""
    parts = re.findall(r"(?:\{[^}]*\}|[^,{])+", text) if "{" in text else text.split(",")
    return [part.strip() for part in parts if part.strip()]


def find_waits(program: Program) -> list[tuple[int, int]]:
    """Return the first and the last instruction of each loop that only waits for others' stores, innermost last."""
    loops = {}
    for last, instruction in enumerate(program.instructions):
        first = instruction.extra[0]
        if OPERATIONS[instruction.operation] != "bra" or first > last:
            continue
        body = [(OPERATIONS[inner.operation], inner.extra[1]) for inner in program.instructions[first : last + 1]]
        works = any(name in ("mma", "wgmma", "cp_async", "store_global") for name, _ in body)
        if ("load_global", RELAXED) in body and not works:
            loops[first] = last
    return sorted(loops.items(), key=lambda loop: loop[0] - loop[1])
