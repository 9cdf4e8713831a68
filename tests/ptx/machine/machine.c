// The machine: executes a kernel that translate.py has translated. machine.py calls `run`.
//
// A schedule decides the order of everything that a GPU promises no order for. All its choices are drawn from one seed,
// so that a schedule repeats exactly. In each turn, `run` picks a random warp of the resident CTAs and executes up to
// `quantum` of its instructions. Relaxed stores arrive in other CTAs a random number of turns later.
//
// The machine checks each access to memory against the earlier accesses of the same two bytes (memory.h, shared.h). Two
// accesses race if nothing orders them, whichever came first under this schedule. Faults are reports, which do not stop
// the launch. Exception: ENDLESS. The machine also counts instructions, bytes and products. Waits are counted apart
// (warp.h).
#include "machine.h"
#include "numbers.h"
#include "memory.h"
#include "shared.h"
#include "matrix.h"
#include "warp.h"

// Returns the value of a special register. `which` is its index in SPECIAL of translate.py.
static u64 special(const Launch *o, const Warp *w, int lane, int which) {
  const Cta *c = w->cta;
  const int threads = 32 * o->n_warps;
  switch (which) {
    case 0: return 32 * w->index + lane;
    case 3: case 4: case 5: return c->position[which - 3];
    case 6: return threads;
    case 7: case 8: return 1;
    case 9: case 10: case 11: return o->grid[which - 9];
    case 12: return lane;
    case 13: return w->index;
    case 14: return SHARED_BASE;
    case 15: return o->shared_bytes;  // all shared memory is dynamic
    default: return 0;  // tid.y, tid.z
  }
}

// Initializes a warp: its registers hold a pattern, except those of constants.
static void begin_warp(const Launch *o, Cta *c, Warp *w, int index) {
  w->cta = c; w->index = index;
  w->live = w->mask = ALL_LANES;
  w->rows = aligned_alloc(64, o->n_rows * sizeof(Row));
  memset(w->rows, 0xA5, o->n_rows * sizeof(Row));  // a register that nothing sets has an unlikely value
  w->defined = calloc(o->n_rows, sizeof(u32));
  for (int i = 0; i < o->n_constants; i++) {
    int row = o->constant_rows[i], kind = o->constant_kinds[i];
    w->defined[row] = ALL_LANES;
    for (int l = 0; l < 32; l++) w->rows[row][l] = kind ? special(o, w, l, kind - 1) : o->constant_values[i];
  }
}
// Returns a new CTA whose shared memory is full of NaNs.
static Cta *begin_cta(const Launch *o, int index) {
  Cta *c = calloc(1, sizeof(Cta));
  c->index = index; c->epoch = 1;
  c->position[0] = index % o->grid[0];
  c->position[1] = index / o->grid[0] % o->grid[1];
  c->position[2] = index / o->grid[0] / o->grid[1];
  c->shared = malloc(o->shared_bytes + 1);
  memset(c->shared, 0xff, o->shared_bytes);  // NaN
  c->touched = calloc(o->shared_bytes / 2 + 1, sizeof(SharedTouch));
  for (int i = 0; i <= o->shared_bytes / 2; i++) c->touched[i].writer = -1;
  c->warps = calloc(o->n_warps, sizeof(Warp));
  for (int i = 0; i < o->n_warps; i++) begin_warp(o, c, c->warps + i, i);
  return c;
}
// Adds the work of a CTA to the launch's results, and frees the CTA.
static void end_cta(Launch *o, Cta *c) {
  i64 read = 0;
  for (Warp *w = c->warps; w < c->warps + o->n_warps; w++) {
    add_counts(&o->made, &w->made);
    add_counts(&o->waited, &w->waited);
    read += w->made.read + w->made.received;
    if (w->exchanges > o->exchanges) o->exchanges = w->exchanges;
    if (w->made.instructions > o->busiest.instructions) o->busiest = w->made;
    if (w->made.instructions > o->by_warp[w->index]) o->by_warp[w->index] = w->made.instructions;
    free(w->rows); free(w->defined); free(w->fences);
    free(w->copies); free(w->products); free(w->copy_groups); free(w->product_groups);
  }
  if (read > o->most_bytes_read) o->most_bytes_read = read;
  free(c->warps); free(c->shared); free(c->touched); free(c);
}

// Returns the first ready warp, counted from a random one. A sleeping warp is returned only if no other is ready. Some
// warp is always ready, because the last warp to arrive at a barrier opens it.
static Warp *next_warp(Machine *m, Cta **ctas, int n_ctas, i64 turn) {
  int n = n_ctas * m->launch->n_warps, first = draw_below(m, n);
  for (int awake = 1; awake >= 0; awake--) for (int k = 0; k < n; k++) {
    int at = first + k < n ? first + k : first + k - n;
    Warp *w = ctas[at / m->launch->n_warps]->warps + at % m->launch->n_warps;
    if (w->state == READY && (!awake || w->asleep_until <= turn)) return w;
  }
  abort();
}

// Executes a launch, and sets its results and reports.
void run(Launch *o) {
  Machine machine = {.launch = o, .random = o->seed * 0x9E3779B97F4A7C15ull | 1}, *m = &machine;
  for (int i = 0; i < 8; i++) draw(m);
  m->to_address = calloc(1 << 16, sizeof(u16));
  m->of_cta = calloc(1 << 16, sizeof(u16));
  for (Range *r = o->ranges; r < o->ranges + o->n_ranges; r++) allocate_touches(r);
  int total = o->grid[0] * o->grid[1] * o->grid[2], begun = 0, n = 0;
  int resident = o->resident && o->resident < total ? o->resident : total;
  int *order = malloc(total * sizeof(int));  // CTAs start in random order: a GPU promises none
  for (int i = 0; i < total; i++) order[i] = i;
  for (int i = total - 1; i > 0; i--) { int j = draw_below(m, i + 1), t = order[i]; order[i] = order[j]; order[j] = t; }
  Cta **ctas = calloc(resident, sizeof(Cta *));
  while (n < resident) ctas[n++] = begin_cta(o, order[begun++]);
  for (i64 turn = 0; n; turn++) {
    Warp *w = next_warp(m, ctas, n, turn);
    if (o->sleeps && draw_below(m, 64) == 0) w->asleep_until = turn + draw_below(m, 40 * n * o->n_warps);
    run_warp(m, w, 1 + draw_below(m, o->quantum));
    if (draw_below(m, o->delay + 1) == 0) arrive_some(m);
    if (w->cta->n_done == o->n_warps) {
      int k = 0;
      while (ctas[k] != w->cta) k++;
      end_cta(o, ctas[k]);
      ctas[k] = begun < total ? begin_cta(o, order[begun++]) : ctas[--n];
    } else if (o->executed > o->max_instructions) {
      report(m, FAULT_ENDLESS, w, w->pc, -1, 0, -1);
      break;
    }
  }
  while (m->n_stores) arrive(m, 0);
  while (n) end_cta(o, ctas[--n]);
  for (Range *r = o->ranges; r < o->ranges + o->n_ranges; r++) free_touches(r);
  free(order); free(ctas); free(m->stores); free(m->to_address); free(m->of_cta);
}
