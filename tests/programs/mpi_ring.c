// Checksummed messages of all sizes around a ring of MPI processes, and a sum over all of them, in twenty steps.
// compiler: mpicc
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { LONGEST = 200000, ROUNDS = 150 };

static uint32_t next(uint32_t *state) {
    *state = *state * 1664525 + 1013904223;
    return *state >> 8;
}

static uint32_t sum(const unsigned char *text, int size) {
    uint32_t sum = 2166136261u;
    for (int i = 0; i < size; i++)
        sum = (sum ^ text[i]) * 16777619u;
    return sum;
}

int main(int count, char **arguments) {
    MPI_Init(&count, &arguments);
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    // Of each pair one begins. Where both do, Open MPI closes one of two connections, and for a minute the kernel lets nobody
    // listen at its port again (TIME_WAIT, and no SO_REUSEADDR).
    for (int one = 0; one < ranks; one++) {
        for (int other = one + 1; other < ranks; other++) {
            char byte = 0;
            if (rank == one) {
                MPI_Send(&byte, 1, MPI_CHAR, other, 999, MPI_COMM_WORLD);
                MPI_Recv(&byte, 1, MPI_CHAR, other, 999, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            } else if (rank == other) {
                MPI_Recv(&byte, 1, MPI_CHAR, one, 999, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                MPI_Send(&byte, 1, MPI_CHAR, one, 999, MPI_COMM_WORLD);
            }
        }
    }
    unsigned char *out = malloc(LONGEST), *in = malloc(LONGEST);
    uint32_t state = rank + 1, others = (rank + ranks - 1) % ranks + 1;
    long wrong = 0, bytes = 0;
    for (int step = 0; step < 20; step++) {
        for (int round = 0; round < ROUNDS; round++) {
            int size = next(&state) % (round % 10 ? 3000 : LONGEST), expected = next(&others) % (round % 10 ? 3000 : LONGEST);
            for (int i = 0; i < size; i++)
                out[i] = next(&state);
            MPI_Status status;
            MPI_Sendrecv(out, size, MPI_BYTE, (rank + 1) % ranks, round, in, LONGEST, MPI_BYTE,
                         (rank + ranks - 1) % ranks, round, MPI_COMM_WORLD, &status);
            int got;
            MPI_Get_count(&status, MPI_BYTE, &got);
            uint32_t checksum = 2166136261u;
            for (int i = 0; i < expected; i++)
                checksum = (checksum ^ (unsigned char)next(&others)) * 16777619u;
            wrong += got != expected || sum(in, got) != checksum;
            bytes += got;
        }
        long mine[2] = {wrong, bytes}, all[2];
        MPI_Allreduce(mine, all, 2, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
        if (rank == 0) {
            printf("%ld bytes, %ld messages wrong\nstep %d\n", all[1], all[0], step);
            fflush(stdout);
        }
    }
    MPI_Finalize();
    return wrong != 0;
}
