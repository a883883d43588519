// A tree of processes: parents, groups and sessions with and without their leaders, an orphan, zombies; a pipe, a pair of
// sockets, a file's offset and memory that they share.
#include "verify.h"
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { PLAIN, LEADER, MEMBER, BEREFT, SESSION, OLDER, NEWER, DAEMON, COUNT };
static const char *const names[] = {"plain", "leader", "member", "bereft", "session", "older", "newer", "daemon"};

static struct shared {
    atomic_int ready, verified, finish, told[COUNT];
    struct place {
        pid_t pid, parent, group, session;
    } places[COUNT];
} *shared;

static int pipe_ends[2], pair[2], file;
static atomic_int children_ended;

static void note_child(int signal) {
    (void)signal;
    atomic_fetch_add(&children_ended, 1);
}

static struct place here(void) { return (struct place){getpid(), getppid(), getpgrp(), getsid(0)}; }

static void wait_for(atomic_int *word, int value) {
    while (atomic_load(word) < value)
        sleep_ms(1);
}

static void check_place(int which) {
    struct place *was = &shared->places[which], now = here();
    const char *name = names[which];
    CHECK(now.pid == was->pid, "%s: pid %d was %d", name, now.pid, was->pid);
    // Who adopts orphans is another one now.
    CHECK(now.parent == was->parent || which == DAEMON, "%s: parent %d was %d", name, now.parent, was->parent);
    CHECK(now.group == was->group || (which <= PLAIN && getpgid(now.parent) == now.group) || which == OLDER,
          "%s: group %d was %d", name, now.group, was->group);
    CHECK(now.session == was->session || getsid(now.parent) == now.session || which == OLDER,
          "%s: session %d was %d", name, now.session, was->session);
}

static void check_plain(void) {
    char got[32] = "";
    CHECK(read(pipe_ends[0], got, sizeof got) == 12 && !memcmp(got, "in the pipe.", 12), "the pipe holds `%s`", got);
    memset(got, 0, sizeof got);
    CHECK(recv(pair[1], got, sizeof got, MSG_DONTWAIT) == 5 && !memcmp(got, "to it", 5), "the socket holds `%s`", got);
    CHECK(send(pair[1], "answer", 6, MSG_NOSIGNAL) == 6, "the socket cannot be written");
    CHECK(lseek(file, 0, SEEK_CUR) == 7, "the offset is %d", (int)lseek(file, 0, SEEK_CUR));
    CHECK(lseek(file, 9, SEEK_SET) == 9, "lseek");
}

// The life of each process but the first.
static void live(int which) {
    shared->places[which] = here();
    atomic_fetch_add(&shared->ready, 1);
    wait_for(&shared->told[which], 1);
    check_place(which);
    if (which == PLAIN)
        check_plain();
    if (!atomic_load(&failures))
        atomic_fetch_add(&shared->verified, 1);
    atomic_store(&shared->told[which], 2);
    if (which == SESSION)
        for (int left = 2; left > 0; left--)
            wait(NULL);
    wait_for(&shared->finish, 1);
    _exit(0);
}

static pid_t start(int which) {
    pid_t made = fork();
    REQUIRE(made >= 0);
    if (made == 0)
        live(which);
    return made;
}

static void start_session(void) {
    pid_t made = fork();
    REQUIRE(made >= 0);
    if (made)
        return;
    start(OLDER);
    REQUIRE(setsid() == getpid());
    start(NEWER);
    live(SESSION);
}

// Its session's leader ends before it.
static void start_daemon(void) {
    pid_t leader = fork();
    REQUIRE(leader >= 0);
    if (leader == 0) {
        REQUIRE(setsid() == getpid());
        pid_t leaders = getpid();
        if (fork() == 0) {
            while (getppid() == leaders)
                sleep_ms(1);
            live(DAEMON);
        }
        _exit(0);
    }
    REQUIRE(waitpid(leader, NULL, 0) == leader);
}

static void start_groups(void) {
    pid_t leader = fork();
    REQUIRE(leader >= 0);
    if (leader == 0) {
        setpgid(0, 0);
        live(LEADER);
    }
    REQUIRE(setpgid(leader, leader) == 0 || errno == EACCES);
    if (fork() == 0) {
        REQUIRE(setpgid(0, leader) == 0);
        live(MEMBER);
    }
    pid_t ends = fork();
    if (ends == 0)
        for (;;)
            pause();
    REQUIRE(setpgid(ends, ends) == 0);
    if (fork() == 0) {
        REQUIRE(setpgid(0, ends) == 0);
        live(BEREFT);
    }
    while (atomic_load(&shared->ready) < 4)
        sleep_ms(1);
    REQUIRE(kill(ends, SIGKILL) == 0 && waitpid(ends, NULL, 0) == ends);
}

int main(void) {
    struct sigaction action = {.sa_handler = note_child, .sa_flags = SA_RESTART};
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED && !pipe(pipe_ends) && !socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    char name[] = "tree-XXXXXX";
    REQUIRE((file = mkstemp(name)) >= 0 && write(file, "0123456789", 10) == 10 && lseek(file, 7, SEEK_SET) == 7);
    start(PLAIN);
    start_groups();
    start_session();
    start_daemon();
    pid_t exited = fork();
    if (exited == 0)
        _exit(3);
    pid_t killed = fork();
    if (killed == 0)
        for (;;)
            pause();
    kill(killed, SIGKILL);
    siginfo_t info;
    REQUIRE(waitid(P_PID, exited, &info, WEXITED | WNOWAIT) == 0 && waitid(P_PID, killed, &info, WEXITED | WNOWAIT) == 0);
    wait_for(&shared->ready, COUNT);
    REQUIRE(write(pipe_ends[1], "in the pipe.", 12) == 12 && send(pair[0], "to it", 5, 0) == 5);
    sigaction(SIGCHLD, &action, NULL);
    struct place root = here();

    until_go();
    if (loses("pid"))
        shared->places[DAEMON].pid++;
    if (loses("parent"))
        shared->places[NEWER].parent++;
    if (loses("group"))
        shared->places[BEREFT].group++;
    if (loses("session"))
        shared->places[DAEMON].session = 1;
    if (loses("offset"))
        lseek(file, 0, SEEK_SET);
    char lost;
    if (loses("bytes"))
        CHECK(read(pipe_ends[0], &lost, 1) == 1, "read");
    if (loses("socket"))
        CHECK(read(pair[1], &lost, 1) == 1, "read");
    if (loses("zombie"))
        CHECK(waitpid(exited, NULL, 0) == exited, "waitpid");
    CHECK(getpid() == root.pid, "pid %d was %d", getpid(), root.pid);
    CHECK(atomic_load(&children_ended) == 0, "%d signals tell of children that ended long ago", children_ended);
    CHECK(getpgid(shared->places[MEMBER].pid) == shared->places[LEADER].pid, "the member left its group");
    for (int which = 0; which < COUNT; which++) {
        CHECK(kill(shared->places[which].pid, 0) == 0, "%s is gone", names[which]);
        atomic_store(&shared->told[which], 1);
    }
    for (int which = 0; which < COUNT && !atomic_load(&failures); which++)
        wait_for(&shared->told[which], 2);
    CHECK(atomic_load(&shared->verified) == COUNT, "%d of %d processes are as they were", shared->verified, COUNT);
    char got[16] = "";
    CHECK(recv(pair[0], got, sizeof got, MSG_DONTWAIT) == 6 && !memcmp(got, "answer", 6), "the answer is `%s`", got);
    CHECK(lseek(file, 0, SEEK_CUR) == 9, "the offset is not shared: %d", (int)lseek(file, 0, SEEK_CUR));
    int status = 0;
    CHECK(waitpid(exited, &status, WNOHANG) == exited && WIFEXITED(status) && WEXITSTATUS(status) == 3,
          "a zombie's status is %x", status);
    CHECK(waitpid(killed, &status, WNOHANG) == killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
          "a killed zombie's status is %x", status);
    atomic_store(&shared->finish, 1);
    // Plain, leader, member, bereft, session.
    for (int left = 5; left > 0; left--)
        CHECK(wait(&status) > 0 && status == 0, "a child's status is %x", status);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "there are more children");
    unlink(name);
    return verdict();
}
