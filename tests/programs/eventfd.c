// eventfd: count, semaphore mode, flags, a full one, and two descriptors of one.
#include "verify.h"
#include <sys/eventfd.h>

int main(void) {
    int counter = eventfd(41, EFD_NONBLOCK), semaphore = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
    int zero = eventfd(0, EFD_NONBLOCK), full = eventfd(0, EFD_NONBLOCK), twin = dup(counter);
    eventfd_t value = 0;
    REQUIRE(eventfd_write(counter, 1) == 0 && eventfd_write(full, UINT64_MAX - 1) == 0 && twin >= 0);

    until_go();
    if (loses("count"))
        eventfd_write(counter, 1);
    if (loses("semaphore"))
        CHECK(dup2(eventfd(3, EFD_NONBLOCK), semaphore) == semaphore, "dup2");
    if (loses("full"))
        eventfd_read(full, &value);
    if (loses("twin"))
        CHECK(dup2(eventfd(0, EFD_NONBLOCK), twin) == twin, "dup2");
    CHECK(eventfd_read(counter, &value) == 0 && value == 42, "the count is %ju", (uintmax_t)value);
    CHECK(fcntl(semaphore, F_GETFD) == FD_CLOEXEC && fcntl(semaphore, F_GETFL) & O_NONBLOCK, "flags changed");
    for (int i = 0; i < 3; i++)
        CHECK(eventfd_read(semaphore, &value) == 0 && value == 1, "the semaphore gave %ju", (uintmax_t)value);
    CHECK(eventfd_read(semaphore, &value) == -1 && errno == EAGAIN, "the semaphore gives a fourth time");
    CHECK(eventfd_read(zero, &value) == -1 && errno == EAGAIN, "an eventfd of zero can be read");
    CHECK(eventfd_write(full, 1) == -1 && errno == EAGAIN, "a full eventfd can be written");
    CHECK(eventfd_write(twin, 6) == 0 && eventfd_read(counter, &value) == 0 && value == 6, "a dup'ed eventfd is another one");
    return verdict();
}
