// Advice, locks and keys that change between two checkpoints, by each function that changes them; told to by SIGUSR1.
#include "maps.h"
#include <sys/prctl.h>

enum { MADVISE, POSIX, RAW, MLOCK, MLOCK2, MUNLOCK, KEY, RANGES, SIZE = 1 << 20 };

static char *ranges[RANGES], before[RANGES][256], keys[RANGES][64];

static void look(int i, char *flags, size_t size, char *key, size_t key_size) {
    smaps_field(ranges[i], "VmFlags:", flags, size);
    smaps_field(ranges[i], "ProtectionKey:", key, key_size);
}

int main(void) {
    for (int i = 0; i < RANGES; i++) {
        // Room between, so that no two are merged.
        ranges[i] = map(SIZE + 2 * PAGE, PROT_NONE, 0) + PAGE;
        REQUIRE(mprotect(ranges[i], SIZE, PROT_READ | PROT_WRITE) == 0);
        fill_memory(ranges[i], 8 * PAGE, i);
    }
    REQUIRE(mlock(ranges[MUNLOCK], SIZE) == 0);
    sigset_t told;
    sigemptyset(&told);
    sigaddset(&told, SIGUSR1);
    sigprocmask(SIG_BLOCK, &told, NULL);
    // What is used for the first time maps memory: all that is used below is used here.
    for (int i = 0; i < RANGES; i++)
        look(i, before[i], sizeof before[i], keys[i], sizeof keys[i]);
    say_ready();
    int signal;
    sigwait(&told, &signal);

    REQUIRE(madvise(ranges[MADVISE], SIZE, MADV_DONTDUMP) == 0);
    REQUIRE(posix_madvise(ranges[POSIX], SIZE, POSIX_MADV_SEQUENTIAL) == 0);
    REQUIRE(posix_madvise(ranges[POSIX], SIZE, POSIX_MADV_DONTNEED) == 0 && filled(ranges[POSIX], 8 * PAGE, POSIX));
    REQUIRE(posix_madvise(ranges[POSIX], SIZE, 77) == EINVAL);
    REQUIRE(syscall(SYS_madvise, ranges[RAW], SIZE, MADV_DONTFORK) == 0);
    REQUIRE(mlock(ranges[MLOCK], SIZE) == 0 && mlock2(ranges[MLOCK2], SIZE, MLOCK_ONFAULT) == 0);
    REQUIRE(munlock(ranges[MUNLOCK], SIZE) == 0);
    int key = pkey_alloc(0, 0);
    if (key >= 0)
        REQUIRE(pkey_mprotect(ranges[KEY], SIZE, PROT_READ | PROT_WRITE, key) == 0);
    REQUIRE(madvise(ranges[MADVISE], SIZE, 77) == -1 && errno == EINVAL);
    for (int i = 0; i < RANGES; i++)
        look(i, before[i], sizeof before[i], keys[i], sizeof keys[i]);
    puts("changed");
    fflush(stdout);

    await_go();
    if (loses("advice"))
        madvise(ranges[MADVISE], SIZE, MADV_DODUMP);
    if (loses("lock"))
        munlock(ranges[MLOCK], SIZE);
    static const char *const known[] = {"dd", "sr", "rr", "dc", "lo", "lf"};
    for (int i = 0; i < RANGES; i++) {
        char after[256], key_after[64];
        look(i, after, sizeof after, key_after, sizeof key_after);
        // Write tracking shows as `uw` or `um`, and is not the program's business.
        for (size_t k = 0; k < sizeof known / sizeof *known; k++)
            CHECK(!strstr(before[i], known[k]) == !strstr(after, known[k]), "range %d: VmFlags were%s and are%s", i,
                  before[i], after);
        CHECK(strcmp(keys[i], key_after) == 0, "range %d: the key was%s and is%s", i, keys[i], key_after);
        CHECK(filled(ranges[i], 8 * PAGE, i), "the content of range %d changed", i);
    }
    return verdict();
}
