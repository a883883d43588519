// Makes and executes programs in every way that libc has, with environments of every kind, each of which looks whether
// libstasis.so came along; and forks, each of which looks whether it got a thread of the library's. Ends with `ok`.
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pty.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <wordexp.h>

extern char **environ;

static char self[4096];
static char *const arguments[] = {self, "leaf", NULL};
static char *const bare[] = {NULL};
static char *const theirs[] = {"A=1", "LD_PRELOAD=libm.so.6", NULL};

// Whether the library is in this process: 0, or what is missing.
static int leaf(void) {
    char line[4096];
    FILE *maps = fopen("/proc/self/maps", "r");
    int found = 0;
    while (maps && fgets(line, sizeof line, maps)) found |= strstr(line, "libstasis.so") != NULL;
    if (!found) return 10;
    if (!getenv("STASIS_COORD")) return 11;
    const char *a = getenv("A"), *preload = getenv("LD_PRELOAD");
    // The library is in it, and LD_PRELOAD is as the user has set it.
    if (a && strcmp(a, "1") == 0 ? !preload || strcmp(preload, "libm.so.6") != 0 : preload && strstr(preload, "stasis"))
        return 12;
    for (char **entry = environ; *entry; entry++)
        if (strstr(*entry, "libstasis.so") && strncmp(*entry, "STASIS_LIB=", 11) != 0) return 14;
    return 0;
}

// The same of a process that was forked: when it is called like this, it has a second thread, of that name.
static int forked(void) {
    siginfo_t call = {.si_signo = 33, .si_code = SI_QUEUE};
    call.si_value.sival_int = 0x57a517;
    syscall(SYS_rt_sigqueueinfo, getpid(), 33, &call);
    for (int attempt = 0; attempt < 2; attempt++) {
        DIR *tasks = opendir("/proc/self/task");
        struct dirent *entry;
        while ((entry = readdir(tasks))) {
            char path[300], name[32] = "";
            snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
            int fd = open(path, O_RDONLY);
            if (fd >= 0 && read(fd, name, sizeof name - 1) > 0 && strncmp(name, "stasis-ckpt", 11) == 0) return 0;
            close(fd);
        }
        closedir(tasks);
    }
    return 13;
}

static void expect(const char *what, int status) {
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        printf("FAIL: %s: wait status %#x\n", what, status);
        exit(1);
    }
}

static void collect(const char *what, pid_t child) {
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) err(1, "%s", what);
    expect(what, status);
}

#define EXECUTES(call)                       \
    do {                                     \
        pid_t child = fork();                \
        if (child == 0) {                    \
            call;                            \
            _exit(20);                       \
        }                                    \
        collect(#call, child);               \
    } while (0)

#define FORKS(call)                          \
    do {                                     \
        pid_t child = call;                  \
        if (child == 0) _exit(forked());     \
        collect(#call, child);               \
    } while (0)

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "leaf") == 0) return leaf();
    if (readlink("/proc/self/exe", self, sizeof self - 1) < 0) err(1, "readlink");

    EXECUTES(execve(self, arguments, environ));
    EXECUTES(execve(self, arguments, (char **)bare));
    EXECUTES(execve(self, arguments, NULL));
    EXECUTES(execve(self, arguments, (char **)theirs));
    EXECUTES((clearenv(), execv(self, arguments)));
    EXECUTES((clearenv(), execvp(self, arguments)));
    EXECUTES(execvpe(self, arguments, (char **)bare));
    EXECUTES((clearenv(), execl(self, self, "leaf", (char *)NULL)));
    EXECUTES((clearenv(), execlp(self, self, "leaf", (char *)NULL)));
    EXECUTES(execle(self, self, "leaf", (char *)NULL, bare));
    EXECUTES(execle(self, self, "leaf", (char *)NULL, theirs));
    EXECUTES(fexecve(open(self, O_RDONLY | O_CLOEXEC), arguments, (char **)bare));
    EXECUTES(execveat(AT_FDCWD, self, arguments, (char **)bare, 0));
    EXECUTES(syscall(SYS_execve, self, arguments, bare));
    EXECUTES(syscall(SYS_execveat, AT_FDCWD, self, arguments, bare, 0));
    EXECUTES((setenv("LD_PRELOAD", "libm.so.6", 1), execv(self, arguments)));
    // Ten arguments: more than there are registers.
    EXECUTES(execl("/bin/sh", "sh", "-c", "test \"$*\" = '1 2 3 4 5 6'", "x", "1", "2", "3", "4", "5", "6",
                   (char *)NULL));
    // More than what is made room for on the stack.
    static char *many[5001], entry[5000][16];
    for (int i = 0; i < 5000; i++) {
        snprintf(entry[i], sizeof entry[i], "V%d=x", i);
        many[i] = entry[i];
    }
    EXECUTES(execve(self, arguments, many));

    // A program that is not there is an error, and nothing else changes.
    if (execve("/nowhere", arguments, (char **)bare) != -1 || errno != ENOENT) errx(1, "/nowhere was executed");
    if (execl("/nowhere", "x", (char *)NULL) != -1 || errno != ENOENT) errx(1, "/nowhere was executed");

    pid_t child;
    if (posix_spawn(&child, self, NULL, NULL, arguments, (char **)bare)) errx(1, "posix_spawn");
    collect("posix_spawn", child);
    if (posix_spawnp(&child, self, NULL, NULL, arguments, (char **)theirs)) errx(1, "posix_spawnp");
    collect("posix_spawnp", child);
    child = vfork();
    if (child == 0) {
        execve(self, arguments, (char **)bare);
        _exit(20);
    }
    collect("vfork", child);
    char command[5000];
    snprintf(command, sizeof command, "%s leaf", self);
    expect("system", system(command));
    expect("popen", pclose(popen(command, "w")));
    wordexp_t words;
    snprintf(command, sizeof command, "$(%s leaf; echo $?)", self);
    if (wordexp(command, &words, 0) || words.we_wordc != 1 || strcmp(words.we_wordv[0], "0")) errx(1, "wordexp");

    child = fork();
    if (child == 0) {
        clearenv();
        snprintf(command, sizeof command, "%s leaf", self);
        expect("system without an environment", system(command));
        expect("popen without an environment", pclose(popen(command, "w")));
        setenv("A", "1", 1), setenv("LD_PRELOAD", "libm.so.6", 1);
        expect("system with a library", system(command));
        _exit(0);
    }
    collect("without an environment", child);

    FORKS(fork());
    FORKS(_Fork());
    FORKS(syscall(SYS_fork));
    FORKS(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    struct clone_args clone_args = {.exit_signal = SIGCHLD};
    FORKS(syscall(SYS_clone3, &clone_args, sizeof clone_args));
    int terminal;
    FORKS(forkpty(&terminal, NULL, NULL, NULL));
    // A daemon ends its parent; the pipe's end tells that it has come.
    int ends[2];
    if (pipe(ends)) err(1, "pipe");
    child = fork();
    if (child == 0) {
        char result = daemon(0, 1) == 0 ? (char)forked() : 1;
        if (write(ends[1], &result, 1) != 1) _exit(1);
        _exit(0);
    }
    collect("daemon's parent", child);
    char result = 99;
    if (read(ends[0], &result, 1) != 1 || result != 0) errx(1, "daemon: %d", result);
    puts("ok");
    return 0;
}
