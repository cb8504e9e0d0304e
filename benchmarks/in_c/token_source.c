/* A stand-in for an engine that streams: every answer is N chunks at a fixed pace, each with the moment it was written.
 *
 *   token_source PORT TOKENS TOKENS_PER_SECOND
 *
 * One thread, epoll, one timer. A body with `"stream":true` or `"stream": true` is answered with server-sent events, any
 * other with one small JSON answer at once. Microseconds since the epoch stand as the content of each chunk.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 2048, ROOM = 65536 };

typedef struct {
    int open, sent;  /* chunks sent; -1: no stream */
    int64_t due;     /* when the next chunk is, monotonic nanoseconds */
    size_t held;
    char in[ROOM];
} Connection;

static Connection *connections[MOST];
static int tokens;
static int64_t pace;

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void hang_up(int fd) {
    connections[fd]->open = 0;
    close(fd);
}

static void put(int fd, const char *data, size_t size) {
    if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size) hang_up(fd); /* a reader this slow is not measured */
}

static void put_chunk(int fd, const char *payload) {
    char out[1024];
    int size = snprintf(out, sizeof out, "%zx\r\n%s\r\n", strlen(payload), payload);
    put(fd, out, (size_t)size);
}

static void put_token(int fd) {
    char event[512];
    Connection *c = connections[fd];
    if (c->sent == tokens) {
        c->sent = -1;
        put_chunk(fd, "data: [DONE]\n\n");
        if (c->open) put(fd, "0\r\n\r\n", 5);
        return;
    }
    c->sent++;
    c->due += pace;
    snprintf(event, sizeof event,
             "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"upstream\","
             "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%lld \"},\"finish_reason\":null}]}\n\n",
             (long long)(now_ns(CLOCK_REALTIME) / 1000));
    put_chunk(fd, event);
}

static void answer(int fd, int streamed) {
    static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    static const char body[] =
        "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"upstream\",\"choices\":[{\"index\":0,"
        "\"message\":{\"role\":\"assistant\",\"content\":\"Hello.\"},\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,\"total_tokens\":11}}";
    if (streamed) {
        connections[fd]->sent = 0;
        connections[fd]->due = now_ns(CLOCK_MONOTONIC) + pace;
        put(fd, head, sizeof head - 1);
        return;
    }
    char out[1024];
    int size = snprintf(out, sizeof out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                        sizeof body - 1, body);
    put(fd, out, (size_t)size);
}

static void read_requests(int fd) {
    Connection *c = connections[fd];
    ssize_t got = recv(fd, c->in + c->held, ROOM - 1 - c->held, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN) hang_up(fd);
        return;
    }
    c->held += (size_t)got;
    c->in[c->held] = 0;
    char *end, *length;
    while (c->open && (end = strstr(c->in, "\r\n\r\n"))) {
        size_t head = (size_t)(end - c->in) + 4;
        length = strcasestr(c->in, "content-length:");
        size_t whole = head + (length && length < end ? strtoul(length + 15, NULL, 10) : 0);
        if (whole >= ROOM) { hang_up(fd); return; }
        if (c->held < whole) return;
        char kept = c->in[whole];
        c->in[whole] = 0;
        int streamed = strstr(c->in + head, "\"stream\":true") || strstr(c->in + head, "\"stream\": true");
        c->in[whole] = kept;
        memmove(c->in, c->in + whole, c->held - whole + 1);
        c->held -= whole;
        answer(fd, streamed);
    }
}

static void take(int listening, int poll) {
    int fd;
    while ((fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        int one = 1;
        if (fd >= MOST) { close(fd); continue; }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (!connections[fd]) connections[fd] = malloc(sizeof(Connection));
        connections[fd]->open = 1;
        connections[fd]->sent = -1;
        connections[fd]->held = 0;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
    }
}

/* Sends what is due; the nanoseconds until the next chunk is, or a second. */
static int64_t send_due(void) {
    int64_t now = now_ns(CLOCK_MONOTONIC), next = now + 1000000000;
    for (int fd = 0; fd < MOST; fd++) {
        Connection *c = connections[fd];
        if (!c || !c->open || c->sent < 0) continue;
        if (c->due <= now) put_token(fd);
        if (c->open && c->sent >= 0 && c->due < next) next = c->due;
    }
    return next > now ? next - now : 0;
}

int main(int argc, char **argv) {
    if (argc != 4) { fprintf(stderr, "token_source PORT TOKENS TOKENS_PER_SECOND\n"); return 2; }
    tokens = atoi(argv[2]);
    pace = (int64_t)(1e9 / atof(argv[3]));
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1, poll = epoll_create1(0);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 1024)) { perror("listen"); return 1; }
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listening}, ready[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listening, &event);
    for (;;) {
        int64_t wait = send_due();
        struct timespec timeout = {wait / 1000000000, wait % 1000000000};
        int count = epoll_pwait2(poll, ready, 256, &timeout, NULL);
        for (int i = 0; i < count; i++) {
            if (ready[i].data.fd == listening) take(listening, poll);
            else if (connections[ready[i].data.fd]->open) read_requests(ready[i].data.fd);
        }
    }
}
