// The x87 control word and MXCSR of each thread: rounding mode, precision, exception masks, flush to zero.
// link: -lm
#include "verify.h"
#include <fenv.h>
#include <xmmintrin.h>

static atomic_int waiting;
static atomic_int go_on;
static const int rounding[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};

static uint16_t control_word(void) {
    uint16_t word;
    __asm__ volatile("fnstcw %0" : "=m"(word));
    return word;
}

static void *body(void *argument) {
    long number = (long)argument;
    fesetround(rounding[number % 4]);
    uint16_t word = (control_word() & ~0x300) | (number % 2 ? 0x200 : 0x300);
    __asm__ volatile("fldcw %0" : : "m"(word));
    _mm_setcsr((_mm_getcsr() & ~0x3fu) | (number % 2 ? _MM_FLUSH_ZERO_ON : 0) | (number & 1 ? 0x40 : 0));
    uint32_t mxcsr = _mm_getcsr();
    atomic_fetch_add(&waiting, 1);
    while (!atomic_load(&go_on))
        _mm_pause();
    if (loses("mxcsr"))
        _mm_setcsr(0x1f80 ^ 0x2000);
    if (loses("x87"))
        __asm__ volatile("fninit");
    if (loses("rounding"))
        fesetround(rounding[(number + 1) % 4]);
    CHECK(fegetround() == rounding[number % 4], "the rounding mode of thread %ld", number);
    CHECK(control_word() == word, "the control word of thread %ld is %#x, was %#x", number,
          control_word(), word);
    CHECK((_mm_getcsr() & ~0x3fu) == (mxcsr & ~0x3fu), "MXCSR of thread %ld is %#x, was %#x", number, _mm_getcsr(), mxcsr);
    volatile double one = 1, three = 3;
    double third = one / three;
    uint64_t bits;
    memcpy(&bits, &third, 8);
    CHECK(bits == 0x3fd5555555555555 + (number % 4 == 1), "a third is %#jx in thread %ld", (uintmax_t)bits, number);
    return NULL;
}

int main(void) {
    pthread_t threads[4];
    for (long i = 0; i < 4; i++)
        threads[i] = start_thread(body, (void *)i);
    await_value(&waiting, 4);
    until_go();
    atomic_store(&go_on, 1);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    return verdict();
}
