// What is computed on one piece of the context: scores, weights, weighted values, and how pieces
// are joined (online softmax, Milakov and Gimelshein 2018).
//
// Each number is made by one order of additions, whatever else is computed beside it: a score runs
// along the head in one chain, a weighted value along the keys of its piece in one chain, pieces
// are joined from the oldest to the newest. Pieces begin at multiples of PIECE of the position. So
// a token's output has the same bits in any batch, chunk, thread and split. What a token does not
// see has the weight 0 and the factors 1, which change no bit.

#pragma once
#include "vectors.h"

constexpr int PIECE = 128;         // keys
constexpr int PANEL = 2 * LANES;   // keys whose scores are computed at once
constexpr float LOWEST = -1e30f;   // the maximum of nothing; finite, so that differences are numbers
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 12;  // queries that are computed at once: as registers allow
#else
constexpr int ROWS = 6;
#endif
constexpr int FEW = 8;  // queries for which keys are not worth packing
constexpr int LINE_BYTES = 64;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int down_to(int number, int grain) { return number / grain * grain; }
INLINE int up_to(int number, int grain) { return (number + grain - 1) / grain * grain; }
INLINE int64_t up_to(int64_t number, int grain) { return (number + grain - 1) / grain * grain; }

// The least count of so few parts as none is larger than `most_of_one`.
INLINE int64_t even(int64_t number, int64_t most_of_one) {
    const int64_t parts = (number + most_of_one - 1) / most_of_one;
    return (number + parts - 1) / parts;
}

// Keys [begin, end) of a piece: those that a token sees.
struct Seen {
    int begin, end;
};

// Calls `body.run<count>()`, compiled for that count.
template <int MOST, class Body>
INLINE void with_count(int count, const Body& body) {
    if (count == MOST)
        body.template run<MOST>();
    else if constexpr (MOST > 1)
        with_count<MOST - 1>(count, body);
}

// Calls rows from memory that will be read soon, in the order in which they lie, as evenly as it
// is asked to.
struct Ahead {
    const char* const* rows;
    const char* const* last;
    int64_t row_bytes;
    const char* at;
    const char* end;

    Ahead(const char* const* rows, int num_rows, int64_t row_bytes)
        : rows(rows), last(rows + num_rows - 1), row_bytes(row_bytes), at(*rows),
          end(*rows + row_bytes) {}

    // So much as is read meanwhile.
    template <int BYTES>
    INLINE_MEMBER void call() {
        for (int byte = 0; byte < BYTES; byte += LINE_BYTES) {
            __builtin_prefetch(at);
            at += LINE_BYTES;
            if (at < end) continue;
            if (rows == last)
                at -= LINE_BYTES;
            else
                at = *++rows, end = at + row_bytes;
        }
    }
};

// K of PANEL keys as [dim][PANEL].
template <class T>
INLINE void pack_panel(
    const T* const* rows, int64_t offset, int dim, float* panel, Ahead* ahead
) {
    for (int first = 0; first < PANEL; first += LANES) {
        const T* const* own = rows + first;
        float* out = panel + first;
        int d = 0;
        for (; d + LANES <= dim; d += LANES) {
            Floats block[LANES];
            UNROLLED for (int key = 0; key < LANES; key++) block[key] = load(own[key] + offset + d);
            transpose(block);
            if (ahead) ahead->call<LANES * LANES * sizeof(T)>();
            UNROLLED for (int i = 0; i < LANES; i++) store(out + (d + i) * PANEL, block[i]);
        }
        for (; d < dim; d++)
            for (int key = 0; key < LANES; key++)
                out[d * PANEL + key] = number(own[key][offset + d]);
    }
}

// Scores of a few queries, [dim][R], with LANES keys that no other query sees: [R][PIECE].
template <class T>
struct ScoresInPlace {
    const float* queries;
    const T* const* rows;
    int64_t offset;
    int dim;
    float* out;
    Ahead* ahead;

    template <int R>
    void run() const {
        Floats sum[R] = {};
        const float* query = queries;
        int d = 0;
        for (; d + LANES <= dim; d += LANES, query += LANES * R) {
            Floats block[LANES];
            UNROLLED for (int key = 0; key < LANES; key++) block[key] = load(rows[key] + offset + d);
            transpose(block);
            ahead->call<LANES * LANES * sizeof(T)>();
            UNROLLED for (int i = 0; i < LANES; i++)
                UNROLLED for (int r = 0; r < R; r++) sum[r] += query[i * R + r] * block[i];
        }
        for (; d < dim; d++, query += R) {
            Floats keys;
            for (int key = 0; key < LANES; key++) keys[key] = number(rows[key][offset + d]);
            UNROLLED for (int r = 0; r < R; r++) sum[r] += query[r] * keys;
        }
        UNROLLED for (int r = 0; r < R; r++) store(out + r * PIECE, sum[r]);
    }
};

// Scores of some queries, [dim][R], with keys [first, last), multiples of PANEL, of panels that lie
// one behind the other: [R][PIECE].
struct Scores {
    const float* queries;
    const float* panels;
    int dim, first, last;
    float* out;

    template <int R>
    void run() const {
        for (int key = first; key < last; key += PANEL) {
            Floats sum[R][2] = {};
            const float *query = queries, *keys = panels + key * dim;
            for (int d = 0; d < dim; d++, query += R, keys += PANEL) {
                Floats low = load(keys), high = load(keys + LANES);
                UNROLLED for (int r = 0; r < R; r++) {
                    sum[r][0] += query[r] * low;
                    sum[r][1] += query[r] * high;
                }
            }
            UNROLLED for (int r = 0; r < R; r++) {
                store(out + r * PIECE + key, sum[r][0]);
                store(out + r * PIECE + key + LANES, sum[r][1]);
            }
        }
    }
};

// Adds the rows [begin, end) of V, weighted by [R][PIECE], to C vectors of [R][stride].
template <int R, int C, class T>
INLINE void add_values(
    const float* weights, const T* const* rows, int64_t offset, int begin, int end, float* out,
    int stride, Ahead* ahead
) {
    Floats sum[R][C];
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int c = 0; c < C; c++) sum[r][c] = load(out + r * stride + c * LANES);
    for (int key = begin; key < end; key++) {
        const T* row = rows[key] + offset;
        if (ahead) ahead->call<C * LANES * sizeof(T)>();
        Floats value[C];
        UNROLLED for (int c = 0; c < C; c++) value[c] = load(row + c * LANES);
        UNROLLED for (int r = 0; r < R; r++) {
            const float weight = weights[r * PIECE + key];
            UNROLLED for (int c = 0; c < C; c++) sum[r][c] += weight * value[c];
        }
    }
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int c = 0; c < C; c++) store(out + r * stride + c * LANES, sum[r][c]);
}

template <class T>
struct Values {
    const float* weights;
    const T* const* rows;
    int64_t offset;
    int begin, end;
    float* out;
    int stride;    // the head, up to a multiple of LANES
    Ahead* ahead;  // or null

    template <int R>
    void run() const {
        int d = 0;
        if constexpr (R <= ROWS / 2)
            for (; d + 4 * LANES <= stride; d += 4 * LANES) add<R, 4>(d);
        for (; d + 2 * LANES <= stride; d += 2 * LANES) add<R, 2>(d);
        if (d < stride) add<R, 1>(d);
    }

    template <int R, int C>
    void add(int d) const {
        add_values<R, C>(weights, rows, offset + d, begin, end, out + d, stride, ahead);
    }
};

// Copies rows [begin, end) of one head of V as floats, [key][stride], zeros behind the head.
template <class T>
INLINE void pack_values(
    const T* const* rows, int64_t offset, int begin, int end, int dim, int stride, float* out
) {
    for (int key = begin; key < end; key++) {
        const T* row = rows[key] + offset;
        float* packed = out + (int64_t)key * stride;
        int d = 0;
        for (; d + LANES <= dim; d += LANES) store(packed + d, load(row + d));
        for (; d < dim; d++) packed[d] = number(row[d]);
        for (; d < stride; d++) packed[d] = 0;
    }
}

struct Weight {
    float largest;  // score
    float sum;      // of exp(score - largest)
};

// Makes weights of the scores [first, last), multiples of LANES: 0 of those that are not seen.
template <bool SEES_ALL>
INLINE Weight weigh_those(float* scores, int first, int last, Seen seen) {
    Ints lanes;
    UNROLLED for (int lane = 0; lane < LANES; lane++) lanes[lane] = lane;
    Floats largest = Floats{} + LOWEST;
    for (int key = first; key < last; key += LANES) {
        Floats score = load(scores + key);
        Ints at = lanes + key;
        if (!SEES_ALL)
            score = select((at >= seen.begin) & (at < seen.end), score, Floats{} + LOWEST);
        largest = select(score > largest, score, largest);
    }
    Weight weight = {largest_of(largest), 0};
    Floats sum = {};
    for (int key = first; key < last; key += LANES) {
        Floats power = exponential(load(scores + key) - weight.largest);
        Ints at = lanes + key;
        if (!SEES_ALL) power = select((at >= seen.begin) & (at < seen.end), power, Floats{});
        store(scores + key, power);
        sum += power;
    }
    weight.sum = sum_of(sum);
    return weight;
}

static Weight weigh(float* scores, int first, int last, Seen seen) {
    if (seen.begin <= first && seen.end >= last)
        return weigh_those<true>(scores, first, last, seen);
    return weigh_those<false>(scores, first, last, seen);
}

// Joins a piece to all older ones: [stride] of each.
static __attribute__((noinline)) void join(
    Weight& all, float* output, Weight piece, const float* of_piece, int stride
) {
    const float largest = all.largest > piece.largest ? all.largest : piece.largest;
    const float older = exponential(all.largest - largest);
    const float newer = exponential(piece.largest - largest);
    all.largest = largest;
    all.sum = all.sum * older + piece.sum * newer;
    for (int d = 0; d < stride; d += LANES)
        store(output + d, load(output + d) * older + load(of_piece + d) * newer);
}

// The output [dim] of a query that has seen all.
static void finish(Weight all, const float* output, int dim, float* out) {
    int d = 0;
    for (; d + LANES <= dim; d += LANES) store(out + d, load(output + d) / all.sum);
    for (; d < dim; d++) out[d] = output[d] / all.sum;
}
