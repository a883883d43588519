// The GS base that a program sets for itself, and the FS base of each thread.
#include "verify.h"
#include <asm/prctl.h>

static uint64_t areas[4][4];
static atomic_int waiting;
static atomic_int go_on;

static uint64_t read_gs(void) {
    uint64_t value;
    __asm__ volatile("mov %%gs:8, %0" : "=r"(value));
    return value;
}

static void *body(void *argument) {
    long number = (long)argument;
    uint64_t fs = 0, fs_after = 0, gs = 0;
    areas[number][1] = 0xabc0 + number;
    REQUIRE(syscall(SYS_arch_prctl, ARCH_SET_GS, areas[number]) == 0);
    REQUIRE(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs) == 0);
    atomic_fetch_add(&waiting, 1);
    while (!atomic_load(&go_on))
        __asm__ volatile("pause");
    if (loses("gs"))
        syscall(SYS_arch_prctl, ARCH_SET_GS, areas[(number + 1) % 4]);
    CHECK(read_gs() == (uint64_t)(0xabc0 + number), "thread %ld reads %#jx through GS", number, (uintmax_t)read_gs());
    CHECK(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs) == 0 && gs == (uintptr_t)areas[number], "the GS base is %#jx",
          (uintmax_t)gs);
    CHECK(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs_after) == 0 && fs_after == fs, "the FS base was %#jx and is %#jx",
          (uintmax_t)fs, (uintmax_t)fs_after);
    return NULL;
}

int main(void) {
    pthread_t threads[3];
    for (long i = 0; i < 3; i++)
        threads[i] = start_thread(body, (void *)i);
    await_value(&waiting, 3);
    until_go();
    atomic_store(&go_on, 1);
    body((void *)3);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    return verdict();
}
