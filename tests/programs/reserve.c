// 64 GiB of address space reserved as PROT_NONE, of which a little is made usable before, and more afterwards.
#include "maps.h"

int main(void) {
    size_t size = 64UL << 30;
    char *reserve = map(size, PROT_NONE, MAP_NORESERVE);
    char *writable = map(8UL << 30, PROT_READ | PROT_WRITE, MAP_NORESERVE);
    char *used = reserve + (10UL << 30);
    REQUIRE(mprotect(used, 1 << 20, PROT_READ | PROT_WRITE) == 0);
    fill_memory(used, 1 << 20, 5);
    fill_memory(writable + (5UL << 30), PAGE, 6);

    until_go();
    if (loses("content"))
        used[77]++;
    if (loses("reserve"))
        munmap(reserve + (20UL << 30), PAGE);
    if (loses("noreserve"))
        REQUIRE(mmap(writable, PAGE, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == writable);
    CHECK(filled(used, 1 << 20, 5) && filled(writable + (5UL << 30), PAGE, 6), "content in the reserve changed");
    CHECK(fault_of(reserve, false) == SIGSEGV && fault_of(reserve + size - 1, false) == SIGSEGV, "the reserve can be read");
    char *probe = reserve + (20UL << 30);
    // Where the reserve still is, nothing else can be placed.
    CHECK(mmap(probe, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED &&
              errno == EEXIST, "the reserve has a hole");
    CHECK(has_flag(reserve, "nr") && has_flag(writable, "nr"), "MAP_NORESERVE is lost");
    CHECK(mprotect(reserve + (40UL << 30), 1 << 20, PROT_READ | PROT_WRITE) == 0, "the reserve can not be made usable");
    fill_memory(reserve + (40UL << 30), 1 << 20, 8);
    CHECK(filled(reserve + (40UL << 30), 1 << 20, 8), "new memory in the reserve");
    CHECK(resident_kib(writable) < 1024, "untouched memory became resident: %ld KiB", resident_kib(writable));
    return verdict();
}
