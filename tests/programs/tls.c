// Thread-local storage: static, of a library opened later, and keys with destructors.
// needs: tls_module
#include "verify.h"
#include <dlfcn.h>

enum { THREADS = 6, KEYS = 40 };

static __thread int initialised = 77;
static __thread long zeroed[100];
static pthread_key_t keys[KEYS];
static atomic_int destroyed;
static atomic_int waiting;
static atomic_int go_on;
static int *(*module_value)(void);

static void count_destroyed(void *value) {
    (void)value;
    atomic_fetch_add(&destroyed, 1);
}

static void *body(void *argument) {
    long number = (long)argument;
    initialised += number;
    zeroed[99] = number * 3;
    *module_value() += number;
    int *address = module_value();
    for (int i = 0; i < KEYS; i++)
        pthread_setspecific(keys[i], (void *)(number * 1000 + i + 1));
    atomic_fetch_add(&waiting, 1);
    await_value(&go_on, 1);
    if (loses("static"))
        initialised = 77;
    if (loses("module"))
        *module_value() = 123;
    if (loses("key"))
        pthread_setspecific(keys[KEYS - 1], NULL);
    CHECK(initialised == 77 + number && zeroed[99] == number * 3, "static thread-local values of thread %ld", number);
    CHECK(module_value() == address && *address == 123 + number, "a library's thread-local value is %d, not %ld",
          *module_value(), 123 + number);
    for (int i = 0; i < KEYS; i++)
        CHECK(pthread_getspecific(keys[i]) == (void *)(number * 1000 + i + 1), "key %d of thread %ld", i, number);
    return NULL;
}

int main(void) {
    const char *path = getenv("STASIS_TEST_MODULE");
    void *module = dlopen(path ? path : "./tls_module.so", RTLD_NOW);
    REQUIRE(module != NULL);
    module_value = (int *(*)(void))dlsym(module, "module_value");
    REQUIRE(module_value != NULL);
    for (int i = 0; i < KEYS; i++)
        REQUIRE(pthread_key_create(&keys[i], count_destroyed) == 0);
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++)
        threads[i] = start_thread(body, (void *)(i + 1));
    await_value(&waiting, THREADS);
    until_go();
    atomic_store(&go_on, 1);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK(destroyed == THREADS * KEYS, "%d of %d key destructors ran", destroyed, THREADS * KEYS);
    return verdict();
}
