// Has unmapped the vDSO and its data, and sleeps by functions of libc.
#include "maps.h"

int main(void) {
    char *line = NULL;
    size_t size = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    REQUIRE(maps != NULL);
    while (getline(&line, &size, maps) > 0) {
        unsigned long start, end;
        bool kernels = strstr(line, "[vdso]") || strstr(line, "[vvar");
        if (kernels && !loses("absence") && sscanf(line, "%lx-%lx", &start, &end) == 2)
            REQUIRE(munmap((void *)start, end - start) == 0);
    }
    rewind(maps);
    bool there = false;
    while (getline(&line, &size, maps) > 0)
        there |= strstr(line, "[vdso]") != NULL;
    fclose(maps);
    free(line);
    CHECK(!there, "the vDSO is still there");
    // await_go() sleeps by nanosleep(3), and asks for no time.
    until_go();
    CHECK(usleep(1000) == 0, "usleep");
    return verdict();
}
