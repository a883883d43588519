// System V semaphores: values, a process that waits, and what the ends of processes undo.
#include "verify.h"
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/wait.h>

enum { COUNT = 5 };

static int operate(int set, int number, int operation, int flags) {
    struct sembuf one = {.sem_num = number, .sem_op = operation, .sem_flg = flags};
    return semop(set, &one, 1);
}

int main(void) {
    key_t key = 0x53000000 + getpid();
    int set = semget(key, COUNT, IPC_CREAT | IPC_EXCL | 0640), private = semget(IPC_PRIVATE, 1, 0600);
    REQUIRE(set >= 0 && private >= 0);
    unsigned short values[COUNT] = {3, 0, 700, 5, 0};
    REQUIRE(semctl(set, 0, SETALL, values) == 0 && semctl(private, 0, SETVAL, 42) == 0);
    atomic_int *got = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(got != MAP_FAILED);
    // One takes 2 of number 0 and gives 1 to number 2 until it ends; one waits for number 1.
    pid_t holder = fork();
    REQUIRE(holder >= 0);
    if (holder == 0) {
        struct sembuf both[] = {{0, -2, SEM_UNDO}, {2, 1, SEM_UNDO}};
        REQUIRE(semop(set, both, 2) == 0);
        atomic_store(&got[1], 1);
        for (;;)
            pause();
    }
    pid_t waiter = fork();
    REQUIRE(waiter >= 0);
    if (waiter == 0) {
        atomic_store(&got[2], 1);
        REQUIRE(operate(set, 1, -1, 0) == 0);
        atomic_store(&got[0], 1);
        _exit(0);
    }
    await_value(&got[1], 1);
    await_value(&got[2], 1);
    sleep_ms(20);
    REQUIRE(operate(set, 3, -4, SEM_UNDO) == 0 && operate(set, 3, 1, SEM_UNDO) == 0);

    until_go();
    unsigned short now[COUNT] = {0}, expected[COUNT] = {1, 0, 701, 2, 0};
    if (loses("values"))
        semctl(set, 4, SETVAL, 1);
    if (loses("undo"))
        semctl(set, 2, SETVAL, 701);
    if (loses("private"))
        semctl(private, 0, IPC_RMID);
    struct semid_ds status;
    memset(&status, 0, sizeof status);
    CHECK(semctl(set, 0, IPC_STAT, &status) == 0 && status.sem_nsems == COUNT, "its id does not lead to the set");
    CHECK((status.sem_perm.mode & 0777) == 0640 && status.sem_perm.cuid == getuid(), "its owner changed");
    CHECK(semget(key, 0, 0) == set, "its key does not lead to the set");
    CHECK(semctl(set, 0, GETALL, now) == 0 && memcmp(now, expected, sizeof now) == 0, "the values are %d %d %d %d %d",
          now[0], now[1], now[2], now[3], now[4]);
    CHECK(semctl(private, 0, GETVAL) == 42, "a set without a key has another value");
    for (int i = 0; i < 5000 && semctl(set, 1, GETNCNT) == 0; i++)
        sleep_ms(1);
    CHECK(semctl(set, 1, GETNCNT) == 1 && atomic_load(got) == 0, "nobody waits any more");
    CHECK(operate(set, 1, 1, 0) == 0, "semop");
    for (int i = 0; i < 5000 && atomic_load(got) == 0; i++)
        sleep_ms(1);
    CHECK(atomic_load(got) == 1, "who waited does not get it");
    kill(holder, SIGKILL);
    kill(waiter, SIGKILL);
    CHECK(waitpid(holder, NULL, 0) == holder && waitpid(waiter, NULL, 0) == waiter, "waitpid");
    CHECK(semctl(set, 0, GETVAL) == 3, "an end has made of 1: %d", semctl(set, 0, GETVAL));
    CHECK(semctl(set, 2, GETVAL) == 700, "an end has made of 701: %d", semctl(set, 2, GETVAL));
    semctl(set, 0, IPC_RMID);
    semctl(private, 0, IPC_RMID);
    return verdict();
}
