// Runs with early_constructor.so preloaded after libstasis.so: what its constructor did, worked.
#include "verify.h"
#include <dlfcn.h>

int main(void) {
    int *result = dlsym(RTLD_DEFAULT, "early_constructor_result");
    REQUIRE(result != NULL);
    until_go();
    CHECK((loses("result") ? 4 : *result) == 0, "step %d of the early constructor failed", *result);
    void *(*volatile allocate)(size_t) = malloc;
    char *block = allocate(12345);
    CHECK(block != NULL, "malloc");
    free(block);
    return verdict();
}
