// Attention of a step's tokens to a paged KV cache, read where it lies: for all rows at once.
//
// Work is cut into units that threads take as they come. Of a single token a unit is all heads (so
// that memory is read in order) and its whole context, or one piece of it, if the row is split: who
// finishes the last piece of a split row joins them. Of a chunk it is some tokens and one K/V head.
// How work is cut changes no bit: see piece.h.

#include "piece.h"

#ifndef KV
#define KV float  // what the cache holds: float, BFloat16 or Float16
#endif

// Both as the Python side fills them in (native_attention.py): all in 8 bytes.
struct Row {
    int64_t first_token;    // in the step's batch
    int64_t num_new;        // tokens
    int64_t start;          // position of the first
    int64_t table;          // where its block table begins
    int64_t unit_tokens;    // tokens of a unit
    int64_t first_partial;  // of its pieces; -1: it is not split
    int64_t first_unit;     // of all rows' units
};

using Task = void (*)(void*);

struct Step {
    int64_t num_rows, num_units;
    const Row* rows;
    const int32_t* tables;
    int32_t* num_missing;  // of each row: pieces until it is whole; the same after a call as before
    float* partials;       // of each piece of a split row: for each head [stride] and its Weight
    int64_t heads, kv_heads, dim, block_size;
    int64_t window;  // tokens that a token sees, itself included
    const float* queries;
    int64_t query_stride;  // floats from token to token
    const KV *keys, *values;
    float* output;  // [num_tokens, heads, dim]
    int64_t num_threads;
    float* scratch;
    int64_t scratch_floats;  // of each thread
    void (*parallel)(Task, void*, unsigned, unsigned);  // GOMP_parallel of torch's own OpenMP
    int64_t next_unit, num_begun;

    int64_t group() const { return heads / kv_heads; }
    int64_t stride() const { return up_to(dim, LANES); }
    int64_t row_size() const { return kv_heads * dim; }
    int64_t head_partial() const { return stride() + LANES; }
    const KV* slot_of(const KV* plane, const Row& row, int64_t position) const {
        const int64_t block = tables[row.table + position / block_size];
        return plane + (block * block_size + position % block_size) * row_size();
    }
};

// Of the piece that begins at `base`: what any token of the positions [oldest, newest] sees.
static Seen seen_of(const Step& step, int64_t oldest, int64_t newest, int64_t base) {
    const int64_t begin = most(oldest - step.window + 1 - base, 0);
    const int64_t end = least(newest + 1 - base, PIECE);
    return begin < end ? Seen{(int)begin, (int)end} : Seen{0, 0};
}

static int64_t first_piece(const Step& step, int64_t position) {
    return most(position - step.window + 1, 0) / PIECE;
}

// Takes memory off the front of a thread's own.
static float* take(float*& free, int64_t floats) {
    float* taken = free;
    free += up_to(floats, LANES);
    return taken;
}

static void clear(float* place, int64_t floats) {
    __builtin_memset(place, 0, floats * sizeof(float));
}

// The rows of a piece, where they lie. Keys that nobody sees are others' rows, so that whatever is
// read was written.
struct Rows {
    const KV* keys[PIECE];
    const KV* values[PIECE];

    Rows(const Step& step, const Row& row, int64_t base, Seen seen) {
        int64_t left = 0;  // of the block
        for (int key = seen.begin; key < seen.end; key++, left--) {
            if (left == 0) {
                keys[key] = step.slot_of(step.keys, row, base + key);
                values[key] = step.slot_of(step.values, row, base + key);
                left = step.block_size - (base + key) % step.block_size;
            } else {
                keys[key] = keys[key - 1] + step.row_size();
                values[key] = values[key - 1] + step.row_size();
            }
        }
        for (int key = 0; key < seen.begin; key++) keys[key] = keys[seen.begin];
        for (int key = seen.end; key < PIECE; key++) keys[key] = keys[seen.end - 1];
    }
};

// One token, all heads.
struct Token {
    const Step& step;
    const Row& row;
    const int64_t group, dim, stride;
    // So many queries of a K/V head at once: few enough for registers, and evenly.
    const bool is_few;
    const int64_t scored, added;
    float* free;  // scratch behind what is taken here
    float *const queries, *const scores, *const output, *const buffer;
    Weight* const weights;

    Token(const Step& step, const Row& row, float* scratch)
        : step(step), row(row), group(step.group()), dim(step.dim), stride(step.stride()),
          is_few(group <= FEW), scored(is_few ? group : even(group, ROWS)),
          added(even(group, ROWS)), free(scratch), queries(take(free, step.heads * dim)),
          scores(take(free, step.heads * PIECE)), output(take(free, step.heads * stride)),
          buffer(take(free, PANEL * stride)), weights((Weight*)take(free, step.heads * 2)) {
        const float* token = step.queries + row.first_token * step.query_stride;
        for (int64_t head = 0; head < step.heads; head += group)
            for (int64_t g = 0; g < group; g += scored) {
                const int64_t at = (head + g) * dim, count = least(scored, group - g);
                for (int64_t r = 0; r < count; r++)
                    for (int64_t d = 0; d < dim; d++)
                        queries[at + d * count + r] = token[at + r * dim + d];
            }
    }

    int64_t first() const { return first_piece(step, row.start); }
    int64_t stop() const { return row.start / PIECE + 1; }

    // Leaves of each head the weighted values in `output`, what they weigh in `weights`.
    void attend(int64_t piece, bool goes_on) {
        const int64_t base = piece * PIECE;
        const Seen seen = seen_of(step, row.start, row.start, base);
        const Rows rows(step, row, base, seen);
        const KV* order[2 * PIECE + PANEL];
        const int num_ahead = read_ahead(rows, seen, goes_on ? base + PIECE : -1, order);
        Ahead ahead((const char* const*)order, num_ahead, step.row_size() * sizeof(KV));
        const int begin = down_to(seen.begin, PANEL), end = up_to(seen.end, PANEL);
        for (int key = begin; key < end; key += is_few ? LANES : PANEL)
            for (int64_t head = 0; head < step.heads; head += group)
                score(rows.keys + key, head, scores + head * PIECE + key, &ahead);
        for (int64_t head = 0; head < step.heads; head++)
            weights[head] = weigh(scores + head * PIECE, begin, end, seen);
        clear(output, step.heads * stride);
        for (int key = seen.begin; key < seen.end; key += PANEL) {
            const int count = (int)least(PANEL, seen.end - key);
            for (int64_t head = 0; head < step.heads; head += group)
                add(rows.values + key, count, head, scores + head * PIECE + key, &ahead);
        }
    }

    // What is read behind the first panel of a piece, in order: its keys, its values, the first
    // keys of the piece at `next`, if there is one. Returns how many rows.
    int read_ahead(const Rows& rows, Seen seen, int64_t next, const KV** order) const {
        int num = 0;
        for (int key = down_to(seen.begin, PANEL) + PANEL; key < seen.end; key++)
            order[num++] = rows.keys[key];
        for (int key = seen.begin; key < seen.end; key++) order[num++] = rows.values[key];
        for (int64_t key = next; next >= 0 && key < next + PANEL && key <= row.start; key++)
            order[num++] = step.slot_of(step.keys, row, key);
        return num;
    }

    void score(const KV* const* keys, int64_t head, float* out, Ahead* ahead) const {
        const int64_t offset = head / group * dim;
        if (is_few) {
            const ScoresInPlace<KV> few = {queries + head * dim, keys, offset, (int)dim, out, ahead};
            return with_count<FEW>((int)group, few);
        }
        pack_panel(keys, offset, dim, buffer, ahead);
        for (int64_t g = 0; g < group; g += scored) {
            const float* own = queries + (head + g) * dim;
            const Scores some = {own, buffer, (int)dim, 0, PANEL, out + g * PIECE};
            with_count<ROWS>((int)least(scored, group - g), some);
        }
    }

    void add(
        const KV* const* values, int num, int64_t head, const float* shares, Ahead* ahead
    ) const {
        const int64_t offset = head / group * dim;
        const float* packed[PANEL];
        const bool is_whole = dim % LANES == 0;
        if (!is_whole) {
            pack_values(values, offset, 0, num, dim, stride, buffer);
            for (int key = 0; key < num; key++) packed[key] = buffer + key * stride;
        }
        for (int64_t g = 0; g < group; g += added) {
            const int count = (int)least(added, group - g);
            const float* share = shares + g * PIECE;
            float* out = output + (head + g) * stride;
            Ahead* first = g ? nullptr : ahead;
            if (is_whole) {
                const Values<KV> some = {share, values, offset, 0, num, out, (int)stride, first};
                with_count<ROWS>(count, some);
            } else {
                const Values<float> some = {share, packed, 0, 0, num, out, (int)stride, first};
                with_count<ROWS>(count, some);
            }
        }
    }
};

static void attend_token(const Step& step, const Row& row, float* scratch) {
    Token token(step, row, scratch);
    const int64_t stride = token.stride;
    float* whole = take(token.free, step.heads * stride);
    Weight* all = (Weight*)take(token.free, step.heads * 2);
    clear(whole, step.heads * stride);
    for (int64_t head = 0; head < step.heads; head++) all[head] = {LOWEST, 0};
    for (int64_t piece = token.first(); piece < token.stop(); piece++) {
        token.attend(piece, piece + 1 < token.stop());
        for (int64_t head = 0; head < step.heads; head++) {
            const int64_t at = head * stride;
            join(all[head], whole + at, token.weights[head], token.output + at, stride);
        }
    }
    float* out = step.output + row.first_token * step.heads * step.dim;
    for (int64_t head = 0; head < step.heads; head++)
        finish(all[head], whole + head * stride, step.dim, out + head * step.dim);
}

// One piece of a split row, the `number`th that it sees; the last to be done joins them all.
static void attend_piece(const Step& step, const Row& row, int64_t number, float* scratch) {
    Token token(step, row, scratch);
    const int64_t stride = token.stride, head_partial = step.head_partial();
    const int64_t num_pieces = token.stop() - token.first();
    float* partials = step.partials + row.first_partial * step.heads * head_partial;
    token.attend(token.first() + number, false);
    for (int64_t head = 0; head < step.heads; head++) {
        float* partial = partials + (number * step.heads + head) * head_partial;
        __builtin_memcpy(partial, token.output + head * stride, stride * sizeof(float));
        *(Weight*)(partial + stride) = token.weights[head];
    }
    int32_t* num_missing = step.num_missing + (&row - step.rows);
    if (__atomic_sub_fetch(num_missing, 1, __ATOMIC_ACQ_REL) != 0) return;
    *num_missing = (int32_t)num_pieces;
    float* out = step.output + row.first_token * step.heads * step.dim;
    for (int64_t head = 0; head < step.heads; head++) {
        Weight all = {LOWEST, 0};
        clear(token.output, stride);
        for (int64_t piece = 0; piece < num_pieces; piece++) {
            const float* partial = partials + (piece * step.heads + head) * head_partial;
            join(all, token.output, *(const Weight*)(partial + stride), partial, stride);
        }
        finish(all, token.output, step.dim, out + head * step.dim);
    }
}

// Tokens [first, stop) of a row and one K/V head: its keys and values are packed once for all.
static void attend_chunk(
    const Step& step, const Row& row, int64_t first, int64_t stop, int64_t kv_head, float* free
) {
    const int64_t group = step.group(), dim = step.dim, stride = step.stride();
    const int64_t num = (stop - first) * group;  // queries: the heads of a token side by side
    float* panels = take(free, dim * PIECE);
    float* packed = take(free, stride * PIECE);
    float* queries = take(free, num * dim);
    float* scores = take(free, ROWS * PIECE);
    float* output = take(free, ROWS * stride);
    float* whole = take(free, num * stride);
    Weight* all = (Weight*)take(free, num * 2);
    const float* token = step.queries + (row.first_token + first) * step.query_stride;
    for (int64_t q = 0; q < num; q++) {
        // [dim][count] of those that are computed together.
        const int64_t count = least(ROWS, num - q / ROWS * ROWS);
        const float* own = token + q / group * step.query_stride + (kv_head * group + q % group) * dim;
        float* place = queries + q / ROWS * ROWS * dim + q % ROWS;
        for (int64_t d = 0; d < dim; d++) place[d * count] = own[d];
    }
    clear(whole, num * stride);
    for (int64_t q = 0; q < num; q++) all[q] = {LOWEST, 0};
    const float* packed_rows[PIECE];
    for (int key = 0; key < PIECE; key++) packed_rows[key] = packed + key * stride;

    const int64_t oldest = row.start + first, newest = row.start + stop - 1;
    for (int64_t piece = first_piece(step, oldest); piece <= newest / PIECE; piece++) {
        const int64_t base = piece * PIECE;
        const Seen any = seen_of(step, oldest, newest, base);
        const Rows rows(step, row, base, any);
        const Seen soon = seen_of(step, oldest, newest, base + PIECE);
        const KV* order[2 * PIECE] = {rows.keys[any.begin]};
        if (soon.begin < soon.end) {
            const Rows next(step, row, base + PIECE, soon);
            for (int key = 0; key < soon.end; key++) {
                order[key] = next.keys[key] + kv_head * dim;
                order[soon.end + key] = next.values[key] + kv_head * dim;
            }
        }
        Ahead ahead((const char* const*)order, (int)most(2 * soon.end, 1), dim * sizeof(KV));
        for (int key = down_to(any.begin, PANEL); key < any.end; key += PANEL)
            pack_panel(rows.keys + key, kv_head * dim, dim, panels + key * dim, nullptr);
        pack_values(rows.values, kv_head * dim, any.begin, any.end, dim, stride, packed);
        for (int64_t q = 0; q < num; q += ROWS) {
            const int count = (int)least(ROWS, num - q);
            const Seen seen = seen_of(
                step, oldest + q / group, oldest + (q + count - 1) / group, base
            );
            if (seen.begin == seen.end) continue;
            const int begin = down_to(seen.begin, PANEL), end = up_to(seen.end, PANEL);
            const Scores some = {queries + q * dim, panels, (int)dim, begin, end, scores};
            with_count<ROWS>(count, some);
            Weight weights[ROWS];
            for (int r = 0; r < count; r++) {
                const int64_t position = oldest + (q + r) / group;
                const Seen own = seen_of(step, position, position, base);
                weights[r] = weigh(scores + r * PIECE, begin, end, own);
            }
            clear(output, count * stride);
            const Values<float> added = {
                scores, packed_rows, 0, seen.begin, seen.end, output, (int)stride, q ? nullptr : &ahead
            };
            with_count<ROWS>(count, added);
            for (int r = 0; r < count; r++)
                join(all[q + r], whole + (q + r) * stride, weights[r], output + r * stride, stride);
        }
    }
    for (int64_t q = 0; q < num; q++) {
        const int64_t at = row.first_token + first + q / group;
        const int64_t head = kv_head * group + q % group;
        finish(all[q], whole + q * stride, dim, step.output + (at * step.heads + head) * dim);
    }
}

static void run_unit(const Step& step, int64_t unit, float* scratch) {
    int64_t low = 0, high = step.num_rows;  // the last row whose units begin here or before
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (step.rows[middle].first_unit <= unit ? low : high) = middle;
    }
    const Row& row = step.rows[low];
    const int64_t number = unit - row.first_unit;
    if (row.num_new == 1) {
        if (row.first_partial < 0) return attend_token(step, row, scratch);
        return attend_piece(step, row, number, scratch);
    }
    // The newest tokens first: they see most, and what is taken last should be small.
    const int64_t parts = (row.num_new + row.unit_tokens - 1) / row.unit_tokens;
    const int64_t first = (parts - 1 - number / step.kv_heads) * row.unit_tokens;
    const int64_t stop = least(first + row.unit_tokens, row.num_new);
    attend_chunk(step, row, first, stop, number % step.kv_heads, scratch);
}

static void run_units(void* given) {
    Step& step = *(Step*)given;
    const int64_t own = __atomic_fetch_add(&step.num_begun, 1, __ATOMIC_RELAXED);
    for (;;) {
        const int64_t unit = __atomic_fetch_add(&step.next_unit, 1, __ATOMIC_RELAXED);
        if (unit >= step.num_units) return;
        run_unit(step, unit, step.scratch + own * step.scratch_floats);
    }
}

#define SHARED extern "C" __attribute__((visibility("default")))

SHARED int64_t attention_piece(void) { return PIECE; }

SHARED int64_t attention_lanes(void) { return LANES; }

// Floats of a piece of a split row, all heads.
SHARED int64_t attention_partial(int64_t heads, int64_t dim) {
    return heads * (up_to(dim, LANES) + LANES);
}

// Floats of scratch that each thread needs; of a chunk a unit has at most so many tokens.
SHARED int64_t attention_scratch(int64_t heads, int64_t kv_heads, int64_t dim, int64_t tokens) {
    const int64_t num = tokens * heads / kv_heads, stride = up_to(dim, LANES);
    const int64_t of_token = heads * (dim + PIECE + 2 * stride + 4) + PANEL * stride;
    const int64_t of_chunk = (dim + stride) * PIECE + num * (dim + stride + 2) +
                             ROWS * (PIECE + stride);
    return up_to(most(of_token, of_chunk) + 8 * LANES, 64);
}

// exp of numbers that are not positive.
SHARED void attention_exponential(int64_t num, const float* in, float* out) {
    for (int64_t i = 0; i < num; i++) out[i] = exponential(in[i]);
}

SHARED void attention_attend(Step* step) {
    step->next_unit = step->num_begun = 0;
    const int64_t num_threads = least(step->num_threads, step->num_units);
    if (num_threads > 1)
        step->parallel(run_units, step, (unsigned)num_threads, 0);
    else
        run_units(step);
}
