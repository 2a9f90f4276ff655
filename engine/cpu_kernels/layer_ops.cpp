// What a layer does between its products, for all rows of a step in one call each: norm, rotation
// with the write to the cache, gate. A row comes to the same bits whatever shares the call.

#include <cmath>
#include <cstdint>

#include "team.h"
#include "vectors.h"

#ifndef KV
#define KV float  // what the cache holds: float, BFloat16 or Float16
#endif

namespace {

constexpr int64_t UNIT_FLOATS = 1 << 14;  // of a unit at least: as much as a thread is woken for

// Two numbers that lie side by side, the first in the low half.
typedef uint64_t Pairs __attribute__((vector_size(LANES * 4)));

// Calls work(row) for each, where rows have so many floats.
template <class Work>
void share_rows(Parallel parallel, int64_t num_threads, int64_t num_rows, int64_t num_floats,
                const Work& work) {
    const int64_t rows = UNIT_FLOATS / num_floats + 1;
    auto unit = [&](int64_t unit) {
        const int64_t stop = std::min(num_rows, (unit + 1) * rows);
        for (int64_t row = unit * rows; row < stop; row++) work(row);
    };
    share(parallel, num_threads, (num_rows + rows - 1) / rows, unit);
}

float sum_of_squares(const float* x, int64_t size) {
    Floats sums[2] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= size; i += 2 * LANES)
        UNROLLED for (int v = 0; v < 2; v++) {
            const Floats some = load(x + i + v * LANES);
            sums[v] += some * some;
        }
    float sum = sum_of(sums[0] + sums[1]);
    for (; i < size; i++) sum += x[i] * x[i];
    return sum;
}

// out = x / rms(x) * weight
void norm(const float* x, int64_t size, float eps, const float* weight, float* out) {
    const float factor = 1 / std::sqrt(sum_of_squares(x, size) / (float)size + eps);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
        store(out + i, load(x + i) * factor * load(weight + i));
    for (; i < size; i++) out[i] = x[i] * factor * weight[i];
}

void add(float* x, const float* added, int64_t size) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) store(x + i, load(x + i) + load(added + i));
    for (; i < size; i++) x[i] += added[i];
}

// Pairs of numbers, each times a complex one: its real part twice, and its imaginary part, which is
// negative for the first.
void turn(float* head, const float* real, const float* imaginary, int64_t dim) {
    int64_t i = 0;
    for (; i + LANES <= dim; i += LANES) {
        const Floats own = load(head + i);
        const Floats swapped = (Floats)((Pairs)own << 32 | (Pairs)own >> 32);
        store(head + i, own * load(real + i) + swapped * load(imaginary + i));
    }
    for (; i < dim; i += 2) {
        const float first = head[i], second = head[i + 1];
        head[i] = first * real[i] + second * imaginary[i];
        head[i + 1] = second * real[i + 1] + first * imaginary[i + 1];
    }
}

float silu(float x) { return x / (1 + std::exp(-x)); }

// x / (1 + exp(-x)), with an exponential of what is not positive.
Floats silu(Floats x) {
    const Floats power = exponential(select(x < 0, x, -x));
    return x * select(x < 0, power, Floats{} + 1) / (power + 1);
}

}  // namespace

#define SHARED extern "C" __attribute__((visibility("default")))

// out [rows, size] of a table's rows; false where it has none of that number.
SHARED bool layer_embed(const int64_t* token_ids, const float* table, int64_t num_known, float* out,
                        int64_t num_rows, int64_t size, Parallel parallel, int64_t num_threads) {
    for (int64_t row = 0; row < num_rows; row++)
        if (token_ids[row] < 0 || token_ids[row] >= num_known) return false;
    share_rows(parallel, num_threads, num_rows, size, [=](int64_t row) {
        __builtin_memcpy(out + row * size, table + token_ids[row] * size, size * sizeof(float));
    });
    return true;
}

// out [rows, 2, dim]: what `turn` wants, of complex numbers of the length `scale`.
SHARED void layer_rotations(const int64_t* positions, const float* frequencies, float* out,
                            int64_t num_rows, int64_t dim, float scale, Parallel parallel,
                            int64_t num_threads) {
    share_rows(parallel, num_threads, num_rows, 2 * dim, [=](int64_t row) {
        float *real = out + row * 2 * dim, *imaginary = real + dim;
        for (int64_t i = 0; i < dim; i += 2) {
            const float angle = (float)positions[row] * frequencies[i / 2];
            real[i] = real[i + 1] = scale * std::cos(angle);
            imaginary[i + 1] = scale * std::sin(angle);
            imaginary[i] = -imaginary[i + 1];
        }
    });
}

// hidden [rows, size] += added, if any; out: hidden, normed.
SHARED void layer_norm(float* hidden, const float* added, const float* weight, float* out,
                       int64_t num_rows, int64_t size, float eps, Parallel parallel,
                       int64_t num_threads) {
    share_rows(parallel, num_threads, num_rows, size, [=](int64_t row) {
        float* x = hidden + row * size;
        if (added) add(x, added + row * size, size);
        norm(x, size, eps, weight, out + row * size);
    });
}

// Rotates the heads of q and k in qkv [tokens, heads + 2 * kv_heads, dim], after norms [heads +
// kv_heads, dim], if any; k and v of a token go to its slot.
SHARED void layer_rotate(float* qkv, const float* norms, const float* rotations,
                         const int64_t* slots, KV* keys, KV* values, int64_t num_tokens,
                         int64_t heads, int64_t kv_heads, int64_t dim, float eps,
                         Parallel parallel, int64_t num_threads) {
    const int64_t width = (heads + 2 * kv_heads) * dim, kept = kv_heads * dim;
    share_rows(parallel, num_threads, num_tokens, width, [=](int64_t token) {
        float* own = qkv + token * width;
        const float *real = rotations + token * 2 * dim, *imaginary = real + dim;
        for (int64_t head = 0; head < heads + kv_heads; head++) {
            float* x = own + head * dim;
            if (norms) norm(x, dim, eps, norms + head * dim, x);
            turn(x, real, imaginary, dim);
        }
        KV *key = keys + slots[token] * kept, *value = values + slots[token] * kept;
        const float* from = own + heads * dim;
        for (int64_t i = 0; i < kept; i++) key[i] = rounded<KV>(from[i]);
        for (int64_t i = 0; i < kept; i++) value[i] = rounded<KV>(from[kept + i]);
    });
}

// out [rows, size] = silu(gate) * up, of [rows, 2 * size].
SHARED void layer_gate(const float* gate_up, float* out, int64_t num_rows, int64_t size,
                       Parallel parallel, int64_t num_threads) {
    share_rows(parallel, num_threads, num_rows, size, [=](int64_t row) {
        const float *gate = gate_up + row * 2 * size, *up = gate + size;
        float* own = out + row * size;
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES)
            store(own + i, silu(load(gate + i)) * load(up + i));
        for (; i < size; i++) own[i] = silu(gate[i]) * up[i];
    });
}
