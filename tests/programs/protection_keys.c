// Protection keys (pkeys(7)): memory that one thread may not touch and another may, and which keys are taken. Where the
// processor has none the program has nothing to lose but its word.
#include "verify.h"
#include <setjmp.h>
#include <sys/mman.h>

#define LENGTH 16384

static sigjmp_buf back;
static volatile int code;
static int key, other;
static char *memory;
static atomic_int ready, go_on;

static void fault(int signal UNUSED, siginfo_t *info, void *context UNUSED) {
    code = info->si_code;
    siglongjmp(back, 1);
}

static bool readable(void) {
    code = 0;
    if (sigsetjmp(back, 1))
        return false;
    (void)*(volatile char *)memory;
    return true;
}

static void *allowed(void *unused UNUSED) {
    pkey_set(key, 0);
    pkey_set(other, PKEY_DISABLE_WRITE);
    atomic_fetch_add(&ready, 1);
    await_value(&go_on, 1);
    CHECK(pkey_get(key) == 0 && pkey_get(other) == PKEY_DISABLE_WRITE, "rights %d, %d", pkey_get(key), pkey_get(other));
    CHECK(memory[LENGTH - 1] == 77, "the content is %d", memory[LENGTH - 1]);
    return NULL;
}

int main(void) {
    key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
    if (key < 0) {
        until_go();
        CHECK(!loses("key") && !loses("memory"), "no keys here");
        return verdict();
    }
    int freed = pkey_alloc(0, 0);
    other = pkey_alloc(0, 0);
    REQUIRE(freed > 0 && other > 0 && pkey_free(freed) == 0);
    memory = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory[LENGTH - 1] = 77;
    REQUIRE(pkey_mprotect(memory, LENGTH, PROT_READ | PROT_WRITE, key) == 0);
    struct sigaction action = {.sa_sigaction = fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    pthread_t thread = start_thread(allowed, NULL);
    await_value(&ready, 1);
    REQUIRE(!readable());
    until_go();

    if (loses("memory"))
        REQUIRE(pkey_mprotect(memory, LENGTH, PROT_READ | PROT_WRITE, 0) == 0);
    if (loses("key"))
        REQUIRE(pkey_free(other) == 0);
    CHECK(!readable() && code == SEGV_PKUERR, "the memory is not protected by its key any more (code %d)", code);
    atomic_store(&go_on, 1);
    pthread_join(thread, NULL);
    CHECK(pkey_alloc(0, 0) == freed, "the key that was free is not");
    CHECK(pkey_free(other) == 0 && pkey_free(key) == 0, "a key is not the program's any more");
    return verdict();
}
