/* A fake inference engine for measuring gateways: answers made beforehand, streams paced by the clock, no model.
 *
 *     engine -p PORT [-g GAP_US]
 *
 * POST with "stream": true  an SSE stream of max_tokens content events, GAP_US apart (0: as fast as they are taken)
 * any other POST            one chat completion of some 500 bytes, at once
 * GET /v1/models, /metrics  what gateways look at; /health and all else: an empty 200
 *
 * Each event is some 250 bytes in an HTTP chunk and a send of its own, as vLLM emits them. Each content event carries
 * its number as "#000017", so that whoever receives the stream can tell whether it is whole.
 * One thread, one epoll. Linux >= 5.11, glibc >= 2.35 (epoll_pwait2: its timeout is not rounded to milliseconds). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MODEL "bench"
#define COMMON "\"created\":1767225600,\"model\":\"" MODEL "\""
#define BATCH 512 /* epoll events taken at once */

struct connection {
    int fd, blocked, closing;          /* blocked: the socket took no more; what is left is in `out` */
    char in[16384];                    /* requests are smaller; a larger one ends the connection */
    size_t in_len;
    char *out;
    size_t out_len, out_room;
    unsigned sent, total;              /* events of the stream under way; total 0: none */
    int usage, paced;                  /* paced: in the queue */
    uint64_t due_ns, id;
    struct connection *before, *after; /* neighbours in the queue */
};

static int poller;
static uint64_t gap_ns, requests;
static long running;
/* Streams in the order in which their next events are due. All have the same gap, so the next event of the first one is due
 * after everybody else's: a queue does what a heap would. */
static struct connection queue = {.before = &queue, .after = &queue};

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void enqueue(struct connection *c) {
    c->before = queue.before, c->after = &queue;
    queue.before->after = c, queue.before = c;
    c->paced = 1;
}

static void dequeue(struct connection *c) {
    if (!c->paced) return;
    c->before->after = c->after, c->after->before = c->before;
    c->paced = 0;
}

static void watch(struct connection *c, int writable) {
    struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
    c->blocked = writable;
}

/* Bytes that the socket does not take wait in `out`, in order. */
static void transmit(struct connection *c, const char *bytes, size_t n) {
    if (!c->out_len) {
        ssize_t took = send(c->fd, bytes, n, MSG_NOSIGNAL);
        if (took < 0 && errno != EAGAIN) { c->closing = 1; return; }
        if (took > 0) bytes += took, n -= (size_t)took;
        if (!n) return;
    }
    if (c->out_len + n > c->out_room) c->out = realloc(c->out, c->out_room = 2 * (c->out_len + n));
    if (!c->out) abort();
    memcpy(c->out + c->out_len, bytes, n);
    c->out_len += n;
    if (!c->blocked) watch(c, 1);
}

static void drain(struct connection *c) {
    ssize_t took = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
    if (took < 0) { c->closing = errno != EAGAIN; return; }
    c->out_len -= (size_t)took;
    memmove(c->out, c->out + took, c->out_len);
    if (c->out_len) return;
    watch(c, 0);
    if (c->total) enqueue(c); /* somewhat out of order after a pause; it catches up */
}

static void transmit_event(struct connection *c, const char *data, int n, const char *after) {
    char chunk[1024];
    transmit(c, chunk, (size_t)snprintf(chunk, sizeof chunk, "%x\r\ndata: %.*s\n\n\r\n%s", n + 8, n, data, after));
}

/* The next event; the last content event is followed by usage, if asked for, and [DONE]. */
static void emit(struct connection *c) {
    char data[640];
    unsigned number = ++c->sent;
    int n = snprintf(data, sizeof data,
        "{\"id\":\"chatcmpl-%016llx\",\"object\":\"chat.completion.chunk\"," COMMON ",\"choices\":[{\"index\":0,\"delta\":{"
        "\"content\":\" #%06u words\"},\"logprobs\":null,\"finish_reason\":%s,\"stop_reason\":null,\"token_ids\":null}]}",
        (unsigned long long)c->id, number, number == c->total ? "\"length\"" : "null");
    transmit_event(c, data, n, "");
    if (number < c->total) return;
    if (c->usage) {
        n = snprintf(data, sizeof data,
            "{\"id\":\"chatcmpl-%016llx\",\"object\":\"chat.completion.chunk\"," COMMON ",\"choices\":[],"
            "\"usage\":{\"prompt_tokens\":250,\"completion_tokens\":%u,\"total_tokens\":%u}}",
            (unsigned long long)c->id, c->total, 250 + c->total);
        transmit_event(c, data, n, "");
    }
    transmit_event(c, "[DONE]", 6, "0\r\n\r\n");
    dequeue(c);
    c->total = 0, running--;
}

static void answer(struct connection *c, const char *type, const char *body) {
    char text[2048];
    int n = snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n%s",
                     type, strlen(body), body);
    transmit(c, text, (size_t)n);
}

/* What follows `"key":` in the body, which some gateways write with spaces; NULL without it. */
static const char *value_of(const char *body, const char *key) {
    const char *found = strstr(body, key);
    if (!found) return NULL;
    found += strlen(key);
    return found + strspn(found, " :");
}

static void begin_stream(struct connection *c, const char *body) {
    static const char head[] = "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                               "transfer-encoding: chunked\r\n\r\n";
    char data[512];
    const char *asked = value_of(body, "\"max_tokens\""), *usage = value_of(body, "\"include_usage\"");
    if (!asked) asked = value_of(body, "\"max_completion_tokens\""); /* sglang-router renames it */
    c->total = asked && atoi(asked) > 0 ? (unsigned)atoi(asked) : 16;
    c->sent = 0, c->usage = usage && !strncmp(usage, "true", 4), c->id = ++requests * 0x9E3779B97F4A7C15u;
    running++;
    transmit(c, head, sizeof head - 1);
    int n = snprintf(data, sizeof data,
        "{\"id\":\"chatcmpl-%016llx\",\"object\":\"chat.completion.chunk\"," COMMON ",\"choices\":[{\"index\":0,\"delta\":{"
        "\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}", (unsigned long long)c->id);
    transmit_event(c, data, n, "");
    c->due_ns = now_ns() + gap_ns;
    if (!c->blocked) enqueue(c);
}

static void complete(struct connection *c) {
    char body[1024];
    snprintf(body, sizeof body,
        "{\"id\":\"chatcmpl-%016llx\",\"object\":\"chat.completion\"," COMMON ",\"choices\":[{\"index\":0,\"message\":{\"role\":"
        "\"assistant\",\"content\":\" #000001 words: the sky is blue because air scatters short waves more than long ones.\","
        "\"refusal\":null,\"tool_calls\":[],\"reasoning_content\":null},\"logprobs\":null,\"finish_reason\":\"stop\","
        "\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":250,\"completion_tokens\":20,\"total_tokens\":270,"
        "\"prompt_tokens_details\":null},\"prompt_logprobs\":null,\"kv_transfer_params\":null}",
        (unsigned long long)(++requests * 0x9E3779B97F4A7C15u));
    answer(c, "application/json", body);
}

static void look(struct connection *c, const char *head) {
    char body[1024];
    if (!strncmp(head, "GET /v1/models", 14)) {
        answer(c, "application/json", "{\"object\":\"list\",\"data\":[{\"id\":\"" MODEL "\",\"object\":\"model\","
               "\"created\":1767225600,\"owned_by\":\"vllm\",\"root\":\"" MODEL "\",\"max_model_len\":131072}]}");
    } else if (!strncmp(head, "GET /metrics", 12)) {
        snprintf(body, sizeof body,
            "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name=\"" MODEL "\"} %ld\n"
            "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{model_name=\"" MODEL "\"} 0\n"
            "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{model_name=\"" MODEL "\"} %.6f\n"
            "# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"65536\"} 1\n",
            running, (double)running * 16 / 65536); /* a prompt of 50 tokens and 200 more each */
        answer(c, "text/plain; version=0.0.4", body);
    } else answer(c, "application/json", "{}");
}

/* Serves the requests in `in`, one after another; one that comes while a stream runs waits. */
static void serve(struct connection *c) {
    while (!c->total && !c->closing && c->in_len) {
        c->in[c->in_len] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) break;
        *end = 0;
        char *length = strcasestr(c->in, "\r\ncontent-length:"), *body = end + 4;
        size_t size = (size_t)(body - c->in) + (length ? strtoul(length + 17, NULL, 10) : 0);
        if (c->in_len < size) { *end = '\r'; break; }
        char next = c->in[size];
        c->in[size] = 0;
        const char *stream = value_of(body, "\"stream\"");
        if (strncmp(c->in, "POST", 4)) look(c, c->in);
        else if (stream && !strncmp(stream, "true", 4)) begin_stream(c, body);
        else complete(c);
        c->in[size] = next;
        memmove(c->in, c->in + size, c->in_len -= size);
    }
    if (c->in_len >= sizeof c->in - 1) c->closing = 1;
}

static void receive(struct connection *c) {
    ssize_t n = recv(c->fd, c->in + c->in_len, sizeof c->in - 1 - c->in_len, 0);
    if (n > 0) { c->in_len += (size_t)n; serve(c); }
    else if (n == 0 || errno != EAGAIN) c->closing = 1;
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        if (!c) abort();
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

static void discard(struct connection *c) {
    dequeue(c);
    if (c->total) running--;
    close(c->fd);
    free(c->out);
    free(c);
}

/* Every stream whose time has come, once. */
static void pace(void) {
    uint64_t now = now_ns();
    struct connection *last = queue.before, *c = queue.after;
    while (c != &queue && c->due_ns <= now) {
        struct connection *following = c->after;
        int was_last = c == last;
        dequeue(c);
        c->due_ns += gap_ns; /* of the plan, not of now: lateness does not add up */
        emit(c);
        if (c->closing) discard(c);
        else if (c->total && !c->blocked) enqueue(c);
        if (was_last) break;
        c = following;
    }
}

static int listen_on(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) { perror("engine: bind"); exit(1); }
    return listener;
}

int main(int argc, char **argv) {
    int option, port = 0;
    while ((option = getopt(argc, argv, "p:g:")) != -1) {
        if (option == 'p') port = atoi(optarg);
        else if (option == 'g') gap_ns = strtoull(optarg, NULL, 10) * 1000;
        else return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = listen_on(port);
    poller = epoll_create1(0);
    struct epoll_event ready[BATCH], e = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        struct timespec wait, *until = NULL;
        if (queue.after != &queue) {
            uint64_t now = now_ns(), left = queue.after->due_ns > now ? queue.after->due_ns - now : 0;
            wait.tv_sec = (time_t)(left / 1000000000u), wait.tv_nsec = (long)(left % 1000000000u);
            until = &wait;
        }
        int n = epoll_pwait2(poller, ready, BATCH, until, NULL);
        for (int i = 0; i < n; i++) {
            struct connection *c = ready[i].data.ptr;
            if (!c) { accept_all(listener); continue; }
            if (ready[i].events & (EPOLLERR | EPOLLHUP)) c->closing = 1;
            if (!c->closing && ready[i].events & EPOLLOUT) drain(c);
            if (!c->closing && ready[i].events & EPOLLIN) receive(c);
            if (c->closing) discard(c);
        }
        pace();
    }
}
