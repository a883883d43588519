// Descriptors on their way to another process, some of which their sender has no more: a connection with something unread, a
// file whose position both share, memory that the sender has mapped.
#include "rights.h"
#include <arpa/inet.h>
#include <sys/mman.h>
#include <sys/wait.h>

static int worker(int socket, int words) {
    await_go();
    int connection = take_one(socket, 1, "C");
    CHECK(reads(connection, "request") && write(connection, "answer", 6) == 6, "the connection");
    int file = take_one(socket, 1, "F");
    CHECK(lseek(file, 0, SEEK_CUR) == 5 && lseek(file, 1, SEEK_SET) == 1, "the file");
    int memory = take_one(socket, 1, "M");
    char *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    CHECK(mapped != MAP_FAILED && !strcmp(mapped, "shared"), "the memory");
    if (mapped != MAP_FAILED)
        strcpy(mapped, "changed");
    CHECK(write(words, "done", 4) == 4, "write");
    take(socket, 4, "rest", 0, NULL);
    return atomic_load(&failures) != 0;
}

int main(void) {
    int channel[2], words[2], tcp = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, channel) == 0 && pipe(words) == 0);
    REQUIRE(bind(tcp, (void *)&address, length) == 0 && listen(tcp, 4) == 0);
    REQUIRE(getsockname(tcp, (void *)&address, &length) == 0 && connect(client, (void *)&address, length) == 0);
    REQUIRE(write(client, "request", 7) == 7);
    int file = open("named", O_RDWR | O_CREAT | O_TRUNC, 0600), memory = memfd_create("sent", 0);
    REQUIRE(file >= 0 && write(file, "01234", 5) == 5 && ftruncate(memory, 4096) == 0);
    char *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    REQUIRE(mapped != MAP_FAILED);
    strcpy(mapped, "shared");
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (!child) {
        close(channel[0]), close(file), close(memory), close(tcp), close(client), close(words[0]);
        munmap(mapped, 4096);
        _exit(worker(channel[1], words[1]));
    }
    close(channel[1]), close(words[1]);
    int accepted = accept(tcp, NULL, NULL);
    REQUIRE(accepted >= 0);
    give_away(channel[0], "C", accepted);
    give(channel[0], "F", 1, &file);
    give_away(channel[0], "M", memory);
    give(channel[0], "rest", 0, NULL);
    until_go();
    if (loses("memory"))
        strcpy(mapped, "other");
    CHECK(reads(words[0], "done"), "the worker ends too early");
    CHECK(reads(client, "answer"), "the answer of who was sent the connection");
    CHECK(lseek(file, 0, SEEK_CUR) == 1, "the file is not shared");
    CHECK(!strcmp(mapped, "changed"), "the memory is not shared: %s", mapped);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the worker ends with %#x", status);
    return verdict();
}
