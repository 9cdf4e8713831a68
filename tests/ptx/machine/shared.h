// Shared memory, and cp.async into it: its extent, and races between the warps of a CTA and the lanes of a warp.
//
// A barrier orders the accesses of different warps: accesses in the same epoch race if one is a write. An aligned
// instruction orders the accesses of a warp's lanes in the same way. Exception: writes of the same value do not race.

#define SHARED_BASE 1024  // the first address, so that address 0 is invalid

// Who has touched two bytes.
typedef struct SharedTouch {
  i32 writer;                  // a thread, or -1
  i32 pc;                      // of the instruction that wrote
  u32 write_epoch, read_epoch; // the CTA's epoch at the last write and at the last read
  u32 readers;                 // in `read_epoch`: a bit for each warp
  u32 synchronised;            // `synchronised` of the writing warp
  i32 fences;                  // number of fences that the writing warp had executed
  u32 read_synchronised;       // 1 + `synchronised` of the warp that read last
  i32 reading_lane;            // the lane of that warp; -1 for several
  u8 pending, by_store;        // pending: by a cp.async not waited for yet; by_store: the last write was no cp.async
} SharedTouch;

static SharedTouch *touch_of(Cta *c, u64 address) { return c->touched + (address - SHARED_BASE) / 2; }
static u8 *shared_at(Cta *c, u64 address) { return c->shared + (address - SHARED_BASE); }
static inline u64 shared_get(Cta *c, u64 address, int bytes) {
  u64 v = 0;
  memcpy(&v, shared_at(c, address), bytes);
  return v;
}

// Returns whether an access is aligned and inside shared memory. Reports it otherwise.
static int check_shared(Machine *m, Origin o, u64 address, int bytes) {
  if (address & (bytes - 1)) { report(m, FAULT_SHARED_MISALIGNED, o.warp, o.pc, o.lane, address, -1); return 0; }
  if (address < SHARED_BASE || address + bytes > SHARED_BASE + (u64)m->launch->shared_bytes) {
    report(m, FAULT_SHARED_OUT_OF_BOUNDS, o.warp, o.pc, o.lane, address, -1);
    return 0;
  }
  return 1;
}

// Returns whether there is a fence between a store and the wgmma that reads its bytes. Either the warp that stored
// fenced before the last barrier that the reader has passed, or the reader fenced after the first barrier after the
// store. If the reader itself stored, any fence after the store is enough.
static int is_fenced(const SharedTouch *t, const Warp *reader) {
  const Warp *writer = reader->cta->warps + t->writer / 32;
  if (writer->n_fences > t->fences && (writer == reader || writer->fences[t->fences] < reader->cta->epoch)) return 1;
  return reader->n_fences && reader->fences[reader->n_fences - 1] > t->write_epoch;
}

// Reports the faults of a read, and notes the read. `issued`: the epoch in which a wgmma was issued, when it has been
// waited for; 0 for all other reads.
static void touch_shared_read(Machine *m, Origin o, u64 address, int bytes, int by_wgmma, u32 issued) {
  Warp *w = o.warp;
  u32 epoch = w->cta->epoch;
  for (SharedTouch *t = touch_of(w->cta, address), *end = t + bytes / 2; t < end; t++) {
    #define RACE(kind) report(m, kind, w, o.pc, o.lane, address, t->pc)
    if (t->pending) RACE(FAULT_SHARED_NOT_WAITED_FOR);
    else if (t->writer == -1) report(m, FAULT_SHARED_UNWRITTEN, w, o.pc, o.lane, address, -1);
    else if (t->write_epoch == epoch) {
      if (t->writer / 32 != w->index) RACE(FAULT_SHARED_READ_AFTER_WRITE);
      else if (t->writer % 32 != o.lane && t->synchronised == w->synchronised) RACE(FAULT_SHARED_RACE_IN_WARP);
    }
    if (issued && t->write_epoch > issued) RACE(FAULT_SHARED_WRITE_AFTER_READ);
    if (by_wgmma && t->by_store && !is_fenced(t, w)) RACE(FAULT_SHARED_NOT_FENCED);
    if (t->read_epoch != epoch) { t->read_epoch = epoch; t->readers = 0; }
    t->readers |= 1u << w->index;
    t->reading_lane = t->read_synchronised == w->synchronised + 1 && t->reading_lane != o.lane ? -1 : o.lane;
    t->read_synchronised = w->synchronised + 1;
  }
}
// Reports the faults of a write, and notes the write. `value` is null when a cp.async begins, which makes the bytes
// pending. `arrives` is set when the cp.async has been waited for.
static void touch_shared_write(Machine *m, Origin o, u64 address, int bytes, const u8 *value, int arrives) {
  Warp *w = o.warp;
  u32 epoch = w->cta->epoch;
  const u8 *before = shared_at(w->cta, address);
  SharedTouch *t = touch_of(w->cta, address);
  for (int i = 0; i < bytes; i += 2, t++) {
    if (t->pending && !arrives) RACE(FAULT_SHARED_NOT_WAITED_FOR);
    if (t->read_epoch == epoch && t->readers & ~(1u << w->index)) RACE(FAULT_SHARED_WRITE_AFTER_READ);
    if (t->writer != -1 && t->write_epoch == epoch && t->writer / 32 != w->index)
      if (!value || memcmp(before + i, value + i, 2)) RACE(FAULT_SHARED_WRITE_AFTER_WRITE);
    // Races with lanes of the same warp, since the last aligned instruction.
    int read_by_other = t->read_epoch == epoch && t->readers == 1u << w->index && t->reading_lane != o.lane &&
                        t->read_synchronised == w->synchronised + 1;
    int written_by_other = t->writer != -1 && t->write_epoch == epoch && t->writer / 32 == w->index &&
                           t->writer % 32 != o.lane && t->synchronised == w->synchronised;
    int changes = value && memcmp(before + i, value + i, 2);
    if (!arrives && (read_by_other || (written_by_other && changes))) RACE(FAULT_SHARED_RACE_IN_WARP);
    t->pending = !value;
    t->by_store = value && !arrives;
    t->write_epoch = epoch; t->writer = w->index * 32 + o.lane; t->pc = o.pc;
    t->synchronised = w->synchronised; t->fences = w->n_fences;
    #undef RACE
  }
}
// Checks and executes a store of two bytes or more.
static void shared_store(Machine *m, Origin o, u64 address, u64 value, int bytes) {
  touch_shared_write(m, o, address, bytes, (const u8 *)&value, 0);
  memcpy(shared_at(o.warp->cta, address), &value, bytes);
}

// Stores a single byte. Touches are of two bytes, so both count as written, and no race for them is reported.
static void shared_store_byte(Origin o, u64 address, u64 value) {
  *touch_of(o.warp->cta, address) = (SharedTouch){o.warp->index * 32 + o.lane, o.pc, .by_store = 1};
  *shared_at(o.warp->cta, address) = (u8)value;
}

// Begins a cp.async: the bytes of shared memory are pending until `end_copy`.
static void begin_copy(Machine *m, Origin o, Copy c) {
  touch_shared_write(m, o, c.to, c.bytes, 0, 0);
  APPENDED(o.warp->copies, o.warp->n_copies, o.warp->copies_capacity) = c;
}
// Ends a cp.async: reads the source only now, and fills the bytes beyond the source with zeros.
static void end_copy(Machine *m, Warp *w, const Copy *c) {
  u8 data[16] = {0};
  if (c->of_source) arrive_own(m, w, c->from, c->of_source);
  memcpy(data, (const void *)c->from, c->of_source);
  touch_shared_write(m, (Origin){w, c->pc, c->lane}, c->to, c->bytes, data, 1);
  memcpy(shared_at(w->cta, c->to), data, c->bytes);
}
// Ends the copies of all groups except the last `left`, in order.
static void wait_for_copies(Machine *m, Warp *w, int left) {
  int done = w->n_copy_groups - left;
  if (done <= 0) return;
  int n = w->copy_groups[done - 1];
  for (int i = 0; i < n; i++) end_copy(m, w, w->copies + i);
  memmove(w->copies, w->copies + n, (w->n_copies -= n) * sizeof(Copy));
  for (int i = 0; i < left; i++) w->copy_groups[i] = w->copy_groups[done + i] - n;
  w->n_copy_groups = left;
}
