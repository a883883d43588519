// Moves regions, unmaps the second half of each where it is then, and lets it grow there again: what it has grown by is zeros,
// and what it kept is what it was.
#include "verify.h"
#include <sys/mman.h>

enum { REGIONS = 600, PAGES = 32, KEPT = PAGES / 2 };
#define PAGE 4096ul

static uint64_t *region[REGIONS];

int main(void) {
    for (int i = 0; i < REGIONS; i++) {
        // Apart, so that each is a mapping of its own.
        char *place = mmap(NULL, (PAGES + 1) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(place != MAP_FAILED);
        region[i] = mmap(place, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        REQUIRE(region[i] != MAP_FAILED);
        for (size_t word = 0; word < PAGES * PAGE / 8; word++)
            region[i][word] = (uint64_t)i << 32 | (word + 1);
    }
    until_go();
    for (int i = 0; i < REGIONS; i++) {
        char *place = mmap(NULL, (PAGES + 1) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(place != MAP_FAILED);
        uint64_t *at = mremap(region[i], PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
        REQUIRE(at == (uint64_t *)place);
        REQUIRE(munmap(place + KEPT * PAGE, KEPT * PAGE) == 0);
        REQUIRE(mremap(at, KEPT * PAGE, PAGES * PAGE, 0) == at);
        region[i] = at;
    }
    if (loses("content"))
        region[1][3]++;
    for (int i = 0; i < REGIONS; i++)
        for (size_t word = 0; word < PAGES * PAGE / 8; word++) {
            uint64_t expected = word < KEPT * PAGE / 8 ? (uint64_t)i << 32 | (word + 1) : 0;
            if (region[i][word] != expected) {
                FAIL("word %zu of region %d is %lx", word, i, (unsigned long)region[i][word]);
                break;
            }
        }
    return verdict();
}
