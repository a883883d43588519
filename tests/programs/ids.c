// Ids that a program remembers: of its children, their groups and sessions, and of a thread. Every call that takes one still means
// the same; every call and file that tells one tells the same; and no new child gets one that the program has seen before.
#include "verify.h"
#include <dirent.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <linux/ioprio.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

// A is in the program's group, B leads one, in which C is, and D a session, in which E is.
enum { A, B, C, D, E, COUNT };
enum { NOTHING, LOOK, SPIN, SIGNAL_GROUP, SIGNAL_ALL, SEND, END };
enum { REMEMBERED = 1000 };

static struct shared {
    atomic_int ready;
    long word;
    struct life {
        pid_t pid;
        void *robust;
        atomic_int order, signals, from;
        // What it finds about itself.
        int nice, priority, processors;
        struct rlimit limit;
    } lives[COUNT];
} *all;

static pid_t own, group, session, outside, thread, ended[REMEMBERED], zombie;
static atomic_int thread_signals, thread_from;
static int given[2], taken[2], answers[2], kept[2], file, segment, set, queue;
static long made_before;
static clockid_t clock_of_child, clock_of_thread;
static timer_t timer;

static void note(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    if (getpid() == own) {
        atomic_store(&thread_from, gettid() == thread ? info->si_pid : -1);
        atomic_fetch_add(&thread_signals, 1);
        return;
    }
    for (int i = 0; i < COUNT; i++)
        if (all->lives[i].pid == getpid()) {
            atomic_store(&all->lives[i].from, info->si_pid);
            atomic_fetch_add(&all->lives[i].signals, 1);
        }
}

static void send_as_oneself(int fd, const char *text) {
    struct ucred who = {getpid(), getuid(), getgid()};
    char control[CMSG_SPACE(sizeof who)] = {0};
    struct iovec part = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){CMSG_LEN(sizeof who), SOL_SOCKET, SCM_CREDENTIALS};
    memcpy(CMSG_DATA(header), &who, sizeof who);
    REQUIRE(sendmsg(fd, &message, 0) == (ssize_t)strlen(text));
}

// The pid of who sent what waits; -1: something else waits.
static pid_t sender(int fd, const char *text) {
    char got[16] = "", control[256];
    struct iovec part = {got, strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(fd, &message, MSG_DONTWAIT) != (ssize_t)strlen(text) || strcmp(got, text))
        return -1;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header))
        if (header->cmsg_type == SCM_CREDENTIALS)
            return ((struct ucred *)CMSG_DATA(header))->pid;
    return -1;
}

static pid_t peer(int fd) {
    struct ucred who = {-1, 0, 0};
    socklen_t length = sizeof who;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) == 0, "SO_PEERCRED");
    return who.pid;
}

// A gives its parent one end of a connection, which is therefore its own at both ends.
static void give(int through) {
    char byte = 'x', control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, given) == 0);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(header), &given[0], sizeof(int));
    REQUIRE(sendmsg(through, &message, 0) == 1 && close(given[0]) == 0);
}

static void take(int through) {
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    REQUIRE(recvmsg(through, &message, 0) == 1);
    memcpy(&given[0], CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
}

static void use_system_v(int which) {
    struct { long type; char text[4]; } message = {1, "abc"};
    struct sembuf up = {1, 1, 0};
    if (which == A) {
        void *at = shmat(segment, NULL, 0);
        REQUIRE(at != (void *)-1 && shmdt(at) == 0 && semctl(set, 0, SETVAL, 3) == 0);
        REQUIRE(msgsnd(queue, &message, 4, 0) == 0 && msgsnd(queue, &message, 4, 0) == 0);
    } else if (which == B)
        REQUIRE(semop(set, &up, 1) == 0 && msgrcv(queue, &message, 4, 0, 0) == 4);
}

static void obey(struct life *life) {
    switch (atomic_load(&life->order)) {
    case LOOK:
        life->nice = getpriority(PRIO_PROCESS, 0);
        life->priority = syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0);
        getrlimit(RLIMIT_NOFILE, &life->limit);
        cpu_set_t may;
        sched_getaffinity(0, sizeof may, &may);
        life->processors = CPU_COUNT(&may);
        break;
    case SPIN:
        for (int64_t until = now_ns(CLOCK_PROCESS_CPUTIME_ID) + 60000000; now_ns(CLOCK_PROCESS_CPUTIME_ID) < until;)
            ;
        break;
    case SIGNAL_GROUP:
        kill(0, SIGUSR1);
        break;
    case SIGNAL_ALL:
        kill(-1, SIGUSR1);
        break;
    case SEND:
        // A pair of which it alone has both ends.
        send_as_oneself(given[1], peer(kept[0]) == own && peer(kept[1]) == own ? "again" : "other");
        break;
    case END:
        _exit(7);
    }
    atomic_store(&life->order, NOTHING);
}

static void live(int which) {
    struct life *life = &all->lives[which];
    life->pid = getpid();
    size_t length;
    REQUIRE(syscall(SYS_get_robust_list, 0, &life->robust, &length) == 0);
    if (which == A) {
        struct flock lock = {.l_type = F_WRLCK, .l_start = 10, .l_len = 1};
        REQUIRE(fcntl(file, F_SETLK, &lock) == 0);
        segment = shmget(IPC_PRIVATE, 4096, 0600);
        REQUIRE(write(answers[1], &segment, sizeof segment) == sizeof segment);
        give(taken[1]);
        send_as_oneself(given[1], "before");
    }
    use_system_v(which);
    if (which == D) {
        REQUIRE(setsid() == getpid());
        if (fork() == 0) {
            life = &all->lives[E];
            life->pid = getpid();
        }
    }
    atomic_fetch_add(&all->ready, 1);
    for (;;) {
        obey(life);
        sleep_ms(1);
    }
}

static void start(int which) {
    int before = atomic_load(&all->ready);
    pid_t made = fork();
    REQUIRE(made >= 0);
    if (made == 0)
        live(which);
    if (which == B || which == C)
        REQUIRE(setpgid(made, which == B ? made : all->lives[B].pid) == 0);
    if (which == A) {
        REQUIRE(read(answers[0], &segment, sizeof segment) == sizeof segment);
        take(taken[0]);
    }
    if (which == A)
        close(kept[0]), close(kept[1]);
    while (atomic_load(&all->ready) < before + (which == D ? 2 : 1))
        sleep_ms(1);
}

static void order(int which, int what) {
    atomic_store(&all->lives[which].order, what);
    while (atomic_load(&all->lives[which].order) != NOTHING && kill(all->lives[which].pid, 0) == 0)
        sleep_ms(1);
}

// Whether a child gets a signal from the program; and another one, where that is not -1.
static bool reaches(int which, int other, long result) {
    // Who has failed once need not wait for more.
    for (int i = 0; i < 2000 && !atomic_load(&failures) && !atomic_load(&all->lives[which].signals); i++)
        sleep_ms(1);
    for (int i = 0; i < 2000 && !atomic_load(&failures) && other >= 0 && !atomic_load(&all->lives[other].signals); i++)
        sleep_ms(1);
    bool came = result == 0;
    for (int i = 0; i < COUNT; i++) {
        came &= atomic_load(&all->lives[i].signals) == (i == which || i == other);
        atomic_store(&all->lives[i].signals, 0);
    }
    return came && atomic_load(&all->lives[which].from) == own;
}

static bool reaches_thread(long result) {
    for (int i = 0; i < 2000 && !atomic_load(&failures) && !atomic_load(&thread_signals); i++)
        sleep_ms(1);
    return result == 0 && atomic_exchange(&thread_signals, 0) == 1 && atomic_load(&thread_from) == own;
}

static void check_signals(void) {
    struct life *lives = all->lives;
    siginfo_t info = {.si_signo = SIGUSR1, .si_code = SI_QUEUE};
    info.si_pid = own, info.si_uid = getuid();
    union sigval value = {.sival_int = 1};
    pid_t a = lives[A].pid;
    int fd = syscall(SYS_pidfd_open, a, 0);
    CHECK(fd >= 0, "pidfd_open");
    CHECK(reaches(A, -1, kill(a, SIGUSR1)), "kill");
    CHECK(reaches(B, C, kill(-lives[B].pid, SIGUSR1)), "kill of a group");
    CHECK(reaches(B, C, killpg(lives[B].pid, SIGUSR1)), "killpg");
    CHECK(reaches(A, -1, syscall(SYS_tgkill, a, a, SIGUSR1)), "tgkill");
    CHECK(reaches(A, -1, syscall(SYS_tkill, a, SIGUSR1)), "tkill");
    CHECK(reaches(A, -1, sigqueue(a, SIGUSR1, value)), "sigqueue");
    CHECK(reaches(A, -1, syscall(SYS_rt_tgsigqueueinfo, a, a, SIGUSR1, &info)), "rt_tgsigqueueinfo");
    CHECK(reaches(A, -1, syscall(SYS_pidfd_send_signal, fd, SIGUSR1, NULL, 0)), "pidfd_send_signal");
    CHECK(reaches_thread(syscall(SYS_tgkill, own, thread, SIGUSR1)), "tgkill of a thread");
    CHECK(reaches_thread(syscall(SYS_tkill, thread, SIGUSR1)), "tkill of a thread");
    order(B, SIGNAL_GROUP);
    CHECK(!reaches(B, C, 0) && atomic_load(&lives[C].from) == lives[B].pid, "kill(0): from %d", lives[C].from);
    close(fd);
}

static bool is_alone(void) {
    char name[32];
    read_proc("/proc/1/comm", name, sizeof name);
    return !strcmp(name, "stasis-init\n");
}

// How many processes and threads the machine has made.
static long made_in_all(void) {
    static char text[1 << 16];
    read_proc("/proc/stat", text, sizeof text);
    char *line = strstr(text, "\nprocesses ");
    return line ? atol(line + 11) : 0;
}

// In a pid namespace of the computation's own: kill(-1) is for all of it and for nobody else.
static void check_signals_to_all(void) {
    if (!is_alone())
        return;
    order(A, SIGNAL_ALL);
    for (int i = 0; i < COUNT; i++) {
        struct life *life = &all->lives[i];
        for (int j = 0; j < 2000 && i != A && !atomic_load(&life->signals); j++)
            sleep_ms(1);
        CHECK(atomic_exchange(&life->signals, 0) == (i != A), "kill(-1): number %d", i);
    }
    atomic_store(&thread_signals, 0);
}

static void check_relations(void) {
    struct life *lives = all->lives;
    CHECK(getpgid(lives[C].pid) == lives[B].pid && getpgid(lives[B].pid) == lives[B].pid, "getpgid");
    CHECK(getsid(lives[E].pid) == lives[D].pid && getpgid(lives[E].pid) == lives[D].pid, "getsid");
    CHECK(group != own || getpgid(0) == own, "the group is %d", getpgid(0));
    CHECK(session != own || getsid(0) == own, "the session is %d", getsid(0));
    pid_t new = fork();
    if (new == 0)
        for (;;)
            pause();
    CHECK(setpgid(new, lives[B].pid) == 0 && getpgid(new) == lives[B].pid, "setpgid to a group");
    kill(new, SIGKILL), waitpid(new, NULL, 0);
}

static void check_settings(void) {
    struct life *a = &all->lives[A], *b = &all->lives[B];
    struct rlimit limit, old;
    struct sched_param parameter = {0};
    struct timespec slice;
    cpu_set_t one;
    CPU_ZERO(&one);
    CHECK(sched_getaffinity(a->pid, sizeof one, &one) == 0 && CPU_COUNT(&one) > 0, "sched_getaffinity");
    for (int i = 0, kept = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &one) && kept++)
            CPU_CLR(i, &one);
    CHECK(sched_setaffinity(a->pid, sizeof one, &one) == 0, "sched_setaffinity");
    CHECK(setpriority(PRIO_PROCESS, a->pid, 5) == 0 && getpriority(PRIO_PROCESS, a->pid) == 5, "setpriority");
    CHECK(setpriority(PRIO_PGRP, b->pid, 6) == 0 && getpriority(PRIO_PGRP, b->pid) == 6, "setpriority of a group");
    CHECK(syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, a->pid, IOPRIO_PRIO_VALUE(2, 5)) == 0, "ioprio_set");
    CHECK(syscall(SYS_ioprio_set, IOPRIO_WHO_PGRP, b->pid, IOPRIO_PRIO_VALUE(2, 6)) == 0, "ioprio_set of a group");
    CHECK(prlimit(a->pid, RLIMIT_NOFILE, NULL, &old) == 0, "prlimit");
    limit = (struct rlimit){old.rlim_cur - 1, old.rlim_max};
    CHECK(prlimit(a->pid, RLIMIT_NOFILE, &limit, NULL) == 0, "prlimit");
    CHECK(sched_setscheduler(a->pid, SCHED_BATCH, &parameter) == 0 && sched_getscheduler(a->pid) == SCHED_BATCH,
          "sched_setscheduler");
    CHECK(sched_getparam(a->pid, &parameter) == 0 && sched_rr_get_interval(a->pid, &slice) == 0, "sched_getparam");
    uint32_t attributes[14] = {sizeof attributes};
    CHECK(syscall(SYS_sched_getattr, a->pid, attributes, sizeof attributes, 0) == 0 && attributes[1] == SCHED_BATCH,
          "sched_getattr");
    order(A, LOOK), order(B, LOOK), order(C, LOOK);
    CHECK(a->nice == 5 && b->nice == 6 && all->lives[C].nice == 6, "nice: %d, %d", a->nice, b->nice);
    CHECK(a->priority == IOPRIO_PRIO_VALUE(2, 5) && all->lives[C].priority == IOPRIO_PRIO_VALUE(2, 6), "ioprio");
    CHECK(a->limit.rlim_cur == limit.rlim_cur && a->processors == 1, "somebody else's limit or processors");
}

static void check_memory(void) {
    pid_t a = all->lives[A].pid;
    long mine = 5;
    struct iovec here = {&mine, sizeof mine}, there = {&all->word, sizeof mine}, fault = {&own, 1};
    CHECK(process_vm_writev(a, &here, 1, &there, 1, 0) == sizeof mine && all->word == 5, "process_vm_writev");
    all->word = 6;
    CHECK(process_vm_readv(a, &here, 1, &there, 1, 0) == sizeof mine && mine == 6, "process_vm_readv");
    int fd = syscall(SYS_pidfd_open, a, 0), status = -1;
    fault.iov_base = (void *)((uintptr_t)&own & -4096), fault.iov_len = 4096;
    // Advising others takes CAP_SYS_NICE, and mostly some kernel options.
    long advised = syscall(SYS_process_madvise, fd, &fault, 1, 20 /* MADV_COLD */, 0);
    CHECK(advised == 4096 || errno == EPERM || errno == ENOSYS, "process_madvise");
    int copy = syscall(SYS_pidfd_getfd, fd, file, 0);
    CHECK(copy >= 0 && syscall(SYS_kcmp, own, a, KCMP_FILE, copy, file) == 0, "pidfd_getfd and kcmp");
    CHECK(syscall(SYS_kcmp, own, a, KCMP_VM, 0, 0) > 0, "kcmp: the same memory");
    if (geteuid() == 0 && prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN) == 1)
        CHECK(setns(fd, CLONE_NEWUTS) == 0 || errno == EPERM, "setns by a pidfd");
    close(copy), close(fd);
    void *page = all;
    CHECK(syscall(SYS_move_pages, a, 1UL, &page, NULL, &status, 0) == 0 ? status >= 0 : errno == ENOSYS, "move_pages: %d", status);
    unsigned long node = 1;
    CHECK(syscall(SYS_migrate_pages, a, 8 * sizeof node, &node, &node) >= 0 || errno == ENOSYS, "migrate_pages");
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, a};
    struct __user_cap_data_struct data[2];
    CHECK(syscall(SYS_capget, &header, data) == 0, "capget");
    void *head = NULL;
    size_t length;
    CHECK(syscall(SYS_get_robust_list, a, &head, &length) == 0 && head == all->lives[A].robust, "get_robust_list");
    CHECK(ptrace(PTRACE_SEIZE, a, 0, 0) == 0 && ptrace(PTRACE_INTERRUPT, a, 0, 0) == 0, "ptrace");
    CHECK(waitpid(a, &status, __WALL) == a && WIFSTOPPED(status), "waitpid of who is traced");
    CHECK(ptrace(PTRACE_DETACH, a, 0, 0) == 0, "ptrace");
}

static void check_clocks(void) {
    struct timespec before, after, of_thread;
    struct itimerspec left;
    clockid_t now;
    CHECK(clock_getcpuclockid(all->lives[A].pid, &now) == 0 && now == clock_of_child, "clock_getcpuclockid");
    CHECK(clock_gettime(clock_of_child, &before) == 0 && clock_gettime(clock_of_thread, &of_thread) == 0, "clock_gettime");
    CHECK(timer_gettime(timer, &left) == 0, "timer_gettime");
    int64_t had = left.it_value.tv_sec * 1000000000LL + left.it_value.tv_nsec;
    order(A, SPIN);
    CHECK(clock_gettime(clock_of_child, &after) == 0, "clock_gettime");
    int64_t spent = (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec;
    CHECK(spent >= 60000000, "it took %lld ns of its time", (long long)spent);
    CHECK(timer_gettime(timer, &left) == 0, "timer_gettime");
    had -= left.it_value.tv_sec * 1000000000LL + left.it_value.tv_nsec;
    CHECK(had >= 50000000, "a timer of its time has counted %lld ns", (long long)had);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
    event._sigev_un._tid = thread;
    timer_t other;
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &other) == 0 && timer_delete(other) == 0, "SIGEV_THREAD_ID");
}

static void check_locks(void) {
    struct flock lock = {.l_type = F_WRLCK, .l_start = 10, .l_len = 1};
    char text[8192], line[64];
    CHECK(fcntl(file, F_GETLK, &lock) == 0 && lock.l_pid == all->lives[A].pid, "F_GETLK: %d", lock.l_pid);
    lock = (struct flock){.l_type = F_WRLCK, .l_start = 20, .l_len = 1};
    CHECK(fcntl(file, F_GETLK, &lock) == 0 && lock.l_type == F_WRLCK && lock.l_pid == -1, "of an open file: %d", lock.l_pid);
    read_proc("/proc/locks", text, sizeof text);
    snprintf(line, sizeof line, "POSIX  ADVISORY  WRITE %d ", all->lives[A].pid);
    CHECK(strstr(text, line), "/proc/locks: %s", text);
    CHECK(fcntl(answers[0], F_GETOWN) == -all->lives[B].pid, "the owner is %d", fcntl(answers[0], F_GETOWN));
    pid_t owner = fcntl(answers[1], F_GETOWN);
    CHECK(owner == 0 || outside == getppid(), "somebody else, %d, is signalled", owner);
}

static void check_sockets(void) {
    pid_t a = all->lives[A].pid;
    CHECK(peer(given[0]) == a, "A's connection is %d's", peer(given[0]));
    CHECK(peer(taken[0]) == own && peer(taken[1]) == own, "the program's connection is %d's", peer(taken[0]));
    pid_t from = sender(given[0], "before");
    CHECK(from == a, "what A had sent is from %d", from);
    order(A, SEND);
    from = sender(given[0], "again");
    CHECK(from == a, "what A sends is from %d", from);
}

static void check_system_v(void) {
    pid_t a = all->lives[A].pid, b = all->lives[B].pid;
    struct shmid_ds of_segment;
    struct msqid_ds of_queue;
    CHECK(shmctl(segment, IPC_STAT, &of_segment) == 0 && of_segment.shm_cpid == a, "the segment is %d's",
          of_segment.shm_cpid);
    CHECK(semctl(set, 0, GETPID) == a && semctl(set, 1, GETPID) == b, "GETPID: %d, %d", semctl(set, 0, GETPID),
          semctl(set, 1, GETPID));
    CHECK(msgctl(queue, IPC_STAT, &of_queue) == 0 && of_queue.msg_lspid == a && of_queue.msg_lrpid == b,
          "the queue: %d, %d", of_queue.msg_lspid, of_queue.msg_lrpid);
}

// A number behind a key in a file of /proc: the last of its line.
static int number(const char *path, const char *key) {
    char text[8192];
    read_proc(path, text, sizeof text);
    char *line = strstr(text, key);
    if (!line)
        return -1;
    *strchrnul(++line, '\n') = 0;
    return atoi(strrchr(line, '\t') + 1);
}

static void check_proc(void) {
    pid_t a = all->lives[A].pid, d = all->lives[D].pid, e = all->lives[E].pid;
    char path[64], target[64], wanted[64], text[8192];
    int status_group = 0, status_session = 0;
    snprintf(path, sizeof path, "/proc/%d/status", a);
    CHECK(number(path, "\nPid:") == a && number(path, "\nTgid:") == a && number(path, "\nPPid:") == own, "%s", path);
    CHECK(number(path, "\nNSpid:") == a, "%s: NSpid", path);
    snprintf(path, sizeof path, "/proc/%d/stat", e);
    read_proc(path, text, sizeof text);
    char *after = strrchr(text, ')');
    CHECK(after && sscanf(after, ") %*c %*d %d %d", &status_group, &status_session) == 2 && status_group == d && status_session == d,
          "%s: %s", path, text);
    snprintf(wanted, sizeof wanted, "%d/task/%d", own, gettid());
    target[readlink("/proc/thread-self", target, sizeof target - 1)] = 0;
    CHECK(!strcmp(target, wanted), "/proc/thread-self: %s", target);
    snprintf(path, sizeof path, "/proc/%d/task/%d/status", own, thread);
    CHECK(number(path, "\nPid:") == thread && number(path, "\nTgid:") == own, "%s", path);
    snprintf(path, sizeof path, "/proc/self/task/%d/children", own);
    snprintf(wanted, sizeof wanted, "%d ", a);
    read_proc(path, text, sizeof text);
    CHECK(strstr(text, wanted), "%s: %s", path, text);
    snprintf(wanted, sizeof wanted, "%d", a);
    DIR *directory = opendir("/proc");
    bool found = false;
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        found |= !strcmp(entry->d_name, wanted);
    CHECK(found, "/proc has no %s", wanted);
    closedir(directory);
    // The file of the unified hierarchy's group, where that is mounted.
    if (read_proc("/proc/self/cgroup", text, sizeof text) && !strncmp(text, "0::/", 4)) {
        char name[sizeof text + 64];
        *strchrnul(text, '\n') = 0;
        snprintf(name, sizeof name, "/sys/fs/cgroup%s/cgroup.procs", text + 3);
        FILE *members = fopen(name, "r");
        found = !members;
        for (int member; members && fscanf(members, "%d", &member) == 1;)
            found |= member == own;
        CHECK(found, "%s has no %d", name, own);
        if (members)
            fclose(members);
    }
}

static void check_new(void) {
    pid_t made[REMEMBERED], told = 0, child_told = 0;
    for (int i = 0; i < REMEMBERED; i++) {
        made[i] = fork();
        if (made[i] == 0)
            _exit(0);
        CHECK(waitpid(made[i], NULL, 0) == made[i], "waitpid");
    }
    if (loses("ended"))
        made[0] = ended[500];
    for (int i = 0; i < REMEMBERED; i++) {
        bool known = made[i] == own || made[i] == thread || made[i] == zombie || made[i] == outside || made[i] == session;
        for (int j = 0; j < REMEMBERED && !known; j++)
            known = made[i] == ended[j];
        for (int j = 0; j < COUNT && !known; j++)
            known = made[i] == all->lives[j].pid;
        // Where a busy machine has given nearly all ids since, they begin anew.
        bool again = !is_alone() && made_in_all() - made_before > 20000 && !loses("ended");
        if (known && !again) {
            FAIL("child %d has the id %d, which the program remembers%s", i, made[i], is_alone() ? ", alone" : "");
            break;
        }
    }
    int fd = -1;
    static pid_t in_child;
    pid_t child = syscall(SYS_clone, CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD, NULL, &told, &in_child, NULL);
    if (child == 0)
        _exit(in_child == getpid() && getppid() == own ? 3 : 1);
    int status;
    CHECK(told == child && waitpid(child, &status, 0) == child && status == 3 << 8, "clone: %d and %d", child, told);
    child = syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, &fd, NULL, NULL);
    if (child == 0)
        _exit(0);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    child_told = number(path, "\nPid:");
    CHECK(child_told == child && waitpid(child, NULL, 0) == child, "CLONE_PIDFD: %d and %d", child, child_told);
    close(fd);
    CHECK(syscall(SYS_set_tid_address, (int[1]){0}) == gettid(), "set_tid_address");
}

static void check_ends(void) {
    struct life *lives = all->lives;
    siginfo_t info;
    sigset_t chld;
    sigemptyset(&chld), sigaddset(&chld, SIGCHLD);
    CHECK(waitid(P_PID, zombie, &info, WEXITED) == 0 && info.si_pid == zombie && info.si_status == 4, "waitid of a zombie");
    while (sigtimedwait(&chld, NULL, &(struct timespec){0, 0}) > 0)
        ;
    atomic_store(&lives[A].order, END);
    CHECK(sigwaitinfo(&chld, &info) == SIGCHLD && info.si_pid == lives[A].pid && info.si_status == 7, "SIGCHLD: %d", info.si_pid);
    int fd = syscall(SYS_pidfd_open, lives[A].pid, 0), status = 0;
    CHECK(waitid(3 /* P_PIDFD */, fd, &info, WEXITED) == 0 && info.si_pid == lives[A].pid, "P_PIDFD: %d", info.si_pid);
    close(fd);
    atomic_store(&lives[B].order, END);
    CHECK(waitid(P_PGID, lives[B].pid, &info, WEXITED) == 0 && info.si_pid == lives[B].pid, "P_PGID: %d", info.si_pid);
    atomic_store(&lives[C].order, END);
    CHECK(waitpid(-lives[B].pid, &status, 0) == lives[C].pid && status == 7 << 8, "waitpid of a group");
    kill(lives[E].pid, SIGKILL);
    kill(lives[D].pid, SIGKILL);
    CHECK(wait4(lives[D].pid, &status, 0, NULL) == lives[D].pid && status == SIGKILL, "wait4");
}

int main(void) {
    struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO | SA_RESTART};
    char name[] = "ids-XXXXXX";
    int on = 1;
    all = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(all != MAP_FAILED && (file = mkstemp(name)) >= 0 && unlink(name) == 0);
    own = getpid(), group = getpgid(0), session = getsid(0), outside = getppid();
    REQUIRE(sigaction(SIGUSR1, &action, NULL) == 0 && pipe(answers) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, taken) == 0);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, kept) == 0);
    set = semget(IPC_PRIVATE, 2, 0600), queue = msgget(IPC_PRIVATE, 0600);
    REQUIRE(set >= 0 && queue >= 0);
    for (int which = A; which <= D; which++)
        start(which);
    REQUIRE(setsockopt(given[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    // In all threads: one that does not block it would take it, and ignore it.
    sigset_t chld;
    sigemptyset(&chld), sigaddset(&chld, SIGCHLD);
    pthread_sigmask(SIG_BLOCK, &chld, NULL);
    thread = start_waiting_thread();
    zombie = fork();
    if (zombie == 0)
        _exit(4);
    REQUIRE(waitid(P_PID, zombie, NULL, WEXITED | WNOWAIT) == 0);
    made_before = made_in_all();
    // Higher than all that live, unless ids begin anew meanwhile.
    for (int i = 0; i < REMEMBERED; i++) {
        ended[i] = fork();
        if (ended[i] == 0)
            _exit(0);
        REQUIRE(waitpid(ended[i], NULL, 0) == ended[i]);
    }
    struct flock lock = {.l_type = F_WRLCK, .l_start = 20, .l_len = 1};
    int other = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
    char path[32];
    snprintf(path, sizeof path, "%d", file);
    int again = openat(other, path, O_RDWR);
    REQUIRE(again >= 0 && close(other) == 0 && fcntl(again, F_OFD_SETLK, &lock) == 0);
    REQUIRE(clock_getcpuclockid(all->lives[A].pid, &clock_of_child) == 0);
    clock_of_thread = (~(clockid_t)thread << 3) | 6;
    struct sigevent nothing = {.sigev_notify = SIGEV_NONE};
    struct itimerspec value = {{0, 0}, {100, 0}};
    REQUIRE(timer_create(clock_of_child, &nothing, &timer) == 0 && timer_settime(timer, 0, &value, NULL) == 0);
    REQUIRE(fcntl(answers[0], F_SETOWN, -all->lives[B].pid) == 0 && fcntl(answers[1], F_SETOWN, outside) == 0);

    until_go();
    if (loses("children")) {
        pid_t first = all->lives[A].pid;
        all->lives[A].pid = all->lives[B].pid, all->lives[B].pid = first;
    }
    if (loses("thread"))
        thread = all->lives[A].pid;
    if (loses("owner"))
        fcntl(answers[0], F_SETOWN, own);
    if (loses("lock"))
        ftruncate(file, 0), close(again);
    if (loses("peer"))
        dup2(taken[0], given[1]), dup2(taken[1], given[0]);
    if (loses("clock"))
        clock_getcpuclockid(own, &clock_of_child);
    if (loses("timer"))
        timer_delete(timer);
    if (loses("system_v"))
        semctl(set, 1, SETVAL, 0);
    CHECK(getpid() == own && gettid() == own, "getpid: %d", getpid());
    check_relations();
    check_signals();
    check_signals_to_all();
    if (!atomic_load(&failures)) {
        check_settings();
        check_memory();
        check_clocks();
        check_locks();
        check_sockets();
        check_system_v();
        check_proc();
        check_new();
        check_ends();
    }
    for (int i = 0; i < COUNT; i++)
        kill(all->lives[i].pid, SIGKILL);
    shmctl(segment, IPC_RMID, NULL), semctl(set, 0, IPC_RMID), msgctl(queue, IPC_RMID, NULL);
    return verdict();
}
