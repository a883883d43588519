// Waits that blocking_*.c have not, each named by argv[1]: without libc, with full sets of signals, done in
// parts, ended by the program's own signals.
#include "blocking.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

static int fds[2];
static pthread_t waiter;
static atomic_int handled;
static atomic_int word;
static char bytes[1 << 20];
static char got[1 << 20];

static void count(int signal) {
    (void)signal;
    atomic_fetch_add(&handled, 1);
}

static void handle_usr1(int flags) {
    struct sigaction action = {.sa_handler = count, .sa_flags = flags};
    REQUIRE(sigaction(SIGUSR1, &action, NULL) == 0);
}

static void send_usr1(void) { pthread_kill(waiter, SIGUSR1); }

static void write_byte(void) { REQUIRE(write(fds[1], "x", 1) == 1); }

// A system call as a language without libc makes it.
static long raw(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static void call_poll_raw(void) {
    struct pollfd target = {.fd = fds[0], .events = POLLIN};
    EXPECT(raw(SYS_poll, (long)&target, 1, -1, 0, 0, 0), 1);
}

static void call_pause_raw(void) {
    handle_usr1(0);
    EXPECT(raw(SYS_pause, 0, 0, 0, 0, 0, 0), -EINTR);
    CHECK(atomic_load(&handled) == 1, "pause ended though no handler of the program ran");
}

static void call_nanosleep_raw(void) {
    struct timespec asked = {1, 500000000}, left = {77, 0};
    EXPECT(raw(SYS_nanosleep, (long)&asked, (long)&left, 0, 0, 0, 0), 0);
    CHECK(asked.tv_sec == 1 && asked.tv_nsec == 500000000, "nanosleep changed what it was asked");
}

static void call_select_raw(void) {
    struct timeval left = {1, 500000};
    EXPECT(raw(SYS_select, 0, 0, 0, 0, (long)&left, 0), 0);
}

static void call_nanosleep_no_rest(void) {
    struct timespec time = {1, 500000000};
    EXPECT(nanosleep(&time, NULL), 0);
    CHECK(time.tv_sec == 1 && time.tv_nsec == 500000000, "nanosleep changed what it was asked");
}

static void call_clock_nanosleep_no_rest(void) {
    struct timespec time = {1, 500000000};
    EXPECT(clock_nanosleep(CLOCK_BOOTTIME, 0, &time, NULL), 0);
}

static void call_nanosleep_distinct(void) {
    struct timespec time = {1, 500000000}, left = {77, 0};
    EXPECT(nanosleep(&time, &left), 0);
    CHECK(time.tv_sec == 1 && time.tv_nsec == 500000000, "nanosleep changed what it was asked");
}

static void call_poll_syscall(void) { EXPECT(syscall(SYS_poll, NULL, 0, 1500), 0); }

static void call_epoll_pwait_syscall(void) {
    struct epoll_event event;
    EXPECT(syscall(SYS_epoll_pwait, epoll_create1(0), &event, 1, 1500, NULL, 8), 0);
}

static void call_sigtimedwait_syscall(void) {
    struct timespec time = {1, 500000000};
    uint64_t set = 1ULL << (SIGUSR2 - 1);
    EXPECT_ERROR(syscall(SYS_rt_sigtimedwait, &set, NULL, &time, 8), EAGAIN);
}

// Sets filled by memset hold the two signals that glibc keeps for itself.
static sigset_t full(void) {
    sigset_t set;
    memset(&set, 0xff, sizeof set);
    return set;
}

static void call_sigsuspend_full(void) {
    sigset_t mask = full();
    handle_usr1(0);
    sigdelset(&mask, SIGUSR1);
    EXPECT_ERROR(sigsuspend(&mask), EINTR);
}

static void call_ppoll_full(void) {
    struct timespec time = {1, 500000000};
    sigset_t mask = full();
    EXPECT(ppoll(NULL, 0, &time, &mask), 0);
}

static void call_pselect_full(void) {
    struct timespec time = {1, 500000000};
    sigset_t mask = full();
    EXPECT(pselect(0, NULL, NULL, NULL, &time, &mask), 0);
}

static void call_epoll_pwait_full(void) {
    struct epoll_event event;
    sigset_t mask = full();
    EXPECT(epoll_pwait(epoll_create1(0), &event, 1, 1500, &mask), 0);
}

static void call_epoll_pwait2_full(void) {
    struct epoll_event event;
    struct timespec time = {1, 500000000};
    sigset_t mask = full();
    EXPECT(epoll_pwait2(epoll_create1(0), &event, 1, &time, &mask), 0);
}

static void block_usr1(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static void call_sigwait_full(void) {
    sigset_t set = full();
    int signal = 0;
    block_usr1();
    EXPECT(sigwait(&set, &signal), 0);
    CHECK(signal == SIGUSR1, "sigwait gave signal %d", signal);
}

static void call_sigwaitinfo_full(void) {
    sigset_t set = full();
    siginfo_t info = {0};
    block_usr1();
    EXPECT(sigwaitinfo(&set, &info), SIGUSR1);
}

static void call_signalfd_full(void) {
    sigset_t set = full();
    struct signalfd_siginfo info = {0};
    block_usr1();
    EXPECT(read(signalfd(-1, &set, 0), &info, sizeof info), sizeof info);
    CHECK(info.ssi_signo == SIGUSR1, "the signalfd gave signal %u", info.ssi_signo);
}

// A handler that takes long, with every signal blocked that can be.
static void sleep_in_handler(int signal) {
    (void)signal;
    struct timespec time = {1, 500000000};
    EXPECT(nanosleep(&time, NULL), 0);
}

static void call_handler_full(void) {
    struct sigaction action = {.sa_handler = sleep_in_handler};
    memset(&action.sa_mask, 0xff, sizeof action.sa_mask);
    REQUIRE(sigaction(SIGUSR1, &action, NULL) == 0);
    raise(SIGUSR1);
}

static void call_read_ended(void) {
    handle_usr1(0);
    EXPECT_ERROR(read(fds[0], bytes, 1), EINTR);
    CHECK(atomic_load(&handled) == 1, "read ended though no handler of the program ran");
}

// Sends a signal while the call waits.
static void *signal_meanwhile(void *number) {
    sleep_ms(700);
    pthread_kill(waiter, (int)(intptr_t)number);
    return NULL;
}

static void call_read_goes_on(void) {
    handle_usr1(SA_RESTART);
    start_thread(signal_meanwhile, (void *)SIGUSR1);
    EXPECT(read(fds[0], bytes, 1), 1);
    CHECK(atomic_load(&handled) == 1, "the handler did not run");
}

static void call_poll_ended(void) {
    handle_usr1(SA_RESTART);
    EXPECT_ERROR(poll(NULL, 0, 4000), EINTR);
    CHECK(atomic_load(&handled) == 1, "poll ended though no handler of the program ran");
}

static void call_ppoll_ended(void) {
    struct timespec time = {4, 0};
    sigset_t none;
    sigemptyset(&none);
    handle_usr1(0);
    block_usr1();
    EXPECT_ERROR(ppoll(NULL, 0, &time, &none), EINTR);
    CHECK(atomic_load(&handled) == 1, "ppoll ended though no handler of the program ran");
}

static void call_futex_ended(void) {
    struct timespec time = {4, 0};
    handle_usr1(0);
    EXPECT_ERROR(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time), EINTR);
}

// A signal that is ignored by default interrupts nothing.
static void call_poll_ignored(void) {
    struct pollfd target = {.fd = fds[0], .events = POLLIN};
    start_thread(signal_meanwhile, (void *)SIGCHLD);
    EXPECT(poll(&target, 1, 4000), 1);
}

static void fill_pattern(void) {
    for (size_t index = 0; index < sizeof bytes; index++)
        bytes[index] = (char)(index * 31 + index / 4096);
}

static int64_t begun;

// Waits for the next of the moments at which a part is moved, 23 ms apart.
static void await_moment(int number) {
    int64_t time = begun + number * 23000000LL;
    struct timespec moment = {time / 1000000000, time % 1000000000};
    REQUIRE(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &moment, NULL) == 0);
}

// Takes what was written, slowly, over the whole time.
static size_t drained;

static void *drain_slowly(void *unused) {
    begun = now_ns(CLOCK_MONOTONIC);
    for (int number = 1; drained < sizeof got; number++) {
        size_t left = sizeof got - drained;
        ssize_t part = read(fds[0], got + drained, left < 16384 ? left : 16384);
        REQUIRE(part > 0);
        drained += part;
        await_moment(number);
    }
    return unused;
}

static void check_drained(pthread_t reader) {
    pthread_join(reader, NULL);
    CHECK(memcmp(bytes, got, sizeof bytes) == 0, "other bytes came than were written");
}

static void call_write_slowly(void) {
    fill_pattern();
    pthread_t reader = start_thread(drain_slowly, NULL);
    EXPECT(write(fds[1], bytes, sizeof bytes), sizeof bytes);
    check_drained(reader);
}

static void call_writev_slowly(void) {
    fill_pattern();
    struct iovec parts[4] = {{bytes, 100000}, {bytes + 100000, 0}, {bytes + 100000, 500000},
                             {bytes + 600000, sizeof bytes - 600000}};
    pthread_t reader = start_thread(drain_slowly, NULL);
    EXPECT(writev(fds[1], parts, 4), sizeof bytes);
    CHECK(parts[3].iov_base == bytes + 600000, "writev changed the array");
    check_drained(reader);
}

static void call_send_slowly(void) {
    fill_pattern();
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    pthread_t reader = start_thread(drain_slowly, NULL);
    EXPECT(send(fds[1], bytes, sizeof bytes, 0), sizeof bytes);
    check_drained(reader);
}

static void call_sendfile_slowly(void) {
    fill_pattern();
    int file = open("sent", O_RDWR | O_CREAT | O_TRUNC, 0600);
    REQUIRE(write(file, bytes, sizeof bytes) == sizeof bytes && unlink("sent") == 0);
    off_t offset = 0;
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    pthread_t reader = start_thread(drain_slowly, NULL);
    EXPECT(sendfile(fds[1], file, &offset, sizeof bytes), sizeof bytes);
    CHECK(offset == sizeof bytes, "sendfile left the offset at %jd", (intmax_t)offset);
    check_drained(reader);
}

static void *send_slowly(void *unused) {
    begun = now_ns(CLOCK_MONOTONIC);
    for (int number = 0; number < 64; number++) {
        REQUIRE(write(fds[1], bytes + number * 16384, 16384) == 16384);
        await_moment(number + 1);
    }
    return unused;
}

static void call_recv_all(void) {
    fill_pattern();
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    pthread_t sender = start_thread(send_slowly, NULL);
    EXPECT(recv(fds[0], got, sizeof got, MSG_WAITALL), sizeof got);
    check_drained(sender);
}

static void call_connect_timeout(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "more"};
    struct timeval time = {1, 500000};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    unlink("more");
    REQUIRE(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 0) == 0);
    REQUIRE(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    client = socket(AF_UNIX, SOCK_STREAM, 0);
    REQUIRE(setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time) == 0);
    EXPECT_ERROR(connect(client, (struct sockaddr *)&address, sizeof address), EAGAIN);
    unlink("more");
}

static void call_readv_timeout(void) {
    struct timeval time = {1, 500000};
    struct iovec part = {bytes, 10};
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    REQUIRE(setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) == 0);
    EXPECT_ERROR(readv(fds[0], &part, 1), EAGAIN);
    CHECK(getsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &time, &(socklen_t){sizeof time}) == 0 && time.tv_sec == 1
              && time.tv_usec == 500000, "the socket's time-out changed");
}

static int64_t cleaned_at;

static void clean_up(void *unused) {
    (void)unused;
    cleaned_at = now_ns(CLOCK_MONOTONIC);
}

static void *wait_in_poll(void *unused) {
    pthread_cleanup_push(clean_up, NULL);
    poll(NULL, 0, 10000);
    pthread_cleanup_pop(0);
    return unused;
}

static pthread_t cancelled;
static void cancel(void) { pthread_cancel(cancelled); }

static void call_cancelled(void) {
    void *result;
    cancelled = start_thread(wait_in_poll, NULL);
    EXPECT(pthread_join(cancelled, &result), 0);
    CHECK(result == PTHREAD_CANCELED && cleaned_at, "the thread in poll was not cancelled");
}

static const struct call calls[] = {
    {"poll-without-libc", 1500, call_poll_raw, write_byte, false},
    {"pause-without-libc", 1500, call_pause_raw, send_usr1, false},
    {"nanosleep-without-libc", 1500, call_nanosleep_raw, NULL, false},
    {"select-without-libc", 1500, call_select_raw, NULL, false},
    {"nanosleep-no-rest", 1500, call_nanosleep_no_rest, NULL, false},
    {"nanosleep-rest-elsewhere", 1500, call_nanosleep_distinct, NULL, false},
    {"clock_nanosleep-no-rest", 1500, call_clock_nanosleep_no_rest, NULL, false},
    {"poll-by-number", 1500, call_poll_syscall, NULL, false},
    {"epoll_pwait-by-number", 1500, call_epoll_pwait_syscall, NULL, false},
    {"sigtimedwait-by-number", 1500, call_sigtimedwait_syscall, NULL, false},
    {"sigsuspend-full-set", 1500, call_sigsuspend_full, send_usr1, false},
    {"ppoll-full-set", 1500, call_ppoll_full, NULL, false},
    {"pselect-full-set", 1500, call_pselect_full, NULL, false},
    {"epoll_pwait-full-set", 1500, call_epoll_pwait_full, NULL, false},
    {"epoll_pwait2-full-set", 1500, call_epoll_pwait2_full, NULL, false},
    {"sigwait-full-set", 1500, call_sigwait_full, send_usr1, false},
    {"sigwaitinfo-full-set", 1500, call_sigwaitinfo_full, send_usr1, false},
    {"signalfd-full-set", 1500, call_signalfd_full, send_usr1, false},
    {"handler-full-set", 1500, call_handler_full, NULL, false},
    {"read-ended-by-a-handler", 1500, call_read_ended, send_usr1, false},
    {"read-goes-on-after-a-handler", 1500, call_read_goes_on, write_byte, false},
    {"poll-ended-by-a-handler", 1500, call_poll_ended, send_usr1, false},
    {"ppoll-ended-by-a-handler", 1500, call_ppoll_ended, send_usr1, false},
    {"futex-ended-by-a-handler", 1500, call_futex_ended, send_usr1, false},
    {"poll-and-an-ignored-signal", 1500, call_poll_ignored, write_byte, false},
    {"write-slowly", 1472, call_write_slowly, NULL, false},
    {"writev-slowly", 1472, call_writev_slowly, NULL, false},
    {"send-slowly", 1472, call_send_slowly, NULL, false},
    {"sendfile-slowly", 1472, call_sendfile_slowly, NULL, false},
    {"recv-waitall-slowly", 1472, call_recv_all, NULL, false},
    {"connect-timeout", 1500, call_connect_timeout, NULL, false},
    {"readv-socket-timeout", 1500, call_readv_timeout, NULL, false},
    {"cancelled-in-poll", 1500, call_cancelled, cancel, false},
    {NULL, 0, NULL, NULL, false},
};

int main(int argc, char **argv) {
    waiter = pthread_self();
    REQUIRE(pipe(fds) == 0);
    return run_call(calls, argc, argv);
}
