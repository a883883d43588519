// Mappings that were moved, grown and shrunk by mremap, with holes punched; and the same done afterwards.
#include "maps.h"

int main(void) {
    char *block = map(64 * PAGE, PROT_READ | PROT_WRITE, 0);
    fill_memory(block, 64 * PAGE, 1);
    char *target = map(256 * PAGE, PROT_NONE, MAP_NORESERVE);
    char *moved = mremap(block, 64 * PAGE, 128 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target + 16 * PAGE);
    REQUIRE(moved == target + 16 * PAGE);
    fill_memory(moved + 64 * PAGE, 64 * PAGE, 2);
    REQUIRE(munmap(moved + 32 * PAGE, 4 * PAGE) == 0);
    char *kept = map(8 * PAGE, PROT_READ | PROT_WRITE, 0);
    fill_memory(kept, 8 * PAGE, 4);
    // The kernel looks at the new address though it is not fixed, and glibc 2.36 passes on whatever is there.
    char *copy = mremap(kept, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    REQUIRE(copy != MAP_FAILED);

    until_go();
    if (loses("content"))
        moved[100 * PAGE]++;
    if (loses("hole"))
        mmap(moved + 33 * PAGE, PAGE, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(filled(moved, 32 * PAGE, 1) && filled(moved + 36 * PAGE, 28 * PAGE, 1 + 36 * 512), "moved memory changed");
    CHECK(filled(moved + 64 * PAGE, 64 * PAGE, 2), "grown memory changed");
    CHECK(fault_of(moved + 33 * PAGE, false) == SIGSEGV, "a hole is filled");
    CHECK(filled(copy, 8 * PAGE, 4), "memory moved with MREMAP_DONTUNMAP changed");
    for (int i = 0; i < 8 * PAGE; i++)
        if (kept[i]) {
            FAIL("what MREMAP_DONTUNMAP left behind is not empty");
            break;
        }
    char *again = mremap(moved + 64 * PAGE, 64 * PAGE, 512 * PAGE, MREMAP_MAYMOVE);
    CHECK(again != MAP_FAILED && filled(again, 64 * PAGE, 2) && again[300 * PAGE] == 0, "moving once more");
    return verdict();
}
