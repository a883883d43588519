// Files of /proc that a process has open of itself: maps, mem, pagemap, a thread's, directories; its namespaces.
#include "verify.h"

#include <sys/stat.h>

static int opened(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    REQUIRE(fd >= 0);
    return fd;
}

// Whether one of the lines of maps has the address in it.
static bool shows(char *maps, const void *address) {
    unsigned long start, end, wanted = (unsigned long)address;
    for (char *line = strtok(maps, "\n"); line; line = strtok(NULL, "\n"))
        if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start <= wanted && wanted < end)
            return true;
    return false;
}

static char text[1 << 20];

static char *content(int fd) {
    size_t length = 0;
    ssize_t got;
    lseek(fd, 0, SEEK_SET);
    while ((got = read(fd, text + length, sizeof text - 1 - length)) > 0)
        length += got;
    text[length] = 0;
    return text;
}

int main(void) {
    pid_t tid = start_waiting_thread();
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    int status = opened("/proc/self/stat", O_RDONLY), maps = opened("/proc/self/maps", O_RDONLY), copy = dup(maps);
    int mem = opened("/proc/self/mem", O_RDWR), pagemap = opened("/proc/self/pagemap", O_RDONLY);
    int of_thread = opened(path, O_RDONLY), directory = opened("/proc/self", O_RDONLY | O_DIRECTORY);
    int namespace = opened("/proc/self/ns/net", O_RDONLY);
    REQUIRE(copy >= 0 && read(status, path, 3) == 3);
    static long variable = 77;

    until_go();

    if (loses("offset"))
        lseek(status, 0, SEEK_SET);
    if (loses("memory"))
        dup2(status, mem);
    if (loses("maps"))
        dup2(of_thread, maps);
    if (loses("namespace"))
        dup2(status, namespace);
    CHECK(lseek(status, 0, SEEK_CUR) == 3, "the place in stat is %ld", (long)lseek(status, 0, SEEK_CUR));
    CHECK(atoi(content(status)) == getpid(), "stat is that of %d", atoi(text));
    CHECK(shows(content(maps), &variable), "maps is another process'");
    lseek(copy, 5, SEEK_SET);
    CHECK(lseek(maps, 0, SEEK_CUR) == 5, "the copy is another description");
    long value = 0, changed = 78, entry = 0;
    CHECK(pread(mem, &value, 8, (off_t)&variable) == 8 && value == 77, "mem reads %ld", value);
    CHECK(pwrite(mem, &changed, 8, (off_t)&variable) == 8 && *(volatile long *)&variable == 78, "mem does not write");
    CHECK(pread(pagemap, &entry, 8, ((unsigned long)&variable >> 12) * 8) == 8 && entry < 0, "pagemap: %lx", entry);
    CHECK(atoi(content(of_thread)) == tid, "the thread's stat is that of %d", atoi(text));
    CHECK(faccessat(directory, "maps", F_OK, 0) == 0, "the directory is gone");
    struct stat had, own;
    REQUIRE(fstat(namespace, &had) == 0 && fstatat(AT_FDCWD, "/proc/self/ns/net", &own, 0) == 0);
    CHECK(had.st_ino == own.st_ino && had.st_dev == own.st_dev, "it is not the namespace that the process is in");
    return verdict();
}
