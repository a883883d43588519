// A mapping of 32 MiB with one page touched beside one that is full: what was never touched is in no checkpoint.
#include "maps.h"

int main(void) {
    size_t size = 32UL << 20;
    char *full = map(size / 2, PROT_READ | PROT_WRITE, 0), *holes = map(size, PROT_READ | PROT_WRITE, 0);
    REQUIRE(madvise(holes, size, MADV_NOHUGEPAGE) == 0);
    fill_memory(full, size / 2, 1);
    fill_memory(holes + 5 * PAGE, PAGE, 2);

    until_go();
    if (loses("content"))
        full[9]++;
    if (loses("page"))
        holes[5 * PAGE + 9]++;
    if (loses("hole"))
        memset(holes + 16 * PAGE, 1, PAGE);
    CHECK(filled(full, size / 2, 1), "what is full changed");
    CHECK(filled(holes + 5 * PAGE, PAGE, 2), "the page among holes changed");
    for (size_t i = 6 * PAGE; i < size; i++)
        if (holes[i] != 0) {
            FAIL("byte %zu of a hole is %d", i, holes[i]);
            break;
        }
    return verdict();
}
