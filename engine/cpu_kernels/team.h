// Work shared out on torch's own threads: units that they take as they come.

#pragma once
#include <algorithm>
#include <cstdint>

// GOMP_parallel of torch's own OpenMP.
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);

// Calls work(unit) for each.
template <class Work>
void share(Parallel parallel, int64_t num_threads, int64_t num_units, const Work& work) {
    struct Run {
        const Work& work;
        int64_t num_units, next_unit;
    } run{work, num_units, 0};
    auto take = [](void* given) {
        Run& run = *(Run*)given;
        for (;;) {
            const int64_t unit = __atomic_fetch_add(&run.next_unit, 1, __ATOMIC_RELAXED);
            if (unit >= run.num_units) return;
            run.work(unit);
        }
    };
    num_threads = std::min(num_threads, num_units);
    if (num_threads > 1)
        parallel(take, &run, (unsigned)num_threads, 0);
    else
        take(&run);
}
