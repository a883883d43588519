// A counter in a file that two processes map shared, one on a disk or the one that is named: each adds to it in turn.
#include "verify.h"
#include <sys/mman.h>
#include <sys/wait.h>

enum { SIZE = 3 * 4096 };

// The same counter in memory of the process' own: what it has done.
static long own;

int main(int count, char **arguments) {
    const char *path = count > 1 ? arguments[1] : "counter";
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    REQUIRE(fd >= 0 && ftruncate(fd, SIZE) == 0);
    atomic_long *counter = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(counter != MAP_FAILED && close(fd) == 0);
    pid_t parent = getpid();
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        // Odd numbers are its own.
        for (long turn = 1;; turn += 2) {
            while (atomic_load(counter) != turn) {
                if (getppid() != parent)
                    _exit(0);
                sleep_ms(1);
            }
            atomic_store(counter, turn + 1);
        }
    }
    long end = 0;
    while (end == 0 || own < end) {
        if (end == 0 && own >= 20 && told_to_go()) {
            end = own + 20;
            if (loses("content"))
                own += 2;
        }
        long turn = atomic_load(counter);
        if (turn % 2 == 0) {
            if (turn != own) {
                FAIL("the counter is %ld, and this process has come to %ld", turn, own);
                break;
            }
            own += 2;
            atomic_store(counter, turn + 1);
            if (own == 20)
                say_ready();
        }
        sleep_ms(1);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    unlink(path);
    return verdict();
}
