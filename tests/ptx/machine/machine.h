// Structures and helpers that all parts share. machine.py declares the structures of a launch again, for ctypes.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "names.h"  // made by machine.py: the numbers that it shares with the sources here

typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
typedef int32_t i32; typedef int64_t i64;

// The values of a register, one for each lane.
typedef u64 Row[32];
#define ALL_LANES (~0u)

typedef struct {
  i32 operation, guard, negated, aligned;
  i32 n_out, n_in, at;          // rows of results and sources, which begin at `at` in Launch.operands
  i32 extra[4];                 // constants: the translator and the operation agree on their meaning
  i32 loop_first, loop_last;    // the loop around the instruction that only waits, or -1
} Instruction;

// The work of warps, as Counts of machine.py describes it. `received` counts bytes that relaxed loads and atomic
// additions read, and `read` those of other loads and of cp.async. An instruction of a warp reads sectors of 32 bytes.
typedef struct {
  i64 instructions, read, received, written, shared_read, shared_written, matrix, flops, fma, barriers;
} Counts;

// Memory that the launch may touch, and how many bytes of it were read, received and written.
struct Touch;
typedef struct { u64 base, bytes; struct Touch *touched; i64 read, received, written; } Range;

typedef struct { i32 kind, pc, cta, warp, lane, other; u64 address, count; } Report;

typedef struct {
  const Instruction *instructions;
  const i32 *operands;
  i32 n_rows, n_constants;
  const i32 *constant_rows, *constant_kinds;  // kind 0: a value; kind k: special register k - 1
  const u64 *constant_values;
  i32 grid[3], n_warps, shared_bytes, n_ranges;
  Range *ranges;
  // The schedule.
  u64 seed;
  i64 max_instructions;
  double ns_per_instruction, error;  // error: as a share of what the PTX manual allows an approximation
  i32 resident;       // CTAs on the chip at a time; 0 for all
  i32 reconverge_late, reconverge_early, quantum, delay, sleeps;
  u64 forgiven;       // a bit for each kind of fault that does not fail the launch
  // Results.
  i32 n_reports, most_reports;
  Report *reports;
  i64 executed;
  Counts made, waited, busiest;      // all warps without waits; waits; of `made`, the warp with the most instructions
  i64 most_bytes_read;               // read and received by one CTA without waits, in the CTA with the most
  i64 exchanges;                     // in the warp with the most
  i64 *by_warp;                      // instructions of each warp of a CTA without waits, in the CTA with the most
} Launch;

// A pending cp.async, and a pending wgmma. A pc (program counter) is the index of an instruction.
typedef struct { u64 to, from; i32 bytes, of_source, lane, pc; } Copy;
typedef struct { i32 pc; u64 a, b; u32 adds, epoch; } Product;  // epoch: of the CTA when the wgmma was issued

typedef struct Warp {
  struct Cta *cta;
  i32 index;
  enum { READY, AT_BARRIER, DONE } state;
  u32 live, mask;     // live: lanes that have not returned; mask: live lanes at `pc`
  i32 pc, next;       // next: the lowest pc of the other live lanes
  i32 pcs[32];        // of lanes that are not in `mask`
  Row *rows;
  u32 *defined;       // for each row, the lanes in which its value is defined (`defined_lanes`)
  u32 synchronised;   // aligned instructions executed: each brings the lanes together
  u32 *fences;        // the CTA's epoch at each of the warp's fences for wgmma
  i32 n_fences, fences_capacity;
  Copy *copies;
  Product *products;
  i32 n_copies, n_products, copies_capacity, products_capacity;
  i32 *copy_groups, *product_groups;  // the number of pending copies (products) at each commit
  i32 n_copy_groups, n_product_groups, copy_groups_capacity, product_groups_capacity;
  i64 asleep_until;
  // In a loop that waits, the best pass counts as made and the other passes as waited.
  Counts made, waited, pass, best;
  i32 waiting, failed, loop_first, loop_last;
  // How often the warp has received after it had sent, and whether it has sent since.
  i64 exchanges;
  i32 sent;
} Warp;

typedef struct Cta {
  i32 index, position[3];
  u32 epoch;          // 1 + barriers passed
  u8 *shared;
  struct SharedTouch *touched;
  Warp *warps;
  i32 n_done, n_arrived;
} Cta;

typedef struct {
  Launch *launch;
  u64 random;
  Range *last_range;
  struct Store *stores;
  i32 n_stores, stores_capacity;
  u64 n_stored;
  u16 *to_address, *of_cta;  // numbers of pending stores by hash of the address; and by hash of the address and the CTA
} Machine;

// The new last element of a list, which grows if it is full.
#define APPENDED(list, n, capacity) \
  (*(((n) == (capacity) ? (list = grown(list, &(capacity), sizeof(*(list)))) : 0), (list) + (n)++))
static inline void *grown(void *list, i32 *capacity, size_t size) {
  *capacity = *capacity ? 2 * *capacity : 256;
  return realloc(list, *capacity * size);
}

static inline u64 draw(Machine *m) {
  u64 x = m->random;
  x ^= x << 13; x ^= x >> 7; x ^= x << 17;
  m->random = x;
  return x * 0x2545F4914F6CDD1Dull;
}
static inline u32 draw_below(Machine *m, u32 n) { return (u32)(((draw(m) >> 32) * n) >> 32); }

// Adds a report, or counts it if the same fault has been reported at the same pc. If there are too many reports, drops
// it. `other`: another pc, or a detail; -1 for none.
static void report(Machine *m, int kind, const Warp *w, int pc, int lane, u64 address, int other) {
  Launch *o = m->launch;
  if (o->forgiven >> kind & 1 && o->n_reports >= o->most_reports / 2) return;  // keep half of the reports for faults
  for (int i = 0; i < o->n_reports; i++) {
    Report *r = o->reports + i;
    if (r->kind == kind && r->pc == pc && r->other == other) { r->count++; return; }
  }
  if (o->n_reports < o->most_reports)
    o->reports[o->n_reports++] = (Report){kind, pc, w->cta->index, w->index, lane, other, address, 1};
}
