// A handler of SIGSEGV as a write barrier: each page of an mprotect'ed range faults once, before and after.
#include "verify.h"
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 64 };

static char *range;
static volatile int faults;

static void unprotect(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    char *page = (char *)((uintptr_t)info->si_addr & -PAGE);
    if (page < range || page >= range + PAGES * PAGE || info->si_code != SEGV_ACCERR)
        _exit(3);
    faults++;
    mprotect(page, PAGE, PROT_READ | PROT_WRITE);
}

static void touch_all(int expected) {
    faults = 0;
    for (int i = 0; i < PAGES; i++)
        range[i * PAGE]++;
    CHECK(faults == expected, "%d pages faulted instead of %d", faults, expected);
}

int main(void) {
    struct sigaction action = {.sa_sigaction = unprotect, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    range = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(range != MAP_FAILED);
    mprotect(range, PAGES * PAGE, PROT_READ);
    touch_all(PAGES);
    mprotect(range, PAGES * PAGE / 2, PROT_READ);
    until_go();
    if (loses("protection"))
        mprotect(range, PAGES * PAGE / 4, PROT_READ | PROT_WRITE);
    touch_all(PAGES / 2);
    for (int i = 0; i < PAGES; i++)
        CHECK(range[i * PAGE] == 2, "page %d holds %d", i, range[i * PAGE]);
    mprotect(range, PAGES * PAGE, PROT_READ);
    touch_all(PAGES);
    return verdict();
}
