// Code generated at run time: writable, then executable; called before and after; and rewritten afterwards.
#include "maps.h"

typedef int (*function)(int);

// lea eax, [rdi + addend]; ret
static void generate(unsigned char *code, int addend) {
    code[0] = 0x8d, code[1] = 0x87;
    memcpy(code + 2, &addend, 4);
    code[6] = 0xc3;
}

int main(void) {
    unsigned char *code = (unsigned char *)map(4 * PAGE, PROT_READ | PROT_WRITE, 0);
    for (int i = 0; i < 4; i++)
        generate(code + i * PAGE, i * 1000);
    REQUIRE(mprotect(code, 4 * PAGE, PROT_READ | PROT_EXEC) == 0);
    int fd = memfd_create("code", MFD_CLOEXEC);
    REQUIRE(fd >= 0 && ftruncate(fd, PAGE) == 0);
    // Two views of one page, as JIT compilers with W^X have: write here, execute there.
    unsigned char *write_view = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    unsigned char *run_view = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    REQUIRE(write_view != MAP_FAILED && run_view != MAP_FAILED);
    generate(write_view, 7);
    CHECK(((function)run_view)(1) == 8 && ((function)code)(5) == 5, "before");

    until_go();
    if (loses("code")) {
        mprotect(code, 4 * PAGE, PROT_READ | PROT_WRITE);
        generate(code, 1);
        mprotect(code, 4 * PAGE, PROT_READ | PROT_EXEC);
    }
    if (loses("protection"))
        mprotect(code, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    for (int i = 0; i < 4; i++)
        CHECK(((function)(code + i * PAGE))(5) == i * 1000 + 5, "generated function %d is wrong", i);
    CHECK(fault_of((char *)code, true) == SIGSEGV, "generated code can be written");
    CHECK(((function)run_view)(1) == 8, "the function in the memfd is wrong");
    generate(write_view, 100);
    CHECK(((function)run_view)(1) == 101, "a change in one view is not seen in the other");
    REQUIRE(mprotect(code, PAGE, PROT_READ | PROT_WRITE) == 0);
    generate(code, 55);
    REQUIRE(mprotect(code, PAGE, PROT_READ | PROT_EXEC) == 0);
    CHECK(((function)code)(5) == 60, "rewritten code is wrong");
    return verdict();
}
