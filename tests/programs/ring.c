// A ring of processes: each sends its neighbour random messages with checksums over one kind of connection, and checks that
// what it receives is every byte that was sent, once and in order. Arguments: KIND [PROCESSES].
// KIND: pipe fifo pair unix abstract datagram packets tcp4 tcp6 udp.
#include "verify.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

enum { MOST = 64, LARGEST = 3000 };

struct message {
    uint64_t number, checksum;
    uint32_t length, pad;
    unsigned char bytes[LARGEST];
};

#define HEAD offsetof(struct message, bytes)

static int into[MOST], from[MOST], processes = 16;
static bool has_borders;
// Datagrams over UDP are dropped where a buffer is full: the receiver says how far it has come.
static _Atomic uint64_t *taken;
static atomic_bool *stop;
static uint64_t *totals;

static uint64_t mix(uint64_t value) {
    value ^= value >> 33, value *= 0xff51afd7ed558ccdULL, value ^= value >> 33, value *= 0xc4ceb9fe1a85ec53ULL;
    return value ^ value >> 33;
}

static void fill(struct message *message, int sender, uint64_t number) {
    uint64_t seed = mix(number * MOST + sender + 1);
    message->number = number, message->pad = 0;
    message->length = seed % (seed >> 40 & 1 ? 60 : LARGEST);
    message->checksum = seed;
    for (uint32_t i = 0; i < message->length; i++) {
        message->bytes[i] = seed >> i % 57;
        message->checksum = message->checksum * 31 + message->bytes[i];
    }
}

static void check(const struct message *got, int sender, uint64_t number) {
    static struct message wanted;
    fill(&wanted, sender, number);
    if (got->number != number || got->length != wanted.length || got->checksum != wanted.checksum ||
        memcmp(got->bytes, wanted.bytes, wanted.length)) {
        FAIL("message %llu from %d is not what was sent: number %llu, %u bytes", (unsigned long long)number, sender,
             (unsigned long long)got->number, got->length);
        _exit(1);
    }
}

static void set_nonblocking(int fd) {
    REQUIRE(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0);
}

static void body(int self) {
    int out = into[self], in = from[self], sender = (self + processes - 1) % processes;
    static struct message to_send, received;
    uint64_t sent = 0, got = 0;
    size_t at = 0, have = 0;
    bool ending = false;
    set_nonblocking(out), set_nonblocking(in);
    fill(&to_send, self, 0);
    for (;;) {
        ending = ending || atomic_load(stop);
        // The last message is the one that was begun when the end was announced.
        bool to_go = !(ending && at == 0);
        if (!to_go && totals[self] == UINT64_MAX)
            __atomic_store_n(&totals[self], sent, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&totals[sender], __ATOMIC_SEQ_CST) == got && !to_go)
            return;
        bool may_send = to_go && (taken == NULL || sent - atomic_load(&taken[(self + 1) % processes]) < 8);
        struct pollfd ready[2] = {{in, POLLIN, 0}, {may_send ? out : -1, POLLOUT, 0}};
        REQUIRE(poll(ready, 2, 2) >= 0);
        if (may_send && ready[1].revents & POLLOUT) {
            size_t size = HEAD + to_send.length;
            ssize_t done = write(out, (char *)&to_send + at, size - at);
            if (done < 0 && errno != EAGAIN && errno != ENOBUFS)
                REQUIRE(!"write");
            REQUIRE(!has_borders || done < 0 || (size_t)done == size);
            at += done > 0 ? done : 0;
            if (at == size)
                at = 0, fill(&to_send, self, ++sent);
        }
        if (ready[0].revents & (POLLIN | POLLHUP)) {
            size_t wanted = has_borders ? sizeof received : have < HEAD ? HEAD : HEAD + received.length;
            ssize_t done = read(in, (char *)&received + have, wanted - have);
            if (done < 0 && errno == EAGAIN)
                continue;
            if (done == 0) {
                // Its other end has sent all, and ended.
                REQUIRE(have == 0 && __atomic_load_n(&totals[sender], __ATOMIC_SEQ_CST) == got);
                in = -1;
                continue;
            }
            REQUIRE(done > 0);
            have += done;
            if (has_borders)
                REQUIRE(have >= HEAD && have == HEAD + received.length);
            REQUIRE(have < HEAD || received.length <= LARGEST);
            if (have >= HEAD && have == HEAD + received.length) {
                if (loses("message") && self == 1 && got == 3)
                    received.bytes[0]++, received.length++;
                check(&received, sender, got++);
                have = 0;
                if (taken)
                    atomic_store(&taken[self], got);
            }
        }
    }
}

static struct sockaddr_storage address;
static socklen_t length;

static void of_unix(const char *directory, int i, bool abstract) {
    struct sockaddr_un *name = (void *)&address;
    memset(&address, 0, sizeof address);
    name->sun_family = AF_UNIX;
    snprintf(name->sun_path + abstract, sizeof name->sun_path - 1, "%s/%d", directory, i);
    length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name->sun_path + abstract);
}

static void of_internet(int domain) {
    memset(&address, 0, sizeof address);
    address.ss_family = domain;
    if (domain == AF_INET)
        ((struct sockaddr_in *)&address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK), length = sizeof(struct sockaddr_in);
    else
        ((struct sockaddr_in6 *)&address)->sin6_addr = in6addr_loopback, length = sizeof(struct sockaddr_in6);
}

// Binds like a server: to a port that the kernel gives to nobody by itself (net.ipv4.ip_local_port_range), so that it is
// free at a restart, too.
static void bind_as_server(int bound) {
    static in_port_t next;
    in_port_t *port = address.ss_family == AF_INET ? &((struct sockaddr_in *)&address)->sin_port
                                                   : &((struct sockaddr_in6 *)&address)->sin6_port;
    if (next == 0)
        next = 10000 + getpid() % 20000;
    do
        *port = htons(next++);
    while (bind(bound, (void *)&address, length) != 0 && errno == EADDRINUSE && next < 32768);
}

// A connection by way of a socket that listens, or between two that are bound.
static void by_address(int type, int ends[2]) {
    int on = 1, domain = address.ss_family;
    int bound = socket(domain, type, 0);
    REQUIRE(bound >= 0);
    if (domain != AF_UNIX && type == SOCK_STREAM)
        REQUIRE(setsockopt(bound, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
    // Not more than is copied in a moment: the kernel would let the queues grow to megabytes.
    int size = 65536;
    if (domain != AF_UNIX)
        REQUIRE(setsockopt(bound, SOL_SOCKET, SO_RCVBUF, &size, sizeof size) == 0);
    if (domain != AF_UNIX)
        bind_as_server(bound);
    else
        REQUIRE(bind(bound, (void *)&address, length) == 0);
    length = sizeof address;
    REQUIRE(getsockname(bound, (void *)&address, &length) == 0);
    REQUIRE((ends[1] = socket(domain, type, 0)) >= 0);
    if (domain != AF_UNIX)
        REQUIRE(setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    if (type == SOCK_DGRAM) {
        REQUIRE(connect(ends[1], (void *)&address, length) == 0);
        ends[0] = bound;
        return;
    }
    REQUIRE(listen(bound, 4) == 0 && connect(ends[1], (void *)&address, length) == 0);
    REQUIRE((ends[0] = accept(bound, NULL, NULL)) >= 0);
    close(bound);
}

static void connect_neighbours(const char *kind, const char *directory, int i) {
    int ends[2], next = (i + 1) % processes;
    char path[200];
    if (strcmp(kind, "pipe") == 0) {
        REQUIRE(pipe(ends) == 0);
    } else if (strcmp(kind, "fifo") == 0) {
        snprintf(path, sizeof path, "%s/%d", directory, i);
        REQUIRE(mkfifo(path, 0600) == 0 && (ends[0] = open(path, O_RDONLY | O_NONBLOCK)) >= 0);
        REQUIRE((ends[1] = open(path, O_WRONLY)) >= 0);
    } else if (strcmp(kind, "pair") == 0) {
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    } else if (strcmp(kind, "unix") == 0) {
        of_unix(directory, i, false), by_address(SOCK_STREAM, ends);
    } else if (strcmp(kind, "abstract") == 0) {
        of_unix(directory, i, true), by_address(SOCK_STREAM, ends);
    } else if (strcmp(kind, "datagram") == 0) {
        of_unix(directory, i, false), by_address(SOCK_DGRAM, ends);
    } else if (strcmp(kind, "packets") == 0) {
        of_unix(directory, i, false), by_address(SOCK_SEQPACKET, ends);
    } else if (strcmp(kind, "tcp4") == 0) {
        of_internet(AF_INET), by_address(SOCK_STREAM, ends);
    } else if (strcmp(kind, "tcp6") == 0) {
        of_internet(AF_INET6), by_address(SOCK_STREAM, ends);
    } else {
        REQUIRE(strcmp(kind, "udp") == 0);
        of_internet(AF_INET), by_address(SOCK_DGRAM, ends);
    }
    into[i] = ends[1], from[next] = ends[0];
}

int main(int argc, char **argv) {
    REQUIRE(argc > 1);
    const char *kind = argv[1];
    processes = argc > 2 ? atoi(argv[2]) : 16;
    REQUIRE(processes > 1 && processes <= MOST);
    has_borders = !strcmp(kind, "datagram") || !strcmp(kind, "packets") || !strcmp(kind, "udp");
    char directory[] = "/tmp/stasis-ring-XXXXXX";
    REQUIRE(mkdtemp(directory));
    char *shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    stop = (void *)shared, totals = (void *)(shared + 1024);
    if (strcmp(kind, "udp") == 0)
        taken = (void *)(shared + 4096);
    for (int i = 0; i < processes; i++)
        totals[i] = UINT64_MAX, connect_neighbours(kind, directory, i);
    pid_t children[MOST];
    for (int i = 0; i < processes; i++) {
        REQUIRE((children[i] = fork()) >= 0);
        if (children[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (int other = 0; other < processes; other++) {
                if (other != i)
                    close(into[other]), close(from[other]);
            }
            body(i);
            _exit(atomic_load(&failures) != 0);
        }
    }
    for (int i = 0; i < processes; i++)
        close(into[i]), close(from[i]);
    until_go();
    sleep_ms(200);
    atomic_store(stop, true);
    for (int i = 0; i < processes; i++) {
        int status = -1;
        CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0, "process %d: status %#x", i, status);
        char path[200];
        snprintf(path, sizeof path, "%s/%d", directory, i);
        unlink(path);
    }
    for (int i = 0; i < processes; i++)
        CHECK(totals[i] > 10, "process %d has sent %llu messages only", i, (unsigned long long)totals[i]);
    CHECK(rmdir(directory) == 0, "something is left in %s", directory);
    return verdict();
}
