// Shared anonymous memory, also mapped twice, and inherited protections: one memory, seen through both mappings.
#include "maps.h"

enum { SIZE = 64 * PAGE };

int main(void) {
    char *first = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(first != MAP_FAILED);
    // mremap(2): an old size of zero makes a second mapping of the same shared pages.
    char *second = mremap(first, 0, SIZE, MREMAP_MAYMOVE);
    REQUIRE(second != MAP_FAILED && second != first);
    char *alone = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fill_memory(first, SIZE / 2, 1);
    fill_memory(second + SIZE / 2, PAGE, 2);
    fill_memory(alone, PAGE, 3);
    REQUIRE(mprotect(second, PAGE, PROT_READ) == 0);

    until_go();
    if (loses("content"))
        alone[4]++;
    if (loses("sharing")) {
        static char copy[SIZE];
        memcpy(copy, second, SIZE);
        REQUIRE(mmap(second, SIZE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == second);
        memcpy(second, copy, SIZE);
    }
    CHECK(filled(first, SIZE / 2, 1) && filled(second, SIZE / 2, 1), "shared memory changed");
    CHECK(filled(first + SIZE / 2, PAGE, 2) && filled(alone, PAGE, 3), "shared memory changed");
    fill_memory(first + 10 * PAGE, PAGE, 9);
    CHECK(filled(second + 10 * PAGE, PAGE, 9), "the two mappings no longer show the same memory");
    CHECK(fault_of(second, true) == SIGSEGV && fault_of(first, true) == 0, "a mapping's protection changed");
    CHECK(has_flag(first, "sh") && has_flag(alone, "sh"), "shared memory is no longer shared");
    // It is shared with children that are born now, too.
    volatile int *word = (volatile int *)(alone + 8 * PAGE);
    *word = 1;
    pid_t child = fork();
    if (child == 0) {
        *word = 4242;
        _exit(0);
    }
    for (int i = 0; i < 1000 && *word != 4242; i++)
        sleep_ms(1);
    CHECK(*word == 4242, "a child's store is not seen");
    return verdict();
}
