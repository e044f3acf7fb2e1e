/* A load generator for one OpenAI-compatible server: N connections, each with one request at a time, every answer checked.
 *
 *     load -p PORT -c CONNECTIONS -s SECONDS [-n EVENTS] [-r RAMP_MS] [-g GRACE_S] [-b PROMPT_BYTES]
 *
 * Without -n: plain requests in a closed loop. With -n: streams of EVENTS content events. They start evenly over RAMP_MS,
 * at times fixed beforehand, and a connection whose stream has ended starts the next one, so that N are always running.
 * After SECONDS nothing is started any more; what does not end within GRACE_S then is `unfinished`.
 *
 * A stream is whole if its status is 200, the numbers in its content ("#000001" ...) are 1 to EVENTS in order, a finish
 * reason and [DONE] came, nothing after it, and the HTTP body ended. Gateways may add fields and events of their own.
 *
 * Prints one JSON object. Times are microseconds from when a request was due: what a full backlog costs is in them. `itl`: between
 * two content events of a stream as received, 0 where one read brought both (`coalesced`). One thread, one epoll. */
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

#define BATCH 512                  /* epoll events taken at once */
#define RETRY_NS 100000000u        /* after an error; a server that refuses is not asked in a tight loop */
#define MS 1000000u

/* Counts by value, 64 buckets for each power of two: 1.6 % wide at most. */
struct histogram { uint64_t counts[64 * 60], n, max; };

enum state { WAITING, CONNECTING, HEAD, SIZE, DATA, DATA_END, TRAILER, BODY }; /* SIZE to TRAILER: a chunked body; BODY: a counted one */

struct connection {
    int fd;
    enum state state;
    uint64_t due_ns, last_ns;      /* when the request was due; when its last event came */
    int status, closes, done, finished, bad;
    unsigned events, line_len;     /* content events so far; bytes of an incomplete line */
    size_t left, text_len;         /* of the chunk or body; of the head, a chunk's size or a plain body */
    char text[4096], line[4096];
};

static int poller, port;
static unsigned expected;          /* events of a stream; 0: plain requests */
static struct connection *connections;
static unsigned count, waiting, busy;
static uint64_t begun_ns, until_ns, ended_ns;
static char *request, *serial;
static size_t request_len;
static uint64_t asked, whole, broken, errors, events, coalesced;
static struct histogram latency, ttft, itl;
static char complaint[200];        /* about the first answer that was not whole */

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void note(struct histogram *h, uint64_t value) {
    unsigned shift = value < 128 ? 0 : 57 - (unsigned)__builtin_clzll(value);
    h->counts[shift * 64 + (value >> shift)]++; /* the leading seven bits, after their position */
    h->n++;
    if (value > h->max) h->max = value;
}

static double quantile_us(const struct histogram *h, double share) {
    uint64_t rank = (uint64_t)(share * (double)h->n), seen = 0;
    for (unsigned i = 0; i < 64 * 60; i++) {
        seen += h->counts[i];
        if (seen <= rank && i + 1 < 64 * 60) continue;
        if (i < 128) return i / 1e3;
        unsigned shift = i / 64 - 1;
        double middle = (double)((i % 64 + 64ull) << shift) + (double)(1ull << shift) / 2;
        return (middle > (double)h->max ? (double)h->max : middle) / 1e3;
    }
    return 0;
}

static void complain(const struct connection *c, const char *what) {
    if (*complaint) return;
    snprintf(complaint, sizeof complaint, "%s (status %d, after %u of %u events) %.80s", what, c->status, c->events, expected, c->text);
    for (char *p = complaint; *p; p++) if (*p < ' ' || *p == '"' || *p == '\\' || *p > '~') *p = ' '; /* it is printed as JSON */
}

static void disconnect(struct connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static void wait_until(struct connection *c, uint64_t due_ns) {
    if (c->state != WAITING) busy--;
    c->state = WAITING, c->due_ns = due_ns;
    waiting++;
}

static void fail(struct connection *c, const char *what) {
    complain(c, what);
    errors++;
    disconnect(c);
    ended_ns = now_ns();
    wait_until(c, ended_ns + RETRY_NS);
}

/* Every prompt differs from its beginning on, so that no prefix cache and no cached answer helps anybody. */
static void ask(struct connection *c) {
    char digits[16];
    snprintf(digits, sizeof digits, "%09llu", (unsigned long long)asked++ % 1000000000u);
    memcpy(serial, digits, 9);
    c->state = HEAD, c->status = c->closes = c->done = c->finished = c->bad = 0;
    c->events = c->line_len = 0, c->text_len = 0, c->text[0] = 0;
    if (send(c->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len) fail(c, "the request could not be sent");
}

static void start(struct connection *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    waiting--, busy++;
    c->state = CONNECTING;
    if (c->fd >= 0) { ask(c); return; }
    int on = 1;
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (c->fd < 0 || (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)) fail(c, strerror(errno));
    else epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
}

static void start_due(uint64_t now) {
    for (unsigned i = 0; i < count && waiting; i++)
        if (connections[i].state == WAITING && connections[i].due_ns <= now) start(&connections[i]);
}

/* The answer's end: counted, then the next one. */
static void finish(struct connection *c, uint64_t now) {
    int is_whole = c->status == 200 && !c->bad;
    if (expected) is_whole = is_whole && c->events == expected && c->finished && c->done;
    else is_whole = is_whole && strstr(c->text, "#000001") && strstr(c->text, "\"finish_reason\"");
    ended_ns = now;
    if (c->closes) disconnect(c);
    if (is_whole) {
        whole++;
        note(&latency, now - c->due_ns);
        wait_until(c, now);
        if (now < until_ns) start(c);
        return;
    }
    if (c->status == 200) broken++;
    else errors++;
    complain(c, c->status == 200 ? "not whole" : "refused");
    wait_until(c, now + RETRY_NS);
}

static void take_event(struct connection *c, const char *data, unsigned n, uint64_t now) {
    const char *end = data + n, *found = data;
    while ((found = memchr(found, '#', (size_t)(end - found))) && end - found > 6) {
        unsigned number = 0;
        for (int i = 1; i <= 6; i++) number = number * 10 + (unsigned)(found[i] - '0');
        if (number != ++c->events || c->done) c->bad = 1;
        events++;
        if (c->events == 1) note(&ttft, now - c->due_ns);
        else note(&itl, now - c->last_ns), coalesced += now == c->last_ns;
        c->last_ns = now;
        found += 7;
    }
    if (memmem(data, n, "[DONE]", 6)) c->bad |= c->done++;
    else if ((found = memmem(data, n, "\"finish_reason\":", 16))) {
        found += 16;
        if (found < end && *found == ' ') found++;
        c->finished |= found < end && *found == '"';
    }
}

/* Bytes of the body: of a stream they are lines, which may come in pieces; a plain one is kept as far as it fits. */
static void take_body(struct connection *c, const char *bytes, size_t n, uint64_t now) {
    if (!expected || c->status != 200) {
        size_t room = sizeof c->text - 1 - c->text_len, some = n < room ? n : room;
        memcpy(c->text + c->text_len, bytes, some);
        c->text[c->text_len += some] = 0;
        return;
    }
    while (n) {
        const char *newline = memchr(bytes, '\n', n), *line = bytes;
        size_t length = newline ? (size_t)(newline - bytes) : n, used = newline ? length + 1 : n;
        if (c->line_len || !newline) {
            if (c->line_len + length > sizeof c->line) { c->bad = 1; c->line_len = 0; return; }
            memcpy(c->line + c->line_len, bytes, length);
            c->line_len += (unsigned)length;
            line = c->line, length = c->line_len;
        }
        if (newline) {
            if (length > 5 && !memcmp(line, "data:", 5)) take_event(c, line + 5, (unsigned)length - 5, now);
            c->line_len = 0;
        }
        bytes += used, n -= used;
    }
}

static void take_head(struct connection *c) {
    const char *length = strcasestr(c->text, "\r\ncontent-length:"), *close = strcasestr(c->text, "\r\nconnection: close");
    c->status = c->text_len > 12 ? atoi(c->text + 9) : 0;
    c->closes = close != NULL;
    c->left = length ? strtoul(length + 17, NULL, 10) : 0;
    c->state = strcasestr(c->text, "\r\ntransfer-encoding: chunked") ? SIZE : BODY;
    c->bad = c->state == BODY && !length; /* a body that ends with the connection cannot be told from one cut off */
    c->text_len = 0, c->text[0] = 0;
}

/* One byte of a head, or of a chunk's framing; `text` holds the line so far (in SIZE and TRAILER at most a few bytes matter). */
static void take_byte(struct connection *c, char byte, uint64_t now) {
    if (c->state == HEAD) {
        if (c->text_len == sizeof c->text - 1) { fail(c, "the head is too long"); return; }
        c->text[c->text_len++] = byte, c->text[c->text_len] = 0;
        if (byte == '\n' && c->text_len > 3 && !memcmp(c->text + c->text_len - 4, "\r\n\r\n", 4)) {
            take_head(c);
            if (c->state == BODY && !c->left) finish(c, now);
        }
    } else if (c->state == SIZE && byte != '\n') {
        if (byte != '\r') c->left = c->left * 16 + (size_t)(byte <= '9' ? byte - '0' : (byte | 32) - 'a' + 10);
    } else if (c->state == SIZE) c->state = c->left ? DATA : TRAILER;
    else if (c->state == DATA_END && byte == '\n') c->state = SIZE;
    else if (c->state == TRAILER && byte == '\n') finish(c, now); /* no trailer fields: nobody sends any */
}

static void take(struct connection *c, const char *bytes, size_t n, uint64_t now) {
    while (n && c->state > CONNECTING) {
        if (c->state != DATA && c->state != BODY) {
            take_byte(c, *bytes, now);
            bytes++, n--;
            continue;
        }
        size_t some = n < c->left ? n : c->left;
        take_body(c, bytes, some, now);
        bytes += some, n -= some, c->left -= some;
        if (c->left) return;
        if (c->state == BODY) finish(c, now);
        else c->state = DATA_END;
    }
}

static void receive(struct connection *c) {
    static char bytes[1 << 18];
    ssize_t n = recv(c->fd, bytes, sizeof bytes, 0);
    if (n > 0) take(c, bytes, (size_t)n, now_ns());
    else if (n < 0 && errno == EAGAIN) return;
    else if (c->state == WAITING) disconnect(c); /* between two requests: its right */
    else fail(c, n ? strerror(errno) : "the connection was closed");
}

static void connected(struct connection *c) {
    int error = 0;
    socklen_t size = sizeof error;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) { fail(c, strerror(error)); return; }
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
    ask(c);
}

static void make_request(size_t prompt_bytes) {
    static const char *before = "{\"model\":\"bench\",\"messages\":[{\"role\":\"user\",\"content\":\"", *word = "Why is the sky blue? ";
    char *body = malloc(prompt_bytes + 512);
    request = malloc(prompt_bytes + 1024);
    if (!body || !request) abort();
    size_t n = (size_t)sprintf(body, "%sRequest 000000000. ", before), to = n + prompt_bytes;
    for (size_t i = 0; n < to; i++) body[n++] = word[i % 21];
    n += (size_t)sprintf(body + n, "\"}],\"max_tokens\":%u,\"stream\":%s}", expected ? expected : 20, expected ? "true" : "false");
    request_len = (size_t)sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: */*\r\n"
                                  "content-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", port, n, body);
    serial = strstr(request, "Request ") + 8;
    free(body);
}

static void print_times(const char *name, const struct histogram *h) {
    if (h->n) printf("\"%s\":{\"n\":%llu,\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f},", name, (unsigned long long)h->n,
                     quantile_us(h, 0.5), quantile_us(h, 0.99), (double)h->max / 1e3);
}

int main(int argc, char **argv) {
    double seconds = 1, grace_s = 10, ramp_ms = 0;
    size_t prompt_bytes = 1000;
    for (int option; (option = getopt(argc, argv, "p:c:s:n:r:g:b:")) != -1;) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'c': count = (unsigned)atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'n': expected = (unsigned)atoi(optarg); break;
        case 'r': ramp_ms = atof(optarg); break;
        case 'g': grace_s = atof(optarg); break;
        case 'b': prompt_bytes = strtoul(optarg, NULL, 10); break;
        default: return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    make_request(prompt_bytes);
    poller = epoll_create1(0);
    connections = calloc(count, sizeof *connections);
    if (!connections) abort();
    begun_ns = ended_ns = now_ns(), until_ns = begun_ns + (uint64_t)(seconds * 1e9);
    uint64_t give_up_ns = until_ns + (uint64_t)(grace_s * 1e9), now = begun_ns, looked_ns = 0;
    waiting = count;
    for (unsigned i = 0; i < count; i++) connections[i].fd = -1, connections[i].due_ns = begun_ns + (uint64_t)(ramp_ms * MS * i / count);
    while ((now = now_ns()) < give_up_ns && (busy || now < until_ns)) {
        if (waiting && now < until_ns && now - looked_ns >= MS) start_due(looked_ns = now);
        struct epoll_event ready[BATCH];
        int n = epoll_wait(poller, ready, BATCH, waiting && now < until_ns ? 1 : 20);
        for (int i = 0; i < n; i++) {
            struct connection *c = ready[i].data.ptr;
            if (c->state == CONNECTING) connected(c);
            else if (c->fd >= 0) receive(c);
        }
    }
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    for (unsigned i = 0; i < count; i++) if (connections[i].state != WAITING) complain(&connections[i], "unfinished");
    printf("{\"seconds\":%.4f,\"whole\":%llu,\"broken\":%llu,\"errors\":%llu,\"unfinished\":%u,\"events\":%llu,\"coalesced\":%llu,",
           (double)((busy ? now : ended_ns) - begun_ns) / 1e9, (unsigned long long)whole, (unsigned long long)broken,
           (unsigned long long)errors, busy, (unsigned long long)events, (unsigned long long)coalesced);
    print_times("latency_us", &latency), print_times("ttft_us", &ttft), print_times("itl_us", &itl);
    printf("\"cpu_s\":%.4f,\"complaint\":\"%s\"}\n", (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
           + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6, complaint);
    return 0;
}
