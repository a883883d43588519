// What the memory workloads share: what /proc/self/smaps says of the mapping at an address.
#ifndef MAPS_H
#define MAPS_H

#include "verify.h"
#include <setjmp.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 // Linux 6.13; glibc 2.36 does not know it
#endif

// Copies the value of a field (`VmFlags:`, `Rss:`, `Name:` of the mapping's own line) at an address; empty: none.
UNUSED static void smaps_field(const void *address, const char *field, char *value, size_t size) {
    FILE *smaps = fopen("/proc/self/smaps", "re");
    REQUIRE(smaps != NULL);
    char line[1024];
    bool inside = false;
    value[0] = 0;
    while (fgets(line, sizeof line, smaps)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            inside = start <= (unsigned long)address && (unsigned long)address < end;
        else if (inside && strncmp(line, field, strlen(field)) == 0)
            snprintf(value, size, "%.*s", (int)size - 1, line + strlen(field));
    }
    fclose(smaps);
    value[strcspn(value, "\n")] = 0;
}

UNUSED static bool has_flag(const void *address, const char *flag) {
    char flags[256];
    smaps_field(address, "VmFlags:", flags, sizeof flags);
    return strstr(flags, flag) != NULL;
}

UNUSED static long resident_kib(const void *address) {
    char value[64];
    smaps_field(address, "Rss:", value, sizeof value);
    return atol(value);
}

UNUSED static char *map(size_t size, int protection, int flags) {
    char *start = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    REQUIRE(start != MAP_FAILED);
    return start;
}

// Fills and checks memory with a sequence that differs at every word.
UNUSED static void fill_memory(void *start, size_t size, uint64_t seed) {
    uint64_t *words = start;
    for (size_t i = 0; i < size / 8; i++)
        words[i] = (seed + i) * 0x9e3779b97f4a7c15;
}

UNUSED static bool filled(const void *start, size_t size, uint64_t seed) {
    const uint64_t *words = start;
    for (size_t i = 0; i < size / 8; i++)
        if (words[i] != (seed + i) * 0x9e3779b97f4a7c15)
            return false;
    return true;
}

UNUSED static sigjmp_buf after_fault;

UNUSED static void leave_fault(int signal) {
    siglongjmp(after_fault, signal);
}

// The signal that an access to an address raises, 0 for none. Not for several threads.
UNUSED static int fault_of(volatile char *address, bool write) {
    struct sigaction action = {.sa_handler = leave_fault}, segv, bus;
    sigaction(SIGSEGV, &action, &segv);
    sigaction(SIGBUS, &action, &bus);
    int signal = sigsetjmp(after_fault, 1);
    if (signal == 0) {
        char byte = *address;
        if (write)
            *address = byte;
    }
    sigaction(SIGSEGV, &segv, NULL);
    sigaction(SIGBUS, &bus, NULL);
    return signal;
}

#endif
