// System V segments in pieces: another mapping lies in one, a part of one was moved elsewhere, the last pages are gone.
#include "verify.h"
#include <sys/mman.h>
#include <sys/shm.h>

#define PAGE 4096
#define PAGES 8

static char *attached(int *id, char fill) {
    REQUIRE((*id = shmget(IPC_PRIVATE, PAGES * PAGE, 0600 | IPC_CREAT)) >= 0);
    char *start = shmat(*id, NULL, 0);
    REQUIRE(start != (void *)-1 && shmctl(*id, IPC_RMID, NULL) == 0);
    for (int page = 0; page < PAGES; page++)
        memset(start + page * PAGE, fill + page, PAGE);
    return start;
}

static bool holds(const char *at, char value) {
    return at[0] == value && at[PAGE - 1] == value;
}

static long attachments(int id) {
    struct shmid_ds segment;
    return shmctl(id, IPC_STAT, &segment) == 0 ? (long)segment.shm_nattch : -1;
}

int main(void) {
    int over_id, moved_id, first_id;
    char *over = attached(&over_id, 'a'), *moved = attached(&moved_id, 'k'), *first = attached(&first_id, 'A');
    REQUIRE(mmap(over + 3 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    memset(over + 3 * PAGE, 'o', PAGE);
    char *room = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(room != MAP_FAILED);
    memset(room, 'r', 16 * PAGE);
    char *part = mremap(moved + 4 * PAGE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + 5 * PAGE);
    REQUIRE(part == room + 5 * PAGE);
    // The first page of another is something else, and the last ones are gone.
    REQUIRE(mmap(first, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    memset(first, 'f', PAGE);
    REQUIRE(munmap(first + 6 * PAGE, 2 * PAGE) == 0);
    long of_over = attachments(over_id), of_moved = attachments(moved_id), of_first = attachments(first_id);

    until_go();
    if (loses("over"))
        memset(over + 3 * PAGE, 'a' + 3, PAGE);
    if (loses("piece"))
        part[0] = 0;
    if (loses("sharing"))
        REQUIRE(mmap(first + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    for (int page = 0; page < PAGES; page++) {
        CHECK(holds(over + page * PAGE, page == 3 ? 'o' : 'a' + page), "page %d of the first segment changed", page);
        if (page < 4 || page > 5)
            CHECK(holds(moved + page * PAGE, 'k' + page), "page %d of the second segment changed", page);
        if (page < 6)
            CHECK(holds(first + page * PAGE, page == 0 ? 'f' : 'A' + page), "page %d of the third segment changed", page);
    }
    CHECK(holds(part, 'k' + 4) && holds(part + PAGE, 'k' + 5), "what was moved changed");
    CHECK(holds(room + 4 * PAGE, 'r') && holds(room + 7 * PAGE, 'r'), "what lies around it changed");
    CHECK(attachments(over_id) == of_over && attachments(moved_id) == of_moved && attachments(first_id) == of_first,
          "the segments count other attachments");
    return verdict();
}
