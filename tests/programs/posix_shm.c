// POSIX shared memory with and without a name, and in it a held mutex and a semaphore that two processes share.
#include "verify.h"
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { PAGE = 4096, SIZE = 5 * PAGE + 100, LATER = 3 * PAGE };

typedef struct {
    pthread_mutex_t mutex;
    sem_t semaphore;
    atomic_int waits, got_mutex, got_semaphore, got_named, done;
} Shared;

static void *map(int fd, size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(memory != MAP_FAILED);
    return memory;
}

static int make(const char *name, size_t size) {
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0640);
    REQUIRE(fd >= 0 && ftruncate(fd, size) == 0);
    return fd;
}

static void fill(char *memory, size_t size, int seed) {
    for (size_t i = 0; i < size; i++)
        memory[i] = i * 7 + i / PAGE + seed;
}

static bool is_filled(const char *memory, size_t size, int seed) {
    for (size_t i = 0; i < size; i++)
        if (memory[i] != (char)(i * 7 + i / PAGE + seed))
            return false;
    return true;
}

static int child(Shared *shared, char *named, char *nameless, sem_t *semaphore) {
    atomic_store(&shared->waits, 1);
    REQUIRE(pthread_mutex_lock(&shared->mutex) == 0);
    atomic_store(&shared->got_mutex, 1);
    pthread_mutex_unlock(&shared->mutex);
    REQUIRE(sem_wait(&shared->semaphore) == 0);
    atomic_store(&shared->got_semaphore, 1);
    REQUIRE(sem_wait(semaphore) == 0);
    atomic_store(&shared->got_named, 1);
    bool right = is_filled(named, LATER, 1) && is_filled(nameless, LATER, 2);
    named[LATER] = 'n';
    nameless[LATER] = 'm';
    atomic_store(&shared->done, right ? 1 : 2);
    return 0;
}

int main(void) {
    char name[64], other[64], control[64], locks[64];
    snprintf(name, sizeof name, "/stasis-test-%d-named", getpid());
    snprintf(other, sizeof other, "/stasis-test-%d-nameless", getpid());
    snprintf(control, sizeof control, "/stasis-test-%d-control", getpid());
    snprintf(locks, sizeof locks, "/stasis-test-%d-semaphore", getpid());

    int fd = make(name, SIZE);
    char *named = map(fd, SIZE), *part = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE);
    REQUIRE(part != MAP_FAILED);
    int nameless_fd = make(other, SIZE);
    char *nameless = map(nameless_fd, SIZE);
    REQUIRE(shm_unlink(other) == 0 && close(nameless_fd) == 0);
    int control_fd = make(control, sizeof(Shared));
    Shared *shared = map(control_fd, sizeof(Shared));
    REQUIRE(close(control_fd) == 0);
    sem_t *semaphore = sem_open(locks, O_CREAT | O_EXCL, 0600, 0);
    REQUIRE(semaphore != SEM_FAILED);
    fill(named, LATER, 1);
    fill(nameless, LATER, 2);

    pthread_mutexattr_t attributes;
    REQUIRE(pthread_mutexattr_init(&attributes) == 0);
    REQUIRE(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0);
    REQUIRE(pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK) == 0);
    REQUIRE(pthread_mutex_init(&shared->mutex, &attributes) == 0 && sem_init(&shared->semaphore, 1, 0) == 0);
    REQUIRE(pthread_mutex_lock(&shared->mutex) == 0);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0)
        _exit(child(shared, named, nameless, semaphore));
    await_value(&shared->waits, 1);
    sleep_ms(20);

    until_go();
    struct stat status, found;
    if (loses("content"))
        named[LATER - 1]++;
    if (loses("nameless"))
        REQUIRE(mmap(nameless, PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == nameless);
    if (loses("name"))
        shm_unlink(name);
    if (loses("mutex"))
        pthread_mutex_unlock(&shared->mutex);
    CHECK(is_filled(named, LATER, 1) && is_filled(nameless, LATER, 2), "the content of shared memory changed");
    CHECK(part[0] == named[PAGE] && part[99] == named[PAGE + 99], "a part of it shows another content");
    int again = shm_open(name, O_RDWR, 0);
    CHECK(again >= 0, "the name is gone");
    CHECK(fstat(fd, &status) == 0 && status.st_size == SIZE && (status.st_mode & 0777) == 0640, "size %jd, mode %o",
          (intmax_t)status.st_size, status.st_mode);
    CHECK(again >= 0 && fstat(again, &found) == 0 && found.st_ino == status.st_ino, "the name is another memory's");
    CHECK(pwrite(fd, "F", 1, 4 * PAGE) == 1 && named[4 * PAGE] == 'F', "the descriptor is of another memory");
    sleep_ms(20);
    CHECK(atomic_load(&shared->got_mutex) == 0, "a held mutex was given to another process");
    CHECK(pthread_mutex_unlock(&shared->mutex) == 0, "the mutex has lost its owner");
    CHECK(sem_post(&shared->semaphore) == 0 && sem_post(semaphore) == 0, "sem_post");
    for (int i = 0; i < 5000 && atomic_load(&shared->done) == 0; i++)
        sleep_ms(1);
    CHECK(atomic_load(&shared->got_mutex) == 1, "the other process does not get the mutex");
    CHECK(atomic_load(&shared->got_semaphore) == 1, "the other process does not get the semaphore");
    CHECK(atomic_load(&shared->got_named) == 1, "the other process does not get the semaphore with a name");
    CHECK(atomic_load(&shared->done) == 1, "the other process sees another content");
    CHECK(named[LATER] == 'n' && nameless[LATER] == 'm', "what the other process writes is not seen");
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    shm_unlink(name);
    shm_unlink(control);
    sem_unlink(locks);
    return verdict();
}
