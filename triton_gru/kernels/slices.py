"""Sums over the slices of a product: each warp of a program sums over one slice, and its sums are added up here."""

import triton
import triton.language as tl

from . import fragments, isa


@triton.jit
def sum_slices(
    products, SLICES: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, IN_FRAGMENTS: tl.constexpr = False
):
    """Return one to four products summed over the slices, a tuple of tensors [BATCH, UNITS].

    ``products`` is a tuple. Each entry is [SLICES, UNITS, BATCH], or with ``IN_FRAGMENTS`` the tuple of sums that
    `fragments.multiply` returned. All products take one trip through shared memory. Exception: three or four products
    take two trips if four of them would have more than 32 KiB.
    """
    PRODUCTS: tl.constexpr = len(products)
    if PRODUCTS > 2 and SLICES * UNITS * BATCH > 2048:  # elements of 4 bytes
        first_two = sum_slices(products[:2], SLICES, UNITS, BATCH, IN_FRAGMENTS)
        return first_two + sum_slices(products[2:], SLICES, UNITS, BATCH, IN_FRAGMENTS)
    elif PRODUCTS == 3:
        # Four values make a word of 128 bits. The third product also stands in for the missing fourth product.
        return sum_slices(products + (products[2],), SLICES, UNITS, BATCH, IN_FRAGMENTS)[:3]
    else:
        # tl.split needs both halves in one thread, so the first split moves all slices of all products to one thread.
        # tl.sum would add across threads by shuffles, and take two trips through shared memory. At H = 512 that takes
        # 1,500 cycles instead of 1,150 (perf/NOTES.md). Batch rows are the first dimension, so the lanes of a warp have
        # neighbouring units, adjacent in memory.
        if IN_FRAGMENTS:
            x = fragments.join_products(products, UNITS, BATCH, SLICES)
        else:
            x = tl.permute(isa.join_tensors(products), (2, 1, 3, 0))
        x = sum_last(x, SLICES, UNITS, BATCH, PRODUCTS)
        if PRODUCTS == 1:
            return (tl.reshape(x, (BATCH, UNITS)),)
        elif PRODUCTS == 2:
            return tl.split(x)
        else:
            even, odd = tl.split(tl.reshape(x, (BATCH, UNITS, 2, 2)))
            first, third = tl.split(even)
            second, fourth = tl.split(odd)
            return first, second, third, fourth


@triton.jit
def sum_last(x, SLICES: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, PRODUCTS: tl.constexpr):
    """Return ``x`` summed over the slices: [BATCH, UNITS, PRODUCTS].

    ``x`` has the elements of [BATCH, UNITS, PRODUCTS, SLICES] in this order, in any shape. Each round adds neighbouring
    slices, so SLICES is a power of two.
    """
    for i in tl.static_range(SLICES.bit_length() - 1):
        even, odd = tl.split(tl.reshape(x, (BATCH, UNITS, PRODUCTS, SLICES >> (i + 1), 2)))
        x = even + odd
    return tl.reshape(x, (BATCH, UNITS, PRODUCTS))
