// Uses a userfaultfd of its own again and again, on memory that it keeps: missing pages, which a thread fills in, and
// write protection, which that thread takes off and counts.
#include "verify.h"
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define PAGES 64ul

static char *memory;
static uint64_t versions[PAGES];
static atomic_int filled, unprotected, ends;

static void fill(uint64_t *page, uint64_t number, uint64_t version) {
    for (size_t i = 0; i < WORDS; i++)
        page[i] = (number << 32 | version) * 0x9E3779B97F4A7C15ul + i;
}

static int holds(const uint64_t *page, uint64_t number, uint64_t version) {
    for (size_t i = 0; i < WORDS; i++)
        if (page[i] != (number << 32 | version) * 0x9E3779B97F4A7C15ul + i)
            return 0;
    return 1;
}

static void *serve(void *argument) {
    int uffd = (int)(intptr_t)argument;
    while (!atomic_load(&ends)) {
        struct pollfd ready = {uffd, POLLIN, 0};
        struct uffd_msg message;
        if (poll(&ready, 1, 1) != 1 || read(uffd, &message, sizeof message) != sizeof message)
            continue;
        size_t page = (message.arg.pagefault.address - (uintptr_t)memory) / PAGE;
        uintptr_t at = (uintptr_t)memory + page * PAGE;
        if (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
            struct uffdio_writeprotect lift = {{at, PAGE}, 0};
            atomic_fetch_add(&unprotected, 1);
            REQUIRE(ioctl(uffd, UFFDIO_WRITEPROTECT, &lift) == 0);
        } else {
            static uint64_t content[WORDS] __attribute__((aligned(4096)));
            fill(content, page, versions[page]);
            struct uffdio_copy copy = {at, (uintptr_t)content, PAGE, 0, 0};
            atomic_fetch_add(&filled, 1);
            REQUIRE(ioctl(uffd, UFFDIO_COPY, &copy) == 0 || errno == EEXIST);
        }
    }
    return NULL;
}

static void episode(uint64_t number) {
    int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    REQUIRE(uffd >= 0);
    struct uffdio_api api = {UFFD_API, UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0};
    REQUIRE(ioctl(uffd, UFFDIO_API, &api) == 0);
    struct uffdio_register all = {
        {(uintptr_t)memory, PAGES * PAGE}, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP, 0};
    REQUIRE(ioctl(uffd, UFFDIO_REGISTER, &all) == 0);
    atomic_store(&ends, 0);
    pthread_t server = start_thread(serve, (void *)(intptr_t)uffd);
    int before = atomic_load(&filled);
    for (size_t page = number % 4; page < PAGES; page += 4) {
        versions[page] = number + 1;
        REQUIRE(madvise(memory + page * PAGE, PAGE, MADV_DONTNEED) == 0);
        CHECK(holds((uint64_t *)(memory + page * PAGE), page, number + 1), "page %zu was not filled in", page);
    }
    CHECK(atomic_load(&filled) - before == (int)PAGES / 4, "%d pages were asked for", atomic_load(&filled) - before);
    struct uffdio_writeprotect protect = {{(uintptr_t)memory, PAGE * 8}, UFFDIO_WRITEPROTECT_MODE_WP};
    REQUIRE(ioctl(uffd, UFFDIO_WRITEPROTECT, &protect) == 0);
    before = atomic_load(&unprotected);
    for (size_t page = 0; page < 8; page++) {
        versions[page] = number + 2;
        fill((uint64_t *)(memory + page * PAGE), page, number + 2);
    }
    CHECK(atomic_load(&unprotected) - before == 8, "%d stores were told", atomic_load(&unprotected) - before);
    atomic_store(&ends, 1);
    pthread_join(server, NULL);
    close(uffd);
}

int main(void) {
    memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    for (size_t page = 0; page < PAGES; page++)
        fill((uint64_t *)(memory + page * PAGE), page, versions[page] = 1);
    say_ready();
    for (uint64_t number = 0; !told_to_go() || number < 3; number++) {
        episode(number);
        sleep_ms(30);
        for (size_t page = 0; page < PAGES; page++)
            if (!holds((uint64_t *)(memory + page * PAGE), page, versions[page]))
                FAIL("page %zu is not version %lu", page, (unsigned long)versions[page]);
    }
    if (loses("a page"))
        memory[PAGE * 9 + 1] ^= 1;
    for (size_t page = 0; page < PAGES; page++)
        CHECK(holds((uint64_t *)(memory + page * PAGE), page, versions[page]), "page %zu is lost", page);
    return verdict();
}
