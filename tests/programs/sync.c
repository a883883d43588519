// Condition variables, barriers, read-write locks, semaphores and spin locks with threads waiting in them.
#include "verify.h"
#include <semaphore.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t read_held = PTHREAD_RWLOCK_INITIALIZER;
static pthread_rwlock_t write_held = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_spinlock_t spin;
static sem_t semaphore;
static atomic_int begun;
static atomic_int past_condition, past_barrier, past_read, past_write, past_semaphore;
static int turn;

static void *wait_condition(void *unused) {
    pthread_mutex_lock(&mutex);
    begun++;
    while (turn == 0)
        CHECK(pthread_cond_wait(&condition, &mutex) == 0, "pthread_cond_wait");
    pthread_mutex_unlock(&mutex);
    past_condition++;
    return unused;
}

static void *wait_barrier(void *unused) {
    begun++;
    pthread_barrier_wait(&barrier);
    past_barrier++;
    return unused;
}

static void *wait_read(void *unused) {
    begun++;
    CHECK(pthread_rwlock_rdlock(&write_held) == 0, "pthread_rwlock_rdlock");
    past_read++;
    pthread_rwlock_unlock(&write_held);
    return unused;
}

static void *wait_write(void *unused) {
    begun++;
    CHECK(pthread_rwlock_wrlock(&read_held) == 0, "pthread_rwlock_wrlock");
    past_write++;
    pthread_rwlock_unlock(&read_held);
    return unused;
}

static void *wait_semaphore(void *unused) {
    begun++;
    CHECK(sem_wait(&semaphore) == 0, "sem_wait");
    past_semaphore++;
    return unused;
}

int main(void) {
    void *(*const bodies[])(void *) = {wait_condition, wait_barrier, wait_read, wait_write, wait_semaphore};
    pthread_t threads[10];
    pthread_barrier_init(&barrier, NULL, 3);
    pthread_spin_init(&spin, PTHREAD_PROCESS_PRIVATE);
    sem_init(&semaphore, 0, 0);
    pthread_rwlock_rdlock(&read_held);
    pthread_rwlock_wrlock(&write_held);
    pthread_spin_lock(&spin);
    for (int i = 0; i < 10; i++)
        threads[i] = start_thread(bodies[i / 2], NULL);
    await_value(&begun, 10);
    sleep_ms(20);

    until_go();
    if (loses("semaphore"))
        sem_post(&semaphore);
    if (loses("rwlock"))
        pthread_rwlock_unlock(&write_held);
    if (loses("spin"))
        pthread_spin_unlock(&spin);
    sleep_ms(20);
    CHECK(!past_condition && !past_barrier && !past_read && !past_write && !past_semaphore,
          "threads have passed: %d condition, %d barrier, %d read lock, %d write lock, %d semaphore", past_condition,
          past_barrier, past_read, past_write, past_semaphore);
    CHECK(pthread_rwlock_trywrlock(&read_held) == EBUSY, "the read lock is no longer held");
    CHECK(pthread_spin_trylock(&spin) == EBUSY, "the spin lock is no longer held");
    if (atomic_load(&failures))
        return 1;
    pthread_mutex_lock(&mutex);
    turn = 1;
    pthread_cond_broadcast(&condition);
    pthread_mutex_unlock(&mutex);
    pthread_barrier_wait(&barrier);
    pthread_rwlock_unlock(&read_held);
    pthread_rwlock_unlock(&write_held);
    sem_post(&semaphore);
    sem_post(&semaphore);
    for (int i = 0; i < 10; i++)
        pthread_join(threads[i], NULL);
    CHECK(past_condition == 2 && past_barrier == 2 && past_read == 2 && past_write == 2 && past_semaphore == 2,
          "not every waiter passed");
    return verdict();
}
