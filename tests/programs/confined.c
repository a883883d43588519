// Has what nobody can read back from the kernel, named by argv[1]: a checkpoint is refused, and the program keeps it.
#include "verify.h"
#include <asm/ldt.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

static const char *what;
static volatile char dispatched;

static bool is(const char *name) {
    return strcmp(what, name) == 0;
}

// Calls that the program itself makes; a stopped thread would make others.
static void filter(void) {
    static const int allowed[] = {SYS_read, SYS_write, SYS_exit_group, SYS_exit, SYS_clock_nanosleep, SYS_nanosleep,
                                  SYS_access, SYS_faccessat, SYS_futex};
    struct sock_filter code[32];
    int length = 0;
    code[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0);
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) {
        code[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
        code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    struct sock_fprog program = {length, code};
    REQUIRE(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    // stdout has its buffer before it can get no more memory.
    puts("confined");
    fflush(stdout);
    REQUIRE(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
}

// A child that executes nothing, as servers make to look at what strangers send; it ends when the other side of `until` does.
static pid_t filtered_child(int until[2]) {
    int begun[2];
    char byte = 0;
    REQUIRE(pipe(until) == 0 && pipe(begun) == 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        close(until[1]);
        filter();
        bool told = write(begun[1], &byte, 1) == 1;
        while (read(until[0], &byte, 1) < 0)
            ;
        _exit(!told);
    }
    REQUIRE(read(begun[0], &byte, 1) == 1);
    return child;
}

static void restrict_files(void) {
    struct landlock_ruleset_attr rules = {.handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_DIR};
    int fd = syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0);
    REQUIRE(fd >= 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    REQUIRE(syscall(SYS_landlock_restrict_self, fd, 0) == 0 && close(fd) == 0);
    REQUIRE(mkdir("never", 0700) < 0);
}

static void *own_descriptors(void *go_on) {
    REQUIRE(unshare(CLONE_FILES) == 0);
    atomic_store((atomic_int *)go_on, 1);
    await_value(go_on, 2);
    return NULL;
}

int main(int count, char **arguments) {
    static atomic_int step;
    what = count > 1 ? arguments[1] : "";
    pthread_t thread = 0;
    bool threaded = is("descriptors");
    pid_t child = -1;
    int until[2], status;
    if (is("child"))
        child = filtered_child(until);
    else if (is("seccomp"))
        filter();
    else if (is("landlock"))
        restrict_files();
    else if (is("executed") && count == 2) {
        // What a program executes is restricted like itself.
        restrict_files();
        execl("/proc/self/exe", arguments[0], "executed", "again", NULL);
        REQUIRE(false);
    } else if (is("session_keys"))
        REQUIRE(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) > 0);
    else if (is("own_keys"))
        REQUIRE(syscall(SYS_add_key, "user", "stasis", "secret", 6, KEY_SPEC_PROCESS_KEYRING) > 0);
    else if (is("namespaces"))
        REQUIRE(unshare(CLONE_NEWUTS) == 0);
    else if (is("dispatch"))
        REQUIRE(prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0, 0, &dispatched) == 0);
    else if (is("segments")) {
        struct user_desc segment = {.entry_number = 0, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1};
        REQUIRE(syscall(SYS_modify_ldt, 0x11, &segment, sizeof segment) == 0);
    } else if (threaded) {
        thread = start_thread(own_descriptors, &step);
        await_value(&step, 1);
    }
    until_go();
    if (child > 0) {
        close(until[1]);
        CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended with status %x", status);
    }
    if (threaded) {
        atomic_store(&step, 2);
        pthread_join(thread, NULL);
    }
    return verdict();
}
