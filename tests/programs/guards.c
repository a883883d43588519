// Guard pages: by mprotect, by MADV_GUARD_INSTALL, and those below thread stacks, still fault.
#include "maps.h"

static atomic_int go_on;
static char *volatile stack_guard;

static void *note_guard(void *unused) {
    pthread_attr_t attributes;
    void *stack;
    size_t size, guard;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &size);
    pthread_attr_getguardsize(&attributes, &guard);
    pthread_attr_destroy(&attributes);
    REQUIRE(guard >= PAGE);
    stack_guard = (char *)stack - PAGE;
    await_value(&go_on, 1);
    return unused;
}

int main(void) {
    char *block = map(16 * PAGE, PROT_READ | PROT_WRITE, 0);
    fill_memory(block, 16 * PAGE, 1);
    REQUIRE(mprotect(block + 4 * PAGE, PAGE, PROT_NONE) == 0);
    REQUIRE(mprotect(block + 8 * PAGE, PAGE, PROT_READ) == 0);
    char *guarded = map(16 * PAGE, PROT_READ | PROT_WRITE, 0);
    fill_memory(guarded, 16 * PAGE, 2);
    // Older kernels answer EINVAL: then there is nothing of the kind to keep.
    bool kernel_guards = madvise(guarded + 5 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL) == 0;
    pthread_t thread = start_thread(note_guard, NULL);
    while (!stack_guard)
        sleep_ms(1);

    until_go();
    if (loses("mprotect"))
        mprotect(block + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE);
    if (loses("read-only"))
        mprotect(block + 8 * PAGE, PAGE, PROT_READ | PROT_WRITE);
    if (loses("guard-install"))
        madvise(guarded + 5 * PAGE, PAGE, MADV_GUARD_INSTALL + 1);
    if (loses("stack-guard"))
        mprotect(stack_guard, PAGE, PROT_READ | PROT_WRITE);
    CHECK(fault_of(block + 4 * PAGE, false) == SIGSEGV, "a PROT_NONE page can be read");
    CHECK(fault_of(block + 8 * PAGE, false) == 0 && fault_of(block + 8 * PAGE, true) == SIGSEGV,
          "a read-only page can be written, or not be read");
    CHECK(fault_of(stack_guard, true) == SIGSEGV, "the guard page of a thread's stack is gone");
    if (kernel_guards) {
        for (int page = 0; page < 16; page++)
            CHECK(fault_of(guarded + page * PAGE, true) == (page == 5 || page == 6 ? SIGSEGV : 0),
                  "page %d of the range with guards in pages 5 and 6", page);
        CHECK(filled(guarded, 5 * PAGE, 2), "content before the guards changed");
    }
    REQUIRE(mprotect(block + 4 * PAGE, PAGE, PROT_READ) == 0);
    CHECK(filled(block, 16 * PAGE, 1), "content under a PROT_NONE page changed");
    atomic_store(&go_on, 1);
    pthread_join(thread, NULL);
    return verdict();
}
