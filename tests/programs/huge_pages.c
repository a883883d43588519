// Transparent huge pages: 32 MiB advised and touched keep their content and stay eligible.
#include "maps.h"

int main(void) {
    size_t huge = 2 << 20, size = 16 * huge;
    char *area = map(size + huge, PROT_READ | PROT_WRITE, 0);
    char *start = (char *)(((uintptr_t)area + huge - 1) & -huge);
    REQUIRE(madvise(start, size, MADV_HUGEPAGE) == 0);
    fill_memory(start, size / 2, 1);
    start[12 * huge + 5] = 1;
    // A hole in the midst of a huge page splits it.
    REQUIRE(madvise(start + huge + 8 * PAGE, PAGE, MADV_DONTNEED) == 0);

    until_go();
    if (loses("content"))
        start[3 * huge + 9]++;
    if (loses("advice"))
        madvise(start, size, MADV_NOHUGEPAGE);
    CHECK(filled(start, huge + 8 * PAGE, 1), "the content before the hole changed");
    CHECK(filled(start + huge + 9 * PAGE, size / 2 - huge - 9 * PAGE, 1 + (huge + 9 * PAGE) / 8), "the content changed");
    CHECK(start[huge + 8 * PAGE] == 0 && start[12 * huge + 5] == 1 && start[15 * huge] == 0, "an empty page is not empty");
    CHECK(has_flag(start, "hg"), "the advice is lost");
    return verdict();
}
