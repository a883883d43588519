// Threads that come and go, made with processors or a policy of their own: until these are set, a new thread waits for its maker
// with all signals blocked.
#include "verify.h"
#include <sched.h>

static atomic_bool done;

static void *give_back(void *value) {
    return loses("value") ? NULL : value;
}

static void *make(void *attributes) {
    for (intptr_t made = 1; !atomic_load(&done); made++) {
        pthread_t thread;
        void *value;
        REQUIRE(pthread_create(&thread, attributes, give_back, (void *)made) == 0);
        pthread_join(thread, &value);
        CHECK(value == (void *)made, "thread %ld gave %ld", (long)made, (long)(intptr_t)value);
        if (atomic_load(&failures))
            break;
    }
    return NULL;
}

int main(void) {
    cpu_set_t processors;
    struct sched_param priority = {0};
    pthread_attr_t by_processors, by_policy;
    sched_getaffinity(0, sizeof processors, &processors);
    pthread_attr_init(&by_processors);
    pthread_attr_init(&by_policy);
    pthread_attr_setaffinity_np(&by_processors, sizeof processors, &processors);
    pthread_attr_setinheritsched(&by_policy, PTHREAD_EXPLICIT_SCHED);
    pthread_attr_setschedpolicy(&by_policy, SCHED_OTHER);
    pthread_attr_setschedparam(&by_policy, &priority);
    pthread_t first = start_thread(make, &by_processors), second = start_thread(make, &by_policy);
    until_go();
    atomic_store(&done, true);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    return verdict();
}
