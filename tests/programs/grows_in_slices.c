// Threads that write memory faster than it can be copied, so that they run in slices of time during a checkpoint, while new
// memory is mapped now and then, for which all are stopped once more: that may be between two slices.
#include "verify.h"
#include <sys/mman.h>

enum { WRITERS = 1, PAGE = 4096 };
static const size_t WRITTEN = 64 << 20, MAPPED = 3 << 20;

static atomic_int stop;
static atomic_ulong rounds[WRITERS];
static unsigned char *written[WRITERS];

static void *write_all(void *index) {
    unsigned char *memory = written[(long)index];
    while (!atomic_load(&stop)) {
        unsigned long round = atomic_fetch_add(&rounds[(long)index], 1) + 1;
        for (size_t at = 0; at < WRITTEN; at += PAGE) {
            unsigned long *word = (unsigned long *)(memory + at);
            CHECK(*word == round - 1, "page %zu was written in round %lu, not %lu", at / PAGE, *word, round - 1);
            *word = round;
        }
    }
    return NULL;
}

// Maps and writes memory when the writers have stood still for milliseconds several times in a row, in every second checkpoint:
// the one between watches it, and so is not surprised by it at its beginning.
static void *map_in_slices(void *unused) {
    unsigned char *last = NULL;
    int64_t seen = now_ns(CLOCK_MONOTONIC), stood = 0;
    for (int turn = 1, in_a_row = 0, series = 0; !atomic_load(&stop);) {
        int64_t now = now_ns(CLOCK_MONOTONIC);
        if (now - seen > 2500000) {
            bool is_next = now - stood < 60000000;
            series += !is_next;
            in_a_row = is_next ? in_a_row + 1 : 1;
            stood = now;
        }
        seen = now;
        if (in_a_row != 3 || series % 2)
            continue;
        unsigned char *memory = mmap(NULL, MAPPED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(memory != MAP_FAILED);
        memset(memory, ++turn, MAPPED);
        for (size_t at = 0; last && at < MAPPED; at += PAGE)
            CHECK(last[at] == (unsigned char)(turn - 1), "a page of turn %d holds %d", turn - 1, last[at]);
        if (last)
            munmap(last, MAPPED);
        last = memory;
        in_a_row++;
    }
    return unused;
}

int main(void) {
    pthread_t writers[WRITERS];
    for (long i = 0; i < WRITERS; i++) {
        written[i] = mmap(NULL, WRITTEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(written[i] != MAP_FAILED);
        writers[i] = start_thread(write_all, (void *)i);
    }
    pthread_t mapper = start_thread(map_in_slices, NULL);
    until_go();
    if (loses("a page"))
        written[0][WRITTEN / 2] ^= 0x55;
    unsigned long before = atomic_load(&rounds[0]);
    while (atomic_load(&rounds[0]) < before + 2 && !atomic_load(&failures))
        sleep_ms(1);
    atomic_store(&stop, 1);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(writers[i], NULL);
    pthread_join(mapper, NULL);
    return verdict();
}
