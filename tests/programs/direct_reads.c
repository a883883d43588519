// Threads that read directly (O_DIRECT) all the time, by read(2) and its like and by kernel AIO (argument `aio`): each buffer holds the
// block that its reader says it has read.
#include "maps.h"
#include <linux/aio_abi.h>
#include <sys/uio.h>

enum { THREADS = 4, SLOTS = 32, BLOCKS = 16, SIZE = 256 << 10 };

static char *buffers;
static _Atomic long tags[SLOTS];
static atomic_int stop, rounds;
static int file;
static bool by_aio;

static bool read_block(aio_context_t context, char *to, long block, bool in_parts) {
    long at = block * SIZE;
    if (by_aio) {
        struct iocb request = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = file, .aio_buf = (long)to, .aio_nbytes = SIZE,
                               .aio_offset = at};
        struct iocb *requests = &request;
        struct io_event event;
        struct timespec time = {2, 0};
        REQUIRE(syscall(SYS_io_submit, context, 1, &requests) == 1);
        // None: it was in flight when the program was ended.
        int got = syscall(SYS_io_getevents, context, 1, 1, &event, &time);
        REQUIRE(got != 1 || event.res == SIZE);
        return got == 1;
    }
    struct iovec parts[] = {{to, SIZE / 2}, {to + SIZE / 2, SIZE / 2}};
    REQUIRE((in_parts ? preadv(file, parts, 2, at) : pread(file, to, SIZE, at)) == SIZE);
    return true;
}

static void *read_on(void *argument) {
    unsigned seed = (long)argument;
    aio_context_t context = 0;
    REQUIRE(!by_aio || syscall(SYS_io_setup, 4, &context) == 0);
    // After a while in which it did not run, as after a restart, it leaves alone what it has read.
    int64_t last = now_ns(CLOCK_MONOTONIC), now;
    for (; !atomic_load(&stop); last = now) {
        now = now_ns(CLOCK_MONOTONIC);
        if (now > last + 100000000 && atomic_load(&rounds) >= SLOTS)
            break;
        atomic_fetch_add(&rounds, 1);
        long slot = rand_r(&seed) % (SLOTS / THREADS) * THREADS + (long)argument, block = rand_r(&seed) % BLOCKS;
        atomic_store(&tags[slot], -1);
        if (read_block(context, buffers + slot * SIZE, block, seed & 64))
            atomic_store(&tags[slot], block);
    }
    return NULL;
}

int main(int count, char **arguments) {
    by_aio = count > 1;
    static char block[SIZE];
    int written = open("blocks", O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (long i = 0; i < BLOCKS; i++) {
        fill_memory(block, SIZE, i * SIZE);
        REQUIRE(write(written, block, SIZE) == SIZE);
    }
    REQUIRE(fsync(written) == 0 && close(written) == 0);
    // EINVAL: a file system without; what is read then is read through the page cache.
    file = open("blocks", O_RDONLY | O_DIRECT);
    if (file < 0)
        file = open("blocks", O_RDONLY);
    buffers = map(SLOTS * SIZE, PROT_READ | PROT_WRITE, 0);
    for (int i = 0; i < SLOTS; i++)
        atomic_store(&tags[i], -1);
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++)
        threads[i] = start_thread(read_on, (void *)i);
    while (atomic_load(&rounds) < SLOTS)
        sleep_ms(1);

    until_go();
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    int known = 0;
    for (int i = 0; i < SLOTS; i++) {
        long tag = atomic_load(&tags[i]);
        if (tag < 0)
            continue;
        if (loses("block") && known == 0)
            buffers[i * SIZE + 9]++;
        known++;
        CHECK(filled(buffers + i * SIZE, SIZE, tag * SIZE), "buffer %d does not hold block %ld", i, tag);
    }
    CHECK(known > 0, "nothing was read");
    return verdict();
}
