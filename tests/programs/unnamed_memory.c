// Shared memory without a name and a descriptor: a deleted file whose pages are on the disk, with a hole; memory that is in swap, where
// there is any; what lies under a guard region. Argument `unprivileged`: the kernel does not let it open what it has mapped.
#include "maps.h"
#include <linux/capability.h>

enum { SIZE = 64 * PAGE };

static void give_up_capabilities(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    REQUIRE(syscall(SYS_capget, &header, data) == 0);
    data[0].effective &= ~(1u << CAP_SYS_ADMIN);
    data[1].effective &= ~(1u << (CAP_CHECKPOINT_RESTORE - 32));
    REQUIRE(syscall(SYS_capset, &header, data) == 0);
}

static char *shared(int flags, int fd) {
    char *start = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);
    REQUIRE(start != MAP_FAILED);
    return start;
}

int main(int count, char **arguments) {
    if (count > 1 && strcmp(arguments[1], "unprivileged") == 0)
        give_up_capabilities();
    static char content[SIZE];
    fill_memory(content, SIZE, 1);
    int fd = open("evicted", O_RDWR | O_CREAT | O_EXCL, 0600);
    REQUIRE(fd >= 0 && write(fd, content, SIZE / 2) == SIZE / 2 && ftruncate(fd, SIZE - PAGE) == 0);
    REQUIRE(pwrite(fd, content, PAGE, SIZE - 2 * PAGE) == PAGE && fsync(fd) == 0);
    char *file = shared(0, fd);
    REQUIRE(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0 && close(fd) == 0 && unlink("evicted") == 0);

    char *swapped = shared(MAP_ANONYMOUS, -1);
    fill_memory(swapped, SIZE / 2, 2);
    madvise(swapped, SIZE, MADV_PAGEOUT);

    char *guarded = shared(MAP_ANONYMOUS, -1);
    fill_memory(guarded, SIZE, 3);
    // Linux 6.15
    bool guards = madvise(guarded + 4 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL) == 0;

    until_go();
    if (loses("file"))
        file[9]++;
    if (loses("swapped"))
        swapped[9]++;
    CHECK(filled(file, SIZE / 2, 1) && filled(file + SIZE - 2 * PAGE, PAGE, 1), "the deleted file changed");
    CHECK(file[SIZE / 2] == 0 && file[SIZE - 2 * PAGE - 1] == 0, "the hole of the deleted file is none");
    CHECK(filled(swapped, SIZE / 2, 2) && swapped[SIZE / 2] == 0, "shared memory changed");
    if (guards) {
        if (loses("guards"))
            madvise(guarded + 4 * PAGE, PAGE, MADV_GUARD_INSTALL + 1);
        for (int page = 0; page < SIZE / PAGE; page++)
            CHECK(fault_of(guarded + page * PAGE, true) == (page == 4 || page == 5 ? SIGSEGV : 0),
                  "page %d of shared memory with guards in pages 4 and 5", page);
        REQUIRE(madvise(guarded + 4 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL + 1) == 0);
        if (loses("under guards"))
            guarded[5 * PAGE]++;
    }
    CHECK(filled(guarded, SIZE, 3), "memory with guards in it, or under them, changed");
    return verdict();
}
