// Locked memory: mlock, mlock2 on fault, and mlockall(MCL_FUTURE) that goes on.
#include "maps.h"

int main(int count, char **arguments) {
    bool on_fault_only = count > 1 && strcmp(arguments[1], "on-fault") == 0;
    char *locked = map(64 * PAGE, PROT_READ | PROT_WRITE, 0);
    map(PAGE, PROT_NONE, 0);
    char *on_fault = map(64 * PAGE, PROT_READ | PROT_WRITE, 0);
    map(PAGE, PROT_NONE, 0);
    char *free_memory = map(64 * PAGE, PROT_READ | PROT_WRITE, MAP_NORESERVE);
    fill_memory(locked, 64 * PAGE, 1);
    REQUIRE(mlock(locked, 64 * PAGE) == 0);
    REQUIRE(mlock2(on_fault, 64 * PAGE, MLOCK_ONFAULT) == 0);
    fill_memory(on_fault, PAGE, 2);

    REQUIRE(mlockall(MCL_FUTURE | (on_fault_only ? MCL_ONFAULT : 0)) == 0);

    until_go();
    if (loses("mlock"))
        munlock(locked, 64 * PAGE);
    if (loses("mlock-onfault"))
        munlock(on_fault, 64 * PAGE);
    CHECK(has_flag(locked, "lo") && has_flag(on_fault, "lo"), "a locked mapping is no longer locked");
    CHECK(!has_flag(free_memory, "lo"), "a mapping is locked that never was");
    CHECK(filled(locked, 64 * PAGE, 1) && filled(on_fault, PAGE, 2), "locked memory changed");
    CHECK(resident_kib(locked) >= 256, "only %ld KiB of a locked mapping are resident", resident_kib(locked));
    if (loses("mlockall"))
        munlockall();
    char *future = map(64 * PAGE, PROT_READ | PROT_WRITE, 0);
    CHECK(has_flag(future, "lo"), "what is mapped is no longer locked");
    CHECK(has_flag(future, "lf") == on_fault_only, "what is mapped is locked in another way");
    CHECK(resident_kib(future) == (on_fault_only ? 0 : 256), "%ld KiB of what is mapped are resident", resident_kib(future));
    return verdict();
}
