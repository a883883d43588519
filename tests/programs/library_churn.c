// Libraries that are loaded and unloaded all the time by two threads, with functions of theirs called in between.
#include "verify.h"
#include <dlfcn.h>

enum { LEAST = 200 };

static const char *const libraries[] = {"libm.so.6", "libresolv.so.2", "libutil.so.1", "libanl.so.1"};
enum { KINDS = sizeof libraries / sizeof *libraries };

static atomic_int stop;
static atomic_long loaded, unloaded;

static void *load_and_unload(void *first) {
    for (long i = (long)first; !atomic_load(&stop) && !atomic_load(&failures); i++) {
        void *library = dlopen(libraries[i % KINDS], RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            // Empty since glibc 2.34, and not installed everywhere.
            CHECK(i % KINDS != 0, "%s", dlerror());
            continue;
        }
        atomic_fetch_add(&loaded, 1);
        if (i % KINDS == 0) {
            double (*root)(double) = (double (*)(double))dlsym(library, "sqrt");
            CHECK(root && root((double)i * i) == i + (loses("result") ? 1 : 0), "the root of %ld squared", i);
        }
        if (dlclose(library) == 0)
            atomic_fetch_add(&unloaded, 1);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[2];
    for (long i = 0; i < 2; i++)
        threads[i] = start_thread(load_and_unload, (void *)i);
    until_go();
    long before = atomic_load(&loaded);
    while (atomic_load(&loaded) < before + LEAST && !atomic_load(&failures))
        sleep_ms(1);
    atomic_store(&stop, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    CHECK(loaded == unloaded, "%ld were loaded, %ld unloaded", loaded, unloaded);
    return verdict();
}
