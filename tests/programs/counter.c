// Counts, prints every step, and keeps a block of memory whose content it knows.
//
//   counter STEPS MEGABYTES [waits]
//
// Each step changes one page in sixteen. The last line is a checksum of the whole block: it is what an
// undisturbed run prints only if no page was lost or is of another moment. One that `waits` does so until it is told to go on,
// before that: its steps may be over long before a busy machine has done what a test does meanwhile.
#include "verify.h"

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) {
        fprintf(stderr, "usage: counter STEPS MEGABYTES [waits]\n");
        return 2;
    }
    uint64_t steps = strtoull(argv[1], NULL, 0), words = strtoull(argv[2], NULL, 0) << 17;
    uint64_t *block = malloc(words * sizeof *block);
    if (block == NULL) {
        perror("malloc");
        return 1;
    }
    for (uint64_t i = 0; i < words; i++)
        block[i] = mix(i);
    printf("ready\n");
    fflush(stdout);
    for (uint64_t step = 1; step <= steps; step++) {
        for (uint64_t page = step % 16; page < words / 512; page += 16)
            block[page * 512 + step % 512] += mix(step ^ page);
        printf("step %lu\n", step);
        fflush(stdout);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    if (argc == 4)
        await_go();
    uint64_t sum = 0;
    for (uint64_t i = 0; i < words; i++)
        sum = mix(sum ^ block[i]);
    printf("checksum %016lx\nok\n", sum);
    return 0;
}
