// The matrix unit: mma, wgmma, and loads and stores of 8 x 8 tiles. Sums are computed in double and rounded once.

static inline float element_of(u64 v, int kind) {
  return kind == F16 ? of_f16(v & 0xffff) : kind == BF16 ? of_bf16(v) : of_tf32(v);
}

// Executes ldmatrix or stmatrix. Lane l holds two neighbours of row l / 4 of each matrix, or of column l / 4 if
// transposed. Lane 8 k + i has the address of row i of matrix k.
static void move_matrices(Machine *m, Warp *w, int pc, const Instruction *i, const i32 *rows, const u64 *addresses) {
  int stores = i->operation == OP_stmatrix, n = stores ? i->n_in - 1 : i->n_out;
  u64 loaded[4][32] = {{0}};
  for (int from = 0; from < 8 * n; from++) for (int column = 0; column < 8; column++) {
    int k = from / 8, row = from % 8, across = i->extra[0] ? row : column;
    int l = 4 * (i->extra[0] ? column : row) + across / 2, e = across % 2;
    u64 address = (u32)(addresses[from] + i->extra[2]);
    if (column == 0 && !check_shared(m, (Origin){w, pc, from}, address, 16)) break;
    address += 2 * column;
    Origin o = {w, pc, l};
    if (stores) shared_store(m, o, address, w->rows[rows[k]][l] >> 16 * e & 0xffff, 2);
    else { touch_shared_read(m, o, address, 2, 0, 0); loaded[k][l] |= shared_get(w->cta, address, 2) << 16 * e; }
  }
  for (int k = 0; k < n && !stores; k++) {
    memcpy(w->rows[rows[k]], loaded[k], sizeof(Row));
    w->defined[rows[k]] = ALL_LANES;
  }
}

// Unpacks the left operand that four registers hold: 16 x 16, or 16 x 8 in TF32.
static void unpack_left(float a[16][16], Row *rows, const i32 *in, int kind) {
  for (int l = 0; l < 32; l++) for (int r = 0; r < 4; r++) {
    int row = (l >> 2) + 8 * (r & 1);
    if (kind == TF32) a[row][(l & 3) + 4 * (r >> 1)] = of_tf32(rows[in[r]][l]);
    else for (int e = 0; e < 2; e++)
      a[row][2 * (l & 3) + e + 8 * (r >> 1)] = element_of(rows[in[r]][l] >> 16 * e, kind);
  }
}

// Executes mma: D = A B + C. The sources are the registers of A (4), B (2) and C (4).
static void multiply(Warp *w, const Instruction *i, const i32 *out, const i32 *in) {
  int kind = i->extra[0], depth = i->extra[1];
  float a[16][16], b[16][8];
  unpack_left(a, w->rows, in, kind);
  for (int l = 0; l < 32; l++) for (int r = 0; r < 2; r++) {
    u64 v = w->rows[in[4 + r]][l];
    if (kind == TF32) b[(l & 3) + 4 * r][l >> 2] = of_tf32(v);
    else for (int e = 0; e < 2; e++) b[2 * (l & 3) + e + 8 * r][l >> 2] = element_of(v >> 16 * e, kind);
  }
  Row result[4];
  for (int row = 0; row < 16; row++) {
    double sums[8] = {0};
    for (int k = 0; k < depth; k++) for (int c = 0; c < 8; c++) sums[c] += (double)a[row][k] * (double)b[k][c];
    for (int c = 0; c < 8; c++) {
      int r = 2 * (row >> 3) + (c & 1), l = 4 * (row & 7) + (c >> 1);
      result[r][l] = of_f32((float)(sums[c] + as_f32(w->rows[in[6 + r]][l])));
    }
  }
  for (int r = 0; r < 4; r++) { memcpy(w->rows[out[r]], result[r], sizeof(Row)); w->defined[out[r]] = ALL_LANES; }
}

// Returns the address of an element of a wgmma's operand in shared memory. `k` is its index in the sum. Swizzled rows
// have 128, 64 or 32 bytes, whose units of 16 bytes are exchanged by the number of the 128-byte block around them.
static u64 wgmma_address(u64 descriptor, u32 row, u32 k, int bytes, int transposed) {
  u64 start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4;
  u64 stride = (descriptor >> 32 & 0x3fff) << 4;
  int swizzle = (int)(descriptor >> 62);  // 0 none, 1 of 128 bytes, 2 of 64, 3 of 32
  u64 width = swizzle ? 256 >> swizzle : 16, across = width / bytes, a;
  if (!transposed) {
    a = start + row / 8 * stride + row % 8 * width + k * bytes;
    if (!swizzle) a = start + row / 8 * stride + row % 8 * 16 + k / across * leading + k % across * bytes;
  } else if (swizzle) {
    a = start + row % across * bytes + row / across * leading + k % 8 * width + k / 8 * stride;
  } else {
    a = start + row % across * bytes + row / across * stride + k % 8 * 16 + k / 8 * leading;
  }
  u64 exchanged = swizzle ? (8u >> (swizzle - 1)) - 1 : 0;
  return a ^ (a >> 7 & exchanged) << 4;
}
// Checks the read of an element of a wgmma's operand, and returns the element. NaN if its address is invalid.
static float from_shared(Machine *m, Origin o, u64 descriptor, u32 row, u32 k, int kind, int transposed, u32 issued) {
  int bytes = kind == TF32 ? 4 : 2;
  u64 address = wgmma_address(descriptor, row, k, bytes, transposed);
  if (!check_shared(m, o, address, bytes)) return NAN;
  touch_shared_read(m, o, address, bytes, 1, issued);
  return element_of(shared_get(o.warp->cta, address, bytes), kind);
}
// Sets the lanes in which the results of a wgmma are defined.
static void mark_results(Machine *m, Warp *w, const Product *p, u32 defined) {
  const Instruction *i = m->launch->instructions + p->pc;
  for (int r = 0; r < i->n_out; r++) w->defined[m->launch->operands[i->at + r]] = defined;
}
// Executes a warp's 16 rows of a wgmma. A wgmma reads shared memory twice: when it is issued (`issued`), only to find
// faults, and when it is waited for, for the result.
static void multiply_group(Machine *m, Warp *w, const Product *p, int issued) {
  const Instruction *i = m->launch->instructions + p->pc;
  const i32 *out = m->launch->operands + i->at, *in = out + i->n_out;
  int kind = i->extra[0] & 15, columns = i->extra[1], depth = i->extra[2], in_registers = i->extra[3];
  Origin o = {w, p->pc, 0};
  u32 epoch = issued ? 0 : p->epoch;
  float a[16][16], b[256][16];
  if (in_registers) unpack_left(a, w->rows, in, kind);
  else for (int row = 0; row < 16; row++) for (int k = 0; k < depth; k++)
    a[row][k] = from_shared(m, o, p->a, w->index % 4 * 16 + row, k, kind, i->extra[0] & 16, epoch);
  for (int n = 0; n < columns; n++) for (int k = 0; k < depth; k++)
    b[n][k] = from_shared(m, o, p->b, n, k, kind, i->extra[0] & 32, epoch);
  mark_results(m, w, p, issued ? 0 : ALL_LANES);
  for (int r = 0; r < i->n_out && !issued; r++) {
    u64 *d = w->rows[out[r]];
    for (int l = 0; l < 32; l++) {
      int row = (l >> 2) + 8 * (r >> 1 & 1), column = 8 * (r >> 2) + 2 * (l & 3) + (r & 1);
      double sum = p->adds ? as_f32(d[l]) : 0;
      for (int k = 0; k < depth; k++) sum += (double)a[row][k] * b[column][k];
      d[l] = of_f32((float)sum);
    }
  }
}
// Ends the products of all groups except the last `left`, in order.
static void wait_for_products(Machine *m, Warp *w, int left) {
  int done = w->n_product_groups - left;
  if (done <= 0) return;
  int n = w->product_groups[done - 1];
  for (int i = 0; i < n; i++) multiply_group(m, w, w->products + i, 0);
  memmove(w->products, w->products + n, (w->n_products -= n) * sizeof(Product));
  for (int i = 0; i < left; i++) w->product_groups[i] = w->product_groups[done + i] - n;
  w->n_product_groups = left;
  // A pending product may share its results with one that has just ended: they are undefined again.
  for (int i = 0; i < w->n_products; i++) mark_results(m, w, w->products + i, 0);
}
