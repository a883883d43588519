// Does nothing, in ways that `stasis launch` must refuse: linked statically, marked set-uid, for another libc.
#include <stdio.h>

int main(void) {
    puts("ran");
    return 0;
}
