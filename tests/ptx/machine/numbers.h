// Arithmetic on the bits that registers hold, as the PTX manual defines it. A NaN as a result is 0x7fffffff, or
// 0x7fff in 16 bits. Exception: `to_tf32`.

static inline u64 low(u64 v, int bits) { return bits >= 64 ? v : v & ((1ull << bits) - 1); }
static inline i64 extended(u64 v, int bits) { return bits >= 64 ? (i64)v : (i64)(v << (64 - bits)) >> (64 - bits); }

static inline float as_f32(u64 v) { u32 x = (u32)v; float f; memcpy(&f, &x, 4); return f; }
static inline u32 bits_of(float f) { u32 v; memcpy(&v, &f, 4); return v; }
static inline u64 of_f32(float f) { return isnan(f) ? 0x7fffffff : bits_of(f); }
static inline float flushed(float f) { return fabsf(f) < 0x1p-126f ? copysignf(0, f) : f; }

static inline float of_f16(u64 h) {
  float f = as_f32((h & 0x7fff) << 13) * 0x1p112f;  // corrects the exponent's bias; exact, for subnormals too
  if ((h & 0x7c00) == 0x7c00) f = h & 0x3ff ? as_f32(0x7fffffff) : INFINITY;
  return h & 0x8000 ? -f : f;
}
static inline u64 to_f16(float f) {
  u32 v = bits_of(f), sign = v >> 16 & 0x8000;
  v &= 0x7fffffff;
  if (v > 0x7f800000) return 0x7fff;
  if (v >= 0x477ff000) return sign | 0x7c00;                           // 65520 and more round to infinity
  if (v < 0x38800000) return sign | (u32)rintf(fabsf(f) * 0x1p24f);    // below 2^-14: multiples of 2^-24
  return sign | (v + 0xfff + (v >> 13 & 1) - 0x38000000) >> 13;
}
static inline float of_bf16(u64 h) { return as_f32((h & 0xffff) << 16); }
static inline u64 to_bf16(float f) {
  u32 v = bits_of(f);
  return isnan(f) ? 0x7fff : (v + 0x7fff + (v >> 16 & 1)) >> 16;
}
// Rounds to nearest, ties away from zero. A NaN only has its low bits cleared, as on an H200.
static inline u64 to_tf32(float f) {
  u32 v = bits_of(f);
  return (isnan(f) || isinf(f) ? v : v + 0x1000) & 0xffffe000;
}
// The matrix unit reads only the high bits of fp32 operands.
static inline float of_tf32(u64 v) { return as_f32(v & 0xffffe000); }

static inline u64 pair(float low_, float high) { return of_f32(low_) | of_f32(high) << 32; }
// Rounds to fp32, to the odd neighbour if inexact. Then a second rounding, to 16 bits, gives what a single one would.
static inline float to_odd(double x) {
  float f = (float)x;
  if (isnan(f) || f == x) return f;
  return as_f32((bits_of(f) - (fabs((double)f) > fabs(x))) | 1);
}
// Returns x y + z in double, rounded to the odd neighbour if 53 bits cannot hold it. A later rounding to 16 bits then
// gives the same as of the exact value.
static inline double fma_for_rounding(double x, double y, double z) {
  double product = x * y, sum = product + z, added = sum - product;  // the product of two 16-bit numbers is exact
  double lost = (product - (sum - added)) + (z - added);
  u64 bits;
  memcpy(&bits, &sum, 8);
  return lost == 0 || isnan(lost) || bits & 1 ? sum : nextafter(sum, lost > 0 ? INFINITY : -INFINITY);
}
// Returns a * b + c of the `n` 16-bit numbers that each register holds.
static inline u64 fma_halves(u64 a, u64 b, u64 c, int bf16, int n) {
  u64 result = 0;
  for (int i = 0; i < 16 * n; i += 16) {
    u64 x = a >> i & 0xffff, y = b >> i & 0xffff, z = c >> i & 0xffff;
    result |= (bf16 ? to_bf16(to_odd(fma_for_rounding(of_bf16(x), of_bf16(y), of_bf16(z))))
                    : to_f16(to_odd(fma_for_rounding(of_f16(x), of_f16(y), of_f16(z))))) << i;
  }
  return result;
}
#define ONES_F16 0x3c003c00
#define ONES_BF16 0x3f803f80

// Returns `y` with a relative error up to `relative` times the schedule's `error`, by a hash of the argument.
static float with_error(const Machine *m, float y, u64 argument, double relative) {
  if (m->launch->error == 0) return y;
  u64 h = (argument + 0x9E3779B97F4A7C15ull) * 0xBF58476D1CE4E5B9ull;
  h ^= h >> 29; h *= 0x94D049BB133111EBull; h ^= h >> 32;
  return (float)(y * (1.0 + m->launch->error * relative * ((double)(h & 0xffff) / 32767.5 - 1.0)));
}
static float exp2_of(const Machine *m, u64 a) { return with_error(m, (float)exp2(as_f32(a)), a, 0x1p-22); }
static float reciprocal_of(const Machine *m, float x) { return with_error(m, 1 / x, bits_of(x), 0x1p-23); }
// The manual allows a relative error of 2^-11. Beyond 10 the result is exactly 1 or -1, as on hardware. Kernels
// need that.
static float tanh_of(const Machine *m, float x) {
  return fabsf(x) > 10 ? copysignf(1, x) : with_error(m, (float)tanh(x), bits_of(x), 0x1p-11);
}

// Returns the result of setp. `comparison` is as in COMPARISONS of translate.py. `kind`: 0 bits, 1 unsigned, 2 signed,
// 3 fp32.
static int compares(int comparison, int kind, int bits, u64 a, u64 b) {
  int less, equal, unordered = 0;
  if (kind == 3) {
    float x = as_f32(a), y = as_f32(b);
    unordered = isnan(x) || isnan(y);
    if (unordered) return comparison >= 7;
    less = x < y; equal = x == y;
  } else if (kind == 2) {
    less = extended(a, bits) < extended(b, bits); equal = low(a, bits) == low(b, bits);
  } else {
    less = low(a, bits) < low(b, bits); equal = low(a, bits) == low(b, bits);
  }
  switch (comparison & 7) {
    case 0: return equal;
    case 1: return !equal;
    case 2: return less;
    case 3: return less || equal;
    case 4: return !less && !equal;
    case 5: return !less;
    case 6: return 1;  // both are numbers
    default: return 0; // neither is NaN
  }
}

// The manual defines no quotient or remainder of a division by zero. Here they are all ones, and the dividend.
static u64 divided(u64 a, u64 b, int bits, int is_signed) {
  if (low(b, bits) == 0) return low(~0ull, bits);
  if (!is_signed) return low(a, bits) / low(b, bits);
  i64 x = extended(a, bits), y = extended(b, bits);
  return low(y == -1 ? -(u64)x : (u64)(x / y), bits);
}
static u64 remainder_of(u64 a, u64 b, int bits, int is_signed) {
  if (low(b, bits) == 0) return low(a, bits);
  if (!is_signed) return low(a, bits) % low(b, bits);
  i64 x = extended(a, bits), y = extended(b, bits);
  return low(y == -1 ? 0 : (u64)(x % y), bits);
}
// Shifts right. A shift by all bits or more gives zeros, or copies of the sign.
static u64 shifted_right(u64 a, u64 by, int bits, int is_signed) {
  if ((u32)by >= (u32)bits) return is_signed && extended(a, bits) < 0 ? low(~0ull, bits) : 0;
  return is_signed ? low((u64)(extended(a, bits) >> by), bits) : low(a, bits) >> by;
}
// Returns the field of `count` bits that begins at bit `first`. A signed one is extended with its highest bit.
static u64 field_of(u64 a, u64 first, u64 count, int bits, int is_signed) {
  first &= 255; count &= 255;
  if (count == 0) return 0;
  u64 top = first + count - 1 < (u64)bits ? first + count - 1 : (u64)bits - 1;
  u64 field = first >= (u64)bits ? 0 : low(low(a, bits) >> first, (int)(count < 64 ? count : 64));
  if (!is_signed || !(low(a, bits) >> top & 1)) return field;
  u64 held = first >= (u64)bits ? 0 : top - first + 1;
  return low(held >= 64 ? field : field | ~0ull << held, bits);
}
// Returns four bytes of b:a, picked by four nibbles. A nibble's high bit replicates the sign of its byte instead.
static u64 permuted(u64 a, u64 b, u64 selector) {
  u64 all = low(a, 32) | b << 32, result = 0;
  for (int i = 0; i < 4; i++) {
    u64 nibble = selector >> 4 * i & 15, byte = all >> 8 * (nibble & 7) & 255;
    result |= (nibble & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * i;
  }
  return result;
}
