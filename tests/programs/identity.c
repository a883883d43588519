// What /proc/self and the C library say the program is: exe, comm, cmdline, environ, auxv, loaded objects.
#include "verify.h"
#include <link.h>
#include <sys/auxv.h>
#include <sys/prctl.h>

extern char **environ;

struct identity {
    char exe[4096];
    char comm[64];
    char cmdline[4096];
    size_t cmdline_length;
    char environ_text[16384];
    size_t environ_length;
    char auxv[1024];
    size_t auxv_length;
};

static void look(struct identity *identity) {
    ssize_t length = readlink("/proc/self/exe", identity->exe, sizeof identity->exe - 1);
    REQUIRE(length > 0);
    identity->exe[length] = 0;
    read_proc("/proc/self/comm", identity->comm, sizeof identity->comm);
    identity->cmdline_length = read_proc("/proc/self/cmdline", identity->cmdline, sizeof identity->cmdline);
    identity->environ_length = read_proc("/proc/self/environ", identity->environ_text, sizeof identity->environ_text);
    identity->auxv_length = read_proc("/proc/self/auxv", identity->auxv, sizeof identity->auxv);
}

static int count_objects(struct dl_phdr_info *info, size_t size, void *count) {
    (void)info, (void)size;
    ++*(int *)count;
    return 0;
}

int main(int argc, char **argv) {
    static struct identity before, now;
    // argv lies on the stack: what ps shows follows when it is overwritten.
    if (argc > 1)
        memset(argv[1], 'x', strlen(argv[1]));
    setenv("STASIS_TEST_SET_LATER", "kept", 1);
    look(&before);
    int objects = 0, objects_now = 0;
    dl_iterate_phdr(count_objects, &objects);
    REQUIRE(before.auxv_length > 16 && before.cmdline_length > 0);

    until_go();
    if (loses("comm"))
        prctl(PR_SET_NAME, "other", 0, 0, 0);
    if (loses("cmdline"))
        argv[0][0] = '#';
    if (loses("auxv"))
        before.auxv[8]++;
    if (loses("exe"))
        before.exe[1] = '#';
    if (loses("environ"))
        environ[0][0] = '#';
    if (loses("setenv"))
        unsetenv("STASIS_TEST_SET_LATER");
    look(&now);
    CHECK(strcmp(before.exe, now.exe) == 0, "/proc/self/exe was %s and is %s", before.exe, now.exe);
    CHECK(strcmp(before.comm, now.comm) == 0, "comm was %s and is %s", before.comm, now.comm);
    CHECK(before.cmdline_length == now.cmdline_length && !memcmp(before.cmdline, now.cmdline, now.cmdline_length),
          "cmdline was %s and is %s", before.cmdline, now.cmdline);
    CHECK(before.environ_length == now.environ_length &&
              !memcmp(before.environ_text, now.environ_text, now.environ_length), "/proc/self/environ changed");
    CHECK(before.auxv_length == now.auxv_length && !memcmp(before.auxv, now.auxv, now.auxv_length),
          "/proc/self/auxv changed");
    CHECK(getauxval(AT_PHDR) && getauxval(AT_RANDOM) && strcmp((char *)getauxval(AT_EXECFN), "") != 0, "getauxval");
    CHECK(getenv("STASIS_TEST_SET_LATER") && strcmp(getenv("STASIS_TEST_SET_LATER"), "kept") == 0,
          "a variable set by setenv is lost");
    dl_iterate_phdr(count_objects, &objects_now);
    CHECK(objects == objects_now, "%d objects were loaded, %d are", objects, objects_now);
    return verdict();
}
