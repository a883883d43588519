// Random steps on an address space: map, unmap, move, grow, write (by stores, read(2) and pwrite(2)), discard, protect,
// fork; a model says what every page must hold, and all are compared with it again and again and at the end.
//
// Arguments: the seed; `raw`: children are made by the system call, and look at all of their memory. A page holds zeros, its file's content, or words made of its version and its place.
#include "verify.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define REGIONS 48
#define MOST 96

enum kind { FREE, ANONYMOUS, PRIVATE_FILE, SHARED };

// An object's pages, for mappings of the file (as it was made) and of the memfd.
#define OBJECT 128
static uint32_t shared_version[OBJECT];
static int file_fd, memfd;

struct region {
    enum kind kind;
    char *at;
    size_t pages;
    size_t offset; // in its object
    int readable, writable;
    uint32_t version[MOST]; // of the pages that are its own; 0: none
    uint32_t home[MOST];    // what the words of an own page are made of, beside the version
};

static struct region regions[REGIONS];
static uint64_t state;
static uint32_t versions;

static uint64_t random64(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static size_t below(size_t limit) {
    return random64() % limit;
}

static uint64_t word(uint32_t version, uint32_t home, size_t index) {
    uint64_t mixed = ((uint64_t)version << 32 | home) * 0x9E3779B97F4A7C15ul + index * 0xBF58476D1CE4E5B9ul;
    return mixed ^ mixed >> 29;
}

static void fill(uint64_t *page, uint32_t version, uint32_t home) {
    for (size_t i = 0; i < WORDS; i++)
        page[i] = version ? word(version, home, i) : 0;
}

static int holds(const volatile uint64_t *page, uint32_t version, uint32_t home) {
    for (size_t i = 0; i < WORDS; i++)
        if (page[i] != (version ? word(version, home, i) : 0))
            return 0;
    return 1;
}

// What a page must hold.
static void expected(struct region *r, size_t page, uint32_t *version, uint32_t *home) {
    *version = r->version[page];
    *home = r->home[page];
    if (r->kind == SHARED) {
        *version = shared_version[r->offset + page];
        *home = r->offset + page;
    } else if (r->kind == PRIVATE_FILE && !*version) {
        *version = UINT32_MAX;
        *home = r->offset + page;
    }
}

static void verify(const char *when, uint64_t step) {
    for (struct region *r = regions; r < regions + REGIONS; r++) {
        if (r->kind == FREE || !r->readable)
            continue;
        for (size_t page = 0; page < r->pages; page++) {
            uint32_t version, home;
            expected(r, page, &version, &home);
            if (!holds((uint64_t *)(r->at + page * PAGE), version, home)) {
                FAIL("%s step %lu: page %zu of %zu at %p (kind %d) is not version %u of %u", when,
                     (unsigned long)step, page, r->pages, (void *)(r->at + page * PAGE), r->kind, version, home);
                return;
            }
        }
    }
}

static void write_page(struct region *r, size_t page) {
    char *at = r->at + page * PAGE;
    uint32_t version = ++versions, home = r->kind == SHARED ? r->offset + page : (uint32_t)((uintptr_t)r->at >> 12) + page;
    uint64_t content[WORDS];
    fill(content, version, home);
    switch (below(3)) {
    case 0: { // the kernel stores
        int ends[2];
        REQUIRE(pipe(ends) == 0);
        REQUIRE(write(ends[1], content, PAGE) == (ssize_t)PAGE);
        REQUIRE(read(ends[0], at, PAGE) == (ssize_t)PAGE);
        close(ends[0]);
        close(ends[1]);
        break;
    }
    case 1:
        if (r->kind == SHARED) { // not through this mapping
            REQUIRE(pwrite(memfd, content, PAGE, home * PAGE) == (ssize_t)PAGE);
            break;
        } // fall through
    default:
        memcpy(at, content, PAGE);
    }
    if (r->kind == SHARED)
        shared_version[home] = version;
    r->version[page] = version;
    r->home[page] = home;
}

static struct region *free_region(void) {
    for (struct region *r = regions; r < regions + REGIONS; r++)
        if (r->kind == FREE)
            return r;
    return NULL;
}

static void map(struct region *r, void *wish, size_t pages) {
    enum kind kind = 1 + below(3);
    size_t offset = kind == ANONYMOUS ? 0 : below(OBJECT - pages + 1);
    int flags = kind == ANONYMOUS ? MAP_PRIVATE | MAP_ANONYMOUS : kind == SHARED ? MAP_SHARED : MAP_PRIVATE;
    int fd = kind == ANONYMOUS ? -1 : kind == SHARED ? memfd : file_fd;
    if (below(4) == 0)
        flags |= MAP_NORESERVE;
    char *at = mmap(wish, pages * PAGE, PROT_READ | PROT_WRITE, flags | (wish ? MAP_FIXED : 0), fd, offset * PAGE);
    REQUIRE(at != MAP_FAILED);
    *r = (struct region){.kind = kind, .at = at, .pages = pages, .offset = offset, .readable = 1, .writable = 1};
}

static void drop_front(struct region *r, size_t pages) {
    r->at += pages * PAGE;
    r->pages -= pages;
    r->offset += pages;
    memmove(r->version, r->version + pages, r->pages * sizeof *r->version);
    memmove(r->home, r->home + pages, r->pages * sizeof *r->home);
}

static void unmap(struct region *r) {
    size_t part = 1 + below(r->pages);
    if (below(2)) {
        REQUIRE(munmap(r->at, part * PAGE) == 0);
        drop_front(r, part);
    } else {
        r->pages -= part;
        REQUIRE(munmap(r->at + r->pages * PAGE, part * PAGE) == 0);
    }
    if (!r->pages)
        r->kind = FREE;
}

static void move(struct region *r) {
    size_t old = r->pages, pages = r->kind == ANONYMOUS ? 1 + below(MOST) : old;
    char *at;
    if (below(2)) { // to a place of our choice
        char *place = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(place != MAP_FAILED);
        at = mremap(r->at, old * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    } else {
        at = mremap(r->at, old * PAGE, pages * PAGE, MREMAP_MAYMOVE);
    }
    REQUIRE(at != MAP_FAILED);
    r->at = at;
    r->pages = pages;
    for (size_t page = old; page < pages; page++)
        r->version[page] = 0;
}

static void discard(struct region *r) {
    size_t first = below(r->pages), count = 1 + below(r->pages - first);
    if (r->kind == SHARED) {
        if (r->writable && below(4) == 0) {
            REQUIRE(madvise(r->at + first * PAGE, count * PAGE, MADV_REMOVE) == 0);
            memset(shared_version + r->offset + first, 0, count * sizeof *shared_version);
        } else { // only this view of it
            REQUIRE(madvise(r->at + first * PAGE, count * PAGE, MADV_DONTNEED) == 0);
        }
        return;
    }
    int advice = r->kind == ANONYMOUS && r->writable && below(4) == 0 ? MADV_FREE : MADV_DONTNEED;
    REQUIRE(madvise(r->at + first * PAGE, count * PAGE, advice) == 0);
    for (size_t page = first; page < first + count; page++) {
        r->version[page] = 0;
        // Until it is written, such a page may hold the one or the other.
        if (advice == MADV_FREE)
            write_page(r, page);
    }
}

static void protect(struct region *r) {
    static const int protections[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};
    int protection = r->writable ? protections[below(3)] : PROT_READ | PROT_WRITE;
    REQUIRE(mprotect(r->at, r->pages * PAGE, protection) == 0);
    r->readable = protection != PROT_NONE;
    r->writable = protection & PROT_WRITE;
}

static bool raw;

// By no function of libc, which might be wrapped.
static pid_t raw_fork(void) {
    long result = SYS_fork;
    __asm__ volatile("syscall" : "+a"(result) : : "rcx", "r11", "memory");
    return result;
}

// A child writes to what are copies of these pages, and ends.
static void fork_child(uint64_t steps) {
    pid_t child = raw ? raw_fork() : fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        if (raw) {
            verify("in a child, after", steps);
            // Not exit(3)'s, nor _exit(2)'s function.
            long status = failures ? 1 : 0;
            __asm__ volatile("syscall" : : "a"((long)SYS_exit_group), "D"(status) : "rcx", "r11", "memory");
        }
        for (struct region *r = regions; r < regions + REGIONS; r++)
            if (r->kind == ANONYMOUS && r->writable)
                memset(r->at, 0x5a, PAGE);
        _exit(0);
    }
    int status = 1;
    pid_t ended = waitpid(child, &status, 0);
    // Nobody knows of a child that was made like that: it is in no checkpoint.
    REQUIRE((ended == child && status == 0) || (raw && ended < 0 && errno == ECHILD));
}

static void __attribute__((noinline)) deepen(int levels) {
    volatile char frame[3 * PAGE];
    frame[0] = frame[PAGE] = frame[2 * PAGE] = (char)levels;
    if (levels)
        deepen(levels - 1);
    CHECK(frame[PAGE] == (char)levels, "the stack is not what it was");
}

static void step(uint64_t steps) {
    struct region *r = &regions[below(REGIONS)];
    uint64_t what = below(100);
    if (r->kind == FREE || what < 4) {
        struct region *fresh = free_region();
        if (fresh)
            map(fresh, NULL, 1 + below(MOST));
    } else if (what < 6) {
        size_t pages = r->pages;
        void *at = r->at;
        map(r, at, pages); // in the place of what was there
    } else if (what < 10) {
        unmap(r);
    } else if (what < 14) {
        move(r);
    } else if (what < 24) {
        discard(r);
    } else if (what < 32) {
        protect(r);
    } else if (what == 32 && below(8) == 0) {
        fork_child(steps);
    } else if (what < 36) {
        deepen(1 + below(40));
    } else if (r->writable) {
        for (size_t count = 1 + below(8); count; count--)
            write_page(r, below(r->pages));
    }
}

int main(int argc, char **argv) {
    state = 88172645463325252ul * (2 * strtoul(argc > 1 ? argv[1] : "1", NULL, 10) + 1);
    raw = argc > 2 && strcmp(argv[2], "raw") == 0;
    char name[] = "random-memory-XXXXXX";
    file_fd = mkstemp(name);
    REQUIRE(file_fd >= 0);
    memfd = memfd_create("random", 0);
    REQUIRE(ftruncate(memfd, OBJECT * PAGE) == 0);
    uint64_t content[WORDS];
    for (size_t page = 0; page < OBJECT; page++) {
        fill(content, UINT32_MAX, page);
        REQUIRE(write(file_fd, content, PAGE) == (ssize_t)PAGE);
    }
    say_ready();
    uint64_t steps = 0;
    // On its own, without a test, for a while.
    uint64_t least = getenv("STASIS_TEST_GO") ? 1 : 20000;
    do {
        for (int i = 0; i < 32; i++)
            step(steps);
        steps += 32;
        if (steps % 1024 == 0)
            verify("after", steps);
    } while (!failures && (steps < least || !told_to_go()));
    if (loses("content"))
        for (struct region *r = regions; r < regions + REGIONS; r++)
            if (r->kind == ANONYMOUS && r->writable)
                r->at[7] ^= 1;
    for (struct region *r = regions; r < regions + REGIONS; r++)
        if (r->kind != FREE && !r->readable) {
            REQUIRE(mprotect(r->at, r->pages * PAGE, PROT_READ) == 0);
            r->readable = 1;
        }
    verify("at the end, after", steps);
    return verdict();
}
