// A child made by a clone system call in the program's own code, of which no library knows.
#include "verify.h"
#include <sys/mman.h>
#include <sys/wait.h>

static struct shared {
    atomic_int ticks, finish;
} *shared;

static long inline_call(long number, long first) {
    long result;
    register long fourth __asm__("r10") = 0;
    register long fifth __asm__("r8") = 0;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(first), "S"(0), "d"(0), "r"(fourth), "r"(fifth)
                     : "rcx", "r11", "memory");
    return result;
}

int main(void) {
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    long child = inline_call(SYS_clone, SIGCHLD);
    REQUIRE(child >= 0);
    if (child == 0) {
        while (!atomic_load(&shared->finish)) {
            atomic_fetch_add(&shared->ticks, 1);
            sleep_ms(1);
        }
        inline_call(SYS_exit_group, 7);
    }
    while (!atomic_load(&shared->ticks))
        sleep_ms(1);
    until_go();
    if (loses("child"))
        kill(child, SIGKILL);
    int before = atomic_load(&shared->ticks), status;
    sleep_ms(50);
    CHECK(atomic_load(&shared->ticks) > before, "the child stands still");
    atomic_store(&shared->finish, 1);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7,
          "the child %ld was not there, or ended otherwise", child);
    return verdict();
}
