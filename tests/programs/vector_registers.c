// Vector and mask registers, x87 and general registers keep their values in a loop that never leaves them.
#include "verify.h"

static atomic_int spinning;
static volatile int go_on;

// Loads all registers with known values, spins until told to go on, and stores them again. One asm statement, so that
// no compiler's code touches a register in between.
static void *spin_avx(void *unused) {
    static const uint64_t pattern[4] = {1, 0x1111111122222222, 0x3333333344444444, 0x5555555566666666};
    uint64_t ymm[16][4], r[4];
    double x87 = 0, pi = 3.25;
    __asm__ volatile(
        "fldl %[pi]\n\tfldl %[pi]\n\tfaddp\n\t"
        "vmovdqu (%[pattern]), %%ymm0\n\t"
        ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\tvpaddq %%ymm0, %%ymm0, %%ymm\\n\n\t.endr\n\t"
        ".irp n,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\tvpaddq %%ymm\\n, %%ymm1, %%ymm\\n\n\t.endr\n\t"
        "mov $0x1234567890abcdef, %%r12\n\tmov $0x5a5a5a5a, %%r13\n\tmov $77, %%r14\n\tmov $-5, %%r15\n\t"
        "lock incl %[spinning]\n\t"
        "1: pause\n\tcmpl $0, (%[go])\n\tje 1b\n\t"
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\tvmovdqu %%ymm\\n, 32*\\n(%[ymm])\n\t.endr\n\t"
        "mov %%r12, (%[r])\n\tmov %%r13, 8(%[r])\n\tmov %%r14, 16(%[r])\n\tmov %%r15, 24(%[r])\n\t"
        "fstpl %[x87]\n\tvzeroupper"
        : [x87] "=m"(x87), [spinning] "+m"(spinning)
        : [pi] "m"(pi), [pattern] "r"(pattern), [go] "r"(&go_on), [ymm] "r"(ymm), [r] "r"(r)
        : "memory", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
          "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    if (loses("vector"))
        ymm[9][3] = 0;
    if (loses("general"))
        r[2] = 0;
    if (loses("x87"))
        x87 = 0;
    for (int n = 0; n < 16; n++)
        for (int i = 0; i < 4; i++)
            CHECK(ymm[n][i] == pattern[i] * (n == 0 ? 1 : n == 1 ? 2 : 4), "ymm%d[%d] is %#jx", n, i, (uintmax_t)ymm[n][i]);
    CHECK(r[0] == 0x1234567890abcdef && r[1] == 0x5a5a5a5a && r[2] == 77 && r[3] == (uint64_t)-5, "r12 to r15 changed");
    CHECK(x87 == 6.5, "the x87 stack's top is %f", x87);
    return unused;
}

__attribute__((target("avx512f"))) static void *spin_avx512(void *unused) {
    uint64_t zmm[32][8];
    uint16_t mask[2] = {0, 0};
    __asm__ volatile(
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\t"
        "mov $0x4000\\n, %%rax\n\tvpbroadcastq %%rax, %%zmm\\n\n\t.endr\n\t"
        "mov $0xa5c3, %%eax\n\tkmovw %%eax, %%k1\n\tmov $0x0ff1, %%eax\n\tkmovw %%eax, %%k7\n\t"
        "lock incl %[spinning]\n\t"
        "1: pause\n\tcmpl $0, (%[go])\n\tje 1b\n\t"
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\t"
        "vmovdqu64 %%zmm\\n, 64*\\n(%[zmm])\n\t.endr\n\t"
        "kmovw %%k1, (%[mask])\n\tkmovw %%k7, 2(%[mask])\n\tvzeroupper"
        : [spinning] "+m"(spinning)
        : [go] "r"(&go_on), [zmm] "r"(zmm), [mask] "r"(mask)
        : "memory", "rax", "k1", "k7", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
          "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21",
          "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
    if (loses("avx512"))
        zmm[31][7] = 1;
    if (loses("mask"))
        mask[0] = 0xffff;
    for (unsigned n = 0; n < 32; n++) {
        // The assembler pastes the decimal number into a hexadecimal one.
        uint64_t expected = n < 10 ? 0x40000 + n : 0x400000 + n / 10 * 16 + n % 10;
        for (int i = 0; i < 8; i++)
            CHECK(zmm[n][i] == expected, "zmm%u[%d] is %#jx, not %#jx", n, i, (uintmax_t)zmm[n][i], (uintmax_t)expected);
    }
    CHECK(mask[0] == 0xa5c3 && mask[1] == 0x0ff1, "the mask registers are %#x and %#x", mask[0], mask[1]);
    return unused;
}

int main(void) {
    __builtin_cpu_init();
    REQUIRE(__builtin_cpu_supports("avx2"));
    bool avx512 = __builtin_cpu_supports("avx512f");
    pthread_t first = start_thread(spin_avx, NULL), second = 0;
    if (avx512)
        second = start_thread(spin_avx512, NULL);
    await_value(&spinning, avx512 ? 2 : 1);
    until_go();
    go_on = 1;
    pthread_join(first, NULL);
    if (avx512)
        pthread_join(second, NULL);
    // What a processor does not have cannot be lost.
    CHECK(avx512 || !(loses("avx512") || loses("mask")), "there is no AVX-512 here");
    return verdict();
}
