"""Products by tensor cores (``mma.sync``) whose operands stay where this file puts them: registers or shared memory.

``tl.dot`` compiles differently from one Triton to the next. The instruction changes, W_hh may leave its registers in a
loop, and the state may take another way to the tensor core. Here each thread passes the numbers that it loaded itself.

An operand or a sum is a tuple of tensors [WARPS, 8, 4], one number for each thread. This order, warps and then lanes,
is Triton's default layout of such a tensor. No code here asks for another one, and `reserve.add_shared_memory` checks
the compiled kernel for it.

A word is 128 bits of a row: four parts of 32 bits. Lane [i, l] of a warp holds word l of row i of the right operand.
Of the left operand it holds word l of rows i and i + 8. One ``mma`` takes two parts of each. A product sums over all
columns, so their order is free, as long as both operands have the same one.

The instructions are described in the PTX ISA, "Matrix multiply-accumulate operation using mma instruction".
"""

import triton
import triton.language as tl

from . import isa


@triton.jit
def load_tile(
    w_hh, gate: tl.constexpr, unit, word, ROWS: tl.constexpr, APART: tl.constexpr, H: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Load a left operand: the words ``word`` of ``ROWS`` rows of one gate of W_hh, zero beyond H.

    A thread takes rows ``unit`` and ``unit`` + 8, then the same two rows ``APART`` rows further, and so on.
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
    """Load the four parts of the word at ``column`` of a gate's row. Elements beyond H are zero."""
    BITS: tl.constexpr = w_hh.dtype.element_ty.primitive_bitwidth
    remaining = tl.where(row < H, H - column, 0)
    address = w_hh + (gate * H + row) * H + column
    parts = tl.inline_asm_elementwise(
        _load_ptx(BITS, H * BITS % 128 == 0),
        "=&r,=&r,=&r,=&r,l,r",
        [address.to(tl.int64), remaining],
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
def _load_ptx(bits, is_whole):
    """Return PTX that loads the first ``$5`` elements of the word at ``$4``: all or none of them if ``is_whole``."""
    size = bits // 8
    asm = ["{ .reg .pred p, there, even; .reg .b64 low; .reg .b16 e0, e1, e2, e3, e4, e5, e6, e7;"]
    asm.append("mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;")
    if is_whole:
        # One load of 128 bits. Exception: a tensor that does not begin at a multiple of 16 bytes.
        asm.append("setp.gt.s32 there, $5, 0; and.b64 low, $4, 15; setp.eq.b64 even, low, 0; and.pred p, even, there;")
        asm.append("@p ld.global.nc.v4.b32 {$0, $1, $2, $3}, [$4]; not.pred p, even; and.pred p, p, there;")
    for element in range(16 // size):
        if not is_whole:
            asm.append(f"setp.gt.s32 p, $5, {element};")
        if bits == 32:
            asm.append(f"@p ld.global.nc.b32 ${element}, [$4+{4 * element}];")
            continue
        asm.append(f"mov.b16 e{element}, 0; @p ld.global.nc.b16 e{element}, [$4+{2 * element}];")
        if element % 2:
            pair = f"mov.b32 ${element // 2}, {{e{element - 1}, e{element}}};"
            asm.append(f"@p {pair}" if is_whole else pair)
    return "\n".join([*asm, "}"])


@triton.constexpr_function
def count_segments(units, dtype):
    """Return how many segments of four words (512 bits) a row of ``units`` takes."""
    return -(-units * dtype.primitive_bitwidth // 512)


@triton.constexpr_function
def weights_bytes(tiles, rows, warps):
    """Return the bytes of shared memory of ``tiles`` left operands, each ``rows`` rows of four words in every warp."""
    return max(tiles, 0) * (rows // 8) * warps * 512


@triton.jit
def shared_address(offset, SIZE: tl.constexpr):
    """Return the shared memory addresses of byte ``offset`` in the ``SIZE`` bytes that `reserve` adds to a launch."""
    return tl.inline_asm_elementwise(_shared_address_ptx(SIZE), "=&r,r", [offset], dtype=tl.int32, is_pure=True, pack=1)


@triton.constexpr_function
def _shared_address_ptx(size):
    # The compiler's shared memory comes first, and ours are the last bytes. `reserve.add_shared_memory` finds the size
    # in the PTX by the comment below, and adds it to the launch.
    return (
        "{ .reg .b32 all; mov.u32 $0, global_smem; mov.u32 all, %dynamic_smem_size; add.u32 $0, $0, all;\n"
        f"sub.u32 $0, $0, {size}; // kept in shared memory\n"
        "add.u32 $0, $0, $1; }"
    )


@triton.jit
def touch_shared_memory(WARPS: tl.constexpr):
    """Return 0, computed through shared memory.

    Otherwise a kernel may use no shared memory of the compiler's, and then its PTX does not declare ``global_smem``.
    """
    zero = tl.inline_asm_elementwise(
        "mov.b32 $0, 0;", "=r,r", [tl.arange(0, 32 * WARPS)], dtype=tl.int32, is_pure=True, pack=1
    )
    return tl.max(zero, 0)


@triton.jit
def thread(WARPS: tl.constexpr):
    """Return the index of each thread in its program, [WARPS, 8, 4]."""
    warp = tl.arange(0, WARPS)[:, None, None]
    return (warp * 8 + tl.arange(0, 8)[None, :, None]) * 4 + tl.arange(0, 4)[None, None, :]


@triton.jit
def store_tile(address, tile, INDEX: tl.constexpr, WARPS: tl.constexpr):
    """Store left operand number ``INDEX`` in shared memory, for the same thread to read it by `load_shared_tile`.

    ``address`` differs by 16 bytes from one thread to the next.
    """
    for word in tl.static_range(len(tile) // 4):
        tl.inline_asm_elementwise(
            _store_tile_ptx((INDEX * (len(tile) // 4) + word) * WARPS * 512),
            "=r,r,r,r,r,r",
            [address, tile[4 * word], tile[4 * word + 1], tile[4 * word + 2], tile[4 * word + 3]],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.constexpr_function
def _store_tile_ptx(offset):
    return f"st.shared.v4.b32 [$1+{offset}], {{$2, $3, $4, $5}}; mov.b32 $0, 0;"


@triton.jit
def load_shared_tile(address, INDEX: tl.constexpr, WORDS: tl.constexpr, WARPS: tl.constexpr):
    """Load left operand number ``INDEX``, ``WORDS`` words a thread, which `store_tile` has stored."""
    tile = ()
    for word in tl.static_range(WORDS):
        tile = tile + _read_word(address, (INDEX * WORDS + word) * WARPS * 512)
    return tile


@triton.jit
def _read_word(address, OFFSET: tl.constexpr):
    """Load the four parts of a word of shared memory, ``OFFSET`` bytes after ``address``."""
    return tl.inline_asm_elementwise(
        _read_ptx(OFFSET),
        "=r,=r,=r,=r,r",
        [address],
        dtype=(tl.int32,) * 4,
        is_pure=False,  # otherwise the compiler reads W_hh once, before the loop, and keeps it in registers
        pack=1,
    )


@triton.constexpr_function
def _read_ptx(offset):
    return f"ld.shared.v4.b32 {{$0, $1, $2, $3}}, [$4+{offset}];"


@triton.constexpr_function
def state_bytes(rows, units, bits):
    """Return the bytes of shared memory of a state of ``rows`` and ``units``, rounded up to segments of four words."""
    return rows * 64 * (-(-units * bits // 512))


@triton.jit
def state_offset(unit, row, ROWS: tl.constexpr, BITS: tl.constexpr):
    """Return the byte offset of an element of a state in shared memory, for `store_state`.

    The four words of a row's segment are adjacent, and the next row follows. Every two rows the order of the words
    changes, so that the words that a warp writes together are in different banks.
    """
    WORD: tl.constexpr = 128 // BITS
    word = unit // WORD
    return (_word_index(word // 4, word % 4, row, ROWS) * WORD + unit % WORD) * (BITS // 8)


@triton.jit
def _word_index(segment, word, row, ROWS: tl.constexpr):
    """Return the index of a row's word ``word``, 0 to 3, of a segment among the words of a state in shared memory."""
    return (segment * ROWS + row) * 4 + (word ^ (row // 2 % 4))


@triton.jit
def store_state(address, x, OFFSET: tl.constexpr):
    """Store elements of a state in shared memory, ``OFFSET`` bytes after ``address`` (see `state_offset`)."""
    BITS: tl.constexpr = x.dtype.primitive_bitwidth
    tl.inline_asm_elementwise(
        _store_state_ptx(BITS, OFFSET),
        "=r,r,h" if BITS == 16 else "=r,r,r",
        [address, x],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.constexpr_function
def _store_state_ptx(bits, offset):
    return f"st.shared.b{bits} [$1+{offset}], $2; mov.b32 $0, 0;"


@triton.jit
def lane_state_offset(ROWS: tl.constexpr, WARPS: tl.constexpr):
    """Return the byte offset of each lane's first word of a state. Each of two rows fills four of the eight columns."""
    row = tl.arange(0, 8)[None, :, None]
    if ROWS == 2:
        row = row // 4
    word = _word_index(0, tl.arange(0, 4)[None, None, :], row, ROWS)
    return 16 * word + tl.zeros((WARPS, 8, 4), tl.int32)


@triton.jit
def load_state(address, SEGMENTS: tl.constexpr, ROWS: tl.constexpr):
    """Load a state that all threads have stored, as a right operand: by segment, by eight columns, by part."""
    words = ()
    for segment in tl.static_range(SEGMENTS):
        for eight in tl.static_range((ROWS + 7) // 8):
            words = words + _read_word(address, (segment * ROWS + eight * 8) * 64)
    return words


@triton.jit
def zeros(UNITS: tl.constexpr, COLUMNS: tl.constexpr, WARPS: tl.constexpr):
    """Return sums of zero, in the order of `multiply`."""
    sums = ()
    for _ in tl.static_range(UNITS * COLUMNS // 32):
        sums = sums + (tl.zeros((WARPS, 8, 4), tl.float32),)
    return sums


@triton.jit
def multiply(tile, words, sums, DTYPE: tl.constexpr):
    """Return ``sums`` plus the product of a left operand ``tile`` and a right operand ``words``.

    The order of sums: 16 rows of the left operand, then 8 columns of the right operand, then the four that ``mma``
    returns. Lane [i, l] has row i in columns 2 l and 2 l + 1, then row i + 8 in the same columns.
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
    """Return ``c`` plus the product of four registers of a left operand and two of a right one: one instruction."""
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
    """Force all ``sums`` to be computed before the following wait, as `isa.compute_before_wait` does."""
    computed = ()
    for i in tl.static_range(len(sums)):
        computed = computed + (isa.compute_before_wait(sums[i]),)
    return computed


@triton.jit
def together(parts, UNITS: tl.constexpr, COLUMNS: tl.constexpr, WARPS: tl.constexpr):
    """Return all warps' sums of one, two or four products as one tensor [COLUMNS, UNITS, products, WARPS]."""
    PARTS: tl.constexpr = len(parts)
    numbers = ()
    for k in tl.static_range(len(parts[0])):
        for part in tl.static_range(PARTS):
            numbers = numbers + (parts[part][k],)
    x = tl.reshape(_as_tensor(numbers, WARPS), (UNITS // 16, COLUMNS // 8, 2, 2, PARTS * WARPS, 8, 4))
    return tl.reshape(tl.permute(x, (1, 6, 3, 0, 2, 5, 4)), (COLUMNS, UNITS, PARTS, WARPS))


# A state is [numbers, WARPS, 8, 4]: the numbers that each thread computes, in the order of `multiply`'s sums. With two
# batch rows a state has one number of every four sums, because each row is four of the eight columns.


@triton.jit
def state_units(UNITS: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr):
    """Return the hidden unit of each number of a state. Warps take turns: 16 units each."""
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
    """Return the batch row of each number of a state."""
    lane = tl.arange(0, 4)[None, None, None, :]
    if BATCH == 2:
        return lane // 2
    else:
        number = tl.arange(0, UNITS * BATCH // WARPS // 32)[:, None, None, None]
        return number // 4 % (BATCH // 8) * 8 + 2 * lane + number % 2


@triton.jit
def as_state(sums, BATCH: tl.constexpr):
    """Return the sums of a product as a state."""
    if BATCH == 2:
        # Each batch row has two lanes. Of every 16 units the even lane keeps 0 to 7, the odd lane 8 to 15.
        odd = tl.arange(0, 4)[None, None, :] % 2 != 0
        numbers = ()
        for m in tl.static_range(len(sums) // 4):
            numbers = numbers + (tl.where(odd, sums[4 * m + 2], sums[4 * m]),)
        return _as_tensor(numbers, sums[0].shape[0])
    else:
        return _as_tensor(sums, sums[0].shape[0])


@triton.jit
def load_pairs(gi, tile_offset, GATE: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr):
    """Load the r, z and n inputs of a state, each pair of columns as one machine word, as `isa.load_gates` does."""
    number = tl.arange(0, UNITS * BATCH // WARPS // 64)[:, None, None, None]
    unit = (number // (BATCH // 4) * WARPS + tl.arange(0, WARPS)[None, :, None, None]) * 16 + number % 2 * 8
    unit = unit + tl.arange(0, 8)[None, None, :, None]
    pair = number // 2 % (BATCH // 8) * 4 + tl.arange(0, 4)[None, None, None, :]
    return isa.load_pairs(gi, tile_offset // 2 + unit * (BATCH // 2) + pair, GATE)


@triton.jit
def pairs_to_float(raw, DTYPE: tl.constexpr):
    """Return in fp32, in the order of a state, the pairs that `load_pairs` returned for one gate."""
    low, high = isa.split_pair(raw, DTYPE)
    x = tl.permute(tl.join(low, high), (0, 4, 1, 2, 3))
    return tl.reshape(x, (2 * raw.shape[0], raw.shape[1], 8, 4))


@triton.jit
def _as_tensor(numbers, WARPS: tl.constexpr):
    """Return tensors [WARPS, 8, 4] as one tensor [len(numbers), WARPS, 8, 4]."""
    x = tl.permute(isa.joined(numbers), (3, 0, 1, 2))
    # Reduce over a dimension of 1. The compiler moves no layout conversion past a reduction into the products.
    return tl.sum(tl.reshape(x, (len(numbers), WARPS, 8, 4, 1)), 4)
