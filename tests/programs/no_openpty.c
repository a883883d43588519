// A library in which openpty(3) fails: mpirun then has pipes to the processes that it starts.
#include <errno.h>

int openpty(int *master, int *slave, char *name, const void *attributes, const void *size) {
    (void)master, (void)slave, (void)name, (void)attributes, (void)size;
    errno = ENOENT;
    return -1;
}
