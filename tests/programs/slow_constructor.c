// A library that keeps the loader until a file appears: the program that it is loaded into has not begun before.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

__attribute__((constructor)) static void wait_for_file(void) {
    const char *path = getenv("SLOW_CONSTRUCTOR");
    close(open("loading", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    while (path && access(path, F_OK) != 0)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
}
