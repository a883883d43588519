// Threads that come and go all the time while checkpoints are taken: none is lost, none is stopped for ever.
#include "verify.h"

static atomic_int stop;
static atomic_long born;
static atomic_long joined;

static void *short_life(void *argument) {
    atomic_fetch_add(&born, 1);
    return argument;
}

static void *give_birth(void *unused) {
    while (!atomic_load(&stop)) {
        pthread_t children[4];
        for (long i = 0; i < 4; i++)
            children[i] = start_thread(short_life, (void *)i);
        for (long i = 0; i < 4; i++) {
            void *result = NULL;
            CHECK(pthread_join(children[i], &result) == 0 && result == (void *)(loses("result") ? -1L : i),
                  "a short-lived thread returned something else");
            atomic_fetch_add(&joined, 1);
        }
        if (atomic_load(&failures))
            break;
    }
    return unused;
}

int main(void) {
    pthread_t parents[3];
    for (int i = 0; i < 3; i++)
        parents[i] = start_thread(give_birth, NULL);
    until_go();
    long before = atomic_load(&joined);
    sleep_ms(100);
    CHECK(atomic_load(&joined) > before, "no thread has been born since");
    atomic_store(&stop, 1);
    for (int i = 0; i < 3; i++)
        pthread_join(parents[i], NULL);
    CHECK(born == joined, "%ld threads were born, %ld joined", born, joined);
    return verdict();
}
