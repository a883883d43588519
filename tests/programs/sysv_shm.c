// System V shared memory: attached twice, with holes, protected and detached in parts, removed, and not attached at all.
#include "verify.h"
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>

enum { PAGE = 4096, SIZE = 6 * PAGE + 100 };

static void fill(char *memory, size_t size, int seed) {
    for (size_t i = 0; i < size; i++)
        memory[i] = i * 5 + i / PAGE + seed;
}

static bool is_filled(const char *memory, size_t size, int seed) {
    for (size_t i = 0; i < size; i++)
        if (memory[i] != (char)(i * 5 + i / PAGE + seed))
            return false;
    return true;
}

static char *attach(int id, int flags) {
    char *memory = shmat(id, NULL, flags);
    REQUIRE(memory != (char *)-1);
    return memory;
}

typedef struct {
    pthread_mutex_t mutex;
    atomic_int waits, done;
} Shared;

int main(void) {
    key_t key = 0x57000000 + getpid();
    int keyed = shmget(key, SIZE, IPC_CREAT | IPC_EXCL | 0640);
    REQUIRE(keyed >= 0);
    char *first = attach(keyed, 0), *second = attach(keyed, SHM_RDONLY);
    fill(first, 2 * PAGE, 1);
    fill(first + 4 * PAGE, 100, 2);
    // Removed, as most programs do at once: it lives for as long as somebody has it attached.
    int removed = shmget(IPC_PRIVATE, SIZE, 0600);
    REQUIRE(removed >= 0);
    char *last = attach(removed, 0);
    REQUIRE(shmctl(removed, IPC_RMID, NULL) == 0);
    fill(last, SIZE, 3);
    REQUIRE(mprotect(last + PAGE, PAGE, PROT_READ) == 0 && munmap(last + 3 * PAGE, PAGE) == 0);
    // Nobody has this one attached now.
    int idle = shmget(IPC_PRIVATE, SIZE, 0600);
    REQUIRE(idle >= 0);
    char *memory = attach(idle, 0);
    fill(memory, SIZE, 4);
    REQUIRE(shmdt(memory) == 0);

    int common = shmget(IPC_PRIVATE, sizeof(Shared), 0600);
    REQUIRE(common >= 0);
    Shared *shared = (Shared *)attach(common, 0);
    pthread_mutexattr_t attributes;
    REQUIRE(pthread_mutexattr_init(&attributes) == 0);
    REQUIRE(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0);
    REQUIRE(pthread_mutex_init(&shared->mutex, &attributes) == 0 && pthread_mutex_lock(&shared->mutex) == 0);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        atomic_store(&shared->waits, 1);
        pthread_mutex_lock(&shared->mutex);
        char *here = shmat(idle, NULL, 0);
        bool right = here != (char *)-1 && is_filled(here, SIZE, 4) && is_filled(last, 3 * PAGE, 3);
        if (right)
            last[5 * PAGE] = 'c';
        atomic_store(&shared->done, right ? 1 : 2);
        _exit(0);
    }
    await_value(&shared->waits, 1);
    sleep_ms(20);

    until_go();
    if (loses("content"))
        first[4 * PAGE + 50]++;
    if (loses("removed"))
        last[4 * PAGE]++;
    if (loses("sharing"))
        REQUIRE(mmap(second, PAGE, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == second);
    if (loses("id"))
        REQUIRE(shmctl(idle, IPC_RMID, NULL) == 0);
    struct shmid_ds status;
    memset(&status, 0, sizeof status);
    CHECK(shmctl(keyed, IPC_STAT, &status) == 0, "its id does not lead to the segment");
    CHECK(status.shm_segsz == SIZE && (status.shm_perm.mode & 0777) == 0640 && status.shm_nattch == 4,
          "size %zu, mode %o, attached %ju times", status.shm_segsz, status.shm_perm.mode,
          (uintmax_t)status.shm_nattch);
    CHECK(status.shm_perm.uid == getuid() && status.shm_perm.cuid == getuid(), "its owner changed");
    CHECK(shmget(key, 0, 0) == keyed, "its key does not lead to the segment");
    CHECK(is_filled(first, 2 * PAGE, 1) && is_filled(first + 4 * PAGE, 100, 2), "the content changed");
    for (int i = 2 * PAGE; i < 4 * PAGE; i++)
        CHECK(first[i] == 0, "byte %d of a hole is not empty", i);
    first[9] = 's';
    CHECK(second[9] == 's', "attached twice, it is two memories");
    CHECK(shmctl(removed, IPC_STAT, &status) == 0 && (status.shm_perm.mode & SHM_DEST), "it is not removed any more");
    CHECK(is_filled(last, 3 * PAGE, 3) && is_filled(last + 4 * PAGE, PAGE, 4 + 3), "a removed segment's content changed");
    unsigned char there;
    CHECK(mincore(last + 3 * PAGE, PAGE, &there) != 0, "a part that was unmapped is mapped");
    memory = shmat(idle, NULL, 0);
    CHECK(memory != (char *)-1 && is_filled(memory, SIZE, 4), "a segment that nobody had attached is lost");
    CHECK(atomic_load(&shared->done) == 0, "the other process has a mutex that is held");
    pthread_mutex_unlock(&shared->mutex);
    for (int i = 0; i < 5000 && atomic_load(&shared->done) == 0; i++)
        sleep_ms(1);
    CHECK(atomic_load(&shared->done) == 1 && last[5 * PAGE] == 'c', "the other process has another memory");
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    CHECK(shmdt(first) == 0 && shmdt(second) == 0 && shmdt(shared) == 0, "it cannot be detached");
    CHECK(shmctl(keyed, IPC_STAT, &status) == 0 && status.shm_nattch == 0, "it is attached %ju times",
          (uintmax_t)status.shm_nattch);
    shmctl(keyed, IPC_RMID, NULL);
    shmctl(idle, IPC_RMID, NULL);
    shmctl(common, IPC_RMID, NULL);
    return verdict();
}
