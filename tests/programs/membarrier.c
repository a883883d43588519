// Registrations for membarrier(2): the barriers that the program has registered for can be had afterwards, without asking again.
#include "verify.h"
#include <linux/membarrier.h>

static int membarrier(int command) {
    return syscall(SYS_membarrier, command, 0, 0);
}

int main(void) {
    if (!loses("registration"))
        REQUIRE(membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0);
    REQUIRE(membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE) == 0);
    REQUIRE(membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) == 0);
    until_go();
    CHECK(membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0, "a barrier for this process");
    CHECK(membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE) == 0, "a barrier that synchronizes cores");
    CHECK(membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED) == 0, "a barrier for all");
    return verdict();
}
