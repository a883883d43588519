// pidfds of the process itself, of its parent, of children that live, have ended, or were waited for, and of a thread.
#include <poll.h>
#include <sys/wait.h>

#include "verify.h"

static int open_pidfd(pid_t pid, unsigned flags) {
    int fd = syscall(SYS_pidfd_open, pid, flags);
    REQUIRE(fd >= 0);
    return fd;
}

// The process that one stands for, as the kernel tells it.
static int process_of(int fd) {
    char path[64], text[2048];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    read_proc(path, text, sizeof text);
    char *line = strstr(text, "Pid:\t");
    return line ? atoi(line + 5) : -2;
}

static int has_ended(int fd) {
    struct pollfd ask = {fd, POLLIN, 0};
    return poll(&ask, 1, 0) == 1;
}

int main(void) {
    int told[2], answer[2];
    REQUIRE(pipe(told) == 0 && pipe(answer) == 0);
    pid_t child = fork();
    if (child == 0) {
        close(told[1]);
        int parent = open_pidfd(getppid(), 0);
        char byte = 'r';
        REQUIRE(write(answer[1], &byte, 1) == 1);
        REQUIRE(read(told[0], &byte, 1) == 0);
        _exit(process_of(parent) == getppid() && !has_ended(parent) ? 3 : 1);
    }
    char byte;
    REQUIRE(read(answer[0], &byte, 1) == 1);
    pid_t zombie = fork();
    if (zombie == 0)
        _exit(4);
    pid_t gone = fork();
    if (gone == 0)
        _exit(5);
    pid_t tid = start_waiting_thread();
    // A child has it as well, whose brother has ended.
    int dead = open_pidfd(zombie, 0), waits[2];
    REQUIRE(pipe(waits) == 0);
    pid_t brother = fork();
    if (brother == 0) {
        close(waits[1]), close(told[1]);
        REQUIRE(read(waits[0], &byte, 1) == 0);
        _exit(process_of(dead) == zombie && has_ended(dead) ? 6 : 1);
    }
    int self = open_pidfd(getpid(), O_NONBLOCK), copy = dup(self);
    int alive = open_pidfd(child, 0), collected = open_pidfd(gone, 0);
    int thread = syscall(SYS_pidfd_open, tid, O_EXCL);
    siginfo_t info;
    REQUIRE(waitid(P_PID, zombie, &info, WEXITED | WNOWAIT) == 0);
    REQUIRE(waitpid(gone, NULL, 0) == gone);

    until_go();

    if (loses("self"))
        dup2(alive, self);
    if (loses("child"))
        dup2(self, alive);
    if (loses("zombie"))
        close(dead);
    if (loses("collected"))
        dup2(self, collected);
    CHECK(process_of(self) == getpid() && !has_ended(self), "of itself: pid %d", process_of(self));
    CHECK(process_of(copy) == getpid() && fcntl(copy, F_GETFL) & O_NONBLOCK, "its copy");
    CHECK(syscall(SYS_pidfd_send_signal, self, 0, NULL, 0) == 0, "no signal by that of itself");
    CHECK(process_of(alive) == child && !has_ended(alive), "of a child: pid %d, not %d", process_of(alive), child);
    CHECK(has_ended(collected) && process_of(collected) == -1, "of who was waited for: pid %d", process_of(collected));
    if (thread >= 0)
        CHECK(process_of(thread) == tid, "of a thread: %d", process_of(thread));
    int status = -1;
    close(waits[1]);
    CHECK(waitpid(brother, &status, 0) == brother && status == 6 << 8, "of a brother that has ended: status %#x", status);
    memset(&info, 0, sizeof info);
    CHECK(waitid(P_PIDFD, dead, &info, WEXITED) == 0 && info.si_pid == zombie && info.si_status == 4,
          "of a zombie: status %d", info.si_status);
    close(told[1]);
    memset(&info, 0, sizeof info);
    CHECK(waitid(P_PIDFD, alive, &info, WEXITED | (loses("child") ? WNOHANG : 0)) == 0 && info.si_pid == child &&
              info.si_status == 3,
          "the child's end: status %d", info.si_status);
    return verdict();
}
