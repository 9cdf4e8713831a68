"""Translates the PTX of a kernel into a flat program for the machine in ``machine/``.

Registers, predicates (0 or 1), immediates, kernel arguments and special registers become rows of 32 values, one for
each lane. Exception: offsets of addresses, and sizes that an instruction fixes, are numbers in `Instruction.extra`.
Labels become indices of instructions. An unknown instruction is an error.
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
_OPERATION_NUMBERS = {name: i for i, name in enumerate(OPERATIONS)}

# Instructions that only compute a register from registers and immediates: a pattern, the operation, and the bits of
# each source. N stands for the number of bits that the pattern matches, and W for twice N. N is 32 if the pattern has
# no N. N is the first of `Instruction.extra`.
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
    """Return the operation, N and the bits of each source of the instruction `name`, or None if no pattern matches."""
    for pattern, operation, sources in _COMPUTING:
        if match := pattern.fullmatch(name):
            bits = match.groupdict().get("bits", "32")
            bits = 1 if bits == "red" else int(bits)  # "red": the end of .pred
            widths = [{"N": bits, "W": 2 * bits}.get(width) or int(width) for width in sources.split()]
            return operation.replace("N", str(bits)), bits, widths
    return None


# The machine's numbers of comparisons. Those after "ge" are of floats only. From "nan" on, comparing with NaN is true.
COMPARISONS = {name: i for i, name in enumerate("eq ne lt le gt ge num nan".split())}
COMPARISONS |= {f"{name}u": i + 8 for name, i in COMPARISONS.items() if i < 6}

# The orders of a global access, and the element types that the matrix unit multiplies, as the machine numbers them.
ORDERS = ["PLAIN", "CONSTANT", "RELAXED"]
PLAIN, CONSTANT, RELAXED = range(3)
ELEMENTS = ["F16", "BF16", "TF32"]
# The results of all lanes together that `redux` computes, as the machine numbers them.
REDUCTIONS = ["add", "max"]

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
        operation: the index of the operation in `OPERATIONS`.
        guard: the row of the predicate that the instruction depends on, or -1.
        negated: whether the instruction is executed where the predicate is 0, and not where it is 1.
        aligned: whether all lanes of a warp have to execute the instruction together.
        extra: four numbers, whose meaning depends on the operation.
        results, sources: the rows that the instruction writes, and the rows that the instruction reads.
        line, text: the number of the instruction's line in the PTX, and the instruction's text.
        where: the file and line of Python that the last .loc before the instruction names, or "" if none names one.
    """

    operation: int
    guard: int
    negated: bool
    aligned: bool
    extra: tuple[int, ...]
    results: list[int]
    sources: list[int]
    line: int
    text: str
    where: str


@dataclass
class Program:
    """A kernel as the machine executes it.

    Attributes:
        name: the kernel's name in the PTX.
        parameters: the names of the arguments, in order.
        instructions: the instructions, in order.
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
        UnknownInstruction: the PTX contains an instruction that the machine cannot execute, or does not end with ret.
    """
    return _Translator(text, peers).translate()


_SPACE = re.compile(r"\s+|//[^\n]*")
_LABEL = re.compile(r"([\w$]+):(?!:)")
_SOURCE = re.compile(r"//\s*(\S+\.py:\d+)")
_REGISTER = re.compile(r"%\w+")  # registers of the function; names in an inner scope have no "%"
_ADDRESS = re.compile(r"\[ ?([%\w]+) ?(?:\+ ?(-?\w+))? ?\]")


class _Branch(NamedTuple):
    """A branch whose target is not known yet.

    Attributes:
        index: the branch's index among the instructions.
        label: the name of the target.
        scopes: the numbers of the scopes that are open at the branch, innermost last.
    """

    index: int
    label: str
    scopes: list[int]


class _Translator:
    """A translation of one PTX text. The constructor's arguments are those of `translate`.

    The methods ``_mov``, ``_ld``, ``_bra`` and so on are handlers: `_decode` calls the one that the first part of an
    instruction's name names. A handler takes the instruction's name and the texts of its operands, in the order of the
    PTX. It emits the instruction and returns True. It returns False if the instruction may be one of `_COMPUTING`. It
    raises UnknownInstruction if no operation executes the instruction. A handler's KeyError, IndexError, ValueError or
    TypeError means the same: `_read_statement` raises it as an UnknownInstruction.
    """

    def __init__(self, text: str, peers: bool):
        self._text, self._peers = text, peers
        # The number of each row. The key of a register is (scope, name). The key of a constant is as in
        # `Program.constants`.
        self._rows: dict[tuple, int] = {}
        self._scopes: list[tuple[int, set]] = []  # open braces: a number, and the registers declared inside
        self._labels: dict[tuple[int, str], int] = {}  # (scope, name) -> the index of the instruction after the label
        self._branches: list[_Branch] = []
        self._where = ""  # the line of the Python source, as the last .loc says

    def translate(self) -> Program:
        """Return the program of the kernel. The method may be called once."""
        entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)", self._text, re.S)
        names = re.findall(r"\.param\s+\.\w+[^,]*?(\w+)\s*(?:,|$)", entry[2], re.S)
        self._parameters = {name: i for i, name in enumerate(names)}
        self._program = Program(entry[1], names)
        self._read_body(self._text.index("{", entry.end()))
        instructions = self._program.instructions
        for index, label, scopes in self._branches:
            targets = [self._labels[scope, label] for scope in reversed(scopes) if (scope, label) in self._labels]
            if not targets:
                branch = instructions[index]
                raise UnknownInstruction(f"line {branch.line} of the PTX, {branch.text!r}: no label {label}")
            innermost = targets[0]
            if innermost == len(instructions):
                raise UnknownInstruction(f"a branch to the end, {label}")
            instructions[index] = instructions[index]._replace(extra=(innermost, 0, 0, 0))
        if not instructions or OPERATIONS[instructions[-1].operation] != "ret" or instructions[-1].guard >= 0:
            raise UnknownInstruction("a kernel that does not end with ret")
        self._program.rows = len(self._rows)
        self._program.constants = {row: key for key, row in self._rows.items() if isinstance(key[0], str)}
        return self._program

    def _read_body(self, position: int) -> None:
        """Read the kernel's body, whose opening brace is at ``position`` of the text."""
        text, scope_count = self._text, 0
        line, counted_to = 1, 0  # `line` is the number of the line at `counted_to`
        while True:
            while match := _SPACE.match(text, position):
                position = match.end()
            if text[position] == "{":
                scope_count += 1
                self._scopes.append((scope_count, set()))
                position += 1
            elif text[position] == "}":
                self._scopes.pop()
                position += 1
                if not self._scopes:
                    return
            elif match := _LABEL.match(text, position):
                scope, _ = self._scopes[-1]
                self._labels[scope, match[1]] = len(self._program.instructions)
                position = match.end()
            elif text.startswith(".loc", position):
                end = text.index("\n", position)
                if match := _SOURCE.search(text, position, end):
                    self._where = match[1]
                position = end
            else:
                end = text.index(";", position)
                line, counted_to = line + text.count("\n", counted_to, position), position
                self._read_statement(" ".join(text[position:end].split()), line)
                position = end + 1

    def _read_statement(self, text: str, line: int) -> None:
        """Read a declaration, a pragma or an instruction, without its semicolon."""
        if text.startswith(".reg "):
            # Numbered registers of the function, %r<40>, are recognized by their "%".
            names = text.split(None, 2)[2].split(",")
            _, declared = self._scopes[-1]
            declared.update(name.strip() for name in names if "<" not in name)
            return
        if text.startswith(".pragma"):
            return
        guard, negated, body = -1, False, text
        try:
            if text.startswith("@"):
                predicate, _, body = text[1:].partition(" ")
                guard, negated = self._row(predicate.lstrip("!"), 1), predicate.startswith("!")
            name, _, operands = body.partition(" ")
            self._emit_as = guard, negated, line, text, self._where  # for `_emit`
            self._decode(name, _split(operands))
        except (UnknownInstruction, KeyError, IndexError, ValueError, TypeError) as failure:
            raise UnknownInstruction(
                f"line {line} of the PTX, {text!r}: {type(failure).__name__} {failure}"
            ) from failure

    def _emit(self, operation: str, *, results=(), sources=(), extra=(), aligned=False) -> None:
        """Append an instruction to the program. ``operation`` is a name of `OPERATIONS`.

        The other arguments are as in `Instruction`. Zeros are added to an ``extra`` of fewer than four numbers.
        """
        guard, negated, line, text, where = self._emit_as
        extra = (*map(int, extra), 0, 0, 0, 0)[:4]
        number, results, sources = _OPERATION_NUMBERS[operation], list(results), list(sources)
        self._program.instructions.append(
            Instruction(number, guard, negated, aligned, extra, results, sources, line, text, where)
        )

    # Operands

    def _row_of(self, key: tuple) -> int:
        """Return the row of a key of ``_rows``. A new key gets the next row."""
        return self._rows.setdefault(key, len(self._rows))

    def _row(self, text: str, bits: int = 32) -> int:
        """Return the row of a register, or of a constant of ``bits`` bits."""
        if (_REGISTER.fullmatch(text) and text not in _SPECIAL) or text == "_":
            return self._row_of((0, text))  # 0: the function, outside of all scopes that declare names without "%"
        if text in _SPECIAL:
            return self._row_of(("special", text))
        if match := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", text):
            return self._row_of(("value", int(match[1], 16)))
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            return self._row_of(("value", int(text.rstrip("U"), 0) & (1 << bits) - 1))
        for scope, declared in reversed(self._scopes):
            if text in declared:
                return self._row_of((scope, text))
        raise UnknownInstruction(f"the register {text}")

    def _vector(self, text: str, bits: int) -> list[int]:
        """Return the rows of a vector in braces, or the row of a single register."""
        return [self._row(part, bits) for part in (_split(text[1:-1]) if text.startswith("{") else [text])]

    def _address(self, text: str) -> tuple[int, int]:
        """Return the row and the offset of ``[register + offset]``."""
        match = _ADDRESS.fullmatch(text)
        if not match:
            raise UnknownInstruction(f"the address {text}")
        return self._row(match[1], 64), int(match[2] or "0", 0)

    # Instructions

    def _decode(self, name: str, operands: list[str]) -> None:
        """Translate an instruction: by the handler for the first part of its name, or else by `_COMPUTING`."""
        handler = getattr(self, "_" + name.partition(".")[0], None)
        if handler and handler(name, operands):
            return
        if (match := _match_computing(name)) is None:
            raise UnknownInstruction(name)
        operation, bits, widths = match
        result, *sources = operands
        rows = [self._row(text, width) for text, width in zip(sources, widths, strict=True)]
        self._emit(operation, results=[self._row(result)], sources=rows, extra=(bits,))

    # The handlers, by the first part of the instruction's name. The class's docstring has their protocol.

    def _mov(self, name: str, operands: list[str]) -> bool:
        """Translate a move of the clock or of an argument's address, or to or from a vector. `_COMPUTING` has more."""
        to, source = operands
        bits = {"mov.b16": 16, "mov.b32": 32, "mov.b64": 64}.get(name)
        if source == "%globaltimer":
            self._emit("clock", results=[self._row(to)])
        elif bits and bits >= 32 and source in self._parameters:
            address = 8 * self._parameters[source]  # arguments are 8 bytes apart
            self._emit("mov", results=[self._row(to)], sources=[self._row_of(("value", address))], extra=(bits,))
        elif bits and to.startswith("{"):
            parts = self._vector(to, bits)
            self._emit("unpack", results=parts, sources=[self._row(source, bits)], extra=(bits // len(parts),))
        elif bits and source.startswith("{"):
            part_bits = bits // len(_split(source[1:-1]))
            self._emit("pack", results=[self._row(to)], sources=self._vector(source, part_bits), extra=(part_bits,))
        else:
            return False
        return True

    def _cvt(self, name: str, operands: list[str]) -> bool:
        """Translate a conversion between integers. `_COMPUTING` has those of floats."""
        match = re.fullmatch(r"cvt\.[su](?P<to_bits>\d+)\.(?P<sign>[su])(?P<bits>\d+)", name)
        if not match:
            return False
        bits, to_bits = int(match["bits"]), int(match["to_bits"])
        # A wider result is extended by the sign of the source. Its own sign type would matter only for a result of 8
        # bits in a register of 16, which no operation executes.
        if to_bits == 8:
            raise UnknownInstruction(name)
        to, source = operands
        self._emit(
            f"extend_{match['sign']}", results=[self._row(to)], sources=[self._row(source, bits)],
            extra=(bits, to_bits),
        )  # fmt: skip
        return True

    def _setp(self, name: str, operands: list[str]) -> bool:
        """Translate a comparison of two sources. A third source, which PTX combines with the result, is unknown."""
        match = re.fullmatch(r"setp\.(?P<comparison>\w+)\.(?P<type>[busf])(?P<bits>16|32|64)", name)
        is_float, bits = match["type"] == "f", int(match["bits"])
        if is_float and bits != 32:
            raise UnknownInstruction(name)
        result, *sources = operands
        rows = [self._row(text, bits) for text in sources]
        comparison = COMPARISONS[match["comparison"]]
        if len(rows) != 2 or (not is_float and comparison > COMPARISONS["ge"]):  # later ones are of floats only
            raise UnknownInstruction(name)
        extra = (comparison, "busf".index(match["type"]), bits)
        self._emit("setp", results=[self._row(result)], sources=rows, extra=extra)
        return True

    def _bra(self, name: str, operands: list[str]) -> bool:
        """Translate a branch. `translate` sets its target once all labels are known."""
        if name not in ("bra", "bra.uni"):
            raise UnknownInstruction(name)
        scopes = [scope for scope, _ in self._scopes]
        self._branches.append(_Branch(len(self._program.instructions), operands[0], scopes))
        self._emit("bra")
        return True

    def _ret(self, name: str, operands: list[str]) -> bool:
        if name not in ("ret", "ret.uni"):
            raise UnknownInstruction(name)
        self._emit("ret")
        return True

    def _trap(self, name: str, operands: list[str]) -> bool:
        """Translate a trap into a load from address 0. No tensor has this address, so the machine reports the load."""
        if name != "trap":
            raise UnknownInstruction(name)
        self._emit("load_global", results=[self._row("_")], sources=[self._row("0", 64)], extra=(4, PLAIN))
        return True

    def _bar(self, name: str, operands: list[str]) -> bool:
        """Translate the barrier of a warp's lanes, or barrier 0 of all warps. Other barriers are unknown."""
        if name == "bar.warp.sync" and _is_whole_warp(operands[0]):
            self._emit("barrier_warp", aligned=True)
        elif name == "bar.sync" and operands == ["0"]:
            self._emit("barrier", aligned=True)
        else:
            raise UnknownInstruction(name)
        return True

    def _fence(self, name: str, operands: list[str]) -> bool:
        """Translate the fence between stores to shared memory and the wgmma that reads them."""
        if name != "fence.proxy.async.shared::cta":
            raise UnknownInstruction(name)
        self._emit("fence_async")
        return True

    def _ld(self, name: str, operands: list[str]) -> bool:
        """Translate a load of an argument, or of global or shared memory."""
        to, source = operands
        if match := re.fullmatch(r"ld\.param\.(?P<type>[bsu])(?P<bits>\d+)", name):
            is_signed, bits, address = match["type"] == "s", int(match["bits"]), source.strip("[] ")
            if _REGISTER.fullmatch(address):
                arguments = [self._row_of(("parameter", index)) for index in self._parameters.values()]
                sources = [self._row(address), *arguments]
                self._emit("load_parameter", results=[self._row(to)], sources=sources, extra=(bits, is_signed))
            else:
                argument = self._row_of(("parameter", self._parameters[address]))
                operation = "extend_s" if is_signed else "extend_u"
                self._emit(operation, results=[self._row(to)], sources=[argument], extra=(bits, 64))
            return True
        if self._peers:
            name = name.replace("ld.global.gpu.acquire.", "ld.relaxed.gpu.global.")
        space, order, bits = _read_access(name, self._peers)
        base, offset = self._address(source)
        self._emit(f"load_{space}", results=self._vector(to, bits), sources=[base], extra=(bits // 8, order, offset))
        return True

    def _st(self, name: str, operands: list[str]) -> bool:
        space, order, bits = _read_access(name, self._peers)
        to, source = operands
        base, offset = self._address(to)
        sources = [base, *self._vector(source, bits)]
        self._emit(f"store_{space}", sources=sources, extra=(bits // 8, order, offset))
        return True

    def _atom(self, name: str, operands: list[str]) -> bool:
        """Translate an atomic addition in global memory. Only kernels of other libraries have one."""
        match = re.fullmatch(r"atom\.global\.gpu\.(?:relaxed|acquire|release|acq_rel)\.add\.[su](?P<bits>32|64)", name)
        if not (match and self._peers):
            raise UnknownInstruction(name)
        old_value, address, addend = operands
        base, offset = self._address(address)
        bits = int(match["bits"])
        self._emit(
            "atom_add", sources=[base, self._row(addend, bits)], results=[self._row(old_value)],
            extra=(bits // 8, RELAXED, offset),
        )  # fmt: skip
        return True

    def _ldmatrix(self, name: str, operands: list[str]) -> bool:
        match = re.fullmatch(r"ldmatrix\.sync\.aligned\.m8n8\.x[124](?P<transposed>\.trans)?\.shared\.b16", name)
        to, source = operands
        base, offset = self._address(source)
        extra = (bool(match["transposed"]), 0, offset)
        self._emit("ldmatrix", results=self._vector(to, 32), sources=[base], extra=extra, aligned=True)
        return True

    def _stmatrix(self, name: str, operands: list[str]) -> bool:
        match = re.fullmatch(r"stmatrix\.sync\.aligned\.m8n8\.x[124](?P<transposed>\.trans)?\.shared\.b16", name)
        to, source = operands
        base, offset = self._address(to)
        extra = (bool(match["transposed"]), 0, offset)
        self._emit("stmatrix", sources=[base, *self._vector(source, 32)], extra=extra, aligned=True)
        return True

    def _cp(self, name: str, operands: list[str]) -> bool:
        """Translate a cp.async from global to shared memory, the end of a group of copies, or a wait for groups."""
        if name == "cp.async.commit_group":
            self._emit("cp_commit")
        elif name == "cp.async.wait_group":
            self._emit("cp_wait", extra=(int(operands[0], 0),))
        elif name in ("cp.async.ca.shared.global", "cp.async.cg.shared.global"):
            # source_size has no entry or one: the bytes to read. The copy fills the remaining bytes with zeros.
            to, source, size, *source_size = operands
            (to_base, to_offset), (source_base, source_offset) = self._address(to), self._address(source)
            cache = name.split(".")[2]
            if (cache, int(size, 0)) not in (("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)):
                raise UnknownInstruction(f"copies of {size} bytes by {name}")
            if any(operand.startswith("%p") for operand in source_size):  # a predicate to ignore the source, not a size
                raise UnknownInstruction(f"the operand {source_size[0]}")
            sources = [to_base, source_base, *map(self._row, source_size)]
            self._emit("cp_async", sources=sources, extra=(int(size, 0), to_offset, source_offset))
        else:
            raise UnknownInstruction(name)
        return True

    def _mma(self, name: str, operands: list[str]) -> bool:
        match = re.fullmatch(
            r"mma\.sync\.aligned\.m16n8k(?P<depth>\d+)\.row\.col\.f32\.(?P<left>\w+)\.(?P<right>\w+)\.f32", name
        )
        depth, left = int(match["depth"]), match["left"]
        if left != match["right"] or (left, depth) not in (("f16", 16), ("bf16", 16), ("tf32", 8)):
            raise UnknownInstruction(name)
        result, *matrices = operands  # D, and A, B, C of D = A B + C
        sources = [row for text in matrices[:3] for row in self._vector(text, 32)]
        extra = (ELEMENTS.index(left.upper()), depth)
        self._emit("mma", results=self._vector(result, 32), sources=sources, extra=extra, aligned=True)
        return True

    def _wgmma(self, name: str, operands: list[str]) -> bool:
        """Translate a product of a warpgroup, its fence, the end of a group of products, or a wait for groups."""
        if name == "wgmma.fence.sync.aligned":
            self._emit("nop", aligned=True)
        elif name == "wgmma.commit_group.sync.aligned":
            self._emit("wgmma_commit", aligned=True)
        elif name == "wgmma.wait_group.sync.aligned":
            self._emit("wgmma_wait", extra=(int(operands[0], 0),), aligned=True)
        else:
            self._multiply_in_warpgroup(name, *operands)
        return True

    def _multiply_in_warpgroup(self, name: str, result: str, left: str, right: str, adds: str, *flags: str) -> None:
        """Translate the product of a warpgroup. The product is added to ``result`` if the predicate ``adds`` is true.

        Otherwise the product replaces ``result``.
        ``right`` is the 64-bit descriptor of a matrix in shared memory. So is ``left``, unless it is in registers.
        """
        match = re.fullmatch(
            r"wgmma\.mma_async\.sync\.aligned\.m64n(?P<columns>\d+)k(?P<depth>\d+)\.f32\.(?P<left>\w+)\.(?P<right>\w+)",
            name,
        )
        element, columns, depth = match["left"], int(match["columns"]), int(match["depth"])
        if columns % 8 or not 8 <= columns <= 256 or depth != (8 if element == "tf32" else 16):
            raise UnknownInstruction(name)
        scale_a, scale_b, *transposed = (int(flag, 0) for flag in flags)
        if (scale_a, scale_b) != (1, 1) or element != match["right"]:  # a scale of -1 negates an operand
            raise UnknownInstruction(name)
        # The flags to transpose: none in TF32, and none for an operand in registers.
        transposed_b = transposed[-1] if transposed else 0
        transposed_a = transposed[0] if len(transposed) > 1 else 0
        # One number has the element type in its low four bits, then the two flags.
        kind = ELEMENTS.index(element.upper()) + 16 * transposed_a + 32 * transposed_b
        is_left_in_registers = left.startswith("{")
        self._emit(
            "wgmma", results=self._vector(result, 32),
            sources=[*self._vector(left, 64), self._row(right, 64), self._row(adds, 1)],
            extra=(kind, columns, depth, is_left_in_registers), aligned=True,
        )  # fmt: skip

    def _shfl(self, name: str, operands: list[str]) -> bool:
        """Translate a shuffle among all lanes of a warp, without a predicate as a second result."""
        mode = {"shfl.sync.bfly.b32": 0, "shfl.sync.idx.b32": 1}[name]
        if len(operands) != 5:
            raise UnknownInstruction(name)
        result, source, lane, clamp, mask = operands
        if clamp not in ("31", "0x1f") or "|" in result or not _is_whole_warp(mask):
            raise UnknownInstruction(name)
        sources = [self._row(source), self._row(lane)]
        self._emit("shuffle", results=[self._row(result)], sources=sources, extra=(mode,), aligned=True)
        return True

    def _movmatrix(self, name: str, operands: list[str]) -> bool:
        if name != "movmatrix.sync.aligned.m8n8.trans.b16":
            raise UnknownInstruction(name)
        to, source = operands
        self._emit("movmatrix", results=[self._row(to)], sources=[self._row(source)], aligned=True)
        return True

    def _vote(self, name: str, operands: list[str]) -> bool:
        """Translate a vote of all lanes of a warp: whether any predicate is set, by the maximum of 0 and 1."""
        result, source, mask = operands
        if name != "vote.sync.any.pred" or not _is_whole_warp(mask):
            raise UnknownInstruction(name)
        self._emit(
            "redux", results=[self._row(result)], sources=[self._row(source)], extra=(REDUCTIONS.index("max"),),
            aligned=True,
        )  # fmt: skip
        return True

    def _redux(self, name: str, operands: list[str]) -> bool:
        """Translate the sum or the maximum of a signed number of all lanes of a warp."""
        result, source, mask = operands
        match = re.fullmatch(r"redux\.sync\.(?P<reduction>add|max)\.s32", name)
        if not match or not _is_whole_warp(mask):
            raise UnknownInstruction(name)
        self._emit(
            "redux", results=[self._row(result)], sources=[self._row(source)],
            extra=(REDUCTIONS.index(match["reduction"]),), aligned=True,
        )  # fmt: skip
        return True


@functools.cache
def _read_access(name: str, peers: bool) -> tuple[str, int, int]:
    """Return the memory that a load or store accesses ("global" or "shared"), the order, and the bits of an element."""
    match = re.fullmatch(
        r"(?:ld|st)(?P<relaxed>\.relaxed\.(?:gpu|sys))?\.(?P<space>global|shared)(?P<cached>\.nc|\.cg)?(?:\.v[24])?"
        r"\.[bu](?P<bits>8|16|32|64)",
        name.replace(".shared::cta.", ".shared."),  # both names are the same memory
    )
    if not match:
        raise UnknownInstruction(name)
    is_known = peers or ".v" in name if match["space"] == "shared" else name.startswith("ld")
    if match["bits"] == "8" and not is_known:
        raise UnknownInstruction(name)  # the machine tracks accesses of two bytes at a time
    order = RELAXED if match["relaxed"] else CONSTANT if match["cached"] == ".nc" else PLAIN
    return match["space"], order, int(match["bits"])


def _is_whole_warp(mask: str) -> bool:
    """Return whether a mask names all lanes. A register is assumed to name all, because Triton sets it to -1."""
    return mask in ("-1", "0xffffffff") or mask.startswith("%")


def _split(text: str) -> list[str]:
    """Return the operands of an instruction. Commas in braces do not separate operands."""
    parts = re.findall(r"(?:\{[^}]*\}|[^,{])+", text) if "{" in text else text.split(",")
    return [part.strip() for part in parts if part.strip()]


def find_waits(program: Program) -> list[tuple[int, int]]:
    """Return the indices of the first and the last instruction of each loop that only waits for others' stores.

    Such a loop has a relaxed load, and no store to global memory, no cp.async and no product. Inner loops come after
    outer ones.
    """
    loops = {}
    for last, instruction in enumerate(program.instructions):
        first = instruction.extra[0]  # the target of a branch
        if OPERATIONS[instruction.operation] != "bra" or first > last:
            continue
        # The operation of each instruction, and the second extra number, which is the order of a load.
        body = [(OPERATIONS[inner.operation], inner.extra[1]) for inner in program.instructions[first : last + 1]]
        does_work = any(name in ("mma", "wgmma", "cp_async", "store_global") for name, _ in body)
        if ("load_global", RELAXED) in body and not does_work:
            loops[first] = last
    return sorted(loops.items(), key=lambda loop: loop[0] - loop[1])
