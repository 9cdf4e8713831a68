// What a launch is given and what it answers (machine.py has the same structures), and what the parts share.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "names.h"  // made by machine.py: the numbers that it shares with the sources here

typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
typedef int32_t i32; typedef int64_t i64;

// The values of a register, one a lane.
typedef u64 Row[32];
#define ALL_LANES (~0u)

typedef struct {
  i32 operation, guard, negated, aligned;
  i32 n_out, n_in, at;          // their rows, from `at` on in Launch.operands
  i32 extra[4];
  i32 loop_first, loop_last;    // of the loop it is in that does nothing but wait, or -1
} Instruction;

// What warps have done. Memory is read by sectors of 32 bytes that an instruction of a warp touches: by relaxed loads,
// with which others' stores are waited for, apart.
typedef struct {
  i64 instructions, read, received, written, shared_read, shared_written, matrix, flops, fma, barriers;
} Counts;

// Memory that the launch may touch, and what of it was read and written.
struct Touch;
typedef struct { u64 base, bytes; struct Touch *touched; i64 read, received, written; } Range;

typedef struct { i32 kind, place, cta, warp, lane, other; u64 address, count; } Report;

typedef struct {
  const Instruction *instructions;
  const i32 *operands;
  i32 n_rows, n_constants;
  const i32 *constant_rows, *constant_kinds;  // 0: a value; otherwise which special register
  const u64 *constant_values;
  i32 grid[3], n_warps, shared_bytes, n_ranges;
  Range *ranges;
  // The schedule.
  u64 seed;
  i64 max_instructions;
  double ns_per_instruction, error;  // of approximations: the share that is made of what the PTX manual allows
  i32 resident;       // CTAs at a time
  i32 reconverge_late, reconverge_early, quantum, delay, sleeps;
  u64 forgiven;       // a bit for each kind of fault: these are noted alone
  // Answers.
  i32 n_reports, most_reports;
  Report *reports;
  i64 executed;
  Counts made, waited, busiest;      // of all warps, waits apart, and of the warp with the most instructions
  i64 most_read;                     // by one CTA
  i64 exchanges;                     // of the warp with most
  i64 *by_warp;                      // instructions of each warp of a CTA, waits apart: the most of any CTA
} Launch;

// A copy of cp.async, or a wgmma, that is under way.
typedef struct { u64 to, from; i32 bytes, of_source, lane, place; } Copy;
typedef struct { i32 place; u64 a, b; u32 adds, epoch; } Product;  // epoch: in which it was issued

typedef struct Warp {
  struct Cta *cta;
  i32 index;
  enum { READY, AT_BARRIER, DONE } state;
  u32 live, mask;     // lanes that have not returned; of them, those at `place`
  i32 place, next;    // next: the lowest place of the others
  i32 places[32];     // of lanes that are not in `mask`
  Row *rows;
  u32 *defined;       // lanes of a row that something has set
  u32 synchronised;   // how often its lanes came together
  u32 *fences;        // for each time it fenced for wgmma, the barriers that its CTA had passed
  i32 n_fences, room_for_fences;
  Copy *copies;
  Product *products;
  i32 n_copies, n_products, room_for_copies, room_for_products;
  i32 *copy_groups, *product_groups;  // how many there were at each commit
  i32 n_copy_groups, n_product_groups, room_for_copy_groups, room_for_product_groups;
  i64 asleep_until;
  // Of a loop that waits, the best pass counts as made and the others as waited.
  Counts made, waited, pass, best;
  i32 waiting, failed, loop_first, loop_last;
  // How often it has received after it had sent; and whether it has sent since.
  i64 exchanges;
  i32 sent;
} Warp;

typedef struct Cta {
  i32 index, position[3];
  u32 epoch;          // barriers passed
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
  i32 n_stores, room;
  u64 n_stored;
  u16 *to_address, *of_cta;  // how many stores are under way to addresses with a hash; and of one CTA
} Machine;

// A new place at the end of a list that grows.
#define APPENDED(list, n, room) \
  (*(((n) == (room) ? (list = grown(list, &(room), sizeof(*(list)))) : 0), (list) + (n)++))
static inline void *grown(void *list, i32 *room, size_t size) {
  *room = *room ? 2 * *room : 256;
  return realloc(list, *room * size);
}

static inline u64 draw(Machine *m) {
  u64 x = m->random;
  x ^= x << 13; x ^= x >> 7; x ^= x << 17;
  m->random = x;
  return x * 0x2545F4914F6CDD1Dull;
}
static inline u32 draw_below(Machine *m, u32 n) { return (u32)(((draw(m) >> 32) * n) >> 32); }

// Adds a report, or counts it if the same has been reported of the same place. `other`: another place, or a detail.
static void report(Machine *m, int kind, const Warp *w, int place, int lane, u64 address, int other) {
  Launch *o = m->launch;
  if (o->forgiven >> kind & 1 && o->n_reports >= o->most_reports / 2) return;  // leave room for faults
  for (int i = 0; i < o->n_reports; i++) {
    Report *r = o->reports + i;
    if (r->kind == kind && r->place == place && r->other == other) { r->count++; return; }
  }
  if (o->n_reports < o->most_reports)
    o->reports[o->n_reports++] = (Report){kind, place, w->cta->index, w->index, lane, other, address, 1};
}
