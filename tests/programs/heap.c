// Allocates, grows and frees in four threads without pause, so that a checkpoint finds some of them inside the
// allocator; every block's content is known.
#include "verify.h"

#define THREADS 4
#define SLOTS 2000

struct block {
    unsigned char *bytes;
    size_t size;
    unsigned char value;
};

static bool intact(const struct block *block) {
    for (size_t i = 0; i < block->size; i++)
        if (block->bytes[i] != block->value)
            return false;
    return true;
}

static void *churn(void *argument) {
    uint64_t state = 88172645463325252ULL + (uintptr_t)argument;
    struct block *blocks = calloc(SLOTS, sizeof *blocks);
    REQUIRE(blocks != NULL);
    while (!told_to_go()) {
        for (int round = 0; round < 500; round++) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            struct block *block = &blocks[state % SLOTS];
            // Mostly small ones; some large enough to be mappings of their own.
            size_t size = 1 + (state >> 20) % ((state >> 50) % 64 == 0 ? 400000 : 2000);
            if (block->bytes && !intact(block)) {
                FAIL("a block of %zu bytes is damaged", block->size);
                return NULL;
            }
            if (state >> 60 < 8) {
                free(block->bytes);
                block->bytes = malloc(size);
            } else {
                block->bytes = realloc(block->bytes, size);
            }
            REQUIRE(block->bytes != NULL);
            block->size = size;
            block->value = (unsigned char)(state >> 32);
            memset(block->bytes, block->value, size);
        }
    }
    for (int slot = 0; slot < SLOTS; slot++)
        if (blocks[slot].bytes) {
            CHECK(intact(&blocks[slot]), "a block of %zu bytes is damaged at the end", blocks[slot].size);
            free(blocks[slot].bytes);
        }
    free(blocks);
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        threads[i] = start_thread(churn, (void *)i);
    say_ready();
    for (int i = 0; i < THREADS; i++)
        REQUIRE(pthread_join(threads[i], NULL) == 0);
    return verdict();
}
