// What sockets have that nobody can read back. Argument: filter|reuseport|cork|multipath.
#include "verify.h"

#include <linux/bpf.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/socket.h>

static int bound(int type, int protocol, bool shares) {
    int it = socket(AF_INET, type, protocol);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    REQUIRE(it >= 0 && (!shares || setsockopt(it, SOL_SOCKET, SO_REUSEPORT, &(int){1}, sizeof(int)) == 0));
    REQUIRE(bind(it, (void *)&address, sizeof address) == 0);
    return it;
}

static void connect_to(int socket, int other) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    REQUIRE(getsockname(other, (void *)&address, &length) == 0 && connect(socket, (void *)&address, length) == 0);
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "";
    if (strcmp(what, "filter") == 0) {
        struct bpf_insn code[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K, .imm = 2}, {.code = BPF_JMP | BPF_EXIT}};
        union bpf_attr program = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 2, .insns = (uintptr_t)code,
                                  .license = (uintptr_t) "GPL"};
        int fd = syscall(SYS_bpf, BPF_PROG_LOAD, &program, sizeof program), it = bound(SOCK_DGRAM, 0, false);
        REQUIRE(fd >= 0 && setsockopt(it, SOL_SOCKET, SO_ATTACH_BPF, &fd, sizeof fd) == 0);
        close(fd);
    } else if (strcmp(what, "reuseport") == 0) {
        int it = bound(SOCK_DGRAM, 0, true);
        struct sock_filter code[] = {{BPF_RET | BPF_K, 0, 0, 0}};
        struct sock_fprog program = {1, code};
        REQUIRE(setsockopt(it, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program) == 0);
    } else if (strcmp(what, "cork") == 0) {
        int it = bound(SOCK_DGRAM, 0, false);
        connect_to(it, bound(SOCK_DGRAM, 0, false));
        REQUIRE(send(it, "half", 4, MSG_MORE) == 4);
    } else {
        int listener = bound(SOCK_STREAM, IPPROTO_MPTCP, false), client = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
        REQUIRE(listen(listener, 1) == 0);
        connect_to(client, listener);
        REQUIRE(accept(listener, NULL, NULL) >= 0);
    }
    until_go();
    return verdict();
}
