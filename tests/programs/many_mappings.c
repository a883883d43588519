// 13,000 mappings with a page each, and enough memory that a restart is lazy.
#include "maps.h"

enum { COUNT = 13000, STEP = 4 * PAGE, HEAP = 40 << 20 };

int main(void) {
    char *heap = map(HEAP, PROT_READ | PROT_WRITE, 0);
    fill_memory(heap, HEAP, 1);
    char *mappings = map((size_t)COUNT * STEP, PROT_READ | PROT_WRITE, 0);
    for (int i = 0; i < COUNT; i++) {
        char *mapping = mappings + (size_t)i * STEP;
        REQUIRE(mprotect(mapping + 3 * PAGE, PAGE, PROT_NONE) == 0);
        fill_memory(mapping + PAGE, PAGE, i);
    }

    until_go();
    if (loses("page"))
        mappings[9000L * STEP + PAGE]++;
    if (loses("protection"))
        REQUIRE(mprotect(mappings + 9000L * STEP + 3 * PAGE, PAGE, PROT_READ) == 0);
    for (int i = 0; i < COUNT; i++)
        CHECK(filled(mappings + (size_t)i * STEP + PAGE, PAGE, i), "mapping %d changed", i);
    CHECK(fault_of(mappings + 9000L * STEP + 3 * PAGE, false) == SIGSEGV, "a protection changed");
    CHECK(filled(heap, HEAP, 1), "the heap changed");
    return verdict();
}
