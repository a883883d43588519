// Urgent data in a unix stream, which cannot be kept; and is not lost by a refusal.
#include "verify.h"
#include <sys/socket.h>

int main(void) {
    int ends[2];
    char got[8];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    REQUIRE(send(ends[0], "ab", 2, 0) == 2 && send(ends[0], "!", 1, MSG_OOB) == 1 && send(ends[0], "cd", 2, 0) == 2);
    until_go();
    if (loses("urgency"))
        CHECK(recv(ends[1], got, 1, MSG_OOB) == 1, "recv");
    CHECK(recv(ends[1], got, sizeof got, MSG_OOB | MSG_DONTWAIT) == 1 && got[0] == '!', "the urgent byte is lost");
    CHECK(recv(ends[1], got, sizeof got, 0) == 2 && !memcmp(got, "ab", 2), "what came before it");
    CHECK(recv(ends[1], got, sizeof got, 0) == 2 && !memcmp(got, "cd", 2), "what came after it");
    return verdict();
}
