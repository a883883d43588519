// A mapping made with MAP_GROWSDOWN still grows when touched below.
#include "maps.h"

int main(void) {
    // A wide hole below, which the kernel leaves between such a mapping and its neighbour (stack_guard_gap).
    char *area = map(32 << 20, PROT_NONE, MAP_NORESERVE);
    REQUIRE(munmap(area, 32 << 20) == 0);
    char *low = area + (24 << 20);
    char *growing = mmap(low, 4 * PAGE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
    REQUIRE(growing == low);
    fill_memory(growing, 4 * PAGE, 1);
    for (int page = 1; page <= 16; page++)
        fill_memory(low - page * PAGE, PAGE, 100 + page);

    until_go();
    CHECK(has_flag(growing, "gd"), "MAP_GROWSDOWN is lost");
    CHECK(!has_flag(growing, "nh"), "it may have no huge pages");
    if (loses("content"))
        low[-5 * PAGE]++;
    if (loses("growth"))
        mmap(low - 17 * PAGE, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(filled(growing, 4 * PAGE, 1), "the content changed");
    for (int page = 1; page <= 16; page++)
        CHECK(filled(low - page * PAGE, PAGE, 100 + page), "grown page %d changed", page);
    for (int page = 17; page <= 64; page++) {
        if (fault_of(low - page * PAGE, true) != 0) {
            FAIL("the mapping no longer grows at page %d", page);
            break;
        }
    }
    return verdict();
}
