// Memory that is sealed (mseal), locked as it is touched (mlock2), or locked and not to be touched; a shared mapping of a file
// that may yet become writable; a memfd and a deleted file that end within a page that is mapped.
#include "verify.h"

#include <sys/mman.h>
#include <sys/stat.h>

#define SYS_MSEAL 462
#define PAGE 4096ul

static char *map(size_t size, int protection, int flags, int fd) {
    char *memory = mmap(NULL, size, protection, flags, fd, 0);
    REQUIRE(memory != MAP_FAILED);
    return memory;
}

// Whether VmFlags of the mapping at this address has the flag.
static bool has_flag(char *address, const char *flag) {
    char line[512];
    bool is_it = false;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    REQUIRE(smaps);
    while (fgets(line, sizeof line, smaps)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            is_it = start <= (unsigned long)address && (unsigned long)address < end;
        else if (is_it && strncmp(line, "VmFlags:", 8) == 0)
            break;
    }
    fclose(smaps);
    return strstr(line, flag) != NULL;
}

int main(void) {
    const int private = MAP_PRIVATE | MAP_ANONYMOUS, both = PROT_READ | PROT_WRITE;
    char *sealed = map(4 * PAGE, both, private, -1);
    memset(sealed, 's', PAGE);
    bool seals = syscall(SYS_MSEAL, sealed, 4 * PAGE, 0) == 0;
    size_t large = 3ul << 30;
    char *on_fault = map(large, both, private | MAP_NORESERVE, -1);
    REQUIRE(mlock2(on_fault, large, MLOCK_ONFAULT) == 0);
    on_fault[0] = 'f';
    char *untouchable = map(2 * PAGE, both, private, -1);
    untouchable[0] = 'u';
    REQUIRE(mlock(untouchable, 2 * PAGE) == 0 && mprotect(untouchable, 2 * PAGE, PROT_NONE) == 0);

    int file = open("file", O_RDWR | O_CREAT, 0600);
    REQUIRE(file >= 0 && write(file, "content", 7) == 7);
    char *shared = map(PAGE, PROT_READ, MAP_SHARED, file);
    close(file);
    int memfd = memfd_create("short", 0), deleted = open("deleted", O_RDWR | O_CREAT, 0600);
    REQUIRE(ftruncate(memfd, 5000) == 0 && ftruncate(deleted, 5001) == 0 && unlink("deleted") == 0);
    char *of_memfd = map(4 * PAGE, both, MAP_SHARED, memfd), *of_deleted = map(4 * PAGE, both, MAP_SHARED, deleted);
    of_memfd[4999] = 'm';
    of_deleted[5000] = 'd';

    until_go();

    if (loses("content"))
        on_fault[0] = 0;
    if (loses("lock"))
        munlock(on_fault, large);
    if (loses("size") && ftruncate(memfd, 8192) == 0)
        of_deleted[5000] = 'd';
    if (loses("may write"))
        shared = map(PAGE, PROT_READ, MAP_SHARED, open("file", O_RDONLY));
    if (seals) {
        CHECK(sealed[PAGE - 1] == 's', "sealed memory has another content");
        CHECK(munmap(sealed, PAGE) == -1 && errno == EPERM, "sealed memory can be unmapped");
    }
    CHECK(on_fault[0] == 'f', "locked memory has another content");
    CHECK(has_flag(on_fault, " lf"), "it is not locked as it is touched");
    CHECK(has_flag(untouchable, " lo"), "what cannot be touched is not locked");
    CHECK(mprotect(untouchable, 2 * PAGE, PROT_READ) == 0 && untouchable[0] == 'u', "its content");
    CHECK(mprotect(shared, PAGE, both) == 0 && shared[0] == 'c', "the shared mapping cannot be made writable");
    struct stat found;
    CHECK(fstat(memfd, &found) == 0 && found.st_size == 5000, "the memfd has %ld bytes", (long)found.st_size);
    CHECK(fstat(deleted, &found) == 0 && found.st_size == 5001, "the file has %ld bytes", (long)found.st_size);
    CHECK(of_memfd[4999] == 'm' && of_deleted[5000] == 'd', "their content");
    return verdict();
}
