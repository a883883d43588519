// More memory than the machine has, mapped without being reserved, used and unmapped again and again.
#include "verify.h"
#include <sys/mman.h>

#define LENGTH (1ul << 42)

static atomic_bool over;
static atomic_long turns;

static void *map_and_unmap(void *unused) {
    (void)unused;
    while (!atomic_load(&over)) {
        char *start = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start == MAP_FAILED) {
            FAIL("nothing can be mapped");
            break;
        }
        start[5] = 1;
        nanosleep(&(struct timespec){0, 200000}, NULL);
        if (loses("content"))
            start[5] = 0;
        CHECK(start[5] == 1 && start[LENGTH / 2] == 0, "its content changed");
        munmap(start, LENGTH);
        nanosleep(&(struct timespec){0, 200000}, NULL);
        atomic_fetch_add(&turns, 1);
        if (atomic_load(&failures))
            break;
    }
    return NULL;
}

int main(void) {
    pthread_t thread = start_thread(map_and_unmap, NULL);
    until_go();
    atomic_store(&over, true);
    pthread_join(thread, NULL);
    CHECK(atomic_load(&turns) > 0, "it never came round");
    return verdict();
}
