// A supervisor (PR_SET_CHILD_SUBREAPER) and the daemons that it has adopted, which forked twice and have sessions of their own:
// one in the group of its session, one in a group of its own, one that has ended. With an argument it leads a session itself, and the
// leaders of theirs have ended and were not waited for.
#include "verify.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { PLAIN, GROUP, ENDED, COUNT };

static struct shared {
    atomic_int finish;
    pid_t pids[COUNT], sessions[COUNT];
} *shared;

static pid_t parent_of(pid_t pid) {
    char path[64], text[2048];
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    read_proc(path, text, sizeof text);
    char *line = strstr(text, "PPid:\t");
    return line ? atoi(line + 6) : -1;
}

static void be_daemon(int which, pid_t supervisor) {
    if (which == GROUP)
        REQUIRE(setpgid(0, 0) == 0);
    while (getppid() != supervisor)
        sleep_ms(1);
    shared->pids[which] = getpid();
    while (which != ENDED && !atomic_load(&shared->finish))
        sleep_ms(1);
    CHECK(getppid() == supervisor, "daemon %d: its parent is %d", which, getppid());
    _exit(atomic_load(&failures) ? 1 : 10 + which);
}

int main(int count, char **arguments) {
    (void)arguments;
    bool leads = count > 1;
    pid_t leader = leads ? fork() : 0;
    if (leader) {
        int status = -1;
        REQUIRE(leader > 0 && waitpid(leader, &status, 0) == leader);
        return status != 0;
    }
    REQUIRE(!leads || setsid() > 0);
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t supervisor = getpid();
    REQUIRE(shared != MAP_FAILED && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    for (int which = 0; which < COUNT; which++) {
        pid_t starter = fork();
        REQUIRE(starter >= 0);
        if (starter == 0) {
            shared->sessions[which] = setsid();
            if (fork() == 0)
                be_daemon(which, supervisor);
            _exit(0);
        }
        siginfo_t ended;
        REQUIRE(waitid(P_PID, starter, &ended, WEXITED | (leads ? WNOWAIT : 0)) == 0);
        while (!*(volatile pid_t *)&shared->pids[which])
            sleep_ms(1);
    }
    siginfo_t info;
    REQUIRE(waitid(P_PID, shared->pids[ENDED], &info, WEXITED | WNOWAIT) == 0);
    until_go();

    if (loses("child"))
        REQUIRE(waitpid(shared->pids[ENDED], NULL, 0) > 0);
    if (loses("daemon"))
        kill(shared->pids[PLAIN], SIGKILL);
    for (int which = 0; which < COUNT; which++) {
        pid_t pid = shared->pids[which], parent = parent_of(pid);
        CHECK(parent == supervisor, "daemon %d: its parent is %d", which, parent);
        CHECK(getsid(pid) == shared->sessions[which], "daemon %d: its session is %d, was %d", which, getsid(pid),
              shared->sessions[which]);
        CHECK(getpgid(pid) == (which == GROUP ? pid : shared->sessions[which]), "daemon %d: its group is %d", which,
              getpgid(pid));
    }
    atomic_store(&shared->finish, 1);
    for (int which = 0; which < COUNT; which++) {
        int status = -1;
        CHECK(waitpid(shared->pids[which], &status, 0) == shared->pids[which] && WIFEXITED(status) &&
                  WEXITSTATUS(status) == 10 + which,
              "daemon %d: status %#x", which, status);
        pid_t session = shared->sessions[which];
        CHECK(!leads || (waitpid(session, &status, 0) == session && status == 0), "the leader of %d", which);
    }
    CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD, "it has a child that it did not have");
    return verdict();
}
