/* Resolves names as programs with musl's C library do, which images of Alpine
 * are full of: all name servers are asked at once. Prints a line for each name:
 * the name, and its addresses. Exits with 1 when a name has no answer. */
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

static int resolve(const char *name) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(name, NULL, &hints, &found);
    if (error) {
        fprintf(stderr, "muslresolve: %s: %s\n", name, gai_strerror(error));
        return 1;
    }
    fputs(name, stdout);
    for (struct addrinfo *next = found; next; next = next->ai_next) {
        char address[64];
        getnameinfo(next->ai_addr, next->ai_addrlen, address, sizeof address, NULL, 0,
                    NI_NUMERICHOST);
        printf(" %s", address);
    }
    puts("");
    freeaddrinfo(found);
    return 0;
}

int main(int argc, char **argv) {
    int failed = argc < 2;
    for (int i = 1; i < argc; i++)
        failed |= resolve(argv[i]);
    return failed;
}
