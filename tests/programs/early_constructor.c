// A library whose constructor uses fork, threads, files, sockets and malloc before any other has run.
// library: -fPIC -shared
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern int early_constructor_result;
int early_constructor_result = -1;

static void *body(void *argument) {
    return malloc(100) ? argument : NULL;
}

static int use_everything(void) {
    void *result = NULL;
    int ends[2], status = -1, fd = open("/dev/null", O_RDWR | O_CLOEXEC), socket_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    char *block = malloc(1 << 20);
    pthread_t thread;
    sigset_t set;
    if (fd < 0 || socket_fd < 0 || !block || write(fd, "x", 1) != 1 || pipe(ends) != 0)
        return 1;
    memset(block, 1, 1 << 20);
    free(block);
    if (pthread_create(&thread, NULL, body, ends) != 0 || pthread_join(thread, &result) != 0 || result != ends)
        return 2;
    sigemptyset(&set);
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0)
        return 3;
    pid_t child = fork();
    if (child == 0)
        _exit(write(ends[1], "c", 1) == 1 ? 42 : 43);
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 42)
        return 4;
    return close(fd) || close(socket_fd) || close(ends[0]) || close(ends[1]) ? 5 : 0;
}

__attribute__((constructor(101))) static void run_early(void) {
    early_constructor_result = use_everything();
}
