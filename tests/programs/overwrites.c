// Overwrites the pages of its memory in random order, as fast as it can or at a given rate, and notes the longest time
// between two of its steps; each page holds words made of its version, which a table counts.
//
// Arguments: MiB, MiB a second (0: as fast as it can).
#include "verify.h"
#include <sys/mman.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)

static uint64_t random64(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void fill(uint64_t *page, uint64_t number, uint32_t version) {
    uint64_t seed = (number << 32 | version) * 0x9E3779B97F4A7C15ul | 1;
    for (size_t i = 0; i < WORDS; i++)
        page[i] = seed += 0xBF58476D1CE4E5B9ul;
}

static int holds(const uint64_t *page, uint64_t number, uint32_t version) {
    uint64_t seed = (number << 32 | version) * 0x9E3779B97F4A7C15ul | 1;
    for (size_t i = 0; i < WORDS; i++)
        if (page[i] != (seed += 0xBF58476D1CE4E5B9ul))
            return 0;
    return 1;
}

int main(int argc, char **argv) {
    REQUIRE(argc == 3);
    size_t pages = strtoul(argv[1], NULL, 10) << 8, rate = strtoul(argv[2], NULL, 10) << 8;
    uint64_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *versions = calloc(pages, sizeof *versions);
    REQUIRE(memory != MAP_FAILED && versions);
    for (size_t i = 0; i < pages; i++)
        fill(memory + i * WORDS, i, versions[i] = 1);
    uint64_t state = 88172645463325252ul, written = 0;
    int64_t began = now_ns(CLOCK_MONOTONIC), before = began, longest = 0, total = 0;
    say_ready();
    while (written % 256 || !told_to_go()) {
        size_t at = random64(&state) % pages;
        fill(memory + at * WORDS, at, ++versions[at]);
        written++;
        int64_t now = now_ns(CLOCK_MONOTONIC);
        if (now - before > longest)
            longest = now - before;
        if (now - before > 1000000)
            total += now - before;
        before = now;
        if (rate && written % 16 == 0) {
            int64_t due = began + (int64_t)(written * 1000000000ul / rate);
            if (due > now) {
                struct timespec until = {due / 1000000000, due % 1000000000};
                clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
                before = due;
            } else if (now - due > 100000000) {
                began = now - (int64_t)(written * 1000000000ul / rate); // what was missed is not caught up
            }
        }
    }
    int64_t took = now_ns(CLOCK_MONOTONIC) - began;
    if (loses("a page"))
        memory[WORDS * (pages / 2) + 7] ^= 1;
    for (size_t i = 0; i < pages; i++)
        if (!holds(memory + i * WORDS, i, versions[i])) {
            FAIL("page %zu is not version %u", i, versions[i]);
            break;
        }
    printf("longest gap %.2f ms, gaps beyond 1 ms %.0f ms, %.0f MiB a second\n", longest / 1e6, total / 1e6,
           written / 256.0 / (took / 1e9));
    return verdict();
}
