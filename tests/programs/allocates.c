// Threads that allocate and free all the time, with whatever malloc the test preloads or links.
#include "verify.h"

static atomic_int stop;
static atomic_long rounds;

static void *churn(void *argument) {
    unsigned seed = (long)argument * 7919 + 1;
    char *blocks[32] = {NULL};
    size_t sizes[32] = {0};
    // strict_malloc never uses memory again, so the work is bounded.
    for (long round = 0; !atomic_load(&stop); round++) {
        seed = seed * 1103515245 + 12345;
        int slot = seed >> 16 & 31;
        size_t size = seed >> 8 & 1023;
        if (blocks[slot]) {
            CHECK(blocks[slot][0] == slot && blocks[slot][sizes[slot]] == slot, "a block changed");
            free(blocks[slot]);
        }
        sizes[slot] = size;
        blocks[slot] = round % 3 ? malloc(size + 1) : realloc(NULL, size + 1);
        REQUIRE(blocks[slot] != NULL);
        memset(blocks[slot], loses("content") ? slot + 1 : slot, size + 1);
        atomic_fetch_add(&rounds, 1);
        if (round % 64 == 63)
            sleep_ms(1);
        if (atomic_load(&failures))
            break;
    }
    return NULL;
}

int main(void) {
    pthread_t threads[4];
    for (long i = 0; i < 4; i++)
        threads[i] = start_thread(churn, (void *)i);
    while (atomic_load(&rounds) < 1000 && !atomic_load(&failures))
        sleep_ms(1);
    until_go();
    long before = atomic_load(&rounds);
    sleep_ms(50);
    CHECK(atomic_load(&rounds) > before, "the threads no longer allocate");
    atomic_store(&stop, 1);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    char *aligned = aligned_alloc(4096, 8192);
    CHECK(aligned && (uintptr_t)aligned % 4096 == 0, "aligned_alloc");
    free(aligned);
    return verdict();
}
