// A filter in a pipeline that has threads, and with them a handler of signal 33: built statically, it is a program as Go makes them.
#include <pthread.h>
#include <unistd.h>

static void *stand(void *none) {
    for (;;)
        pause();
    return none;
}

int main(void) {
    char bytes[4096];
    pthread_t thread;
    for (int i = 0; i < 4; i++)
        if (pthread_create(&thread, NULL, stand, NULL) != 0)
            return 1;
    for (ssize_t len; (len = read(0, bytes, sizeof bytes)) > 0;)
        if (write(1, bytes, len) != len)
            return 1;
    return 0;
}
