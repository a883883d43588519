// FIFOs: opened for reading, writing and both inside the process, with bytes in them; a further open finds them. One without a
// writer; one that has no name any more, as shell scripts keep one to limit how many jobs run.
#include "verify.h"
#include <poll.h>
#include <sys/stat.h>

int main(void) {
    char got[64] = "";
    REQUIRE(mkfifo("fifo", 0600) == 0 && mkfifo("both", 0600) == 0);
    int reader = open("fifo", O_RDONLY | O_NONBLOCK), writer = open("fifo", O_WRONLY);
    int both = open("both", O_RDWR);
    REQUIRE(mkfifo("unopened", 0600) == 0);
    int unopened = open("unopened", O_RDONLY | O_NONBLOCK);
    REQUIRE(mkfifo("deleted", 0600) == 0);
    int deleted = open("deleted", O_RDWR), deleted_reader = open("deleted", O_RDONLY);
    REQUIRE(deleted >= 0 && deleted_reader >= 0 && unlink("deleted") == 0 && write(deleted, "jobs", 4) == 4);
    REQUIRE(reader >= 0 && writer >= 0 && both >= 0 && unopened >= 0);
    REQUIRE(write(writer, "in the fifo", 11) == 11 && write(both, "in both", 7) == 7);

    until_go();
    if (loses("bytes"))
        CHECK(read(reader, got, 1) == 1, "read");
    if (loses("fifo"))
        CHECK(unlink("fifo") == 0 && mkfifo("fifo", 0600) == 0, "mkfifo");
    CHECK(read(reader, got, 64) == 11 && !memcmp(got, "in the fifo", 11), "the FIFO held `%s`", got);
    CHECK(read(reader, got, 64) == -1 && errno == EAGAIN, "an empty FIFO with a writer does not say EAGAIN");
    CHECK(read(both, got, 64) == 7 && !memcmp(got, "in both", 7), "the other FIFO held `%s`", got);
    int late = open("fifo", O_WRONLY | O_NONBLOCK);
    CHECK(late >= 0 && write(late, "late", 4) == 4, "who opens the FIFO anew finds no reader");
    CHECK(read(reader, got, 64) == 4 && !memcmp(got, "late", 4), "the FIFO in the file system is another one");
    struct pollfd poll_unopened = {unopened, POLLIN, 0};
    if (loses("unopened"))
        close(open("unopened", O_WRONLY | O_NONBLOCK));
    CHECK(poll(&poll_unopened, 1, 0) == 0, "a FIFO that nobody has opened for writing has ended: %x", poll_unopened.revents);
    int first = open("unopened", O_WRONLY | O_NONBLOCK);
    CHECK(first >= 0 && write(first, "first", 5) == 5, "who opens the FIFO for writing finds no reader");
    CHECK(read(unopened, got, 64) == 5 && !memcmp(got, "first", 5), "the FIFO held `%s`", got);
    if (loses("deleted"))
        CHECK(read(deleted, got, 2) == 2, "read");
    CHECK(read(deleted_reader, got, 64) == 4 && !memcmp(got, "jobs", 4), "the deleted FIFO held `%s`", got);
    CHECK(write(deleted, "more", 4) == 4 && read(deleted, got, 64) == 4, "the deleted FIFO is not open for both");
    CHECK(access("deleted", F_OK) == -1, "the deleted FIFO has its name again");
    return verdict();
}
