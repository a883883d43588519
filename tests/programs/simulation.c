// A wave on a ring of 64 Mi cells, in integers: 1 GiB of state, and each step depends on all of it.
//
//   simulation STEPS
//
// The checksum at the end is the same for every run that nothing disturbed.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CELLS (UINT64_C(64) << 20)

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: simulation STEPS\n");
        return 2;
    }
    long steps = strtol(argv[1], NULL, 0);
    int64_t *height = malloc(CELLS * sizeof *height), *speed = malloc(CELLS * sizeof *speed);
    if (height == NULL || speed == NULL) {
        perror("malloc");
        return 1;
    }
    for (uint64_t i = 0; i < CELLS; i++) {
        height[i] = (int64_t)(i * UINT64_C(0x9e3779b97f4a7c15) >> 24);
        speed[i] = (int64_t)(i % 4099);
    }
    printf("ready\n");
    fflush(stdout);
    for (long step = 1; step <= steps; step++) {
        // Two passes: every speed is of the heights of one moment.
        for (uint64_t i = 0; i < CELLS; i++)
            speed[i] += (height[(i + CELLS - 1) % CELLS] - 2 * height[i] + height[(i + 1) % CELLS]) >> 2;
        for (uint64_t i = 0; i < CELLS; i++)
            height[i] += speed[i] >> 1;
        printf("step %ld\n", step);
        fflush(stdout);
    }
    uint64_t sum = 0;
    for (uint64_t i = 0; i < CELLS; i++)
        sum = (sum ^ (uint64_t)height[i]) * UINT64_C(0x100000001b3) + (uint64_t)speed[i];
    printf("checksum %016lx\n", sum);
    return 0;
}
