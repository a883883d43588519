// Address space is the program's: it has hardly more than natively. Argument `full`: its limit leaves next to none; `mappings`: of many
// mappings.
#include "maps.h"
#include <sys/resource.h>

static long size_kib(void) {
    long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "re");
    REQUIRE(statm != NULL && fscanf(statm, "%ld", &pages) == 1);
    fclose(statm);
    return pages * 4;
}

int main(int count, char **arguments) {
    CHECK(loses("space") ? false : size_kib() < 16 << 10, "%ld KiB are mapped", size_kib());
    enum { COUNT = 10000 };
    char *mappings = map(COUNT * 2 * PAGE, PROT_READ | PROT_WRITE, 0);
    for (int i = 0; count > 2 && i < COUNT; i++)
        REQUIRE(mprotect(mappings + i * 2 * PAGE, PAGE, PROT_NONE) == 0);
    if (count > 1) {
        // What a handler's first call of printf(3) and its like may need.
        long limit = (size_kib() + 64) << 10;
        REQUIRE(setrlimit(RLIMIT_AS, &(struct rlimit){limit, RLIM_INFINITY}) == 0);
    }
    mappings[PAGE] = 7;

    until_go();
    if (loses("content"))
        mappings[PAGE]++;
    CHECK(mappings[PAGE] == 7, "the content changed");
    struct rlimit limit;
    REQUIRE(getrlimit(RLIMIT_AS, &limit) == 0);
    CHECK((limit.rlim_cur != RLIM_INFINITY) == (count > 1), "the limit of address space changed");
    return verdict();
}
