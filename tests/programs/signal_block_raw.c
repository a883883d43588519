// A raw system call blocks all 64 signals, the stop signal too: the checkpoint is taken or refused, never hangs.
#include "verify.h"

int main(void) {
    uint64_t all = ~0ULL, after = 0, none = 0;
    // SIGKILL and SIGSTOP cannot be blocked: the kernel takes them out of the mask. 33 is the stop signal, which
    // glibc never blocks either; Stasis takes it out as glibc does.
    uint64_t blockable = ~(1ULL << (SIGKILL - 1) | 1ULL << (SIGSTOP - 1) | 1ULL << (33 - 1));
    REQUIRE(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8) == 0);
    until_go();
    if (loses("mask"))
        syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8);
    REQUIRE(syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &after, 8) == 0);
    CHECK((after & blockable) == blockable, "the mask became %#jx", (uintmax_t)after);
    return verdict();
}
