// Answers the lines it is given and the signals it gets, until it is told to go: what a person in front of a
// terminal sees.
//
//   session [noecho]
//
// SESSION_EXIT is the exit status when told to go.
#include "verify.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

static volatile sig_atomic_t interrupts, users;

static void on_signal(int signal) {
    if (signal == SIGINT)
        interrupts++;
    else
        users++;
}

static void answer(const char *format, int number) {
    printf(format, number);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "noecho") == 0) {
        struct termios modes;
        REQUIRE(tcgetattr(0, &modes) == 0);
        modes.c_lflag &= ~ECHO;
        REQUIRE(tcsetattr(0, TCSANOW, &modes) == 0);
    }
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    const char *status = getenv("SESSION_EXIT");
    char line[256];
    size_t length = 0;
    int lines = 0, seen_interrupts = 0, seen_users = 0;
    bool open = true;
    say_ready();
    while (!told_to_go()) {
        // A millisecond at most, so that the file is looked for.
        struct pollfd input = {.fd = open ? 0 : -1, .events = POLLIN};
        int readable = poll(&input, 1, 1);
        while (seen_interrupts != interrupts)
            answer("interrupt %d\n", ++seen_interrupts);
        while (seen_users != users)
            answer("user signal %d\n", ++seen_users);
        char byte;
        if (readable <= 0 || input.revents == 0)
            continue;
        if (read(0, &byte, 1) != 1) {
            open = false;
            answer("input ended after %d lines\n", lines);
        } else if (byte != '\n') {
            if (length < sizeof line - 1)
                line[length++] = byte;
        } else {
            line[length] = 0;
            length = 0;
            char directory[4096];
            struct winsize size = {0};
            ioctl(0, TIOCGWINSZ, &size);
            if (strcmp(line, "where") == 0)
                printf("%s\n", getcwd(directory, sizeof directory) ? directory : "nowhere");
            else if (strcmp(line, "width") == 0)
                printf("%d columns\n", size.ws_col);
            else
                printf("line %d is %s\n", ++lines, line);
            fflush(stdout);
        }
    }
    puts("ok");
    return status ? atoi(status) : 0;
}
