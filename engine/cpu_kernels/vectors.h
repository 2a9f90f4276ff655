// Vectors of floats as GCC and Clang know them on every processor: loads that widen, the
// exponential, a transposition. Where a processor has no vectors, the compiler takes them apart.

#pragma once
#include <cstdint>

// Before a loop of a fixed count: vectors in an array that is indexed by it stay in registers.
#define UNROLLED _Pragma("GCC unroll 16")
#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef float LooseFloats __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef int32_t LooseInts __attribute__((vector_size(LANES * 4), aligned(1), may_alias));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint16_t LooseHalves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

INLINE Floats load(const float* place) { return *(const LooseFloats*)place; }

INLINE void store(float* place, Floats values) { *(LooseFloats*)place = values; }

INLINE Floats select(Ints where, Floats yes, Floats no) { return where ? yes : no; }

INLINE Floats spread(float value) { return value - Floats{}; }  // adding 0 would change -0

INLINE Floats load(const BFloat16* place) {
    Halves halves = *(const LooseHalves*)place;
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

INLINE Floats load(const Float16* place) {
    Halves halves = *(const LooseHalves*)place;
    Words bits = __builtin_convertvector(halves, Words);
    Words magnitude = bits & 0x7fff, sign = (bits & 0x8000) << 16;
    // Moves the exponent's bias from 15 to 127 by a product, which is right for subnormals, too.
    Floats scaled = (Floats)(magnitude << 13) * 0x1p112f;
    Words infinite = (Words)(magnitude >= 0x7c00) & 0x7f800000;
    return (Floats)((Words)scaled | infinite | sign);
}

INLINE float number(float value) { return value; }

INLINE float number(BFloat16 value) {
    uint32_t bits = (uint32_t)value.bits << 16;
    float number;
    __builtin_memcpy(&number, &bits, sizeof number);
    return number;
}

INLINE float number(Float16 value) {
    uint32_t magnitude = (value.bits & 0x7fff) << 13, sign = (uint32_t)(value.bits & 0x8000) << 16;
    float scaled;
    __builtin_memcpy(&scaled, &magnitude, sizeof scaled);
    scaled *= 0x1p112f;
    uint32_t bits;
    __builtin_memcpy(&bits, &scaled, sizeof bits);
    bits |= ((value.bits & 0x7fff) >= 0x7c00 ? 0x7f800000u : 0) | sign;
    __builtin_memcpy(&scaled, &bits, sizeof scaled);
    return scaled;
}

// The nearest one of them; of two that are as near the even one. A NaN stays one.
template <class Kept>
INLINE_MEMBER Kept rounded(float value);

template <>
INLINE_MEMBER float rounded(float value) {
    return value;
}

template <>
INLINE_MEMBER BFloat16 rounded(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    if (value != value) return {0x7fc0};
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
INLINE_MEMBER Float16 rounded(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (value != value) return {(uint16_t)(sign | 0x7e00)};
    if (bits >= 0x47800000) return {(uint16_t)(sign | 0x7c00)};
    if (bits < 0x38800000) {  // subnormal: the sum's last bit is worth what theirs is
        float magnitude;
        __builtin_memcpy(&magnitude, &bits, sizeof bits);
        magnitude += 0.5f;
        __builtin_memcpy(&bits, &magnitude, sizeof bits);
        return {(uint16_t)(sign | (bits - 0x3f000000))};
    }
    bits -= 112u << 23;  // the exponent's bias from 127 to 15
    return {(uint16_t)(sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13)};
}

// exp(x) for x <= 0 within 2 units in the last place, exactly 1 of 0; about 1e-38, where floats end,
// of all below -87.3. Cody and Waite's reduction, the polynomial of Cephes' expf. A NaN stays one.
INLINE Floats exponential(Floats x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    x = select(x < -87.3f, Floats{} - 87.3f, x);
    Floats shifted = x * 1.44269504088896341f + magic;
    Floats power = shifted - magic;
    Floats rest = x - power * 0.693359375f;
    rest = rest - power * -2.12194440e-4f;
    Floats series = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * (rest * rest) + rest + 1.0f;
    // The low bits are the integer, or nothing of a NaN; the magic number's own leave at the top.
    return (Floats)((Words)series + ((Words)shifted << 23));
}

INLINE float exponential(float x) { return exponential(Floats{} + x)[0]; }

INLINE float sum_of(Floats values) {
    float sum = values[0];
    UNROLLED for (int lane = 1; lane < LANES; lane++) sum += values[lane];
    return sum;
}

INLINE float largest_of(Floats values) {
    float largest = values[0];
    UNROLLED for (int lane = 1; lane < LANES; lane++)
        largest = values[lane] > largest ? values[lane] : largest;
    return largest;
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Ints){__VA_ARGS__})
#endif

// What one instruction does in each quarter of 128 bits: single floats, or pairs, of both in turn.
#if defined(__AVX512F__)
#define LOW_1(a, b) \
    SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH_1(a, b) \
    SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW_2(a, b) \
    SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH_2(a, b) \
    SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define EVEN_4(a, b) \
    SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define ODD_4(a, b) \
    SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#elif defined(__AVX__)
#define LOW_1(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH_1(a, b) SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW_2(a, b) SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH_2(a, b) SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define EVEN_4(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define ODD_4(a, b) SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#else
#define LOW_1(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define HIGH_1(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#define LOW_2(a, b) SHUFFLE(a, b, 0, 1, 4, 5)
#define HIGH_2(a, b) SHUFFLE(a, b, 2, 3, 6, 7)
#endif

// LANES vectors of LANES floats: afterwards rows[i][j] is what rows[j][i] was.
INLINE void transpose(Floats* rows) {
    Floats quads[LANES];  // quads[4 * k + c]: of rows 4k to 4k + 3, column c of each quarter
    UNROLLED for (int k = 0; k < LANES; k += 4) {
        Floats low_01 = LOW_1(rows[k], rows[k + 1]), high_01 = HIGH_1(rows[k], rows[k + 1]);
        Floats low_23 = LOW_1(rows[k + 2], rows[k + 3]);
        Floats high_23 = HIGH_1(rows[k + 2], rows[k + 3]);
        quads[k] = LOW_2(low_01, low_23), quads[k + 1] = HIGH_2(low_01, low_23);
        quads[k + 2] = LOW_2(high_01, high_23), quads[k + 3] = HIGH_2(high_01, high_23);
    }
    UNROLLED for (int c = 0; c < 4; c++) {
#if defined(__AVX512F__)
        Floats even_01 = EVEN_4(quads[c], quads[4 + c]), odd_01 = ODD_4(quads[c], quads[4 + c]);
        Floats even_23 = EVEN_4(quads[8 + c], quads[12 + c]);
        Floats odd_23 = ODD_4(quads[8 + c], quads[12 + c]);
        rows[c] = EVEN_4(even_01, even_23), rows[8 + c] = ODD_4(even_01, even_23);
        rows[4 + c] = EVEN_4(odd_01, odd_23), rows[12 + c] = ODD_4(odd_01, odd_23);
#elif defined(__AVX__)
        rows[c] = EVEN_4(quads[c], quads[4 + c]), rows[4 + c] = ODD_4(quads[c], quads[4 + c]);
#else
        rows[c] = quads[c];
#endif
    }
}
