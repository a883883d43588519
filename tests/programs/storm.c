// Children that are made in every way there is, by the hundred, and end after a moment: the status of each is that of
// what it did, none is missing, none comes twice. As `storm users`, each that executes nothing gives up being root.
#include "verify.h"
#include <linux/sched.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { LEAST = 300, AT_ONCE = 60, ORPHANS_AT_ONCE = 8 };
enum { FORK, FORK_AND_SLEEP, VFORK, VFORK_AND_EXECUTE, SPAWN, CLONE, CLONE3, GRANDCHILD, ORPHAN, SYSTEM, PIPE, THREAD, WAYS };

extern char **environ;

static char self[4096];
static atomic_long *orphans;

static struct child {
    pid_t pid;
    int expected;
} children[AT_ONCE];
static int alive;
static long made, ended, orphans_made;
static bool gives_up_root;

// Some milliseconds, another number for each.
static void work(long number) {
    struct timespec time = {0, number * 7919 % 40 * 1000000};
    nanosleep(&time, NULL);
}

static void *work_in_thread(void *number) {
    work((long)number);
    return number;
}

static int status_of(long number) { return (int)(number % 101) + 1; }

static pid_t execute(long number) {
    char text[16], status[16];
    snprintf(text, sizeof text, "%ld", number);
    snprintf(status, sizeof status, "%d", status_of(number));
    char *arguments[] = {self, text, status, NULL};
    pid_t made;
    if (number % WAYS == SPAWN) {
        REQUIRE(posix_spawn(&made, self, NULL, NULL, arguments, environ) == 0);
        return made;
    }
    made = vfork();
    if (made == 0) {
        execv(self, arguments);
        _exit(127);
    }
    return made;
}

static pid_t make(long number) {
    struct clone_args arguments = {.exit_signal = SIGCHLD};
    switch (number % WAYS) {
    case VFORK: {
        pid_t made = vfork();
        if (made == 0)
            _exit(status_of(number));
        return made;
    }
    case VFORK_AND_EXECUTE:
    case SPAWN:
        return execute(number);
    case CLONE:
        return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    case CLONE3:
        return (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    default:
        return fork();
    }
}

static void live(long number) {
    pid_t own;
    int status;
    pthread_t thread;
    if (gives_up_root) {
        work(number + 1);
        REQUIRE(setgid(65534) == 0 && setuid(65534) == 0);
        work(number);
        CHECK(getuid() == 65534 && geteuid() == 65534, "child %ld is uid %d again", number, geteuid());
        if (atomic_load(&failures))
            _exit(255);
    }
    switch (number % WAYS) {
    case FORK_AND_SLEEP:
    case CLONE3:
        work(number);
        break;
    case GRANDCHILD:
        own = fork();
        if (own == 0) {
            work(number);
            _exit(7);
        }
        REQUIRE(waitpid(own, &status, 0) == own && WIFEXITED(status) && WEXITSTATUS(status) == 7);
        break;
    case ORPHAN:
        own = fork();
        if (own == 0) {
            work(number);
            atomic_fetch_add(orphans, 1);
            _exit(0);
        }
        REQUIRE(own > 0);
        break;
    case THREAD:
        REQUIRE(pthread_create(&thread, NULL, work_in_thread, (void *)number) == 0);
        REQUIRE(pthread_join(thread, NULL) == 0);
        break;
    }
    _exit(status_of(number));
}

static void collect(void) {
    int status = 0;
    pid_t pid = waitpid(-1, &status, 0);
    REQUIRE(pid > 0);
    for (int i = 0; i < alive; i++) {
        if (children[i].pid != pid)
            continue;
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == children[i].expected, "pid %d: wait status %#x instead of code %d",
              pid, status, children[i].expected);
        children[i] = children[--alive];
        ended++;
        return;
    }
    FAIL("pid %d, with status %#x, is nobody's or came twice", pid, status);
}

// In a shell, and done when it returns.
static void command(long number) {
    char text[64], said[16] = "";
    if (number % WAYS == SYSTEM) {
        snprintf(text, sizeof text, "exit %d", status_of(number));
        int status = system(text);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == status_of(number), "system: status %#x", status);
    } else {
        snprintf(text, sizeof text, "echo %ld", number);
        FILE *pipe = popen(text, "r");
        REQUIRE(pipe);
        CHECK(fgets(said, sizeof said, pipe) && atol(said) == number, "popen: `%s` instead of %ld", said, number);
        int status = pclose(pipe);
        CHECK(status == 0, "the status of popen's %ld is %#x", number, status);
    }
    ended++;
}

int main(int argc, char **argv) {
    if (argc == 3) {
        work(atol(argv[1]));
        return atoi(argv[2]);
    }
    gives_up_root = argc == 2 && getuid() == 0;
    orphans = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(orphans != MAP_FAILED && readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    say_ready();
    while ((made < LEAST || !told_to_go()) && !atomic_load(&failures)) {
        long number = made++;
        if (number % WAYS == SYSTEM || number % WAYS == PIPE) {
            command(number);
            continue;
        }
        if (alive == AT_ONCE)
            collect();
        if (number % WAYS == ORPHAN) {
            // Nobody else waits for them.
            while (orphans_made - atomic_load(orphans) >= ORPHANS_AT_ONCE)
                sleep_ms(1);
            orphans_made++;
        }
        pid_t pid = make(number);
        REQUIRE(pid >= 0);
        if (pid == 0)
            live(number);
        children[alive++] = (struct child){pid, status_of(number)};
    }
    if (loses("status"))
        children[0].expected++;
    if (loses("child"))
        waitpid(children[0].pid, NULL, 0);
    while (alive && !atomic_load(&failures))
        collect();
    CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD, "there are more children");
    int64_t until = now_ns(CLOCK_MONOTONIC) + 5000000000;
    while (atomic_load(orphans) < orphans_made && now_ns(CLOCK_MONOTONIC) < until)
        sleep_ms(1);
    if (loses("orphan"))
        orphans_made++;
    CHECK(atomic_load(orphans) == orphans_made, "%ld of %ld orphans have ended", atomic_load(orphans), orphans_made);
    CHECK(made == ended, "%ld children were made, %ld have ended", made, ended);
    return verdict();
}
