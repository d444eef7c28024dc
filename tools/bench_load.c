// penstock bench load: how fast a checkpoint gets into the ranks' arenas, beside what bounds it:
// reading its files from the disk as the loader does, and a copy in memory with the same check (the
// manifest's hash), all probed in the same run.
#include "common/arena.h"
#include "common/carve.h"
#include "common/clock.h"
#include "common/direct.h"
#include "common/layout.h"
#include "common/log.h"
#include "common/options.h"
#include "common/tensor_hash.h"
#include "kernels/precision.h"
#include "tools/commands.h"
#include "tools/csv.h"
#include "tools/outcome.h"
#include "tools/made_model.h"
#include "workers/load.h"
#include "workers/stage.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { COPY_BYTES = 256 * 1024 * 1024, REPEATS_MAX = 100 };

struct bench {
    const char *model, *dir, *csv, *precision;
    int64_t tp, threads, repeat, size;
    bool warm;
    char made[PATH_MAX], manifest[PATH_MAX]; // paths of what this run makes
    struct model_config config;
    struct checkpoint *checkpoint;
    char model_hash[33];
    enum precision p;
    FILE *out; // CSV, or NULL
    double ratios[REPEATS_MAX];
};

// --- the checkpoint

// Expert matrices as large as a rank of DeepSeek-V3 has them at TP 8, and so many layers as `size`
// takes.
static struct made_shape shape_of(int64_t size)
{
    struct made_shape s = {.hidden = 2048, .heads = 16, .experts = 32, .moe_intermediate = 1024,
                           .q_lora = 512, .kv_lora = 512, .nope = 128, .rope = 64, .v = 128,
                           .vocab = 8192, .context = 4096, .dtype = DTYPE_F8_E4M3};
    int64_t layer = (int64_t) (s.experts + 1) * 3 * s.hidden * s.moe_intermediate;
    s.layers = 1 + (int) (size / layer > 0 ? size / layer : 1);
    return s;
}

static enum status make(struct bench *b, struct error *e)
{
    struct made_shape shape = shape_of(b->size);
    snprintf(b->made, sizeof b->made, "%s/penstock-load-XXXXXX", b->dir);
    if (mkdtemp(b->made) == NULL) {
        b->made[0] = 0;
        return error_set(e, ERR_IO, NULL, "cannot make a folder in %s: %s", b->dir,
                         strerror(errno));
    }
    snprintf(b->manifest, sizeof b->manifest, "%s/penstock-load-XXXXXX.manifest", b->dir);
    int fd = mkstemps(b->manifest, 9);
    if (fd < 0) return error_set(e, ERR_IO, NULL, "cannot write in %s", b->dir);
    close(fd);
    unlink(b->manifest);
    if (b->model == NULL) {
        try(made_model_write(b->made, &shape, e));
        b->model = b->made;
    }
    return OK;
}

static void clean(struct bench *b)
{
    static const char *const names[] = {"config.json", "model.safetensors"};
    char path[PATH_MAX + 32];
    checkpoint_close(&b->checkpoint);
    unlink(b->manifest);
    snprintf(path, sizeof path, "%s.lock", b->manifest);
    unlink(path);
    if (b->made[0] == 0) return;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", b->made, names[i]);
        unlink(path);
    }
    rmdir(b->made);
}

// So that the next read comes from the disk.
static void forget(const struct bench *b)
{
    for (int i = 0; i < checkpoint_n_files(b->checkpoint) && !b->warm; i++) {
        int fd = open(checkpoint_file(b->checkpoint, i), O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        fsync(fd); // what was not written yet would stay
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
}

// --- probes, in bytes a nanosecond

// What the probe's threads share: the files, read as the loader reads them and thrown away.
struct probe {
    const struct bench *bench;
    char *memory;         // LOAD_BUFFER_BYTES for each thread, on pages like the loader's
    _Atomic int n_threads;
    _Atomic int64_t next; // the window of LOAD_BUFFER_BYTES that is read next, over all files
    _Atomic int64_t bytes;
    _Atomic bool failed;
};

// Reads every window of file `file` that is this thread's; *at counts them over all files.
static bool probe_file(struct probe *p, int file, char *buffer, int64_t *at, int64_t *mine)
{
    const char *path = checkpoint_file(p->bench->checkpoint, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int direct = p->bench->warm || fd < 0 ? -1 : direct_open(path, fd);
    off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    bool good = size >= 0;
    for (off_t offset = 0; good && offset < size; offset += LOAD_BUFFER_BYTES, ++*at) {
        if (*at < *mine) continue;
        size_t n = (size_t) (size - offset);
        if (n > LOAD_BUFFER_BYTES) n = LOAD_BUFFER_BYTES;
        size_t done = direct < 0 ? 0 : direct_read(direct, (uint64_t) offset, buffer, n);
        while (done < n) {
            ssize_t got = pread(fd, buffer + done, n - done, offset + (off_t) done);
            if (got <= 0) break;
            done += (size_t) got;
        }
        good = done == n;
        atomic_fetch_add(&p->bytes, (int64_t) done);
        *mine = atomic_fetch_add(&p->next, 1);
    }
    if (direct >= 0) close(direct);
    if (fd >= 0) close(fd);
    return good;
}

static void *probe_main(void *arg)
{
    struct probe *p = arg;
    char *buffer = p->memory + (size_t) atomic_fetch_add(&p->n_threads, 1) * LOAD_BUFFER_BYTES;
    int64_t at = 0, mine = atomic_fetch_add(&p->next, 1);
    bool good = true;
    for (int i = 0; good && i < checkpoint_n_files(p->bench->checkpoint); i++) {
        good = probe_file(p, i, buffer, &at, &mine);
    }
    if (!good) atomic_store(&p->failed, true);
    return NULL;
}

static enum status probe_disk(const struct bench *b, double *rate, struct error *e)
{
    struct arena *memory;
    pthread_t threads[LOAD_READERS];
    int n = 0;
    try(arena_create(&memory, LOAD_READERS * LOAD_BUFFER_BYTES, "a probe", e));
    struct probe p = {.bench = b, .memory = memory->base};
    forget(b);
    int64_t begin = clock_ns();
    while (n < LOAD_READERS && pthread_create(&threads[n], NULL, probe_main, &p) == 0) n++;
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
    *rate = (double) p.bytes / (double) (clock_ns() - begin);
    arena_release(memory);
    if (n == LOAD_READERS && !p.failed) return OK;
    return error_set(e, ERR_IO, NULL, "cannot read the files of %s", b->model);
}

static enum status probe_copy(double *rate, struct error *e)
{
    struct arena *from, *to;
    struct tensor_hash *hash = tensor_hash_create();
    if (hash == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a hash");
    try(arena_create(&from, COPY_BYTES, "a probe", e));
    enum status status = arena_create(&to, COPY_BYTES, "a probe", e);
    if (status == OK) {
        int64_t begin = clock_ns();
        tensor_hash_begin(hash);
        for (size_t at = 0; at < COPY_BYTES; at += LOAD_BUFFER_BYTES) {
            memcpy(to->base + at, from->base + at, LOAD_BUFFER_BYTES);
            tensor_hash_add(hash, to->base + at, LOAD_BUFFER_BYTES);
        }
        char hex[TENSOR_HASH_SIZE];
        tensor_hash_end(hash, hex);
        *rate = (double) COPY_BYTES / (double) (clock_ns() - begin);
        arena_release(to);
    }
    arena_release(from);
    tensor_hash_destroy(&hash);
    return status;
}

// --- loading

static enum status wait_ready(struct stage *s, struct error *e)
{
    enum stage_state state;
    while ((state = stage_state(s, e)) == STAGE_LOADING) {
        struct pollfd p = {.fd = stage_fd(s), .events = POLLIN};
        uint64_t times;
        poll(&p, 1, 1000);
        ssize_t ignored = read(stage_fd(s), &times, sizeof times);
        (void) ignored;
    }
    return state == STAGE_READY ? OK : e->status;
}

static enum status load(const struct bench *b, double *rate, struct error *e)
{
    struct manifest *manifest;
    struct arena *host;
    struct stage *stage = NULL;
    struct stage_options o = {.config = &b->config,
                              .checkpoint = b->checkpoint,
                              .backend = backend_cpu(),
                              .last = b->config.n_layers,
                              .head = true,
                              .tail = true,
                              .tp = (int) b->tp,
                              .n_threads = (int) b->threads,
                              .precision = b->p,
                              .limits = {.max_rows = 16, .slots = 1, .max_blocks = 1,
                                         .n_blocks = 1, .max_out = 1,
                                         .vocab_size = b->config.vocab_size},
                              .n_steps = 1};
    try(manifest_open(&manifest, b->manifest, b->model_hash, e));
    o.manifest = manifest;
    uint64_t steps = carve_aligned(stage_memory_bytes(&o));
    enum status status = arena_create(&host, steps + stage_staging_bytes(&o), "buffers", e);
    if (status == OK) {
        o.memory = host->base;
        o.staging = host->base + steps;
        forget(b);
        status = stage_create(&stage, &o, e);
    }
    if (status == OK) status = wait_ready(stage, e);
    if (status == OK) {
        uint64_t loaded, bytes;
        stage_progress(stage, &loaded, &bytes);
        *rate = (double) bytes / (double) stage_load_ns(stage);
    }
    stage_destroy(&stage);
    arena_release(host);
    manifest_close(&manifest);
    return status;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;
    return x < y ? -1 : x > y;
}

static enum status run_all(struct bench *b, struct error *e)
{
    if (b->out != NULL) fprintf(b->out, "disk_gb_s,copy_and_check_gb_s,load_gb_s,ratio\n");
    printf("%.2f GB, %d tensors, tp %d; GB/s%s\n", (double) checkpoint_bytes(b->checkpoint) / 1e9,
           checkpoint_n_tensors(b->checkpoint), (int) b->tp, b->warm ? ", page cache warm" : "");
    printf("%10s %16s %10s %8s\n", "disk", "copy and check", "load", "ratio");
    for (int i = 0; i < b->repeat; i++) {
        double disk = 1, copy = 1, got = 0;
        try(probe_disk(b, &disk, e));
        try(probe_copy(&copy, e));
        try(load(b, &got, e));
        double ratio = b->ratios[i] = got / (disk < copy ? disk : copy);
        printf("%10.2f %16.2f %10.2f %8.2f\n", disk, copy, got, ratio);
        if (b->out != NULL) fprintf(b->out, "%.3f,%.3f,%.3f,%.3f\n", disk, copy, got, ratio);
    }
    qsort(b->ratios, (size_t) b->repeat, sizeof *b->ratios, by_size);
    printf("median ratio to the slower of disk and copy: %.2f\n", b->ratios[b->repeat / 2]);
    return OK;
}

static enum status prepare(struct bench *b, struct error *e)
{
    try(precision_parse(b->precision, backend_cpu(), &b->p, e));
    try(make(b, e));
    try(model_config_load(&b->config, b->model, e));
    try(layout_check_tp(&b->config, (int) b->tp, e));
    try(checkpoint_open(&b->checkpoint, b->model, e));
    try(layout_check_checkpoint(&b->config, b->checkpoint, e));
    checkpoint_manifest_hash(b->checkpoint, b->model_hash);
    return csv_open(&b->out, b->csv, e);
}

int bench_load(int argc, char **argv)
{
    static struct bench b = {.dir = ".", .precision = "auto", .tp = 1, .repeat = 5,
                             .size = 1024ll * 1024 * 1024};
    struct option_spec specs[] = {
        {.name = "model", .kind = OPTION_STRING, .value = &b.model, .argument = "DIR",
         .help = "Checkpoint to load; default: one is made up in --dir and removed again."},
        {.name = "size", .kind = OPTION_BYTES, .value = &b.size, .argument = "BYTES",
         .help = "Of the one that is made up (default 1GiB)."},
        {.name = "dir", .kind = OPTION_STRING, .value = &b.dir, .argument = "DIR",
         .help = "On the disk that is measured (default: here)."},
        {.name = "tp", .kind = OPTION_INT, .value = &b.tp, .argument = "N",
         .help = "Ranks that share the load (default 1).", .least = 1, .most = TP_MAX},
        {.name = "threads", .kind = OPTION_INT, .value = &b.threads, .argument = "N",
         .help = "Threads of each rank; 0: the cores.", .least = 0, .most = DEVICE_THREADS_MAX},
        {.name = "precision", .kind = OPTION_STRING, .value = &b.precision,
         .argument = "auto|f32|bf16", .help = "Of the ranks."},
        {.name = "repeat", .kind = OPTION_INT, .value = &b.repeat, .argument = "N",
         .help = "Times that probes and load are run (default 5).", .least = 1,
         .most = REPEATS_MAX},
        {.name = "warm", .kind = OPTION_FLAG, .value = &b.warm,
         .help = "Leaves the files in the page cache: then the copy bounds."},
        CSV_FLAG_ROW(b.csv),
    };
    struct options o = {.program = "penstock bench load",
                        .usage = "[OPTIONS]",
                        .about = "Times loading a checkpoint, beside its disk and a copy with the "
                                 "same check.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    log_init("bench", LOG_WARN, false);
    enum status status = prepare(&b, &e);
    if (status == OK) status = run_all(&b, &e);
    status = csv_close(b.out, b.csv, status, &e);
    clean(&b);
    if (status == OK) return EXIT_DONE;
    return outcome_failed(o.program, &e, false);
}
