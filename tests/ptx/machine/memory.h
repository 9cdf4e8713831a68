// Global memory: the extents of the launch's tensors, who has touched which bytes, and stores that arrive late.
//
// Races between CTAs: nothing orders the accesses of two CTAs. Two accesses of the same bytes race if one is a write.
// Exception: both are relaxed, which is how programs exchange data.
// Races in a CTA: a barrier orders the accesses of its warps, and an aligned instruction those of a warp's lanes. The
// same exception holds. Between lanes, only a read after a write is checked.

// Who has touched two bytes in this launch (the translator knows no store of a single byte to global memory). CTAs and
// warps are numbered from 1, and the largest number stands for several.
typedef struct Touch {
  u16 writer, reader, plain_writer, plain_reader;  // CTAs: by any access; by a plain (not relaxed) one
  u8 writing_warp, writing_lane, written_plainly;  // the last write
  u8 reading_warp, plainly_reading_warp, read_as_constant;
  u32 write_epoch, read_epoch, plain_read_epoch;   // the CTA's epoch at the last access of each kind
  u32 write_synchronised;                          // `synchronised` of the writing warp
} Touch;
#define SEVERAL_CTAS 0xffff
#define SEVERAL_WARPS 0xff

// Reserves address space for the touches of a tensor, all zero. Only pages that are used take memory, and a launch
// touches little of a tensor of gigabytes.
static size_t touches_of(const Range *r) { return (r->bytes / 2 + 2) * sizeof(Touch); }
static void allocate_touches(Range *r) {
  r->touched = mmap(0, touches_of(r), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (r->touched == MAP_FAILED) { perror("no memory to watch a tensor"); abort(); }
}
static void free_touches(Range *r) { munmap(r->touched, touches_of(r)); r->touched = 0; }

// The detail of a race, for reports: which access came second.
enum { WRITE_AFTER_WRITE = 1, WRITE_AFTER_READ, READ_AFTER_WRITE };

// Returns the tensor that contains all `bytes` at an address, or null.
static Range *find_range(Machine *m, u64 address, u64 bytes) {
  Range *r = m->last_range;
  if (r && address >= r->base && address + bytes <= r->base + r->bytes) return r;
  for (int i = 0; i < m->launch->n_ranges; i++) {
    r = m->launch->ranges + i;
    if (address >= r->base && address + bytes <= r->base + r->bytes) return m->last_range = r;
  }
  return 0;
}

// The warp, instruction and lane of an access, for reports.
typedef struct { Warp *warp; int pc, lane; } Origin;

// Adds a CTA to the CTAs that have touched two bytes so far, as Touch numbers them.
static u16 merge_cta(u16 ctas, int cta) { return ctas && ctas != cta ? SEVERAL_CTAS : cta; }
// Returns whether another CTA than `cta` is among `ctas`.
static int includes_other(u16 ctas, int cta) { return ctas && ctas != cta; }
// Adds a warp to the warps that have touched two bytes in the same epoch. Warps of earlier epochs are forgotten.
static u8 merge_warp(u8 warps, int warp, int same_epoch) {
  return same_epoch && warps && warps != warp ? SEVERAL_WARPS : warp;
}
// The next two functions report races of an access with earlier accesses of the same two bytes, and note the access.
// `plain`: not relaxed. `unchanged`: the memory has the written value already.
#define RACE(kind, detail) report(m, kind, o.warp, o.pc, o.lane, address, detail)
static void touch_for_write(Machine *m, Origin o, Touch *t, u64 address, int plain, int unchanged) {
  int cta = o.warp->cta->index + 1, warp = o.warp->index + 1, epoch = o.warp->cta->epoch;
  if (t->read_as_constant) RACE(FAULT_CONSTANT_WRITTEN, -1);
  if (includes_other(plain ? t->writer : t->plain_writer, cta)) RACE(FAULT_RACE_BETWEEN_CTAS, WRITE_AFTER_WRITE);
  if (includes_other(plain ? t->reader : t->plain_reader, cta)) RACE(FAULT_RACE_BETWEEN_CTAS, WRITE_AFTER_READ);
  if (t->writer == cta && t->writing_warp != warp && t->write_epoch == epoch && (plain || t->written_plainly)) {
    if (unchanged) RACE(FAULT_STORED_TWICE, -1); else RACE(FAULT_RACE_IN_CTA, WRITE_AFTER_WRITE);
  }
  if (t->reader == cta && plain && t->reading_warp != warp && t->read_epoch == epoch)
    RACE(FAULT_RACE_IN_CTA, WRITE_AFTER_READ);
  else if (t->plain_reader == cta && t->plainly_reading_warp != warp && t->plain_read_epoch == epoch)
    RACE(FAULT_RACE_IN_CTA, WRITE_AFTER_READ);
  t->writer = merge_cta(t->writer, cta);
  if (plain) t->plain_writer = merge_cta(t->plain_writer, cta);
  t->writing_warp = warp; t->written_plainly = plain; t->write_epoch = epoch;
  t->writing_lane = o.lane; t->write_synchronised = o.warp->synchronised;
}
static void touch_for_read(Machine *m, Origin o, Touch *t, u64 address, int plain, int constant) {
  int cta = o.warp->cta->index + 1, warp = o.warp->index + 1;
  u32 epoch = o.warp->cta->epoch;
  if (constant && t->writer) RACE(FAULT_CONSTANT_WRITTEN, READ_AFTER_WRITE);
  if (includes_other(plain ? t->writer : t->plain_writer, cta)) RACE(FAULT_RACE_BETWEEN_CTAS, READ_AFTER_WRITE);
  if (t->writer == cta && t->write_epoch == epoch && (plain || t->written_plainly) &&
      (t->writing_warp != warp || (t->writing_lane != o.lane && t->write_synchronised == o.warp->synchronised)))
    RACE(FAULT_RACE_IN_CTA, READ_AFTER_WRITE);
  t->reader = merge_cta(t->reader, cta);
  t->reading_warp = merge_warp(t->reading_warp, warp, t->read_epoch == epoch);
  t->read_epoch = epoch;
  if (plain) {
    t->plain_reader = merge_cta(t->plain_reader, cta);
    t->plainly_reading_warp = merge_warp(t->plainly_reading_warp, warp, t->plain_read_epoch == epoch);
    t->plain_read_epoch = epoch;
  }
  t->read_as_constant |= constant;
}
#undef RACE

// Returns whether the whole access is in one tensor. Reports an access outside and races.
static int check_global(Machine *m, Origin o, u64 address, int bytes, int order, int writes, int unchanged) {
  Range *r = find_range(m, address, bytes);
  if (!r) { report(m, FAULT_OUT_OF_BOUNDS, o.warp, o.pc, o.lane, address, -1); return 0; }
  u64 first = (address - r->base) / 2, last = (address + bytes - 1 - r->base) / 2;
  for (u64 i = first; i <= last; i++) {
    if (writes) touch_for_write(m, o, r->touched + i, address, order == PLAIN, unchanged);
    else touch_for_read(m, o, r->touched + i, address, order != RELAXED, order == CONSTANT);
  }
  return 1;
}
static void check_aligned(Machine *m, Origin o, u64 address, int bytes) {
  if (address & (bytes - 1)) report(m, FAULT_MISALIGNED, o.warp, o.pc, o.lane, address, -1);
}

// Counts the sectors that the lanes of one instruction read: as received if `relaxed`, else as read.
typedef struct { int n; u64 sectors[64]; } Sectors;
static void count_sectors(Machine *m, Sectors *s, u64 address, int bytes, int relaxed, Counts *n) {
  Range *r = m->last_range;
  for (u64 sector = address >> 5; sector <= (address + bytes - 1) >> 5; sector++) {
    int i = s->n;
    while (i > 0 && s->sectors[i - 1] != sector) i--;
    if (i) continue;
    s->sectors[s->n++] = sector;
    *(relaxed ? &n->received : &n->read) += 32;
    *(relaxed ? &r->received : &r->read) += 32;
  }
}

static inline u64 peek(u64 address, int bytes) { u64 v = 0; memcpy(&v, (void *)address, bytes); return v; }
static inline void poke(u64 address, u64 value, int bytes) { memcpy((void *)address, &value, bytes); }

// A pending relaxed store: its own CTA sees it, other CTAs do not yet. Stores that overlap arrive in order, and others
// in any order.
typedef struct Store { u64 address, value, number; i32 bytes, cta; } Store;
static inline u16 hash(u64 address, int cta) {
  return (u16)((((address >> 3) * 0x9E3779B97F4A7C15ull) >> 48) ^ (u32)cta * 977);
}
// Lets the pending store `i` arrive. If it overlaps an older store, lets that store arrive instead, by the same rule.
static void arrive(Machine *m, int i) {
  if (m->to_address[hash(m->stores[i].address, 0)] > 1)
    for (int j = 0; j < m->n_stores; j++) {
      Store *a = m->stores + i, *b = m->stores + j;
      int overlap = b->address < a->address + a->bytes && a->address < b->address + b->bytes;
      if (overlap && b->number < a->number) { i = j; j = -1; }  // an older store goes first: look for one older still
    }
  Store s = m->stores[i];
  poke(s.address, s.value, s.bytes);
  m->to_address[hash(s.address, 0)]--;
  m->of_cta[hash(s.address, s.cta + 1)]--;
  m->stores[i] = m->stores[--m->n_stores];
}
// Lets a random number of random pending stores arrive.
static void arrive_some(Machine *m) {
  if (!m->n_stores) return;
  for (int n = 1 + draw_below(m, 1 + m->n_stores / 4); n && m->n_stores; n--) arrive(m, draw_below(m, m->n_stores));
}
// Executes a relaxed store: it arrives at once, or becomes pending if the schedule delays stores.
static void send(Machine *m, Warp *w, u64 address, u64 value, int bytes) {
  if (!m->launch->delay) { poke(address, value, bytes); return; }
  APPENDED(m->stores, m->n_stores, m->stores_capacity) = (Store){address, value, m->n_stored++, bytes, w->cta->index};
  m->to_address[hash(address, 0)]++;
  m->of_cta[hash(address, w->cta->index + 1)]++;
}
// Lets a CTA's own pending stores to an address arrive, before the CTA reads or overwrites it.
static void arrive_own(Machine *m, Warp *w, u64 address, int bytes) {
  int any = 0;
  for (u64 word = address >> 3; m->n_stores && word <= (address + bytes - 1) >> 3; word++)
    any |= m->of_cta[hash(word << 3, w->cta->index + 1)];
  for (int i = 0; any && i < m->n_stores; i++) {
    Store *s = m->stores + i;
    if (s->cta != w->cta->index || s->address >= address + bytes || address >= s->address + s->bytes) continue;
    arrive(m, i);
    i = -1;  // `arrive` has moved other stores: start again
  }
}
