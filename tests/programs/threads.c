// argv[1] threads, each with its own stack, thread-local values and work; all are joined with their results.
// native-args: 16
#include "verify.h"
#include <sys/mman.h>

struct worker {
    pthread_t thread;
    pid_t tid;
    uint64_t expected;
};

static __thread uint64_t local;
static __thread char local_text[32];
static atomic_int waiting;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t opened = PTHREAD_COND_INITIALIZER;
static bool go_on;

static uint64_t mix(uint64_t value) {
    value ^= value >> 31;
    return value * 0x9e3779b97f4a7c15;
}

static void *work(void *argument) {
    struct worker *worker = argument;
    uint64_t on_stack[16];
    worker->tid = gettid();
    local = mix(worker->tid);
    snprintf(local_text, sizeof local_text, "thread %d", worker->tid);
    for (int i = 0; i < 16; i++)
        on_stack[i] = local = mix(local);
    worker->expected = local;

    pthread_mutex_lock(&gate);
    atomic_fetch_add(&waiting, 1);
    while (!go_on)
        pthread_cond_wait(&opened, &gate);
    pthread_mutex_unlock(&gate);

    if (loses("tls"))
        local = 0;
    char text[32];
    snprintf(text, sizeof text, "thread %d", worker->tid);
    CHECK(local == worker->expected && on_stack[15] == local && strcmp(text, local_text) == 0,
          "thread %d lost its stack or its thread-local values", worker->tid);
    // The kernel's word, not glibc's.
    CHECK(syscall(SYS_gettid) == worker->tid, "thread %d is now %ld", worker->tid, syscall(SYS_gettid));
    return loses("result") ? NULL : (void *)mix(local);
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 1;
    struct worker *workers = calloc(count, sizeof *workers);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (int i = 0; i < count; i++)
        REQUIRE(pthread_create(&workers[i].thread, &small, work, &workers[i]) == 0);
    await_value(&waiting, count);

    until_go();
    pthread_mutex_lock(&gate);
    go_on = true;
    pthread_cond_broadcast(&opened);
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < count; i++) {
        void *result;
        CHECK(pthread_join(workers[i].thread, &result) == 0, "joining thread %d", i);
        CHECK((uint64_t)result == mix(workers[i].expected), "thread %d returned something else", i);
    }
    return verdict();
}
