// Draws tokens of a batch, a row after another on torch's own threads: temperature, min-p, top-k,
// nucleus and keyed Gumbel noise, each token of a row by that row and its key alone.
//
// Noise is made where it can still win: it needs two logarithms, and to beat the best sum so far
// its uniform number must lie below a bound that a chunk of tokens shares.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>

#include "vectors.h"

namespace {

constexpr int64_t CHUNK = 64;
constexpr float MOST_NOISE = 37.5f;  // of the smallest uniform number, 2^-54
constexpr float LEAST_TEMPERATURE = 1e-37f;

// The constants of splitmix64.
constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull;
constexpr uint64_t FIRST = 0xBF58476D1CE4E5B9ull, SECOND = 0x94D049BB133111EBull;

typedef uint64_t Longs __attribute__((vector_size(LANES * 4)));
constexpr int LONGS = LANES / 2;

struct Draw {
    int64_t row;
    uint64_t key;
    float temperature;  // 0: the best
    float least;        // of the scores, from the best one down: log(min_p), or -infinity
    double top_p;
    int64_t top_k;  // 0: all
};

struct Draws {
    int64_t num_draws, vocab, stride;
    const float* logits;
    const Draw* draws;
    int64_t* tokens;
    float* scratch;  // for each thread `sampling_scratch(vocab)` floats
    int64_t next_draw, num_begun;
};

typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel of torch's

int64_t num_chunks(int64_t vocab) { return (vocab + CHUNK - 1) / CHUNK; }

struct Row {
    int64_t vocab;
    float* scores;   // [vocab]: 0 is the best one's
    float* largest;  // [chunks]: of each chunk's scores
    float* sorted;   // [vocab]
    float floor;     // a candidate lies above it
};

float largest_in(const float* values, int64_t count) {
    float largest = values[0];
    int64_t i = 0;
    if (count >= LANES) {
        Floats lanes = load(values);
        for (i = LANES; i + LANES <= count; i += LANES) {
            Floats more = load(values + i);
            lanes = select(more > lanes, more, lanes);
        }
        largest = largest_of(lanes);
    }
    for (; i < count; i++) largest = values[i] > largest ? values[i] : largest;
    return largest;
}

// The first of the largest.
int64_t place_of_largest(const float* values, int64_t count) {
    int64_t chunk = 0;
    float largest = -INFINITY;
    for (int64_t at = 0; at < count; at += CHUNK) {
        const float own = largest_in(values + at, std::min(CHUNK, count - at));
        if (own > largest) largest = own, chunk = at;
    }
    const int64_t end = std::min(chunk + CHUNK, count);
    for (int64_t i = chunk; i < end; i++)
        if (values[i] == largest) return i;
    return 0;  // none is a number
}

void score(Row& row, const float* logits, float best, float temperature) {
    if (temperature < LEAST_TEMPERATURE) temperature = LEAST_TEMPERATURE;
    for (int64_t at = 0, chunk = 0; at < row.vocab; at += CHUNK, chunk++) {
        const int64_t count = std::min(CHUNK, row.vocab - at);
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES)
            store(row.scores + at + i, (load(logits + at + i) - best) / temperature);
        for (; i < count; i++) row.scores[at + i] = (logits[at + i] - best) / temperature;
        row.largest[chunk] = largest_in(row.scores + at, count);
    }
}

// The k-th largest score above the floor, or the floor where there are fewer.
float kth_largest(const Row& row, int64_t k) {
    const int64_t chunks = num_chunks(row.vocab);
    float bound = row.floor;
    if (k <= chunks) {  // that many are at least as large as the k-th largest of the chunks'
        std::copy(row.largest, row.largest + chunks, row.sorted);
        std::nth_element(row.sorted, row.sorted + k - 1, row.sorted + chunks, std::greater<float>());
        bound = std::max(bound, std::nextafterf(row.sorted[k - 1], -INFINITY));
    }
    int64_t count = 0;
    for (int64_t at = 0, chunk = 0; at < row.vocab; at += CHUNK, chunk++) {
        if (!(row.largest[chunk] > bound)) continue;
        const int64_t end = std::min(at + CHUNK, row.vocab);
        for (int64_t i = at; i < end; i++)
            if (row.scores[i] > bound) row.sorted[count++] = row.scores[i];
    }
    if (count < k) return row.floor;
    std::nth_element(row.sorted, row.sorted + k - 1, row.sorted + count, std::greater<float>());
    return row.sorted[k - 1];
}

// The sum of exp(score) of those above `floor`.
double weight_above(const Row& row, float floor) {
    double weight = 0;
    for (int64_t at = 0, chunk = 0; at < row.vocab; at += CHUNK, chunk++) {
        if (!(row.largest[chunk] > floor)) continue;
        const int64_t count = std::min(CHUNK, row.vocab - at);
        const float* scores = row.scores + at;
        Floats sums = {};
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) {
            Floats some = load(scores + i);
            sums += select(some > floor, exponential(some), Floats{});
        }
        float rest = 0;
        for (; i < count; i++) rest += scores[i] > floor ? exponential(scores[i]) : 0.0f;
        weight += (double)sum_of(sums) + rest;
    }
    return weight;
}

// 53 bits of the splitmix64 stream that starts at `key`, for the tokens from `first` on.
void uniform_bits(uint64_t key, int64_t first, uint64_t* bits) {
    Longs state;
    UNROLLED for (int lane = 0; lane < LONGS; lane++)
        state[lane] = (uint64_t)(first + 1 + lane) * GOLDEN + key;
    for (int64_t i = 0; i < CHUNK; i += LONGS) {
        Longs mixed = state;
        mixed = (mixed ^ (mixed >> 30)) * FIRST;
        mixed = (mixed ^ (mixed >> 27)) * SECOND;
        mixed = (mixed ^ (mixed >> 31)) >> 11;
        __builtin_memcpy(bits + i, &mixed, sizeof mixed);
        state += GOLDEN * LONGS;
    }
}

float noise_of(uint64_t bits) {
    float uniform = ((float)(int64_t)bits + 0.5f) * 0x1p-53f;
    return -logf(-log1pf(-uniform));
}

// Numbers from this one on are too large for noise above `sum`, with a margin for rounding.
uint64_t bound_for(float sum) {
    const double uniform = -std::expm1(-std::exp(-(double)sum)) * (1 + 1e-5);
    return uniform < 1 ? (uint64_t)(uniform * 0x1p53) + 1 : (uint64_t)1 << 53;
}

// The candidate whose score and noise have the largest sum; the first of equals.
int64_t best_with_noise(const Row& row, uint64_t key) {
    int64_t best = -1;
    float sum = -INFINITY;
    uint64_t bits[CHUNK];
    for (int64_t at = 0, chunk = 0; at < row.vocab; at += CHUNK, chunk++) {
        const float largest = row.largest[chunk];
        if (!(largest > row.floor) || largest + MOST_NOISE < sum) continue;
        const int64_t count = std::min(CHUNK, row.vocab - at);
        const uint64_t bound = bound_for(sum - largest);
        uniform_bits(key, at, bits);
        for (int64_t i = 0; i < count; i++) {
            if (bits[i] >= bound || !(row.scores[at + i] > row.floor)) continue;
            const float own = row.scores[at + i] + noise_of(bits[i]);
            if (own > sum) sum = own, best = at + i;
        }
    }
    return best;
}

int64_t draw(Row& row, const Draw& draw, const float* logits) {
    const int64_t greedy = place_of_largest(logits, row.vocab);
    if (draw.temperature == 0 || !std::isfinite(logits[greedy])) return greedy;
    score(row, logits, logits[greedy], draw.temperature);
    row.floor = std::isfinite(draw.least) ? std::nextafterf(draw.least, -INFINITY) : -INFINITY;
    if (draw.top_k > 0 && draw.top_k < row.vocab) {
        const float kth = kth_largest(row, draw.top_k);
        if (kth > row.floor) row.floor = std::nextafterf(kth, -INFINITY);
    }
    const double enough = draw.top_p < 1 ? draw.top_p * weight_above(row, row.floor) : INFINITY;
    while (true) {
        const int64_t token = best_with_noise(row, draw.key);
        if (token < 0) return greedy;
        // In the nucleus if those above it fall short of it; if not, neither is any below it.
        if (!(draw.top_p < 1) || weight_above(row, row.scores[token]) < enough) return token;
        row.floor = row.scores[token];
    }
}

void run(void* argument) {
    Draws& draws = *(Draws*)argument;
    const int64_t own = __atomic_fetch_add(&draws.num_begun, 1, __ATOMIC_RELAXED);
    const int64_t chunks = num_chunks(draws.vocab);
    float* scratch = draws.scratch + own * (2 * draws.vocab + chunks);
    Row row{draws.vocab, scratch, scratch + 2 * draws.vocab, scratch + draws.vocab, -INFINITY};
    while (true) {
        const int64_t next = __atomic_fetch_add(&draws.next_draw, 1, __ATOMIC_RELAXED);
        if (next >= draws.num_draws) return;
        const Draw& one = draws.draws[next];
        draws.tokens[next] = draw(row, one, draws.logits + one.row * draws.stride);
    }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Floats of scratch memory that a thread needs.
EXPORT int64_t sampling_scratch(int64_t vocab) { return 2 * vocab + num_chunks(vocab); }

EXPORT void sampling_draw(int64_t num_draws, int64_t vocab, int64_t stride, const float* logits,
                          const Draw* wanted, int64_t* tokens, float* scratch, Parallel parallel,
                          int64_t num_threads) {
    Draws draws{num_draws, vocab, stride, logits, wanted, tokens, scratch, 0, 0};
    if (num_threads > 1 && num_draws > 1)
        parallel(run, &draws, (unsigned)std::min(num_threads, num_draws), 0);
    else
        run(&draws);
}
