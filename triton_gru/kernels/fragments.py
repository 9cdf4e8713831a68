"""Products by the matrix unit (``mma.sync``) whose operands stay where this file puts them: registers or shared memory.

``tl.dot`` compiles differently from one Triton version to the next. The instruction changes, W_hh may leave its
registers in a loop, and the state may take another way to the matrix unit. Here each thread passes the values that it
has loaded itself.

An operand or a sum is a tuple of tensors [WARPS, 8, 4], one value for each thread. This order, warps and then lanes, is
Triton's default layout of these tensors. No code here asks for another layout, and `reserve.add_shared_memory` checks
the compiled kernel for it.

A word is 128 bits: a few neighbouring units of one row. It is held as four int32 parts. A segment is four words, one
for each q. Lane [p, q] of a warp, with p = 0..7 and q = 0..3, holds

- of the left operand, word q of rows p and p + 8 of every 16 rows, which are rows of W_hh;
- of the right operand, word q of column p of every eight columns, which are batch rows.

One ``mma`` takes two of the four parts. This permutes the summed units, alike in both operands, so the sum is the same.

The instructions are described in the PTX ISA, "Matrix multiply-accumulate operation using mma instruction".
"""

import triton
import triton.language as tl

from . import isa


@triton.jit
def load_tile(
    w_hh, gate: tl.constexpr, unit, word, ROWS: tl.constexpr, ROW_STEP: tl.constexpr, H: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Load a left operand: in each warp, the words ``word`` of ``ROWS`` rows of one gate of W_hh, zero beyond H.

    In TF32 the elements are rounded. A thread takes rows ``unit`` and ``unit`` + 8, then the two rows that are
    ``ROW_STEP`` rows further, and so on. The result is a tuple by 16 rows, then by part, then by row: part 0 of the
    upper row, part 0 of the lower row, part 1 ...
    """
    WORD_ELEMENTS: tl.constexpr = 128 // w_hh.dtype.element_ty.primitive_bitwidth
    column = word * WORD_ELEMENTS
    tile = ()
    for m in tl.static_range(ROWS // 16):
        row = unit + m * ROW_STEP
        upper = _load_row(w_hh, gate, row, column, H, PRECISION)
        lower = _load_row(w_hh, gate, row + 8, column, H, PRECISION)
        for part in tl.static_range(4):
            tile = tile + (upper[part], lower[part])
    return tile


@triton.jit
def _load_row(w_hh, gate: tl.constexpr, row, column, H: tl.constexpr, PRECISION: tl.constexpr):
    """Load the four parts of the word at ``column`` of a gate's row, rounded in TF32.

    Elements in rows or columns beyond H are zero.
    """
    BITS: tl.constexpr = w_hh.dtype.element_ty.primitive_bitwidth
    valid_elements = tl.where(row < H, H - column, 0)
    address = w_hh + (gate * H + row) * H + column
    parts = tl.inline_asm_elementwise(
        _load_ptx(BITS, H * BITS % 128 == 0),
        "=&r,=&r,=&r,=&r,l,r",
        [address.to(tl.int64), valid_elements],
        dtype=(tl.int32,) * 4,
        is_pure=True,
        pack=1,
    )
    if PRECISION == "tf32":
        rounded = ()
        for part in tl.static_range(4):
            value = isa.round_to_tf32(parts[part].to(tl.float32, bitcast=True))
            rounded = rounded + (value.to(tl.int32, bitcast=True),)
        parts = rounded
    return parts


@triton.constexpr_function
def _load_ptx(bits, has_whole_words):
    """Return PTX that loads the first ``$5`` elements of the 128-bit word at address ``$4``, and zeros for the others.

    With ``has_whole_words`` each row ends at the end of a word, so ``$5`` takes in all elements of the word or none.

    In the PTX, ``there`` is true if the word has valid elements. ``even`` is true if its address is a multiple of 16.
    The lowest four bits of the address are in ``low``, and 16-bit elements are in ``e0`` to ``e7``.
    """
    size = bits // 8
    asm = ["{ .reg .pred p, there, even; .reg .b64 low; .reg .b16 e0, e1, e2, e3, e4, e5, e6, e7;"]
    asm.append("mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;")
    if has_whole_words:
        # One load of 128 bits. Exception: a tensor that does not begin at a multiple of 16 bytes is loaded element by
        # element.
        asm.append("setp.gt.s32 there, $5, 0; and.b64 low, $4, 15; setp.eq.b64 even, low, 0; and.pred p, even, there;")
        asm.append("@p ld.global.nc.v4.b32 {$0, $1, $2, $3}, [$4]; not.pred p, even; and.pred p, p, there;")
    for element in range(16 // size):
        if not has_whole_words:
            asm.append(f"setp.gt.s32 p, $5, {element};")
        if bits == 32:
            asm.append(f"@p ld.global.nc.b32 ${element}, [$4+{4 * element}];")
            continue
        asm.append(f"mov.b16 e{element}, 0; @p ld.global.nc.b16 e{element}, [$4+{2 * element}];")
        if element % 2:
            pair = f"mov.b32 ${element // 2}, {{e{element - 1}, e{element}}};"
            asm.append(f"@p {pair}" if has_whole_words else pair)
    return "\n".join([*asm, "}"])


@triton.constexpr_function
def count_segments(units, dtype):
    """Return the number of segments (512 bits each) of a row of ``units`` elements, rounded up."""
    return -(-units * dtype.primitive_bitwidth // 512)


@triton.constexpr_function
def weights_bytes(tiles, rows, warps):
    """Return the bytes of shared memory of ``tiles`` left operands of one segment. Every warp has ``rows`` rows of
    each.

    Eight rows of a segment of 64 bytes take 512 bytes in each warp: 16 bytes for each of 32 lanes. A negative number of
    tiles counts as 0.
    """
    return max(tiles, 0) * (rows // 8) * warps * 512


@triton.jit
def shared_address(offset, SIZE: tl.constexpr):
    """Return the shared memory addresses of byte ``offset`` in the ``SIZE`` bytes that `reserve` adds to a launch."""
    return tl.inline_asm_elementwise(_shared_address_ptx(SIZE), "=&r,r", [offset], dtype=tl.int32, is_pure=True, pack=1)


@triton.constexpr_function
def _shared_address_ptx(size):
    """Return PTX of `shared_address`: the end of all dynamic shared memory, minus ``size``, plus the offset.

    The compiler's shared memory comes first. `reserve.add_shared_memory` finds ``size`` by the comment in the PTX, and
    adds it to the launch.
    """
    return (
        "{ .reg .b32 all; mov.u32 $0, global_smem; mov.u32 all, %dynamic_smem_size; add.u32 $0, $0, all;\n"
        f"sub.u32 $0, $0, {size}; // kept in shared memory\n"
        "add.u32 $0, $0, $1; }"
    )


@triton.jit
def touch_shared_memory(WARPS: tl.constexpr):
    """Return 0, computed through the compiler's shared memory.

    So the kernel's PTX declares ``global_smem``, which `shared_address` needs. The compiler declares it only in a
    kernel whose own code uses shared memory.
    """
    zero = tl.inline_asm_elementwise(
        "mov.b32 $0, 0;", "=r,r", [tl.arange(0, 32 * WARPS)], dtype=tl.int32, is_pure=True, pack=1
    )
    return tl.max(zero, 0)


@triton.jit
def thread_index(WARPS: tl.constexpr):
    """Return the index of each thread in its program, [WARPS, 8, 4]."""
    warp = tl.arange(0, WARPS)[:, None, None]
    return (warp * 8 + tl.arange(0, 8)[None, :, None]) * 4 + tl.arange(0, 4)[None, None, :]


@triton.jit
def store_tile(address, tile, INDEX: tl.constexpr, WARPS: tl.constexpr):
    """Store the left operand ``tile`` at index ``INDEX`` in shared memory, for `load_shared_tile` by the same thread.

    ``address`` differs by 16 bytes from one thread to the next. So the words of a warp are adjacent. A word here is
    four successive parts in ``tile``, which are two parts of each of two rows.
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
    """Return PTX that stores a word of four parts, ``offset`` bytes after the address."""
    return f"st.shared.v4.b32 [$1+{offset}], {{$2, $3, $4, $5}}; mov.b32 $0, 0;"


@triton.jit
def load_shared_tile(address, INDEX: tl.constexpr, WORDS: tl.constexpr, WARPS: tl.constexpr):
    """Load the left operand that `store_tile` stored at index ``INDEX``. Each thread has ``WORDS`` words of it."""
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
    """Return PTX that loads a word of four parts, ``offset`` bytes after the address."""
    return f"ld.shared.v4.b32 {{$0, $1, $2, $3}}, [$4+{offset}];"


@triton.constexpr_function
def state_bytes(rows, units, bits):
    """Return the bytes of shared memory of a state: ``rows`` rows, each rounded up to segments of 64 bytes."""
    return rows * 64 * (-(-units * bits // 512))


@triton.jit
def state_offset(unit, row, ROWS: tl.constexpr, BITS: tl.constexpr):
    """Return the byte offset of an element of a state in shared memory, for `store_state`.

    The four words of a row's segment are adjacent, and the same segment of the next row follows. Every two rows the
    order of the words changes. So the words that a warp writes at the same time are in different banks. Exception: in
    TF32 with 8 or 16 rows, every two of these words are in the same banks.
    """
    WORD_ELEMENTS: tl.constexpr = 128 // BITS
    word = unit // WORD_ELEMENTS
    return (_word_index(word // 4, word % 4, row, ROWS) * WORD_ELEMENTS + unit % WORD_ELEMENTS) * (BITS // 8)


@triton.jit
def _word_index(segment, word, row, ROWS: tl.constexpr):
    """Return the index, among the words of a state in shared memory, of a row's word ``word``, 0 to 3, of a segment."""
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
    """Return PTX that stores an element of ``bits`` bits, ``offset`` bytes after the address."""
    return f"st.shared.b{bits} [$1+{offset}], $2; mov.b32 $0, 0;"


@triton.jit
def lane_state_offset(ROWS: tl.constexpr, WARPS: tl.constexpr):
    """Return the byte offset, in a state in shared memory, of the first word that each lane reads by `load_state`.

    With two rows, columns 0 to 3 read row 0, and columns 4 to 7 read row 1.
    """
    row = tl.arange(0, 8)[None, :, None]
    if ROWS == 2:
        row = row // 4
    word = _word_index(0, tl.arange(0, 4)[None, None, :], row, ROWS)
    return 16 * word + tl.zeros((WARPS, 8, 4), tl.int32)


@triton.jit
def load_state(address, SEGMENTS: tl.constexpr, ROWS: tl.constexpr):
    """Load a state that all threads have stored, as a right operand.

    The result is a tuple of int32 parts, ordered by segment, then by group of eight columns, then by part.
    """
    words = ()
    for segment in tl.static_range(SEGMENTS):
        for group in tl.static_range((ROWS + 7) // 8):
            words = words + _read_word(address, (segment * ROWS + group * 8) * 64)
    return words


@triton.jit
def make_zero_sums(UNITS: tl.constexpr, COLUMNS: tl.constexpr, WARPS: tl.constexpr):
    """Return a tuple of sums that are zero, in the order of `multiply`."""
    sums = ()
    for _ in tl.static_range(UNITS * COLUMNS // 32):
        sums = sums + (tl.zeros((WARPS, 8, 4), tl.float32),)
    return sums


@triton.jit
def multiply(tile, words, sums, DTYPE: tl.constexpr):
    """Return ``sums`` plus the product of a left operand ``tile`` and a right operand ``words``.

    ``tile`` and ``words`` have one segment. Sums are ordered by group of 16 rows of ``tile``, then by group of eight
    columns of ``words``. For each two groups a lane has the four sums of `mma`. Lane [p, q] has row p in columns 2 q
    and 2 q + 1, then row p + 8 in the same columns.
    """
    COLUMN_GROUPS: tl.constexpr = len(words) // 4
    added = ()
    for m in tl.static_range(len(tile) // 8):
        for n in tl.static_range(COLUMN_GROUPS):
            c = sums[4 * (m * COLUMN_GROUPS + n) : 4 * (m * COLUMN_GROUPS + n + 1)]
            for part in tl.static_range(0, 4, 2):
                a = tile[8 * m + 2 * part : 8 * m + 2 * part + 4]
                b = words[4 * n + part : 4 * n + part + 2]
                c = mma(a, b, c, DTYPE)
            added = added + c
    return added


@triton.jit
def mma(a, b, c, DTYPE: tl.constexpr):
    """Return the sums ``c`` plus the product of ``a`` and ``b``, by one instruction.

    ``a`` has four parts of a left operand, ``b`` has two parts of a right operand, and ``c`` has four sums.
    """
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
    """Return the instruction of `mma` for operands of ``dtype``. In fp32 the operands are TF32."""
    instruction = {
        "fp16": "m16n8k16.row.col.f32.f16.f16.f32",
        "bf16": "m16n8k16.row.col.f32.bf16.bf16.f32",
        "fp32": "m16n8k8.row.col.f32.tf32.tf32.f32",
    }[str(dtype)]
    return f"mma.sync.aligned.{instruction} {{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, {{$10, $11, $12, $13}};"


@triton.jit
def compute_sums_before_wait(sums):
    """Force all ``sums`` to be computed before the following wait, by `isa.compute_before_wait`, and return them."""
    computed = ()
    for i in tl.static_range(len(sums)):
        computed = computed + (isa.compute_before_wait(sums[i]),)
    return computed


@triton.jit
def join_products(products, UNITS: tl.constexpr, COLUMNS: tl.constexpr, WARPS: tl.constexpr):
    """Return all warps' sums of one, two or four products as one tensor [COLUMNS, UNITS, PRODUCTS, WARPS]."""
    PRODUCTS: tl.constexpr = len(products)
    sums = ()
    for k in tl.static_range(len(products[0])):
        for i in tl.static_range(PRODUCTS):
            sums = sums + (products[i][k],)
    x = tl.reshape(_stack_tensors(sums, WARPS), (UNITS // 16, COLUMNS // 8, 2, 2, PRODUCTS * WARPS, 8, 4))
    return tl.reshape(tl.permute(x, (1, 6, 3, 0, 2, 5, 4)), (COLUMNS, UNITS, PRODUCTS, WARPS))


# A state is [N, WARPS, 8, 4]: the N elements that each thread computes, in the order of `multiply`'s sums. With two
# batch rows N is a quarter of the sums, because each batch row is four of the eight columns, and these are equal.


@triton.jit
def state_units(UNITS: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr):
    """Return the hidden unit of each element of a state.

    Every 16 units are in one warp, the next 16 units in the next warp, and so on. Of 16 units, lane [p, q] has units p
    and p + 8. Exception: with two rows it has unit p if q is even, p + 8 if q is odd.
    """
    warp = tl.arange(0, WARPS)[None, :, None, None]
    p = tl.arange(0, 8)[None, None, :, None]
    if BATCH == 2:
        element = tl.arange(0, UNITS // 16 // WARPS)[:, None, None, None]
        return (element * WARPS + warp) * 16 + tl.arange(0, 4)[None, None, None, :] % 2 * 8 + p
    else:
        element = tl.arange(0, UNITS * BATCH // WARPS // 32)[:, None, None, None]
        return (element // (BATCH // 2) * WARPS + warp) * 16 + element // 2 % 2 * 8 + p


@triton.jit
def state_rows(UNITS: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr):
    """Return the batch row of each element of a state.

    Lane [p, q] has columns 2 q and 2 q + 1 of each group of eight columns, and two units in both of them. So after
    every four elements the next group begins. With two rows, columns 0 to 3 (q = 0 and 1) are row 0, and columns 4 to 7
    are row 1.
    """
    q = tl.arange(0, 4)[None, None, None, :]
    if BATCH == 2:
        return q // 2
    else:
        element = tl.arange(0, UNITS * BATCH // WARPS // 32)[:, None, None, None]
        return element // 4 % (BATCH // 8) * 8 + 2 * q + element % 2


@triton.jit
def sums_to_state(sums, BATCH: tl.constexpr):
    """Return the sums of a product as a state. Every value stays in its thread."""
    if BATCH == 2:
        # Two lanes have the same sums of a batch row. Of every 16 units the lane with an even q keeps unit p, the lane
        # with an odd q keeps unit p + 8.
        is_odd_lane = tl.arange(0, 4)[None, None, :] % 2 != 0
        kept_sums = ()
        for m in tl.static_range(len(sums) // 4):
            kept_sums = kept_sums + (tl.where(is_odd_lane, sums[4 * m + 2], sums[4 * m]),)
        return _stack_tensors(kept_sums, sums[0].shape[0])
    else:
        return _stack_tensors(sums, sums[0].shape[0])


@triton.jit
def load_pairs(
    gi, tile_offset, GATE_STRIDE: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr
):
    """Load the r, z and n inputs of a state of 8 or 16 rows, from ``tile_offset`` elements after ``gi``.

    As in `isa.load_gate_inputs`, each pair of columns is one element of the result. `pairs_to_float` converts a gate's
    pairs.
    """
    index = tl.arange(0, UNITS * BATCH // WARPS // 64)[:, None, None, None]
    unit = (index // (BATCH // 4) * WARPS + tl.arange(0, WARPS)[None, :, None, None]) * 16 + index % 2 * 8
    unit = unit + tl.arange(0, 8)[None, None, :, None]
    pair = index // 2 % (BATCH // 8) * 4 + tl.arange(0, 4)[None, None, None, :]
    return isa.load_pairs(gi, tile_offset // 2 + unit * (BATCH // 2) + pair, GATE_STRIDE)


@triton.jit
def pairs_to_float(raw, DTYPE: tl.constexpr):
    """Return the pairs that `load_pairs` returned for one gate as a state in fp32."""
    low, high = isa.split_pair(raw, DTYPE)
    x = tl.permute(tl.join(low, high), (0, 4, 1, 2, 3))
    return tl.reshape(x, (2 * raw.shape[0], raw.shape[1], 8, 4))


@triton.jit
def _stack_tensors(tensors, WARPS: tl.constexpr):
    """Return tensors [WARPS, 8, 4] as one tensor [len(tensors), WARPS, 8, 4]."""
    x = tl.permute(isa.join_tensors(tensors), (3, 0, 1, 2))
    # Reduce over a dimension of 1, because the compiler moves no layout conversion past a reduction. Without the
    # reduction it could move a conversion into the products.
    return tl.sum(tl.reshape(x, (len(tensors), WARPS, 8, 4, 1)), 4)
