// A stack that grew by deep recursion before, and that grows deeper afterwards; argv and environ still on it.
#include "maps.h"

static int depth_of_go;

__attribute__((noinline)) static uint64_t recurse(int depth, int to) {
    volatile uint64_t frame[120];
    for (int i = 0; i < 120; i++)
        frame[i] = depth * 1000 + i;
    if (depth == depth_of_go)
        until_go();
    uint64_t below = depth < to ? recurse(depth + 1, to) : 0;
    if (loses("frame") && depth == 10)
        frame[60]++;
    for (int i = 0; i < 120; i++)
        if (frame[i] != (uint64_t)depth * 1000 + i)
            return -1;
    return below == (uint64_t)-1 ? below : below + 1;
}

int main(int argc, char **argv) {
    char *const name = argv[0], *path = getenv("PATH");
    char copy[4096];
    snprintf(copy, sizeof copy, "%s %s", name, path ? path : "");
    depth_of_go = 3000;
    // 3000 frames are 3 MiB; 6000 go on growing what is there.
    uint64_t frames = recurse(1, 6000);
    CHECK(frames == 6000, "the recursion is damaged: %jd", (intmax_t)frames);
    char now[4096];
    snprintf(now, sizeof now, "%s %s", argv[0], path ? path : "");
    CHECK(strcmp(copy, now) == 0 && argc >= 1, "argv or environ changed");
    CHECK(has_flag(&argc, "gd"), "the stack no longer grows downwards");
    return verdict();
}
