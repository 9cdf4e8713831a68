"""Products by the matrix unit, of operands that stay where this file puts them: in registers or in shared memory.

What a compiler makes of ``tl.dot`` differs from one Triton to the next: the instruction, whether W_hh stays in
registers through a loop, the way of the state to the unit. Here each thread gives the unit what it has loaded itself.
All tensors are [WARPS, 8, 4], a number for each thread, in tuples. The compiler's own layout has warps, then lanes in
this order. Nothing here would ask for another one, and `reserve.add_shared_memory` checks that none came.

A word is 128 bits of a row, four parts of 32. Lane [i, l] of a warp has word l of row i of the right operand, and of
rows i and i + 8 of the left one. The unit takes two parts at a time. It sums over all columns, so their order is free
as long as both operands have the same one.

The instructions are those of the PTX ISA, "Matrix multiply-accumulate operation using mma instruction".
"""

import triton
import triton.language as tl

from . import isa


@triton.jit
def load_tile(
    w_hh, gate: tl.constexpr, unit, word, ROWS: tl.constexpr, APART: tl.constexpr, H: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return a left operand: of ``ROWS`` rows of a gate of W_hh the words ``word``, zero beyond H.

    The first eight rows are ``unit``, the next eight follow. From sixteen to sixteen there are ``APART`` rows.
    """
    WORD: tl.constexpr = 128 // w_hh.dtype.element_ty.primitive_bitwidth
    column = word * WORD
    tile = ()
    for sixteen in tl.static_range(ROWS // 16):
        row = unit + sixteen * APART
        upper = _load_row(w_hh, gate, row, column, H, PRECISION)
        lower = _load_row(w_hh, gate, row + 8, column, H, PRECISION)
        for part in tl.static_range(4):
            tile = tile + (upper[part], lower[part])
    return tile


@triton.jit
def _load_row(w_hh, gate: tl.constexpr, row, column, H: tl.constexpr, PRECISION: tl.constexpr):
    """Return the four parts of the word at ``column`` of a gate's row, whose elements are zero beyond H."""
    BITS: tl.constexpr = w_hh.dtype.element_ty.primitive_bitwidth
    there = tl.where(row < H, H - column, 0)
    address = w_hh + (gate * H + row) * H + column
    parts = tl.inline_asm_elementwise(
        _load_ptx(BITS, H * BITS % 128 == 0),
        "=&r,=&r,=&r,=&r,l,r",
        [address.to(tl.int64), there],
        dtype=(tl.int32,) * 4,
        is_pure=True,
        pack=1,
    )
    if PRECISION == "tf32":
        rounded = ()
        for part in tl.static_range(4):
            number = isa.round_to_tf32(parts[part].to(tl.float32, bitcast=True))
            rounded = rounded + (number.to(tl.int32, bitcast=True),)
        parts = rounded
    return parts


@triton.constexpr_function
def _load_ptx(bits, whole):
    """Return the load of a word of which so many elements are there: all or none, if ``whole``."""
    size = bits // 8
    asm = ["{ .reg .pred p, there, even; .reg .b64 low; .reg .b16 e0, e1, e2, e3, e4, e5, e6, e7;"]
    asm.append("mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;")
    if whole:
        # In one piece, unless the tensor begins at an odd address.
        asm.append("setp.gt.s32 there, $5, 0; and.b64 low, $4, 15; setp.eq.b64 even, low, 0; and.pred p, even, there;")
        asm.append("@p ld.global.nc.v4.b32 {$0, $1, $2, $3}, [$4]; not.pred p, even; and.pred p, p, there;")
    for element in range(16 // size):
        if not whole:
            asm.append(f"setp.gt.s32 p, $5, {element};")
        if bits == 32:
            asm.append(f"@p ld.global.nc.b32 ${element}, [$4+{4 * element}];")
            continue
        asm.append(f"mov.b16 e{element}, 0; @p ld.global.nc.b16 e{element}, [$4+{2 * element}];")
        if element % 2:
            pair = f"mov.b32 ${element // 2}, {{e{element - 1}, e{element}}};"
            asm.append(f"@p {pair}" if whole else pair)
    return "\n".join([*asm, "}"])


@triton.constexpr_function
def chunks(units, dtype):
    """Return how many times a row's units take four words."""
    return -(-units * dtype.primitive_bitwidth // 512)


@triton.constexpr_function
def weights_bytes(tiles, rows, warps):
    """Return the bytes of shared memory of so many left operands of ``rows`` rows."""
    return max(tiles, 0) * (rows // 8) * warps * 512


@triton.jit
def shared_address(offset, SIZE: tl.constexpr):
    """Return addresses in the ``SIZE`` bytes of shared memory that are a kernel's own."""
    return tl.inline_asm_elementwise(_place_ptx(SIZE), "=&r,r", [offset], dtype=tl.int32, is_pure=True, pack=1)


@triton.constexpr_function
def _place_ptx(size):
    # The compiler's own use of shared memory comes before. What comes after it is asked for by `reserve.add_shared_memory`.
    return (
        "{ .reg .b32 all; mov.u32 $0, global_smem; mov.u32 all, %dynamic_smem_size; add.u32 $0, $0, all;\n"
        f"sub.u32 $0, $0, {size}; // kept in shared memory\n"
        "add.u32 $0, $0, $1; }"
    )


@triton.jit
def touch_shared_memory(WARPS: tl.constexpr):
    """Return 0, by way of shared memory: PTX knows its name only in a kernel for which the compiler uses some, too."""
    nothing = tl.inline_asm_elementwise(
        "mov.b32 $0, 0;", "=r,r", [tl.arange(0, 32 * WARPS)], dtype=tl.int32, is_pure=True, pack=1
    )
    return tl.max(nothing, 0)


@triton.jit
def thread(WARPS: tl.constexpr):
    """Return the index of each thread."""
    warp = tl.arange(0, WARPS)[:, None, None]
    return (warp * 8 + tl.arange(0, 8)[None, :, None]) * 4 + tl.arange(0, 4)[None, None, :]


@triton.jit
def store_tile(place, tile, INDEX: tl.constexpr, WARPS: tl.constexpr):
    """Put a left operand into shared memory, where `load_shared_tile` finds it. No thread reads another one's.

    ``place`` is each thread's, 16 bytes from one to the next.
    """
    for word in tl.static_range(len(tile) // 4):
        tl.inline_asm_elementwise(
            _keep_ptx((INDEX * (len(tile) // 4) + word) * WARPS * 512),
            "=r,r,r,r,r,r",
            [place, tile[4 * word], tile[4 * word + 1], tile[4 * word + 2], tile[4 * word + 3]],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.constexpr_function
def _keep_ptx(offset):
    return f"st.shared.v4.b32 [$1+{offset}], {{$2, $3, $4, $5}}; mov.b32 $0, 0;"


@triton.jit
def load_shared_tile(place, INDEX: tl.constexpr, WORDS: tl.constexpr, WARPS: tl.constexpr):
    """Return a left operand of so many words of a thread that `store_tile` has put away."""
    tile = ()
    for word in tl.static_range(WORDS):
        tile = tile + _read_word(place, (INDEX * WORDS + word) * WARPS * 512)
    return tile


@triton.jit
def _read_word(place, OFFSET: tl.constexpr):
    """Return the parts of a word of shared memory."""
    return tl.inline_asm_elementwise(
        _read_ptx(OFFSET),
        "=r,=r,=r,=r,r",
        [place],
        dtype=(tl.int32,) * 4,
        is_pure=False,  # else what is kept would be read once, before the loop, into registers
        pack=1,
    )


@triton.constexpr_function
def _read_ptx(offset):
    return f"ld.shared.v4.b32 {{$0, $1, $2, $3}}, [$4+{offset}];"


@triton.constexpr_function
def state_bytes(rows, units, bits):
    """Return the bytes of shared memory of a state of so many batch rows and units, whole chunks of four words."""
    return rows * 64 * (-(-units * bits // 512))


@triton.jit
def state_offset(unit, row, ROWS: tl.constexpr, BITS: tl.constexpr):
    """Return the byte offset of an element of a state in shared memory, for `store_state`.

    A row's four words of a chunk lie side by side, then those of the next row. By pairs of rows they change places, so
    that what a warp writes at once lies in different banks.
    """
    WORD: tl.constexpr = 128 // BITS
    word = unit // WORD
    return (_place_of_word(word // 4, word % 4, row, ROWS) * WORD + unit % WORD) * (BITS // 8)


@triton.jit
def _place_of_word(chunk, word, row, ROWS: tl.constexpr):
    return (chunk * ROWS + row) * 4 + (word ^ (row // 2 % 4))


@triton.jit
def store_state(place, x, OFFSET: tl.constexpr):
    """Put elements of a state into shared memory, ``OFFSET`` bytes from their `place`."""
    BITS: tl.constexpr = x.dtype.primitive_bitwidth
    tl.inline_asm_elementwise(
        _share_ptx(BITS, OFFSET),
        "=r,r,h" if BITS == 16 else "=r,r,r",
        [place, x],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.constexpr_function
def _share_ptx(bits, offset):
    return f"st.shared.b{bits} [$1+{offset}], $2; mov.b32 $0, 0;"


@triton.jit
def lane_state_offset(ROWS: tl.constexpr, WARPS: tl.constexpr):
    """Return the byte offset of each lane's first word of a state. Of two rows each one has four columns."""
    row = tl.arange(0, 8)[None, :, None]
    if ROWS == 2:
        row = row // 4
    word = _place_of_word(0, tl.arange(0, 4)[None, None, :], row, ROWS)
    return 16 * word + tl.zeros((WARPS, 8, 4), tl.int32)


@triton.jit
def load_state(place, CHUNKS: tl.constexpr, ROWS: tl.constexpr):
    """Return a state that all threads have shared: by chunk, eight columns and part."""
    words = ()
    for chunk in tl.static_range(CHUNKS):
        for eight in tl.static_range((ROWS + 7) // 8):
            words = words + _read_word(place, (chunk * ROWS + eight * 8) * 64)
    return words


@triton.jit
def zeros(UNITS: tl.constexpr, COLUMNS: tl.constexpr, WARPS: tl.constexpr):
    """Return sums to begin with, as `multiply` returns them."""
    sums = ()
    for _ in tl.static_range(UNITS * COLUMNS // 32):
        sums = sums + (tl.zeros((WARPS, 8, 4), tl.float32),)
    return sums


@triton.jit
def multiply(tile, words, sums, DTYPE: tl.constexpr):
    """Return ``sums`` and the product of a left operand and a right one, whose words are by eights of its rows.

    The sums are by sixteens of the left operand's rows, then by eights of the right one's, then as the unit has them:
    of rows i and i + 8 the columns 2 l and 2 l + 1 in lane [i, l].
    """
    EIGHTS: tl.constexpr = len(words) // 4
    added = ()
    for m in tl.static_range(len(tile) // 8):
        for n in tl.static_range(EIGHTS):
            c = sums[4 * (m * EIGHTS + n) : 4 * (m * EIGHTS + n + 1)]
            for part in tl.static_range(0, 4, 2):
                a = tile[8 * m + 2 * part : 8 * m + 2 * part + 4]
                b = words[4 * n + part : 4 * n + part + 2]
                c = mma(a, b, c, DTYPE)
            added = added + c
    return added


@triton.jit
def mma(a, b, c, DTYPE: tl.constexpr):
    """Return ``c`` and the product of four words of a left operand and two of a right one: one instruction."""
    return tl.inline_asm_elementwise(
        _mma_ptx(DTYPE),
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]],
        dtype=(tl.float32,) * 4,
        is_pure=True,
        pack=1,
    )


@triton.constexpr_function
def _mma_ptx(dtype):
    instruction = {
        "fp16": "m16n8k16.row.col.f32.f16.f16.f32",
        "bf16": "m16n8k16.row.col.f32.bf16.bf16.f32",
        "fp32": "m16n8k8.row.col.f32.tf32.tf32.f32",
    }[str(dtype)]
    return f"mma.sync.aligned.{instruction} {{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, {{$10, $11, $12, $13}};"


@triton.jit
def compute_before_wait(sums):
    """Return sums, made before the wait that follows, as `isa.compute_before_wait` does."""
    made = ()
    for i in tl.static_range(len(sums)):
        made = made + (isa.compute_before_wait(sums[i]),)
    return made


@triton.jit
def together(parts, UNITS: tl.constexpr, COLUMNS: tl.constexpr, WARPS: tl.constexpr):
    """Return each warp's sums of one, two or four products as one tensor, [COLUMNS, UNITS, products, WARPS]."""
    PARTS: tl.constexpr = len(parts)
    numbers = ()
    for k in tl.static_range(len(parts[0])):
        for part in tl.static_range(PARTS):
            numbers = numbers + (parts[part][k],)
    x = tl.reshape(_as_tensor(numbers, WARPS), (UNITS // 16, COLUMNS // 8, 2, 2, PARTS * WARPS, 8, 4))
    return tl.reshape(tl.permute(x, (1, 6, 3, 0, 2, 5, 4)), (COLUMNS, UNITS, PARTS, WARPS))


# A state is [numbers, WARPS, 8, 4], of each thread the numbers that it makes. They are in the order of `multiply`'s
# sums, or, of two batch rows, one of every four: each row has four of eight columns.


@triton.jit
def state_units(UNITS: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr):
    """Return the units of a state. A warp has sixteens of them by turns."""
    warp = tl.arange(0, WARPS)[None, :, None, None]
    lane = tl.arange(0, 8)[None, None, :, None]
    if BATCH == 2:
        number = tl.arange(0, UNITS // 16 // WARPS)[:, None, None, None]
        return (number * WARPS + warp) * 16 + tl.arange(0, 4)[None, None, None, :] % 2 * 8 + lane
    else:
        number = tl.arange(0, UNITS * BATCH // WARPS // 32)[:, None, None, None]
        return (number // (BATCH // 2) * WARPS + warp) * 16 + number // 2 % 2 * 8 + lane


@triton.jit
def state_rows(UNITS: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr):
    """Return the batch rows of a state."""
    lane = tl.arange(0, 4)[None, None, None, :]
    if BATCH == 2:
        return lane // 2
    else:
        number = tl.arange(0, UNITS * BATCH // WARPS // 32)[:, None, None, None]
        return number // 4 % (BATCH // 8) * 8 + 2 * lane + number % 2


@triton.jit
def as_state(sums, BATCH: tl.constexpr):
    """Return sums as a state."""
    if BATCH == 2:
        # Of every 16 units the first column of a row has 0 to 7, the second one the others.
        odd = tl.arange(0, 4)[None, None, :] % 2 != 0
        numbers = ()
        for m in tl.static_range(len(sums) // 4):
            numbers = numbers + (tl.where(odd, sums[4 * m + 2], sums[4 * m]),)
        return _as_tensor(numbers, sums[0].shape[0])
    else:
        return _as_tensor(sums, sums[0].shape[0])


@triton.jit
def load_pairs(gi, tile_offset, GATE: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr):
    """Return the r, z and n inputs of a state as `isa.load_gates` does: a pair of columns is a word."""
    number = tl.arange(0, UNITS * BATCH // WARPS // 64)[:, None, None, None]
    unit = (number // (BATCH // 4) * WARPS + tl.arange(0, WARPS)[None, :, None, None]) * 16 + number % 2 * 8
    unit = unit + tl.arange(0, 8)[None, None, :, None]
    pair = number // 2 % (BATCH // 8) * 4 + tl.arange(0, 4)[None, None, None, :]
    return isa.load_pairs(gi, tile_offset // 2 + unit * (BATCH // 2) + pair, GATE)


@triton.jit
def pairs_to_float(raw, DTYPE: tl.constexpr):
    """Return fp32 numbers of what `load_pairs` returned."""
    low, high = isa.split_pair(raw, DTYPE)
    x = tl.permute(tl.join(low, high), (0, 4, 1, 2, 3))
    return tl.reshape(x, (2 * raw.shape[0], raw.shape[1], 8, 4))


@triton.jit
def _as_tensor(numbers, WARPS: tl.constexpr):
    """Return numbers as one tensor [numbers, WARPS, 8, 4]."""
    x = tl.permute(isa.joined(numbers), (3, 0, 1, 2))
    # No conversion between layouts moves past a reduction, into the products.
    return tl.sum(tl.reshape(x, (len(numbers), WARPS, 8, 4, 1)), 4)
