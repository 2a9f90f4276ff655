// Products of some rows with one matrix, which lies in panels of outputs: of a panel what it has of
// one input, then of the next. It is read in order, once for all rows.
//
// An output is one chain of additions along the inputs, whatever rows share the call and however the
// work is cut.

#include <algorithm>
#include <cstdint>

#include "team.h"
#include "vectors.h"

#ifndef WEIGHT
#define WEIGHT float  // what the matrix holds: float, BFloat16 or int8_t
#endif

namespace {

constexpr int VECTORS = 4;
constexpr int PANEL = VECTORS * LANES;  // outputs
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 6;  // at a time: with VECTORS and what they are multiplied by, 32 registers
#else
constexpr int ROWS = 3;  // 16 registers
#endif
constexpr int64_t UNIT_ROWS = 96;  // of a unit at most, a multiple of ROWS
constexpr int64_t DEPTH = 128;     // inputs whose part of a panel stays near for all rows
constexpr int64_t AHEAD = 2048;    // bytes of a panel that memory is called for before

struct Matrix {  // as native_products.py fills it in
    int64_t num_inputs, num_outputs;
    const WEIGHT* panels;
    const float* scales;  // [outputs], or none
    const float* bias;    // [outputs], or none
    Parallel parallel;
};

// What a panel has of one input. Of narrow numbers those of a lane lie side by side, in 32 bits.
INLINE void read_columns(const float* panel, Floats (&columns)[VECTORS]) {
    UNROLLED for (int v = 0; v < VECTORS; v++) columns[v] = load(panel + v * LANES);
}

INLINE void read_columns(const BFloat16* panel, Floats (&columns)[VECTORS]) {
    UNROLLED for (int v = 0; v < VECTORS; v += 2) {
        const Ints both = *(const LooseInts*)(panel + v * LANES);
        columns[v] = (Floats)(both << 16), columns[v + 1] = (Floats)(both & -65536);
    }
}

INLINE void read_columns(const int8_t* panel, Floats (&columns)[VECTORS]) {
    const Ints all = *(const LooseInts*)panel;
    UNROLLED for (int v = 0; v < VECTORS; v++)
        columns[v] = __builtin_convertvector(all << (24 - 8 * v) >> 24, Floats);
}

INLINE void call(const WEIGHT* panel) {
    UNROLLED for (int at = 0; at < (int)sizeof(WEIGHT) * PANEL; at += 64)
        __builtin_prefetch((const char*)panel + at);
}

// Memory that is called for while something else is computed: with each input so many numbers more.
struct Ahead {
    const WEIGHT* place;
    int64_t step;
};

// Adds to sums [R, PANEL], or begins them; x: [R, depth], rows so far apart.
template <int R>
void add_rows(const float* x, int64_t x_stride, const WEIGHT* panel, Ahead ahead, int64_t depth,
              float* sums, bool begins) {
    Floats own[R][VECTORS];
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int v = 0; v < VECTORS; v++)
            own[r][v] = begins ? Floats{} : load(sums + r * PANEL + v * LANES);
    for (int64_t k = 0; k < depth; k++, panel += PANEL) {
        call(ahead.place + k * ahead.step);
        Floats columns[VECTORS];
        read_columns(panel, columns);
        UNROLLED for (int r = 0; r < R; r++) {
            const Floats one = spread(x[r * x_stride + k]);
            UNROLLED for (int v = 0; v < VECTORS; v++) own[r][v] += one * columns[v];
        }
    }
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int v = 0; v < VECTORS; v++) store(sums + r * PANEL + v * LANES, own[r][v]);
}

template <int R>
void add_up_to(int64_t rows, const float* x, int64_t x_stride, const WEIGHT* panel, Ahead ahead,
               int64_t depth, float* sums, bool begins) {
    if constexpr (R > 1)
        if (rows < R) return add_up_to<R - 1>(rows, x, x_stride, panel, ahead, depth, sums, begins);
    add_rows<R>(x, x_stride, panel, ahead, depth, sums, begins);
}

// The outputs [rows, width] of a panel, of which the last of a matrix may be too wide.
void finish(const Matrix& matrix, int64_t first, int64_t rows, const float* sums, float* out) {
    const int64_t width = std::min<int64_t>(PANEL, matrix.num_outputs - first);
    for (int64_t r = 0; r < rows; r++, sums += PANEL, out += matrix.num_outputs)
        for (int64_t i = 0; i < width; i++) {
            float sum = sums[i];
            if (matrix.scales) sum *= matrix.scales[first + i];
            if (matrix.bias) sum += matrix.bias[first + i];
            out[i] = sum;
        }
}

// x [rows, inputs] with one panel. Rows that are more than fit registers read it part by part.
void multiply(const Matrix& matrix, int64_t panel, int64_t rows, const float* x, float* out) {
    alignas(64) float sums[UNIT_ROWS * PANEL];
    const int64_t inputs = matrix.num_inputs, step = rows > ROWS ? DEPTH : inputs;
    const WEIGHT* numbers = matrix.panels + panel * PANEL * inputs;
    const int64_t num_tiles = (rows + ROWS - 1) / ROWS;
    for (int64_t k = 0; k < inputs; k += step)
        for (int64_t tile = 0, row = 0; tile < num_tiles; tile++) {
            const int64_t stop = rows * (tile + 1) / num_tiles;
            const WEIGHT* part = numbers + k * PANEL;
            const int64_t depth = std::min(step, inputs - k);
            // One tile calls what it will read; of several each its share of the next part.
            const int64_t share = PANEL / num_tiles;
            const Ahead ahead = num_tiles > 1
                                    ? Ahead{part + step * PANEL + tile * depth * share, share}
                                    : Ahead{part + AHEAD / sizeof(WEIGHT), PANEL};
            add_up_to<ROWS>(stop - row, x + row * inputs + k, inputs, part, ahead, depth,
                            sums + row * PANEL, k == 0);
            row = stop;
        }
    finish(matrix, panel * PANEL, rows, sums, out + panel * PANEL);
}

}  // namespace

#define SHARED extern "C" __attribute__((visibility("default")))

SHARED int64_t product_lanes(void) { return LANES; }

SHARED int64_t product_vectors(void) { return VECTORS; }

// out [rows, outputs] of x [rows, inputs].
SHARED void product_multiply(const Matrix* matrix, int64_t num_rows, const float* x, float* out,
                             int64_t num_threads) {
    const int64_t num_parts = (num_rows + UNIT_ROWS - 1) / UNIT_ROWS;
    const int64_t num_panels = (matrix->num_outputs + PANEL - 1) / PANEL;
    auto work = [=](int64_t unit) {
        const int64_t row = unit % num_parts * UNIT_ROWS;
        multiply(*matrix, unit / num_parts, std::min(UNIT_ROWS, num_rows - row),
                 x + row * matrix->num_inputs, out + row * matrix->num_outputs);
    };
    share(matrix->parallel, num_threads, num_panels * num_parts, work);
}
