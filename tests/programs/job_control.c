// A session on a pseudo-terminal of the program's own: its leader, a group in the foreground and two in the background, of which
// one is stopped because it has read; a member that let go of the terminal; /dev/tty; a session whose terminal has hung up.
#include "verify.h"
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <termios.h>

enum { LEADER, FRONT, BACK, READER, LOST, HUNG, COUNT };
static const char *const names[] = {"leader", "front", "back", "reader", "lost", "hung"};

static struct shared {
    atomic_int ready, verified, finish, told[COUNT], interrupts[COUNT];
    pid_t pids[COUNT], orphan;
    char tty[64];
} *shared;

static int self = -1, master, dev_tty = -1;

static void on_interrupt(int signal) {
    (void)signal;
    atomic_fetch_add(&shared->interrupts[self], 1);
}

static void wait_for(atomic_int *word, int value) {
    while (atomic_load(word) < value)
        sleep_ms(1);
}

static pid_t tty_session(void) {
    int fd = open("/dev/tty", O_RDWR);
    pid_t session = fd < 0 ? -1 : tcgetsid(fd);
    if (fd >= 0)
        close(fd);
    return session;
}

static void check(void) {
    const char *name = names[self];
    pid_t session = self == HUNG ? getpid() : shared->pids[LEADER];
    CHECK(getsid(0) == session, "%s: its session is %d", name, getsid(0));
    if (self == LOST || self == HUNG)
        CHECK(tty_session() == -1, "%s: it has a terminal", name);
    else
        CHECK(tty_session() == session, "%s: the session of its terminal is %d", name, tty_session());
    if (self == HUNG) {
        char byte;
        CHECK(read(0, &byte, 1) == 0 && write(0, "x", 1) == -1 && errno == EIO, "a terminal that has hung up");
        return;
    }
    CHECK(tcgetpgrp(0) == (self == LOST ? -1 : shared->pids[FRONT]), "%s: in the foreground is %d", name, tcgetpgrp(0));
    char *tty = ttyname(0);
    // Its number may have been taken by somebody else.
    CHECK(tty && !strncmp(tty, "/dev/pts/", 9), "%s: the terminal is %s, and was %s", name, tty ? tty : "none", shared->tty);
    if (self == LEADER) {
        CHECK(isatty(dev_tty) && tcgetsid(dev_tty) == session, "/dev/tty");
        int death = 0, adopts = 0;
        prctl(PR_GET_PDEATHSIG, &death), prctl(PR_GET_CHILD_SUBREAPER, &adopts);
        CHECK(death == SIGUSR2 && adopts == 1, "the death signal is %d, a subreaper %d", death, adopts);
        // An orphan comes to be its child.
        pid_t child = fork();
        if (child == 0) {
            pid_t orphan = fork();
            if (orphan == 0)
                _exit(4);
            shared->orphan = orphan;
            _exit(0);
        }
        int status = 0;
        waitpid(child, NULL, 0);
        CHECK(waitpid(shared->orphan, &status, 0) == shared->orphan && WEXITSTATUS(status) == 4, "an orphan was not adopted");
    }
}

static void live(int which) {
    self = which;
    shared->pids[which] = getpid();
    if (which == BACK || which == READER || which == FRONT)
        setpgid(0, 0);
    if (which == LOST)
        REQUIRE(ioctl(0, TIOCNOTTY) == 0);
    atomic_fetch_add(&shared->ready, 1);
    if (which == READER) {
        // Not in the foreground: it is stopped (SIGTTIN), and reads when it is put there.
        char line[16] = "";
        wait_for(&shared->ready, COUNT + 1);
        ssize_t count = read(0, line, sizeof line);
        CHECK(count == 5 && !memcmp(line, "line\n", 5), "it has read `%s`", line);
        CHECK(tcgetpgrp(0) == getpid(), "it has read in the background");
        shared->interrupts[READER] += 1000;
    }
    wait_for(&shared->told[which], 1);
    if (which != READER)
        check();
    if (!atomic_load(&failures))
        atomic_fetch_add(&shared->verified, 1);
    atomic_store(&shared->told[which], 2);
    wait_for(&shared->finish, 1);
}

static void start(int which) {
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        live(which);
        _exit(0);
    }
    if (which != LOST)
        setpgid(child, child);
}

static void lead(int slave) {
    prctl(PR_SET_PDEATHSIG, SIGUSR2);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    REQUIRE(setsid() == getpid() && ioctl(slave, TIOCSCTTY, 0) == 0 && dup2(slave, 0) == 0 && close(slave) == 0 && close(master) == 0);
    REQUIRE((dev_tty = open("/dev/tty", O_RDWR)) >= 0);
    signal(SIGTTOU, SIG_IGN);
    for (int which = FRONT; which <= LOST; which++)
        start(which);
    signal(SIGTTOU, SIG_DFL);
    for (int which = FRONT; which <= READER; which++)
        while (!shared->pids[which] || getpgid(shared->pids[which]) != shared->pids[which])
            sleep_ms(1);
    sigset_t out;
    sigemptyset(&out), sigaddset(&out, SIGTTOU), sigprocmask(SIG_BLOCK, &out, NULL);
    REQUIRE(tcsetpgrp(0, shared->pids[FRONT]) == 0);
    live(LEADER);
    // The reader is put into the foreground, and continued.
    REQUIRE(tcsetpgrp(0, shared->pids[READER]) == 0 && kill(shared->pids[READER], SIGCONT) == 0);
    for (int left = 4; left > 0; left--)
        wait(NULL);
    _exit(0);
}

static char state(pid_t pid) {
    char path[64], content[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY);
    ssize_t count = read(fd, content, sizeof content - 1);
    close(fd);
    char *end = count > 0 ? strrchr(content, ')') : NULL;
    return end ? end[2] : '?';
}

int main(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &action, NULL);
    int slave, hung_master, hung_slave;
    REQUIRE(openpty(&master, &slave, shared->tty, NULL, NULL) == 0 && openpty(&hung_master, &hung_slave, NULL, NULL, NULL) == 0);
    pid_t leader = fork();
    if (leader == 0) {
        close(hung_master), close(hung_slave);
        lead(slave);
    }
    pid_t hung = fork();
    if (hung == 0) {
        close(master), close(slave), close(hung_master);
        REQUIRE(setsid() == getpid() && ioctl(hung_slave, TIOCSCTTY, 0) == 0 && dup2(hung_slave, 0) == 0 && close(hung_slave) == 0);
        signal(SIGHUP, SIG_IGN);
        live(HUNG);
        _exit(0);
    }
    close(slave), close(hung_slave);
    wait_for(&shared->ready, COUNT);
    close(hung_master);
    atomic_fetch_add(&shared->ready, 1);
    while (state(shared->pids[READER]) != 'T')
        sleep_ms(1);

    pid_t all[COUNT];
    memcpy(all, shared->pids, sizeof all);

    until_go();
    if (loses("stop"))
        kill(shared->pids[READER], SIGKILL);
    if (loses("group"))
        shared->pids[FRONT]++;
    if (loses("session"))
        shared->pids[LEADER]++;
    if (loses("interrupt"))
        tcsetattr(master, TCSANOW, &(struct termios){0});
    // After a checkpoint it stops again when that is made.
    for (int tries = 0; tries < 2000 && state(shared->pids[READER]) != 'T'; tries++)
        sleep_ms(1);
    CHECK(state(shared->pids[READER]) == 'T', "the reader is in state %c", state(shared->pids[READER]));
    REQUIRE(write(master, "\003", 1) == 1);
    for (int tries = 0; tries < 2000 && !shared->interrupts[FRONT]; tries++)
        sleep_ms(1);
    CHECK(shared->interrupts[FRONT] == 1 && !shared->interrupts[BACK] && !shared->interrupts[LEADER] && !shared->interrupts[LOST],
          "the terminal interrupts %d in the foreground, %d in the background", shared->interrupts[FRONT], shared->interrupts[BACK]);
    int order[] = {FRONT, BACK, LOST, HUNG, LEADER};
    for (int which = 0; which < 5 && !atomic_load(&failures); which++) {
        atomic_store(&shared->told[order[which]], 1);
        for (int tries = 0; tries < 5000 && shared->told[order[which]] != 2; tries++)
            sleep_ms(1);
        CHECK(shared->told[order[which]] == 2, "%s does not answer", names[order[which]]);
    }
    CHECK(shared->verified == 5, "%d of 5 processes are as they were", shared->verified);
    atomic_store(&shared->finish, 1);
    REQUIRE(write(master, "line\n", 5) == 5);
    atomic_store(&shared->told[READER], 1);
    for (int tries = 0; tries < 5000 && shared->verified < 6 && !failures; tries++)
        sleep_ms(1);
    CHECK(shared->verified == 6 && shared->interrupts[READER] == 1000, "the reader does not read in the foreground");
    for (int which = 0; which < COUNT && atomic_load(&failures); which++)
        kill(all[which], SIGKILL);
    waitpid(leader, NULL, 0), waitpid(hung, NULL, 0);
    return verdict();
}
