// Settings of prctl(2): name, dumpable, THP, parent-death signal, no_new_privs, subreaper, timer slack, keep-caps.
#include "verify.h"
#include <sys/personality.h>
#include <sys/prctl.h>

static const struct { const char *name; int get; bool by_pointer; } settings[] = {
    {"PR_GET_DUMPABLE", PR_GET_DUMPABLE, false},
    {"PR_GET_THP_DISABLE", PR_GET_THP_DISABLE, false},
    {"PR_GET_PDEATHSIG", PR_GET_PDEATHSIG, true},
    {"PR_GET_NO_NEW_PRIVS", PR_GET_NO_NEW_PRIVS, false},
    {"PR_GET_CHILD_SUBREAPER", PR_GET_CHILD_SUBREAPER, true},
    {"PR_GET_TIMERSLACK", PR_GET_TIMERSLACK, false},
    {"PR_GET_KEEPCAPS", PR_GET_KEEPCAPS, false},
    {"PR_GET_TSC", PR_GET_TSC, true},
    {"PR_MCE_KILL_GET", PR_MCE_KILL_GET, false},
};
enum { COUNT = sizeof settings / sizeof *settings };

static int get(int i) {
    int value = 0;
    int result = settings[i].by_pointer ? prctl(settings[i].get, &value, 0, 0, 0) : prctl(settings[i].get, 0, 0, 0, 0);
    return settings[i].by_pointer && result == 0 ? value : result;
}

int main(void) {
    int before[COUNT];
    prctl(PR_SET_NAME, "a (new) name", 0, 0, 0);
    REQUIRE(prctl(PR_SET_PDEATHSIG, SIGUSR2, 0, 0, 0) == 0);
    REQUIRE(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0);
    // PR_THP_DISABLE_EXCEPT_ADVISED (2), since Linux 6.18.
    REQUIRE(prctl(PR_SET_THP_DISABLE, 1, 2, 0, 0) == 0 || prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    REQUIRE(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    REQUIRE(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
    REQUIRE(prctl(PR_SET_TIMERSLACK, 123456, 0, 0, 0) == 0);
    REQUIRE(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0);
    REQUIRE(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0);
    REQUIRE(personality(ADDR_NO_RANDOMIZE) != -1);
    for (int i = 0; i < COUNT; i++)
        before[i] = get(i);

    until_go();
    if (loses("name"))
        prctl(PR_SET_NAME, "prctl", 0, 0, 0);
    if (loses("dumpable"))
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    if (loses("thp"))
        prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
    if (loses("pdeathsig"))
        prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
    if (loses("subreaper"))
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
    if (loses("timerslack"))
        prctl(PR_SET_TIMERSLACK, 0, 0, 0, 0);
    if (loses("keepcaps"))
        prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0);
    if (loses("mce"))
        prctl(PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0);
    if (loses("personality"))
        personality(0);
    for (int i = 0; i < COUNT; i++)
        CHECK(get(i) == before[i], "%s was %d and is %d", settings[i].name, before[i], get(i));
    char name[17] = "";
    CHECK(prctl(PR_GET_NAME, name, 0, 0, 0) == 0 && strcmp(name, "a (new) name") == 0, "the name is %s", name);
    CHECK(personality(0xffffffff) == ADDR_NO_RANDOMIZE, "the personality is %#x", personality(0xffffffff));
    return verdict();
}
