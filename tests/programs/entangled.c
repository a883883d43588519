// A child that has something together with its parent, named by argv[1], that no restart could make again: its memory, its
// descriptors, its working directory; or that its parent traces.
#include "verify.h"
#include <sched.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>

static struct shared {
    atomic_int ready, step, done, descriptor;
} *shared;

static char stack[65536];
static atomic_int word;

static int run(void *argument) {
    const char *what = argument;
    if (strcmp(what, "traced") == 0)
        REQUIRE(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
    atomic_store(&shared->ready, 1);
    await_value(&shared->step, 1);
    atomic_store(&word, 1);
    atomic_store(&shared->descriptor, open("/dev/zero", O_RDONLY));
    umask(0123);
    atomic_store(&shared->done, 1);
    await_value(&shared->step, 2);
    return 5;
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "descriptors";
    bool memory = strcmp(what, "memory") == 0, descriptors = strcmp(what, "descriptors") == 0;
    bool directory = strcmp(what, "directory") == 0;
    int flags = SIGCHLD | (memory ? CLONE_VM : descriptors ? CLONE_FILES : directory ? CLONE_FS : 0);
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    umask(022);
    if (loses("sharing"))
        flags = SIGCHLD;
    pid_t child = clone(run, stack + sizeof stack, flags, (void *)what);
    REQUIRE(child > 0);
    await_value(&shared->ready, 1);
    until_go();

    atomic_store(&shared->step, 1);
    await_value(&shared->done, 1);
    char byte = 1;
    if (memory)
        CHECK(atomic_load(&word) == 1, "the memory is not the child's any more");
    if (descriptors)
        CHECK(read(atomic_load(&shared->descriptor), &byte, 1) == 1 && byte == 0, "the descriptors are not the child's");
    if (directory)
        CHECK(umask(022) == 0123, "the umask is not the child's");
    int status = -1;
    CHECK(strcmp(what, "traced") != 0 || ptrace(PTRACE_DETACH, child, NULL, NULL) != 0, "the child was stopped");
    atomic_store(&shared->step, 2);
    CHECK(waitpid(child, &status, 0) == child && status == 5 << 8, "status %#x", status);
    return verdict();
}
