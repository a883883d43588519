// The vDSO: times through it, and directly by its symbols, go on in all threads and agree with the kernel; what was looked
// up is still there for who looks it up again.
#include "maps.h"
#include <elf.h>
#include <sys/auxv.h>
#include <sys/time.h>

typedef int (*clock_function)(clockid_t, struct timespec *);
typedef int (*day_function)(struct timeval *, void *);
typedef time_t (*time_function)(time_t *);
typedef int (*cpu_function)(unsigned *, unsigned *, void *);
typedef ssize_t (*random_function)(void *, size_t, unsigned, void *, size_t);

enum { CLOCK, RESOLUTION, DAY, TIME, CPU, RANDOM, FUNCTIONS };
static const char *const names[FUNCTIONS] = {"__vdso_clock_gettime", "__vdso_clock_getres", "__vdso_gettimeofday",
                                             "__vdso_time",          "__vdso_getcpu",       "__vdso_getrandom"};

// Finds a function of the vDSO as a program with its own loader does, once and for all.
static void *find(const char *name) {
    char *base = (char *)getauxval(AT_SYSINFO_EHDR);
    Elf64_Ehdr *header = (Elf64_Ehdr *)base;
    Elf64_Phdr *segments = (Elf64_Phdr *)(base + header->e_phoff);
    Elf64_Dyn *dynamic = NULL;
    Elf64_Sym *symbols = NULL;
    const char *strings = NULL;
    uint32_t *hash = NULL;
    for (int i = 0; i < header->e_phnum; i++)
        if (segments[i].p_type == PT_DYNAMIC)
            dynamic = (Elf64_Dyn *)(base + segments[i].p_offset);
    for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
        if (dynamic->d_tag == DT_SYMTAB)
            symbols = (Elf64_Sym *)(base + dynamic->d_un.d_ptr);
        if (dynamic->d_tag == DT_STRTAB)
            strings = base + dynamic->d_un.d_ptr;
        if (dynamic->d_tag == DT_HASH)
            hash = (uint32_t *)(base + dynamic->d_un.d_ptr);
    }
    for (uint32_t i = 0; symbols && strings && hash && i < hash[1]; i++)
        if (strcmp(strings + symbols[i].st_name, name) == 0)
            return base + symbols[i].st_value;
    return NULL;
}

static int64_t kernel_ns(clockid_t clock) {
    struct timespec time;
    syscall(SYS_clock_gettime, clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static atomic_int stop;
static atomic_long calls;

static void *read_clocks(void *unused) {
    int64_t last = 0;
    while (!atomic_load(&stop)) {
        int64_t now = now_ns(CLOCK_MONOTONIC);
        CHECK(now >= last, "CLOCK_MONOTONIC went back by %jd ns", (intmax_t)(last - now));
        last = now;
        atomic_fetch_add(&calls, 1);
    }
    return unused;
}

int main(void) {
    void *functions[FUNCTIONS];
    for (int i = 0; i < FUNCTIONS; i++)
        functions[i] = find(names[i]);
    clock_function direct = (clock_function)functions[CLOCK];
    void *base = (void *)getauxval(AT_SYSINFO_EHDR);
    static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_COARSE};
    pthread_t reader = start_thread(read_clocks, NULL);
    int64_t monotonic = now_ns(CLOCK_MONOTONIC), realtime = now_ns(CLOCK_REALTIME);

    until_go();
    long before = atomic_load(&calls);
    CHECK(now_ns(CLOCK_MONOTONIC) > monotonic && now_ns(CLOCK_REALTIME) > realtime, "time went back");
    CHECK((void *)getauxval(AT_SYSINFO_EHDR) == base && has_flag(base, "ex"), "the vDSO is no longer at %p", base);
    for (int i = 0; i < 4; i++) {
        struct timespec time = {0, 0};
        int64_t low = kernel_ns(clocks[i]), libc = now_ns(clocks[i]) + (loses("time") ? 1000000000 : 0);
        CHECK(direct && direct(clocks[i], &time) == 0, "the vDSO's own clock_gettime");
        int64_t own = time.tv_sec * 1000000000LL + time.tv_nsec, high = kernel_ns(clocks[i]);
        CHECK(low <= libc && libc <= own && own <= high, "clock %d: kernel %jd, libc %jd, vDSO %jd, kernel %jd", clocks[i],
              (intmax_t)low, (intmax_t)libc, (intmax_t)own, (intmax_t)high);
    }
    for (int i = 0; i < FUNCTIONS; i++)
        CHECK(find(names[i]) == functions[i], "%s was at %p and is at %p", names[i], functions[i], find(names[i]));
    struct timeval day = {0, 0};
    struct timespec resolution = {-1, -1};
    unsigned cpu = UINT32_MAX, node = UINT32_MAX;
    char bytes[2][64] = {{0}, {0}};
    time_function own_time = (time_function)functions[TIME];
    CHECK(llabs((own_time ? own_time(NULL) : time(NULL)) - now_ns(CLOCK_REALTIME) / 1000000000) <= 1, "the vDSO's own time");
    if (functions[DAY])
        CHECK(((day_function)functions[DAY])(&day, NULL) == 0 && llabs(day.tv_sec - time(NULL)) <= 1, "its gettimeofday");
    if (functions[RESOLUTION])
        CHECK(((clock_function)functions[RESOLUTION])(CLOCK_MONOTONIC, &resolution) == 0 && resolution.tv_sec == 0 &&
                  resolution.tv_nsec > 0, "its clock_getres: %jd.%09ld", (intmax_t)resolution.tv_sec, resolution.tv_nsec);
    if (functions[CPU])
        CHECK(((cpu_function)functions[CPU])(&cpu, &node, NULL) == 0 && cpu < 8192 && node < 1024, "its getcpu: %u %u", cpu, node);
    // Without a state it asks the kernel.
    for (int i = 0; functions[RANDOM] && i < 2; i++)
        CHECK(((random_function)functions[RANDOM])(bytes[i], sizeof bytes[i], 0, NULL, 0) == sizeof bytes[i], "its getrandom");
    CHECK(!functions[RANDOM] || memcmp(bytes[0], bytes[1], sizeof bytes[0]) != 0, "its getrandom gives the same twice");
    CHECK(gettimeofday(&day, NULL) == 0 && llabs(day.tv_sec - time(NULL)) <= 1, "gettimeofday and time differ");
    sleep_ms(20);
    CHECK(atomic_load(&calls) > before, "the thread that reads clocks stands still");
    atomic_store(&stop, 1);
    pthread_join(reader, NULL);
    return verdict();
}
