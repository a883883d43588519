// Memory policies: of ranges (mbind(2)), private and shared, and of each thread (set_mempolicy(2)).
#include "maps.h"
#include <linux/mempolicy.h>

enum { RANGES = 7, THREADS = 2 };

struct policy {
    int mode;
    unsigned long nodes;
};

static struct policy policy(void *address) {
    struct policy policy = {-1, 0};
    unsigned long nodes[16] = {0}; // CONFIG_NODES_SHIFT is 10 at most
    long asked = syscall(SYS_get_mempolicy, &policy.mode, nodes, 1024UL, address, address ? MPOL_F_ADDR : 0);
    CHECK(asked == 0, "get_mempolicy");
    policy.nodes = nodes[0];
    return policy;
}

static void bind_to(void *start, size_t length, int mode, unsigned long nodes) {
    REQUIRE(syscall(SYS_mbind, start, length, mode, nodes ? &nodes : NULL, 64UL, 0) == 0);
}

static void expect(const char *what, int number, struct policy was, void *address) {
    struct policy now = policy(address);
    CHECK(was.mode == now.mode && was.nodes == now.nodes, "%s %d: mode %x, nodes %lx were %x, %lx", what, number, now.mode,
          now.nodes, was.mode, was.nodes);
}

static const int modes[THREADS] = {MPOL_INTERLEAVE, MPOL_PREFERRED | MPOL_F_STATIC_NODES};
static atomic_int set;

static void *thread(void *mode) {
    unsigned long node = 1;
    REQUIRE(syscall(SYS_set_mempolicy, *(const int *)mode, &node, 64UL) == 0);
    struct policy was = policy(NULL);
    atomic_fetch_add(&set, 1);
    await_go();
    expect("thread", was.mode, was, NULL);
    return NULL;
}

int main(void) {
    if (syscall(SYS_get_mempolicy, NULL, NULL, 0UL, NULL, 0) != 0 && errno == ENOSYS) {
        // A kernel without CONFIG_NUMA.
        until_go();
        return verdict();
    }
    char *memory = map(16 * PAGE, PROT_READ | PROT_WRITE, 0);
    fill_memory(memory, 16 * PAGE, 1);
    bind_to(memory + 2 * PAGE, 4 * PAGE, MPOL_BIND, 1);
    bind_to(memory + 6 * PAGE, 4 * PAGE, MPOL_INTERLEAVE, 1);
    bind_to(memory + 10 * PAGE, 2 * PAGE, MPOL_LOCAL, 0);
    char *untouched = map(4 * PAGE, PROT_NONE, 0);
    bind_to(untouched, 4 * PAGE, MPOL_PREFERRED | MPOL_F_RELATIVE_NODES, 1);
    char *shared = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    bind_to(shared, 2 * PAGE, MPOL_BIND, 1);
    void *ranges[RANGES] = {memory, memory + 2 * PAGE, memory + 6 * PAGE, memory + 10 * PAGE, untouched, shared, shared + 2 * PAGE};
    struct policy were[RANGES];
    for (int i = 0; i < RANGES; i++)
        were[i] = policy(ranges[i]);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        threads[i] = start_thread(thread, (void *)&modes[i]);
    await_value(&set, THREADS);
    struct policy own = policy(NULL);
    REQUIRE(own.mode == MPOL_DEFAULT);

    until_go();
    if (loses("range"))
        bind_to(memory + 2 * PAGE, PAGE, MPOL_DEFAULT, 0);
    if (loses("untouched"))
        bind_to(untouched, 4 * PAGE, MPOL_DEFAULT, 0);
    if (loses("shared"))
        bind_to(shared, PAGE, MPOL_DEFAULT, 0);
    if (loses("own")) {
        unsigned long node = 1;
        REQUIRE(syscall(SYS_set_mempolicy, MPOL_BIND, &node, 64UL) == 0);
    }
    for (int i = 0; i < RANGES; i++)
        expect("range", i, were[i], ranges[i]);
    expect("the first thread", 0, own, NULL);
    CHECK(filled(memory, 16 * PAGE, 1), "the content changed");
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return verdict();
}
