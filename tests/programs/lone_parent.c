// A process with much memory that is alone half of the time, and otherwise has one child, which executes a program: when it is
// alone it has no child, whatever was made while it was being copied.
#include "verify.h"
#include <sys/wait.h>

enum { MEMORY = 24 << 20, PASSES = 6, LEAST = 5 };

int main(int argc, char **argv) {
    if (argc == 2) {
        sleep_ms(30);
        return atoi(argv[1]);
    }
    uint64_t *memory = malloc(MEMORY), random = 1;
    char self[4096] = "", status_text[16];
    REQUIRE(memory && readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    say_ready();
    for (int number = 0; (number < LEAST || !told_to_go()) && !atomic_load(&failures); number++) {
        // Faster than it can be copied: most is stored after the program has stood still.
        for (size_t i = 0; i < PASSES * (MEMORY / sizeof *memory); i += 8)
            memory[i % (MEMORY / sizeof *memory)] = random = random * 6364136223846793005 + 1442695040888963407;
        int status, expected = number % 100 + 1;
        if (loses("child") && number == LEAST - 1 && fork() == 0)
            _exit(0);
        CHECK(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD, "before number %d: there is a child", number);
        snprintf(status_text, sizeof status_text, "%d", expected);
        pid_t child = vfork();
        if (child == 0) {
            execl(self, self, status_text, (char *)NULL);
            _exit(127);
        }
        pid_t waited = waitpid(-1, &status, 0);
        CHECK(waited == child && WIFEXITED(status) && WEXITSTATUS(status) == expected,
              "child %d: pid %d and not %d, wait status %#x; it was given %s", number, waited, child, status, status_text);
    }
    return verdict();
}
