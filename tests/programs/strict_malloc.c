// A malloc library that ends the program when it is re-entered by a thread that is in it, or used before it is ready.
// library: -fPIC -shared -ftls-model=initial-exec
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGNMENT = 16 };

struct header {
    size_t size;
    size_t magic;
};

static const size_t MAGIC = 0x5ca1ab1e;
static const size_t ARENA = 1UL << 34;
static char *arena;
static atomic_size_t used;
static atomic_long calls;
static __thread int inside;

extern long strict_malloc_calls(void);

long strict_malloc_calls(void) {
    return atomic_load(&calls);
}

static _Noreturn void die(const char *why) {
    if (write(2, why, strlen(why)) < 0)
        _exit(98);
    _exit(99);
}

static void enter(void) {
    if (inside)
        die("FAIL: strict_malloc was re-entered\n");
    inside = 1;
    atomic_fetch_add(&calls, 1);
}

static void leave(void) {
    inside = 0;
}

// As jemalloc does: initialising itself, it opens and reads a file, and so enters whatever wraps those calls.
static void initialise(void) {
    static atomic_int state;
    int expected = 0;
    if (atomic_load(&state) == 2)
        return;
    if (!atomic_compare_exchange_strong(&state, &expected, 1)) {
        while (atomic_load(&state) != 2)
            ;
        return;
    }
    char link[64];
    int fd = open("/etc/malloc.conf", O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
    if (readlink("/etc/malloc.conf", link, sizeof link) > 0)
        errno = 0;
    arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED)
        die("FAIL: strict_malloc has no memory\n");
    atomic_store(&state, 2);
}

// Blocks are never used again: what is freed and used shows as wrong magic.
static void *take(size_t size, size_t alignment) {
    enter();
    initialise();
    if (alignment < ALIGNMENT)
        alignment = ALIGNMENT;
    size_t need = sizeof(struct header) + size + alignment;
    size_t at = atomic_fetch_add(&used, (need + ALIGNMENT - 1) & -ALIGNMENT);
    void *block = NULL;
    if (size < ARENA && at + need < ARENA) {
        uintptr_t address = ((uintptr_t)arena + at + sizeof(struct header) + alignment - 1) & -alignment;
        struct header *header = (struct header *)address - 1;
        *header = (struct header){size, MAGIC};
        block = (void *)address;
    } else {
        errno = ENOMEM;
    }
    leave();
    return block;
}

void *malloc(size_t size) {
    return take(size, ALIGNMENT);
}

void *calloc(size_t count, size_t size) {
    size_t total;
    if (__builtin_mul_overflow(count, size, &total)) {
        errno = ENOMEM;
        return NULL;
    }
    return take(total, ALIGNMENT);
}

void free(void *block) {
    if (!block)
        return;
    enter();
    struct header *header = (struct header *)block - 1;
    if (header->magic != MAGIC)
        die("FAIL: strict_malloc: a block that is not allocated was freed\n");
    header->magic = 0;
    leave();
}

void *realloc(void *block, size_t size) {
    void *larger = take(size, ALIGNMENT);
    if (block && larger) {
        size_t old = ((struct header *)block - 1)->size;
        memcpy(larger, block, old < size ? old : size);
        free(block);
    }
    return larger;
}

int posix_memalign(void **block, size_t alignment, size_t size) {
    *block = take(size, alignment);
    return *block ? 0 : ENOMEM;
}

void *aligned_alloc(size_t alignment, size_t size) {
    return take(size, alignment);
}

void *memalign(size_t alignment, size_t size) {
    return take(size, alignment);
}

size_t malloc_usable_size(void *block) {
    return block ? ((struct header *)block - 1)->size : 0;
}
