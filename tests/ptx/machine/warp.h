// A warp: which of its lanes run after they have diverged, what each instruction does, and what counts as waiting.
//
// Waits: how many passes a loop takes that waits for others' stores depends on the schedule. Its best pass counts as
// made, and the other passes as waited (`counts_for`).

// Chooses which diverged lanes run: those at the lowest pc, or with `any` those at a random pc. Lanes at an aligned
// instruction wait for the others while any other can run. `pcs` has to be up to date for all live lanes.
static void choose_lanes(Machine *m, Warp *w, int any) {
  const Instruction *all = m->launch->instructions;
  int chosen = -1, chosen_aligned = 1, n = 0, pcs[32];
  for (int l = 0; l < 32; l++) if (w->live >> l & 1) {
    int known = 0;
    for (int k = 0; k < n; k++) known |= pcs[k] == w->pcs[l];
    if (!known) pcs[n++] = w->pcs[l];
  }
  if (any) {
    int first = draw_below(m, n);
    for (int k = 0; k < n && chosen_aligned; k++) {
      chosen = pcs[(first + k) % n];
      chosen_aligned = all[chosen].aligned;
    }
  } else { // the lowest
    for (int k = 0; k < n; k++) {
      int aligned = all[pcs[k]].aligned;
      if (chosen < 0 || aligned < chosen_aligned || (aligned == chosen_aligned && pcs[k] < chosen)) {
        chosen = pcs[k]; chosen_aligned = aligned;
      }
    }
  }
  w->pc = chosen; w->mask = 0; w->next = 1 << 30;
  for (int l = 0; l < 32; l++) if (w->live >> l & 1) {
    if (w->pcs[l] == chosen) w->mask |= 1u << l;
    else if (w->pcs[l] < w->next) w->next = w->pcs[l];
  }
}
static void store_pcs(Warp *w) {
  for (int l = 0; l < 32; l++) if (w->mask >> l & 1) w->pcs[l] = w->pc;
}
// Returns whether lanes that have diverged should be chosen again. `done`: instructions executed in this turn.
static int should_choose(Machine *m, Warp *w, int done, int any) {
  if (m->launch->instructions[w->pc].aligned) return 1;
  return any ? done % 16 == 15 : w->pc >= w->next;
}

// Opens the barrier once all warps that have not returned have arrived.
static void pass_barrier(Machine *m, Cta *c) {
  if (!c->n_arrived || c->n_arrived < m->launch->n_warps - c->n_done) return;
  for (int i = 0; i < m->launch->n_warps; i++) if (c->warps[i].state == AT_BARRIER) c->warps[i].state = READY;
  c->n_arrived = 0;
  c->epoch++;
}

static void add_counts(Counts *to, const Counts *of) {
  for (size_t i = 0; i < sizeof(Counts) / sizeof(i64); i++) ((i64 *)to)[i] += ((const i64 *)of)[i];
}
// Ends a pass of a loop that waits, and the wait if the warp leaves the loop. The best pass is the one that received
// the most, and of several such passes the one with the fewest instructions.
static void end_pass(Warp *w) {
  Counts *pass = &w->pass, *best = &w->best;
  if (best->instructions < 0 || pass->received > best->received ||
      (pass->received == best->received && pass->instructions < best->instructions)) {
    Counts worse = *best;
    *best = *pass; *pass = worse;
  }
  if (pass->instructions > 0) add_counts(&w->waited, pass);
  *pass = (Counts){0};
  w->failed = 0;
  if (w->pc == w->loop_first) return;
  add_counts(&w->made, best);
  w->waiting = 0;
}
// Returns the counts to which an instruction of the warp is added. Begins and ends loops that wait.
static Counts *counts_for(Warp *w, const Instruction *i) {
  if (w->waiting && (w->pc <= w->loop_first || w->pc > w->loop_last)) end_pass(w);
  if (!w->waiting && w->pc == i->loop_first) {
    w->waiting = 1; w->failed = 0;
    w->loop_first = i->loop_first; w->loop_last = i->loop_last;
    w->best.instructions = -1;
  }
  return !w->waiting ? &w->made : w->failed ? &w->waited : &w->pass;
}

// Returns the lanes in which the result of an instruction is defined. A result of an undefined source is undefined.
// Exceptions: a pack needs only one defined source, and selp only the chosen source. Only accesses to memory and the
// matrix unit report an undefined source.
static u32 defined_lanes(Machine *m, Warp *w, const Instruction *i, const i32 *in, u32 mask) {
  u32 all = ALL_LANES, any = 0;
  for (int k = 0; k < i->n_in; k++) { all &= w->defined[in[k]]; any |= w->defined[in[k]]; }
  switch (i->operation) {
    case OP_pack: return any;  // compilers leave a half undefined if nothing reads it
    case OP_redux: return (mask & ~all) == 0 ? ALL_LANES : 0;
    case OP_selp: {
      u32 chosen = 0;
      for (int l = 0; l < 32; l++) chosen |= (u32)(w->rows[in[2]][l] & 1) << l;
      return w->defined[in[2]] & ((chosen & w->defined[in[0]]) | (~chosen & w->defined[in[1]]));
    }
    case OP_load_parameter: case OP_load_global: case OP_store_global: case OP_load_shared: case OP_store_shared:
    case OP_ldmatrix: case OP_stmatrix: case OP_cp_async: case OP_mma: case OP_wgmma: case OP_atom_add:
      for (int k = 0; k < i->n_in && mask & ~all; k++) {
        u32 missing = mask & ~w->defined[in[k]];
        // Each matrix takes the addresses of eight lanes.
        if (i->operation == OP_ldmatrix && i->n_out < 4) missing &= (1u << 8 * i->n_out) - 1;
        if (missing) report(m, FAULT_UNDEFINED, w, w->pc, __builtin_ctz(missing), k, UNDEFINED_SOURCE);
      }
      return ALL_LANES;
    default: return all;
  }
}
static void define(Warp *w, i32 row, u32 mask, u32 lanes) {
  w->defined[row] = (w->defined[row] & ~mask) | (mask & lanes);
}

#define EACH for (int l = 0; l < 32; l++) if (mask >> l & 1)
// Computes the first result of each lane from the first three sources a, b and c.
#define COMPUTE(expression) do { \
  u64 *d = w->rows[out[0]]; \
  const u64 *A = w->rows[in[0]], *B = w->rows[in[i->n_in > 1]], *C = w->rows[in[i->n_in > 2 ? 2 : 0]]; \
  if (mask == ALL_LANES) { \
    _Pragma("GCC ivdep") \
    for (int l = 0; l < 32; l++) { u64 a = A[l], b = B[l], c = C[l]; (void)a; (void)b; (void)c; d[l] = (expression); } \
  } else EACH { u64 a = A[l], b = B[l], c = C[l]; (void)a; (void)b; (void)c; d[l] = (expression); } \
  define(w, out[0], mask, sources); } while (0)
// Does the same from the sources as fp32 numbers x, y and z.
#define FLOATS(expression) \
  COMPUTE(({ float x = as_f32(a), y = as_f32(b), z = as_f32(c); (void)x; (void)y; (void)z; expression; }))

// Loads an argument from its address, which is eight times its number. `in` has the address, then all arguments.
static void load_parameter(Machine *m, Warp *w, const Instruction *i, const i32 *out, const i32 *in, u32 mask) {
  int bits = i->extra[0], is_signed = i->extra[1];
  EACH {
    u64 address = w->rows[in[0]][l], value = 0xDEADDEADDEADDEADull;
    if (address % 8 || address / 8 >= (u64)i->n_in - 1)
      report(m, FAULT_OUT_OF_BOUNDS, w, w->pc, l, address, -1);
    else
      value = w->rows[in[1 + address / 8]][l];
    w->rows[out[0]][l] = is_signed ? (u64)extended(value, bits) : low(value, bits);
  }
  w->defined[out[0]] |= mask;
}

// Loads a vector of each lane. A lane with an invalid address gets a pattern.
static void load_global(Machine *m, Warp *w, const Instruction *i, const i32 *out, const i32 *in, u32 mask, Counts *n) {
  int bytes = i->extra[0], order = i->extra[1], all = bytes * i->n_out;
  Sectors sectors = {0};
  EACH {
    Origin o = {w, w->pc, l};
    u64 address = w->rows[in[0]][l] + (i64)i->extra[2];
    check_aligned(m, o, address, all);
    int is_valid = check_global(m, o, address, all, order, 0, 0);
    if (is_valid) {
      count_sectors(m, &sectors, address, all, order == RELAXED, n);
      arrive_own(m, w, address, all);
    }
    for (int k = 0; k < i->n_out; k++)
      w->rows[out[k]][l] = is_valid ? peek(address + k * bytes, bytes) : 0xDEADDEADDEADDEADull;
  }
  for (int k = 0; k < i->n_out; k++) w->defined[out[k]] |= mask;
  if (order == RELAXED) { w->exchanges += w->sent; w->sent = 0; }
}

// Adds to memory and returns the old value. All pending stores arrive first.
static void add_atomically(Machine *m, Warp *w, const Instruction *i, const i32 *out, const i32 *in, u32 mask,
                           Counts *n) {
  int bytes = i->extra[0];
  Sectors sectors = {0};
  while (m->n_stores) arrive(m, 0);
  EACH {
    Origin o = {w, w->pc, l};
    u64 address = w->rows[in[0]][l] + (i64)i->extra[2];
    check_aligned(m, o, address, bytes);
    if (!check_global(m, o, address, bytes, RELAXED, 1, 0)) continue;
    count_sectors(m, &sectors, address, bytes, 1, n);
    n->written += bytes; m->last_range->written += bytes;
    u64 found = peek(address, bytes);
    poke(address, found + w->rows[in[1]][l], bytes);
    w->rows[out[0]][l] = found;
  }
  w->defined[out[0]] |= mask;
  w->sent = 1;
}

// Stores a vector of each lane: at once, or by `send` if the store is relaxed.
static void store_global(Machine *m, Warp *w, const Instruction *i, const i32 *in, u32 mask, Counts *n) {
  int bytes = i->extra[0], order = i->extra[1], all = bytes * (i->n_in - 1);
  EACH {
    Origin o = {w, w->pc, l};
    u64 address = w->rows[in[0]][l] + (i64)i->extra[2];
    int unchanged = find_range(m, address, all) != 0;
    for (int k = 1; unchanged && k < i->n_in; k++)
      unchanged = peek(address + (k - 1) * bytes, bytes) == low(w->rows[in[k]][l], 8 * bytes);
    check_aligned(m, o, address, all);
    if (!check_global(m, o, address, all, order, 1, unchanged)) continue;
    n->written += all; m->last_range->written += all;
    if (order == PLAIN) arrive_own(m, w, address, all);
    for (int k = 1; k < i->n_in; k++) {
      u64 at = address + (k - 1) * bytes, value = low(w->rows[in[k]][l], 8 * bytes);
      if (order == PLAIN) poke(at, value, bytes); else send(m, w, at, value, bytes);
    }
  }
  if (order != PLAIN) w->sent = 1;
}

// Loads a vector of each lane from shared memory.
static void load_shared(Machine *m, Warp *w, const Instruction *i, const i32 *out, const i32 *in, u32 mask, Counts *n) {
  int bytes = i->extra[0];
  EACH {
    Origin o = {w, w->pc, l};
    u64 address = (u32)(w->rows[in[0]][l] + i->extra[2]);
    if (!check_shared(m, o, address, bytes * i->n_out)) continue;
    touch_shared_read(m, o, address, bytes * i->n_out, 0, 0);
    n->shared_read += bytes * i->n_out;
    for (int k = 0; k < i->n_out; k++) w->rows[out[k]][l] = shared_get(w->cta, address + k * bytes, bytes);
  }
  for (int k = 0; k < i->n_out; k++) w->defined[out[k]] |= mask;
}

// Stores a vector of each lane to shared memory. Bytes of a vector are stored in pairs. A lane with an invalid address
// stores nothing.
static void store_shared(Machine *m, Warp *w, const Instruction *i, const i32 *in, u32 mask, Counts *n) {
  int bytes = i->extra[0];
  EACH {
    Origin o = {w, w->pc, l};
    u64 address = (u32)(w->rows[in[0]][l] + i->extra[2]);
    if (!check_shared(m, o, address, bytes * (i->n_in - 1))) continue;
    n->shared_written += bytes * (i->n_in - 1);
    if (bytes == 1 && i->n_in == 2) shared_store_byte(o, address, w->rows[in[1]][l]);
    else if (bytes == 1) for (int k = 1; k < i->n_in; k += 2)
      shared_store(m, o, address + k - 1, low(w->rows[in[k]][l], 8) | low(w->rows[in[k + 1]][l], 8) << 8, 2);
    else for (int k = 1; k < i->n_in; k++)
      shared_store(m, o, address + (k - 1) * bytes, w->rows[in[k]][l], bytes);
  }
}

// Begins a cp.async of each lane.
static void copy_async(Machine *m, Warp *w, const Instruction *i, const i32 *in, u32 mask, Counts *n) {
  Sectors sectors = {0};
  EACH {
    Origin o = {w, w->pc, l};
    u64 to = (u32)(w->rows[in[0]][l] + i->extra[1]), from = w->rows[in[1]][l] + (i64)i->extra[2];
    Copy c = {to, from, i->extra[0], i->extra[0], l, w->pc};
    if (i->n_in > 2) c.of_source = (i32)w->rows[in[2]][l];
    if (c.of_source < 0 || c.of_source > c.bytes) {
      report(m, FAULT_OUT_OF_BOUNDS, w, w->pc, l, c.from, -1);
      continue;
    }
    if (!check_shared(m, o, c.to, c.bytes)) continue;
    if (c.of_source) {
      check_aligned(m, o, c.from, c.bytes);
      if (!check_global(m, o, c.from, c.of_source, PLAIN, 0, 0)) continue;
      count_sectors(m, &sectors, c.from, c.of_source, 0, n);
    }
    n->shared_written += c.bytes;
    begin_copy(m, o, c);
  }
}

// Returns whether a pending wgmma writes a register, or (with `sources`) reads it.
static int is_pending(Machine *m, Warp *w, i32 row, int sources) {
  for (Product *p = w->products; p < w->products + w->n_products; p++) {
    const Instruction *i = m->launch->instructions + p->pc;
    int n = i->n_out + (sources && i->extra[3] ? 4 : 0);
    for (int k = 0; k < n; k++) if (m->launch->operands[i->at + k] == row) return 1;
  }
  return 0;
}
// Issues a wgmma. Its results are undefined until `wait_for_products`.
static void begin_product(Machine *m, Warp *w, const Instruction *i, const i32 *in, Counts *n) {
  int in_registers = i->extra[3], n_a = in_registers ? 4 : 1;
  int bytes = i->extra[2] * ((i->extra[0] & 15) == TF32 ? 4 : 2);  // of a row; four warps share the right operand
  n->matrix++; n->flops += 2 * 16 * i->extra[1] * i->extra[2];
  n->shared_read += bytes * (i->extra[1] / 4 + (in_registers ? 0 : 16));
  u64 a = in_registers ? 0 : w->rows[in[0]][0], b = w->rows[in[n_a]][0];
  Product p = {w->pc, a, b, w->rows[in[n_a + 1]][0] & 1, w->cta->epoch};
  for (int r = 0; r < i->n_out && p.adds; r++) {
    i32 row = m->launch->operands[i->at + r];
    if (w->defined[row] != ALL_LANES && !is_pending(m, w, row, 0))
      report(m, FAULT_UNDEFINED, w, w->pc, 0, r, UNDEFINED_ACCUMULATOR);
  }
  multiply_group(m, w, &p, 1);
  APPENDED(w->products, w->n_products, w->products_capacity) = p;
}

// Executes up to `max_instructions` instructions of a warp that is ready.
static void run_warp(Machine *m, Warp *w, int max_instructions) {
  const Launch *launch = m->launch;
  Cta *cta = w->cta;
  // Sometimes any lanes may run, not only those at the lowest pc, which may wait for the others' stores.
  int any = launch->reconverge_late || (draw_below(m, 16) == 0 && !launch->reconverge_early);
  if (w->live != w->mask) choose_lanes(m, w, any);
  for (int done = 0; done < max_instructions; done++) {
    if (w->live != w->mask && should_choose(m, w, done, any)) { store_pcs(w); choose_lanes(m, w, any); }
    int pc = w->pc;
    const Instruction *i = launch->instructions + pc;
    const i32 *out = launch->operands + i->at, *in = out + i->n_out;
    u32 mask = w->mask;
    // A warp that begins another pass of a wait mostly ends its turn.
    if (w->waiting && pc == w->loop_first && done && draw_below(m, 8)) break;
    m->launch->executed++;
    Counts *count = counts_for(w, i);
    count->instructions++;
    if (i->guard >= 0) {
      u32 set = 0, undefined = mask & ~w->defined[i->guard];
      const u64 *p = w->rows[i->guard];
      if (undefined) report(m, FAULT_UNDEFINED, w, pc, __builtin_ctz(undefined), 0, UNDEFINED_PREDICATE);
      for (int l = 0; l < 32; l++) set |= (u32)(p[l] & 1) << l;
      mask &= i->negated ? ~set : set;
      if (!mask) { w->pc++; continue; }
    }
    if (i->aligned) {
      w->synchronised++;
      if (mask != ALL_LANES) report(m, FAULT_DIVERGED, w, pc, -1, mask, -1);
    }
    for (int k = 0; k < i->n_out && w->n_products && i->operation != OP_wgmma; k++)
      if (is_pending(m, w, out[k], 1)) report(m, FAULT_UNDEFINED, w, pc, 0, k, UNDEFINED_REGISTER_OF_A_PENDING_WGMMA);
    u32 sources = defined_lanes(m, w, i, in, mask);
    int n = i->extra[0];  // in most instructions: bits
    switch (i->operation) {
      case OP_nop: case OP_barrier_warp: break;
      case OP_bra: {
        // Some lanes leave a loop that waits. The lanes that stay have found something missing, so this pass fails.
        if (w->waiting && mask != w->mask && (n < w->loop_first || n > w->loop_last)) w->failed = 1;
        if (mask == w->mask) { w->pc = n; continue; }
        for (int l = 0; l < 32; l++) if (w->mask >> l & 1) w->pcs[l] = mask >> l & 1 ? n : pc + 1;
        choose_lanes(m, w, any);
        continue;
      }
      case OP_ret:
        w->live &= ~mask; w->mask &= ~mask;
        if (w->mask) { w->pc++; continue; }
        if (w->live) { choose_lanes(m, w, any); continue; }
        if (w->n_copies || w->n_products) report(m, FAULT_LEFT_UNDERWAY, w, pc, -1, 0, -1);
        if (cta->n_arrived) report(m, FAULT_LEFT_BARRIER, w, pc, -1, 0, -1);
        w->state = DONE; cta->n_done++;
        pass_barrier(m, cta);
        return;
      case OP_barrier:
        count->barriers++;
        if (cta->n_done) report(m, FAULT_LEFT_BARRIER, w, pc, -1, 0, -1);
        w->state = AT_BARRIER; cta->n_arrived++; w->pc++;
        if (w->live != w->mask) store_pcs(w);
        pass_barrier(m, cta);
        return;
      case OP_clock: {
        u64 now = 1000000000 + (u64)((double)launch->executed * launch->ns_per_instruction);
        COMPUTE(now);
        break;
      }
      case OP_fence_async: APPENDED(w->fences, w->n_fences, w->fences_capacity) = cta->epoch; break;
      case OP_load_parameter: load_parameter(m, w, i, out, in, mask); break;
      case OP_load_global: load_global(m, w, i, out, in, mask, count); break;
      case OP_store_global: store_global(m, w, i, in, mask, count); break;
      case OP_atom_add: add_atomically(m, w, i, out, in, mask, count); break;
      case OP_load_shared: load_shared(m, w, i, out, in, mask, count); break;
      case OP_store_shared: store_shared(m, w, i, in, mask, count); break;
      case OP_ldmatrix:
        count->shared_read += 128 * i->n_out;
        move_matrices(m, w, pc, i, out, w->rows[in[0]]);
        break;
      case OP_stmatrix:
        count->shared_written += 128 * (i->n_in - 1);
        move_matrices(m, w, pc, i, in + 1, w->rows[in[0]]);
        break;
      case OP_cp_async: copy_async(m, w, i, in, mask, count); break;
      case OP_cp_commit: APPENDED(w->copy_groups, w->n_copy_groups, w->copy_groups_capacity) = w->n_copies; break;
      case OP_cp_wait: wait_for_copies(m, w, n); break;
      case OP_mma:
        count->matrix++; count->flops += 2 * 16 * 8 * i->extra[1];
        multiply(w, i, out, in);
        break;
      case OP_wgmma: begin_product(m, w, i, in, count); break;
      case OP_wgmma_commit:
        APPENDED(w->product_groups, w->n_product_groups, w->product_groups_capacity) = w->n_products;
        break;
      case OP_wgmma_wait: wait_for_products(m, w, n); break;
      case OP_shuffle: {
        Row given;
        u32 defined = 0;
        memcpy(given, w->rows[in[0]], sizeof(Row));
        #define FROM(b) ((n == 0 ? l ^ (b) : (b)) & 31)
        for (int l = 0; l < 32; l++) defined |= (w->defined[in[0]] >> FROM(w->rows[in[1]][l]) & 1) << l;
        sources = defined & w->defined[in[1]];
        COMPUTE(low(given[FROM(b)], 32));
        break;
      }
      case OP_movmatrix: {
        // Each lane has two neighbours of a row of an 8 x 8 matrix. It gets two of the transpose.
        Row given;
        u32 defined = 0;
        memcpy(given, w->rows[in[0]], sizeof(Row));
        #define HAS(lane, k) (8 * ((lane) % 4) + 4 * (k) + (lane) / 8)
        #define HALF(lane, k) (given[HAS(lane, k)] >> 16 * ((lane) / 4 % 2) & 0xFFFF)
        for (int l = 0; l < 32; l++)
          defined |= (w->defined[in[0]] >> HAS(l, 0) & w->defined[in[0]] >> HAS(l, 1) & 1) << l;
        sources = defined;
        COMPUTE(HALF(l, 0) | HALF(l, 1) << 16);
        break;
      }
      case OP_redux: {
        i64 result = n == 0 ? 0 : INT32_MIN;
        EACH {
          i64 x = extended(w->rows[in[0]][l], 32);
          result = n == 0 ? result + x : x > result ? x : result;
        }
        COMPUTE(low((u64)result, 32));
        break;
      }
      case OP_mov: COMPUTE(low(a, n)); break;
      case OP_unpack: {
        Row given;
        memcpy(given, w->rows[in[0]], sizeof(Row));
        for (int k = 0; k < i->n_out; k++) {
          EACH w->rows[out[k]][l] = low(given[l] >> n * k, n);
          define(w, out[k], mask, sources);
        }
        break;
      }
      case OP_pack: COMPUTE(({
        u64 v = 0;
        for (int k = 0; k < i->n_in; k++) v |= low(w->rows[in[k]][l], n) << n * k;
        v; }));
        break;
      case OP_selp: COMPUTE(low(c & 1 ? a : b, n)); break;
      case OP_setp: COMPUTE((u64)compares(n, i->extra[1], i->extra[2], a, b)); break;
      case OP_add: COMPUTE(low(a + b, n)); break;
      case OP_sub: COMPUTE(low(a - b, n)); break;
      case OP_mul: COMPUTE(low(a * b, n)); break;
      case OP_mad: COMPUTE(low(a * b + c, n)); break;
      case OP_mul_hi_u: COMPUTE(low((u64)((unsigned __int128)low(a, n) * low(b, n) >> n), n)); break;
      case OP_mul_hi_s: COMPUTE(low((u64)((__int128)extended(a, n) * extended(b, n) >> n), n)); break;
      case OP_mul_wide_u: COMPUTE(low(low(a, n) * low(b, n), 2 * n)); break;
      case OP_mul_wide_s: COMPUTE(low((u64)(extended(a, n) * extended(b, n)), 2 * n)); break;
      case OP_mad_wide_u: COMPUTE(low(low(a, n) * low(b, n) + c, 2 * n)); break;
      case OP_mad_wide_s: COMPUTE(low((u64)(extended(a, n) * extended(b, n)) + c, 2 * n)); break;
      case OP_div_s: COMPUTE(divided(a, b, n, 1)); break;
      case OP_div_u: COMPUTE(divided(a, b, n, 0)); break;
      case OP_rem_s: COMPUTE(remainder_of(a, b, n, 1)); break;
      case OP_rem_u: COMPUTE(remainder_of(a, b, n, 0)); break;
      case OP_min_s: COMPUTE(low(extended(a, n) < extended(b, n) ? a : b, n)); break;
      case OP_min_u: COMPUTE(low(low(a, n) < low(b, n) ? a : b, n)); break;
      case OP_max_s: COMPUTE(low(extended(a, n) > extended(b, n) ? a : b, n)); break;
      case OP_max_u: COMPUTE(low(low(a, n) > low(b, n) ? a : b, n)); break;
      case OP_max_u16x2: COMPUTE(({
        u64 lower = low(a, 16) > low(b, 16) ? low(a, 16) : low(b, 16);
        u64 upper = low(a, 32) >> 16 > low(b, 32) >> 16 ? low(a, 32) >> 16 : low(b, 32) >> 16;
        upper << 16 | lower; }));
        break;
      case OP_max_relu_s: COMPUTE(({
        i64 larger = extended(a, n) > extended(b, n) ? extended(a, n) : extended(b, n);
        low(larger < 0 ? 0 : (u64)larger, n); }));
        break;
      case OP_neg: COMPUTE(low(-a, n)); break;
      case OP_and: COMPUTE(low(a & b, n)); break;
      case OP_or: COMPUTE(low(a | b, n)); break;
      case OP_xor: COMPUTE(low(a ^ b, n)); break;
      case OP_not: COMPUTE(low(~a, n)); break;
      case OP_shl: COMPUTE((u32)b >= (u32)n ? 0 : low(a << (u32)b, n)); break;
      case OP_shr_u: COMPUTE(shifted_right(a, b, n, 0)); break;
      case OP_shr_s: COMPUTE(shifted_right(a, b, n, 1)); break;
      case OP_bfe_u: COMPUTE(field_of(a, b, c, n, 0)); break;
      case OP_bfe_s: COMPUTE(field_of(a, b, c, n, 1)); break;
      case OP_prmt: COMPUTE(permuted(a, b, c)); break;
      case OP_extend_u: { int to = i->extra[1]; COMPUTE(low(low(a, n), to)); break; }
      case OP_extend_s: { int to = i->extra[1]; COMPUTE(low((u64)extended(a, n), to)); break; }
      case OP_add_f32: FLOATS(of_f32(x + y)); break;
      case OP_sub_f32: FLOATS(of_f32(x - y)); break;
      case OP_mul_f32: FLOATS(of_f32(x * y)); break;
      case OP_fma_f32: count->fma++; FLOATS(of_f32(__builtin_fmaf(x, y, z))); break;
      case OP_fma_ftz:
        count->fma++;
        FLOATS(of_f32(flushed(__builtin_fmaf(flushed(x), flushed(y), flushed(z)))));
        break;
      case OP_abs_ftz: FLOATS(of_f32(fabsf(flushed(x)))); break;
      case OP_add_f32x2: FLOATS(pair(x + y, as_f32(a >> 32) + as_f32(b >> 32))); break;
      case OP_sub_f32x2: FLOATS(pair(x - y, as_f32(a >> 32) - as_f32(b >> 32))); break;
      case OP_mul_f32x2: FLOATS(pair(x * y, as_f32(a >> 32) * as_f32(b >> 32))); break;
      case OP_fma_f32x2:
        count->fma += 2;
        FLOATS(pair(__builtin_fmaf(x, y, z), __builtin_fmaf(as_f32(a >> 32), as_f32(b >> 32), as_f32(c >> 32))));
        break;
      case OP_div_f32: FLOATS(of_f32(with_error(m, x / y, a ^ b, 0x1p-23))); break;
      case OP_ex2: COMPUTE(of_f32(exp2_of(m, a))); break;
      case OP_ex2_ftz: COMPUTE(of_f32(flushed(exp2_of(m, bits_of(flushed(as_f32(a))))))); break;
      case OP_rcp_ftz: FLOATS(of_f32(flushed(reciprocal_of(m, flushed(x))))); break;
      case OP_tanh: FLOATS(of_f32(tanh_of(m, x))); break;
      case OP_add_f16: COMPUTE(fma_halves(a, ONES_F16, b, 0, 1)); break;
      case OP_add_f16x2: COMPUTE(fma_halves(a, ONES_F16, b, 0, 2)); break;
      case OP_add_bf16: COMPUTE(fma_halves(a, ONES_BF16, b, 1, 1)); break;
      case OP_add_bf16x2: COMPUTE(fma_halves(a, ONES_BF16, b, 1, 2)); break;
      case OP_fma_f16: COMPUTE(fma_halves(a, b, c, 0, 1)); break;
      case OP_fma_f16x2: COMPUTE(fma_halves(a, b, c, 0, 2)); break;
      case OP_fma_bf16: COMPUTE(fma_halves(a, b, c, 1, 1)); break;
      case OP_fma_bf16x2: COMPUTE(fma_halves(a, b, c, 1, 2)); break;
      case OP_add_f32_f16: COMPUTE(of_f32(of_f16(a) + as_f32(b))); break;
      case OP_add_f32_bf16: COMPUTE(of_f32(of_bf16(a) + as_f32(b))); break;
      case OP_f16_to_f32: COMPUTE(of_f32(of_f16(a))); break;
      case OP_bf16_to_f32: COMPUTE(of_f32(of_bf16(a))); break;
      case OP_f32_to_f16: FLOATS(to_f16(x)); break;
      case OP_f32_to_bf16: FLOATS(to_bf16(x)); break;
      case OP_f32_to_f16x2: FLOATS(to_f16(x) << 16 | to_f16(y)); break;
      case OP_f32_to_bf16x2: FLOATS(to_bf16(x) << 16 | to_bf16(y)); break;
      case OP_f32_to_tf32: FLOATS(to_tf32(x)); break;
      case OP_u32_to_f16: COMPUTE(to_f16((float)low(a, 32))); break;
      default: abort();  // the translator emits no other operation
    }
    w->pc = pc + 1;
  }
  if (w->live != w->mask) store_pcs(w);
}
