/* Loaded (LD_PRELOAD) into every mariadbd that MariaDB's test suite starts, to put a proxy before it that neither
 * the suite nor the server can see: what the server binds is moved aside (PORT to a free port, SOCKET to SOCKET.m),
 * fronts.py is asked for a proxy on PORT and SOCKET.f, and SOCKET becomes a name of SOCKET.f. The server still says
 * @@port and @@socket, still removes SOCKET when it stops, and when it is gone so is the proxy: fronts.py sees
 * the connection made here end. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int (*real_bind)(int, const struct sockaddr *, socklen_t);
/* The first port that is bound is the server's; a later, other one is its --extra-port and stays where it is. */
static unsigned asked_port, given_port;

static int bind_port(int fd, const struct sockaddr *address, socklen_t length)
{
    struct sockaddr_storage moved;
    memcpy(&moved, address, length);
    /* sin_port and sin6_port lie at the same place. */
    struct sockaddr_in *port = (struct sockaddr_in *)&moved;
    unsigned wanted = ntohs(port->sin_port);
    if (wanted == 0 || (asked_port != 0 && asked_port != wanted))
        return real_bind(fd, address, length);
    port->sin_port = htons(given_port);
    if (real_bind(fd, (struct sockaddr *)&moved, length) != 0)
        return -1;
    socklen_t size = sizeof moved;
    if (getsockname(fd, (struct sockaddr *)&moved, &size) != 0)
        return -1;
    asked_port = wanted;
    given_port = ntohs(port->sin_port);
    return 0;
}

/* Asks for a proxy and waits until it listens. The connection is left open as long as this process lives. */
static int ask_for_proxy(const char *socket_path)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    const char *fronts = getenv("KOPEK_FRONTS");
    if (fronts == NULL || strlen(fronts) >= sizeof at.sun_path)
        return -1;
    strcpy(at.sun_path, fronts);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof at) != 0)
        return -1;
    char answer;
    if (dprintf(fd, "%s\n%u\n%u\n", socket_path, asked_port, given_port) < 0)
        return -1;
    return read(fd, &answer, 1) == 1 && answer == '+' ? 0 : -1;
}

static int bind_socket(int fd, const struct sockaddr_un *address)
{
    struct sockaddr_un moved = *address;
    char front[sizeof address->sun_path + 3];
    if (strlen(address->sun_path) + 3 > sizeof moved.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcat(moved.sun_path, ".m");
    unlink(moved.sun_path);
    if (real_bind(fd, (struct sockaddr *)&moved, sizeof moved) != 0)
        return -1;
    sprintf(front, "%s.f", address->sun_path);
    if (ask_for_proxy(address->sun_path) != 0) {
        fprintf(stderr, "kopek: no proxy before %s\n", address->sun_path);
        _exit(1);
    }
    return link(front, address->sun_path);
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    if (real_bind == NULL)
        real_bind = (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "bind");
    if (getenv("KOPEK_FRONTS") == NULL)
        return real_bind(fd, address, length);
    if (address->sa_family == AF_INET || address->sa_family == AF_INET6)
        return bind_port(fd, address, length);
    if (address->sa_family == AF_UNIX && ((const struct sockaddr_un *)address)->sun_path[0] == '/')
        return bind_socket(fd, (const struct sockaddr_un *)address);
    return real_bind(fd, address, length);
}
