// A daemon as it is in the books: it closes everything, forks twice, has a session and no terminal, and answers at a socket.
//
//   daemon PATH
//
// Each line that it is sent is kept; the answer is how many there are, and the last of all before it.
#include "verify.h"
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

static void become_daemon(void) {
    if (fork())
        _exit(0);
    REQUIRE(setsid() == getpid());
    signal(SIGHUP, SIG_IGN);
    if (fork())
        _exit(0);
    umask(077);
    REQUIRE(chdir("/") == 0);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    for (int fd = 0; fd < (int)(limit.rlim_cur > 65536 ? 65536 : limit.rlim_cur); fd++)
        close(fd);
    open("/dev/null", O_RDWR);
    dup(0), dup(0);
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc < 2 || strlen(argv[1]) >= sizeof address.sun_path)
        return 2;
    strcpy(address.sun_path, argv[1]);
    become_daemon();
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pid_t self = getpid(), session = getsid(0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 8))
        return 1;
    char before[256] = "nothing", line[256];
    for (int count = 1;; count++) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        ssize_t length = client < 0 ? -1 : read(client, line, sizeof line - 1);
        if (length < 0)
            return 1;
        line[length] = 0;
        bool same = getpid() == self && getsid(0) == session && open("/dev/tty", O_RDWR) < 0;
        dprintf(client, "%d %s %s", count, before, same ? "same" : "another");
        strcpy(before, line);
        close(client);
        if (!strcmp(line, "end"))
            return 0;
    }
}
