// An io_uring with a request in flight: refused by name, while the program runs on and the ring keeps working.
#include "verify.h"
#include <linux/io_uring.h>
#include <sys/mman.h>

int main(void) {
    struct io_uring_params params = {0};
    int ring = syscall(SYS_io_uring_setup, 4, &params);
    if (ring < 0) {
        // Where sysctl kernel.io_uring_disabled or a seccomp filter forbids it, there is nothing to refuse.
        puts("skip: io_uring_setup is not allowed here");
        return verdict();
    }
    size_t submission_size = params.sq_off.array + params.sq_entries * 4;
    size_t completion_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    char *submissions = mmap(NULL, submission_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    char *completions = mmap(NULL, completion_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    struct io_uring_sqe *entries = mmap(NULL, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED,
                                        ring, IORING_OFF_SQES);
    REQUIRE(submissions != MAP_FAILED && completions != MAP_FAILED && entries != MAP_FAILED);
    int ends[2];
    char byte = 0;
    REQUIRE(pipe(ends) == 0);
    entries[0] = (struct io_uring_sqe){.opcode = IORING_OP_READ, .fd = ends[0], .addr = (uintptr_t)&byte, .len = 1,
                                       .user_data = 4711};
    ((uint32_t *)(submissions + params.sq_off.array))[0] = 0;
    __atomic_store_n((uint32_t *)(submissions + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    REQUIRE(syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0) == 1);

    until_go();
    CHECK(write(ends[1], loses("request") ? "?" : "!", 1) == 1, "write");
    CHECK(syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 0, "waiting for the completion");
    struct io_uring_cqe *completion = (struct io_uring_cqe *)(completions + params.cq_off.cqes);
    CHECK(completion->user_data == 4711 && completion->res == 1 && byte == '!', "the request gave %d and `%c`",
          completion->res, byte);
    return verdict();
}
