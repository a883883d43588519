// Resource limits, soft and hard.
#include "verify.h"
#include <sys/resource.h>

int main(void) {
    static const struct { int resource; rlim_t soft, hard; } set[] = {
        {RLIMIT_NOFILE, 517, 12345},       {RLIMIT_CORE, 0, 4096},
        {RLIMIT_STACK, 6 << 20, 7 << 20},  {RLIMIT_FSIZE, 1 << 30, RLIM_INFINITY},
        {RLIMIT_CPU, 3000, 4000},          {RLIMIT_MEMLOCK, 1 << 20, 2 << 20},
        {RLIMIT_NPROC, 20000, 30000},      {RLIMIT_SIGPENDING, 5000, 6000},
        {RLIMIT_MSGQUEUE, 4000, 5000},     {RLIMIT_AS, 1UL << 40, 1UL << 41},
        {RLIMIT_DATA, 1UL << 39, 1UL << 40},
    };
    struct rlimit before[RLIM_NLIMITS], now;
    for (size_t i = 0; i < sizeof set / sizeof *set; i++) {
        struct rlimit limit = {set[i].soft, set[i].hard};
        REQUIRE(setrlimit(set[i].resource, &limit) == 0);
    }
    for (int resource = 0; resource < (int)RLIM_NLIMITS; resource++)
        getrlimit(resource, &before[resource]);

    until_go();
    if (loses("soft")) {
        struct rlimit limit = {600, 12345};
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (loses("hard")) {
        struct rlimit limit = {517, 12344};
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    for (int resource = 0; resource < (int)RLIM_NLIMITS; resource++) {
        CHECK(getrlimit(resource, &now) == 0, "getrlimit(%d)", resource);
        CHECK(now.rlim_cur == before[resource].rlim_cur && now.rlim_max == before[resource].rlim_max,
              "limit %d was %jd, %jd and is %jd, %jd", resource, (intmax_t)before[resource].rlim_cur,
              (intmax_t)before[resource].rlim_max, (intmax_t)now.rlim_cur, (intmax_t)now.rlim_max);
    }
    return verdict();
}
