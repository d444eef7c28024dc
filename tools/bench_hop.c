// penstock bench hop: what it takes a step's activations to get from one stage's device to the
// next one's, through the ring, a link over loopback and back, beside their bytes through a plain
// TCP socket of the same run, sent and received by one thread too.
#include "common/carve.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/options.h"
#include "kernels/devices.h"
#include "tools/commands.h"
#include "tools/csv.h"
#include "tools/outcome.h"
#include "workers/link.h"
#include "workers/standing.h"
#include "workers/stage.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    HIDDEN_DEFAULT = 7168,
    REPEATS_DEFAULT = 50,
    REPEATS_MOST = 1000,
    WARM = 5, // before these
    HEADER = 64,
    DEPTH = 4, // of the link
    WAIT_MS = 10000,
};

static const int ROWS[] = {1, 8, 32, 128, 512};

enum { N_ROWS = sizeof ROWS / sizeof *ROWS, ROWS_MOST = 512 };

struct bench {
    struct devices devices;
    enum precision precision;
    struct model_config config; // of it only the hidden size is looked at
    int repeats;
    FILE *csv;
    void *zmq;
    struct link_in in;
    struct link_out out;
    struct arena *arena;             // what is sent lies there
    char *header, *payload;
    struct standing headers, payloads;
    void *tables[2];                 // of the messages
    struct device *device;
    float *from, *to;                // (ROWS_MOST, hidden), on the device
    int sender, receiver;            // sockets
    char *received;
};

static size_t row_bytes(const struct bench *b) { return stage_row_bytes(&b->config, b->precision); }

// --- what is timed: each once, OK or an error

static enum status through_device(struct bench *b, int rows, struct error *e)
{
    const struct backend *k = b->devices.backend;
    size_t values = (size_t) rows * (size_t) b->config.hidden_size;
    k->export_act(b->device, b->payload, b->from, values);
    try(k->sync(b->device, e));
    k->import_act(b->device, b->to, b->payload, values);
    return k->sync(b->device, e);
}

static enum status through_link(struct bench *b, int rows, struct error *e)
{
    const struct backend *k = b->devices.backend;
    size_t values = (size_t) rows * (size_t) b->config.hidden_size;
    size_t bytes = (size_t) rows * row_bytes(b);
    struct link_message m;
    k->export_act(b->device, b->payload, b->from, values);
    try(k->sync(b->device, e));
    try(link_send(&b->out, standing_message(&b->headers, HEADER),
                  standing_message(&b->payloads, bytes), e));
    zmq_pollitem_t item = {.socket = b->in.socket, .events = ZMQ_POLLIN};
    zmq_poll(&item, 1, WAIT_MS);
    try(link_receive(&b->in, &m, e));
    check(zmq_msg_size(&m.frames[1]) == bytes);
    k->import_act(b->device, b->to, zmq_msg_data(&m.frames[1]), values);
    enum status status = k->sync(b->device, e);
    link_message_close(&m);
    return status;
}

static enum status through_socket(struct bench *b, int rows, struct error *e)
{
    size_t bytes = (size_t) rows * row_bytes(b), sent = 0, got = 0;
    while (got < bytes) {
        ssize_t n = 0;
        if (sent < bytes) n = send(b->sender, b->payload + sent, bytes - sent, MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN) {
            return error_set(e, ERR_IO, NULL, "the socket broke: %s", strerror(errno));
        }
        if (n > 0) sent += (size_t) n;
        ssize_t r = recv(b->receiver, b->received + got, bytes - got, MSG_DONTWAIT);
        if (r > 0) got += (size_t) r;
        if (r == 0) return error_set(e, ERR_IO, NULL, "the socket was closed");
        if (n > 0 || r > 0) continue;
        struct pollfd fd = {.fd = b->receiver, .events = POLLIN};
        poll(&fd, 1, WAIT_MS);
    }
    return OK;
}

static int by_time(const void *a, const void *b)
{
    int64_t x = *(const int64_t *) a, y = *(const int64_t *) b;
    return x < y ? -1 : x > y;
}

// Median microseconds.
static enum status time_it(struct bench *b, int rows,
                           enum status (*way)(struct bench *, int, struct error *), double *us,
                           struct error *e)
{
    static int64_t ns[REPEATS_MOST];
    for (int i = -WARM; i < b->repeats; i++) {
        int64_t from = clock_ns();
        try(way(b, rows, e));
        if (i >= 0) ns[i] = clock_ns() - from;
    }
    qsort(ns, (size_t) b->repeats, sizeof *ns, by_time);
    *us = (double) ns[b->repeats / 2] * 1e-3;
    return OK;
}

static enum status run(struct bench *b, struct error *e)
{
    printf("%s, %s, rows of %zu bytes\n\n%6s %12s %12s %12s %12s %9s\n", b->devices.backend->name,
           precision_name(b->precision), row_bytes(b), "rows", "device us", "hop us", "socket us",
           "hop GB/s", "x socket");
    if (b->csv != NULL) fprintf(b->csv, "rows,bytes,device_us,hop_us,socket_us\n");
    for (int i = 0; i < N_ROWS; i++) {
        double device, hop, plain, bytes = (double) ROWS[i] * (double) row_bytes(b);
        try(time_it(b, ROWS[i], through_device, &device, e));
        try(time_it(b, ROWS[i], through_link, &hop, e));
        try(time_it(b, ROWS[i], through_socket, &plain, e));
        printf("%6d %12.1f %12.1f %12.1f %12.2f %9.2f\n", ROWS[i], device, hop, plain,
               bytes / hop * 1e-3, hop / plain);
        fflush(stdout);
        if (b->csv == NULL) continue;
        fprintf(b->csv, "%d,%.0f,%.2f,%.2f,%.2f\n", ROWS[i], bytes, device, hop, plain);
    }
    return OK;
}

// --- what it takes

static enum status open_device(struct bench *b, struct error *e)
{
    const struct backend *k = b->devices.backend;
    struct device_options options = {.precision = b->precision};
    uint64_t x = carve_aligned((uint64_t) ROWS_MOST * (uint64_t) b->config.hidden_size * 4);
    struct scratch_shape shape = {.max_rows = ROWS_MOST, .hidden = b->config.hidden_size,
                                  .f32 = b->precision == PRECISION_F32};
    void *base;
    try(k->open(&b->device, &options, e));
    try(k->arena(b->device, 2 * x + device_sizes(k->kind)->scratch(&shape), &base, e));
    b->from = base;
    b->to = b->from + x / sizeof *b->to;
    k->set_scratch(b->device, &shape, (char *) base + 2 * x);
    size_t bytes = ROWS_MOST * row_bytes(b);
    if (k->pin != NULL) try(k->pin(b->device, b->payload, bytes, e));
    for (size_t i = 0; i < bytes; i++) b->payload[i] = (char) (i * 37 % 63); // numbers, in any type
    k->import_act(b->device, b->from, b->payload, ROWS_MOST * (size_t) b->config.hidden_size);
    return k->sync(b->device, e);
}

static enum status open_link(struct bench *b, struct error *e)
{
    size_t row = row_bytes(b), most = ROWS_MOST * row;
    b->zmq = zmq_ctx_new();
    b->received = malloc(most);
    if (b->zmq == NULL || b->received == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory");
    try(arena_create(&b->arena, HEADER + most, "what a hop sends", e));
    b->payload = b->arena->base;
    b->header = b->payload + most;
    b->tables[0] = calloc(1, standing_bytes(HEADER, HEADER, true));
    b->tables[1] = calloc(1, standing_bytes(most, row, false));
    if (b->tables[0] == NULL || b->tables[1] == NULL) {
        return error_set(e, ERR_NOMEM, NULL, "no memory for messages");
    }
    try(standing_init(&b->headers, b->tables[0], b->header, HEADER, HEADER, true, b->arena, e));
    try(standing_init(&b->payloads, b->tables[1], b->payload, most, row, false, b->arena, e));
    try(link_in_open(&b->in, b->zmq, "tcp://127.0.0.1:*", DEPTH, (int64_t) most, e));
    try(link_out_open(&b->out, b->zmq, b->in.endpoint, DEPTH, e));
    zmq_pollitem_t item = {.socket = b->out.socket, .events = ZMQ_POLLOUT};
    if (zmq_poll(&item, 1, WAIT_MS) == 1) return OK;
    return error_set(e, ERR_UNAVAILABLE, "link_lost", "no connection to %s", b->in.endpoint);
}

static enum status open_sockets(struct bench *b, struct error *e)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof address;
    struct sockaddr *at = (struct sockaddr *) (void *) &address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    b->sender = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool good = listener >= 0 && b->sender >= 0 && bind(listener, at, n) == 0 &&
                listen(listener, 1) == 0 && getsockname(listener, at, &n) == 0 &&
                connect(b->sender, at, n) == 0 &&
                (b->receiver = accept(listener, NULL, NULL)) >= 0;
    if (good) setsockopt(b->sender, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (listener >= 0) close(listener);
    return good ? OK : error_set(e, ERR_IO, NULL, "no sockets: %s", strerror(errno));
}

static void close_all(struct bench *b)
{
    if (b->device != NULL) b->devices.backend->close(&b->device);
    link_out_close(&b->out);
    link_in_close(&b->in);
    standing_deinit(&b->headers);
    standing_deinit(&b->payloads);
    if (b->zmq != NULL) zmq_ctx_term(b->zmq);
    arena_release(b->arena);
    if (b->sender >= 0) close(b->sender);
    if (b->receiver >= 0) close(b->receiver);
    for (int i = 0; i < 2; i++) free(b->tables[i]);
    free(b->received);
}

int bench_hop(int argc, char **argv)
{
    int64_t hidden = HIDDEN_DEFAULT, repeats = REPEATS_DEFAULT;
    const char *device = "cpu", *precision = "bf16", *csv = NULL;
    struct option_spec specs[] = {
        {.name = "device", .kind = OPTION_STRING, .value = &device, .argument = "cpu|cuda",
         .help = "Of both stages (default cpu)."},
        {.name = "precision", .kind = OPTION_STRING, .value = &precision, .argument = "bf16|f32",
         .help = "Of the activations (default bf16)."},
        {.name = "hidden", .kind = OPTION_INT, .value = &hidden, .argument = "N",
         .help = "Values of a row (default 7168).", .least = 1, .most = MODEL_HIDDEN_MAX},
        {.name = "repeats", .kind = OPTION_INT, .value = &repeats, .argument = "N",
         .help = "Hops of each number of rows (default 50).", .least = 1, .most = REPEATS_MOST},
        CSV_FLAG_ROW(csv),
    };
    struct options o = {.program = "penstock bench hop",
                        .usage = "[OPTIONS]",
                        .about = "Times a step's activations from device to device through a "
                                 "stage link, beside a plain socket.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    log_init("penstock", LOG_WARN, false);
    struct bench b = {.repeats = (int) repeats, .config.hidden_size = (int) hidden, .sender = -1,
                      .receiver = -1};
    bool f32 = strcmp(precision, "f32") == 0;
    b.precision = f32 ? PRECISION_F32 : PRECISION_BF16;
    enum status status = devices_parse(device, &b.devices, &e);
    if (status == OK && !f32 && strcmp(precision, "bf16") != 0) {
        status = error_set(&e, ERR_INPUT, "bad_usage", "--precision wants bf16 or f32");
    }
    if (status == OK) status = csv_open(&b.csv, csv, &e);
    if (status == OK) status = open_link(&b, &e);
    if (status == OK) status = open_device(&b, &e);
    if (status == OK) status = open_sockets(&b, &e);
    if (status == OK) status = run(&b, &e);
    status = csv_close(b.csv, csv, status, &e);
    close_all(&b);
    if (status == OK) return EXIT_DONE;
    return outcome_failed(o.program, &e, false);
}
