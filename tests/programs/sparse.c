// A mapping of 1 GiB with one page in a thousand touched: the others stay holes that cost nothing.
#include "maps.h"

int main(void) {
    size_t size = 1UL << 30, step = 1000 * PAGE;
    char *start = map(size, PROT_READ | PROT_WRITE, 0);
    REQUIRE(madvise(start, size, MADV_NOHUGEPAGE) == 0);
    for (size_t at = 0; at < size; at += step)
        fill_memory(start + at, PAGE, at);
    // Pages of zeros, and pages given back.
    memset(start + 10 * PAGE, 0, 5 * PAGE);
    memset(start + 20 * PAGE, 1, 5 * PAGE);
    REQUIRE(madvise(start + 20 * PAGE, 5 * PAGE, MADV_DONTNEED) == 0);
    long before = resident_kib(start);

    until_go();
    if (loses("content"))
        start[100 * step + 9]++;
    if (loses("hole"))
        start[20 * PAGE + 1] = 1;
    if (loses("sparseness"))
        memset(start, 0, size / 4);
    for (size_t at = 0; at < size; at += step) {
        CHECK(filled(start + at, PAGE, at), "the page at %zu changed", at);
        if (atomic_load(&failures))
            break;
    }
    long now = resident_kib(start);
    CHECK(now <= before + 64, "%ld KiB are resident, %ld were", now, before);
    for (int i = 10 * PAGE; i < 25 * PAGE; i++)
        if (start[i] != 0) {
            FAIL("byte %d of a page of zeros is %d", i, start[i]);
            break;
        }
    return verdict();
}
