// User and group ids and capabilities: the Uid, Gid, Groups, Cap* and NoNewPrivs lines of /proc/self/status.
// And the secure bits. argv[1]: `nobody` gives all up first, `mixed` keeps some of each kind; else they are what they are.
#include "verify.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>

static void credential_lines(char *lines, size_t size) {
    static char status[8192];
    static const char *const names[] = {"Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:",
                                        "CapAmb:", "NoNewPrivs:", "Seccomp:"};
    read_proc("/proc/self/status", status, sizeof status);
    lines[0] = 0;
    for (char *line = strtok(status, "\n"); line; line = strtok(NULL, "\n"))
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (strncmp(line, names[i], strlen(names[i])) == 0)
                snprintf(lines + strlen(lines), size - strlen(lines), "%s\n", line);
}

int main(int argc, char **argv) {
    char before[2048], now[2048];
    // Each a different one, so that none can pass for another.
    if (argc > 1 && strcmp(argv[1], "mixed") == 0) {
        gid_t groups[] = {100, 200, 65534};
        REQUIRE(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME, 0, 0, 0) == 0);
        REQUIRE(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE, 0, 0, 0) == 0);
        REQUIRE(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0);
        REQUIRE(setgroups(3, groups) == 0 && setresgid(1001, 1002, 1003) == 0 && setresuid(2001, 2002, 2003) == 0);
        struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
        uint32_t some = 1u << CAP_NET_BIND_SERVICE | 1u << CAP_CHOWN;
        struct __user_cap_data_struct data[2] = {{1u << CAP_CHOWN, some, some}, {0, 0, 0}};
        REQUIRE(syscall(SYS_capset, &header, data) == 0);
        REQUIRE(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0) != -1 || errno == EPERM);
        // A change of ids makes a process undumpable, and its /proc files root's.
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    }
    if (argc > 1 && strcmp(argv[1], "nobody") == 0) {
        gid_t groups[] = {5, 65534};
        REQUIRE(setgroups(2, groups) == 0 && setresgid(65534, 65534, 65534) == 0);
        REQUIRE(setresuid(65534, 65534, 65534) == 0);
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    }
    credential_lines(before, sizeof before);
    REQUIRE(strstr(before, "Uid:") && strstr(before, "CapAmb:"));
    uid_t uid = geteuid();
    int bits = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
    until_go();
    if (loses("no-new-privs"))
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    // Who has no privilege can change nothing else: what is expected is changed instead.
    if (loses("ids"))
        *strchr(strstr(before, "Uid:"), '\n') = '0';
    if (loses("groups"))
        *strchr(strstr(before, "Groups:"), '\n') = '0';
    if (loses("capabilities"))
        strstr(before, "CapEff:")[10] ^= 1;
    if (loses("secure bits"))
        bits ^= SECBIT_NOROOT;
    credential_lines(now, sizeof now);
    CHECK(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) == bits, "the secure bits were %#x and are %#x", bits,
          prctl(PR_GET_SECUREBITS, 0, 0, 0, 0));
    CHECK(strcmp(before, now) == 0, "the credentials were\n%sand are\n%s", before, now);
    CHECK(geteuid() == uid, "the effective uid was %d and is %d", uid, geteuid());
    return verdict();
}
