// The brk heap and malloc's mmap'ed blocks keep their content, and grow and shrink afterwards.
#include "maps.h"

int main(void) {
    // stdio takes no buffer from the heap, whose end must not move but by what is done here.
    static char buffer[BUFSIZ];
    setvbuf(stdout, buffer, _IOLBF, sizeof buffer);
    char *blocks[200];
    for (int i = 0; i < 200; i++) {
        blocks[i] = malloc(1000 * (i + 1));
        fill_memory(blocks[i], 1000, i);
    }
    size_t large = 300 << 20;
    char *huge = malloc(large);
    REQUIRE(huge != NULL);
    fill_memory(huge + (100 << 20), 1 << 20, 7);
    char *end = sbrk(0);

    until_go();
    if (loses("content"))
        blocks[150][500]++;
    CHECK(sbrk(0) == (loses("brk") ? NULL : end), "the end of the heap moved from %p to %p", end, sbrk(0));
    for (int i = 0; i < 200; i++)
        CHECK(filled(blocks[i], 1000, i), "block %d changed", i);
    CHECK(filled(huge + (100 << 20), 1 << 20, 7) && huge[0] == 0, "the mmap'ed block changed");
    CHECK(sbrk(1 << 20) == end, "sbrk does not go on where the heap ended");
    fill_memory((char *)(((uintptr_t)end + 7) & -8), 4096, 3);
    CHECK(sbrk(-(1 << 20)) == end + (1 << 20) && sbrk(0) == end, "the heap does not shrink");
    for (int i = 0; i < 200; i += 2)
        free(blocks[i]);
    free(huge);
    for (int i = 0; i < 1000; i++) {
        char *block = malloc(i * 100);
        REQUIRE(block != NULL);
        memset(block, i, i * 100);
        free(block);
    }
    for (int i = 1; i < 200; i += 2)
        CHECK(filled(blocks[i], 1000, i), "block %d changed when others were freed", i);
    return verdict();
}
