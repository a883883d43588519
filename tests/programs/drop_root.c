// Gives up root as daemons do, by setgroups(2), setgid(2) and setuid(2), with threads and a log that only root can
// reach by its path: after each call every thread of the process has the new ids, and it stays undumpable.
// argv[1] = late: not before a line comes.
#include "verify.h"
#include <dirent.h>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/stat.h>

enum { NOBODY = 65534 };

static atomic_int go_on;

static void *body(void *unused) {
    await_value(&go_on, 1);
    return unused;
}

// That each thread's line of /proc/self/task/*/status is this one; returns how many threads there are.
static int check_threads(const char *when, const char *name, const char *expected) {
    static char status[8192];
    char path[300];
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");
    REQUIRE(tasks);
    for (struct dirent *task; (task = readdir(tasks));) {
        if (task->d_name[0] == '.')
            continue;
        count++;
        snprintf(path, sizeof path, "/proc/self/task/%s/status", task->d_name);
        read_proc(path, status, sizeof status);
        char *line = strstr(status, name);
        REQUIRE(line && strchr(line, '\n'));
        *strchr(line, '\n') = 0;
        line += strlen(name);
        line += strspn(line, "\t ");
        line[strcspn(line, "\n")] = 0;
        CHECK(strcmp(line, expected) == 0, "%s: thread %s has %s %s, not %s", when, task->d_name, name, line, expected);
    }
    closedir(tasks);
    return count;
}

int main(int argc, char **argv) {
    (void)argv;
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        threads[i] = start_thread(body, NULL);

    REQUIRE(mkdir("private", 0700) == 0);
    int log = open("private/log", O_RDWR | O_CREAT | O_APPEND, 0600);
    REQUIRE(log >= 0 && write(log, "as root\n", 8) == 8);

    if (argc > 1) {
        puts("still root");
        fflush(stdout);
        REQUIRE(getchar() != EOF);
    }
    gid_t groups[] = {100, 200};
    REQUIRE(setgroups(2, groups) == 0);
    check_threads("setgroups", "\nGroups:", "100 200 ");
    REQUIRE(initgroups("root", 300) == 0);
    int count = getgroups(0, NULL);
    CHECK(count >= 1, "initgroups gave %d groups", count);
    REQUIRE(setgroups(0, NULL) == 0);
    check_threads("setgroups to none", "\nGroups:", "");
    REQUIRE(seteuid(NOBODY) == 0);
    check_threads("seteuid", "\nUid:", "0\t65534\t0\t65534");
    check_threads("seteuid", "\nCapEff:", "0000000000000000");
    REQUIRE(seteuid(0) == 0);
    check_threads("seteuid back", "\nUid:", "0\t0\t0\t0");
    REQUIRE(setegid(NOBODY) == 0 && setregid(-1, 0) == 0 && setreuid(-1, 0) == 0);
    REQUIRE(setresgid(1, 2, 3) == 0);
    check_threads("setresgid", "\nGid:", "1\t2\t3\t2");
    REQUIRE(setgid(NOBODY) == 0);
    check_threads("setgid", "\nGid:", "65534\t65534\t65534\t65534");
    REQUIRE(setuid(NOBODY) == 0);
    check_threads("setuid", "\nUid:", "65534\t65534\t65534\t65534");
    check_threads("setuid", "\nCapPrm:", "0000000000000000");
    CHECK(setuid(0) == -1 && errno == EPERM, "root can be had again");
    CHECK(access("private/log", F_OK) == -1 && errno == EACCES, "the log can be reached by its path");
    int dumpable = prctl(PR_GET_DUMPABLE);

    until_go();
    if (loses("log"))
        REQUIRE(ftruncate(log, 0) == 0);
    const char *ids = loses("uid") ? "0\t0\t0\t0" : "65534\t65534\t65534\t65534";
    check_threads("in the end", "\nUid:", ids);
    check_threads("in the end", "\nGid:", "65534\t65534\t65534\t65534");
    check_threads("in the end", "\nGroups:", "");
    check_threads("in the end", "\nCapPrm:", "0000000000000000");
    check_threads("in the end", "\nCapEff:", "0000000000000000");
    if (loses("dumpable"))
        prctl(PR_SET_DUMPABLE, 1);
    CHECK(prctl(PR_GET_DUMPABLE) == dumpable, "dumpable was %d and is %d", dumpable, prctl(PR_GET_DUMPABLE));
    char content[64] = "";
    CHECK(write(log, "as nobody\n", 10) == 10, "the log");
    CHECK(pread(log, content, sizeof content - 1, 0) == 18 && strcmp(content, "as root\nas nobody\n") == 0,
          "the log has %s", content);
    atomic_store(&go_on, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    return verdict();
}
