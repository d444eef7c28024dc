#include "workers/load.h"

#include "common/clock.h"
#include "common/direct.h"
#include "common/log.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECES_MAX = 1024 };

struct buffer_of_pieces {
    char *bytes; // (room), on a block of the disk
    struct load_piece pieces[PIECES_MAX];
    int n;
    size_t end;       // of the last piece
    uint64_t n_bytes; // of all pieces
    bool read;        // all are there
};

// A thread that fills buffers.
struct reader {
    struct load *load;
    pthread_t thread;
    int file, direct; // the file that it reads, and checkpoint_open_direct of it
};

struct load {
    struct load_options options;
    struct load_part *parts; // (n_parts) by file and offset
    int n_parts;
    uint64_t bytes;
    size_t room;                      // of a buffer, in whole blocks of the disk
    struct buffer_of_pieces *buffers; // (LOAD_BUFFERS)
    struct reader readers[LOAD_READERS];
    int n_readers; // that were started
    struct tensor_hash *hash;
    pthread_t checker;
    bool checks; // the checker was started

    pthread_mutex_t mutex; // guards what follows, and the buffers' pieces until they are read
    pthread_cond_t change;
    int n_joined, n_ended;
    int64_t begin_ns, end_ns;
    int part; // what the next buffer begins with
    int64_t row;
    struct buffer_of_pieces *free[LOAD_BUFFERS];  // (n_free) a stack
    struct buffer_of_pieces *begun[LOAD_BUFFERS]; // the latest, each at its number % LOAD_BUFFERS
    int n_free;
    uint64_t n_begun;         // buffers that a reader took to fill, ever
    uint64_t n_checked;       // of them, in their order
    uint64_t n_taken[TP_MAX]; // of those, by rank
    uint64_t n_freed;         // of those, by all ranks
    bool whole, stop;         // whole: nothing is left to check
    enum status status;       // of readers and checker
    struct error error;
};

// --- what is to be read

static enum status wanted(struct load *l, const struct slice *s, const char *name, int64_t rows,
                          int64_t cols, bool scales, struct error *e)
{
    const struct tensor *t = checkpoint_find(l->options.checkpoint, name);
    if (t == NULL) {
        return error_set(e, ERR_INPUT, "bad_checkpoint", "tensor %s is missing from the checkpoint",
                         name);
    }
    int64_t has_rows = t->n_dims > 0 ? t->shape[0] : 1, has_cols = t->n_dims > 1 ? t->shape[1] : 1;
    bool type_ok = !scales || t->dtype == DTYPE_F32 || t->dtype == DTYPE_BF16;
    if (t->n_dims > 2 || has_rows != rows || has_cols != cols || !type_ok) {
        return error_set(e, ERR_INPUT, "bad_checkpoint",
                         "tensor %s is %s [%lld, %lld], but must be %s [%lld, %lld]", name,
                         dtype_name(t->dtype), (long long) has_rows, (long long) has_cols,
                         scales ? "F32" : dtype_name(t->dtype), (long long) rows,
                         (long long) cols);
    }
    if (l->parts != NULL) {
        l->parts[l->n_parts] = (struct load_part){.tensor = t, .slice = *s, .scales = scales};
    }
    l->n_parts++;
    l->bytes += t->bytes;
    return OK;
}

struct listing {
    struct load *load;
    struct error *e;
};

static enum status list_slice(const struct slice *s, void *arg)
{
    struct listing *list = arg;
    struct load *l = list->load;
    const struct model_config *c = l->options.config;
    try(wanted(l, s, s->name, s->rows, s->cols, false, list->e));
    if (checkpoint_find(l->options.checkpoint, s->name)->dtype != DTYPE_F8_E4M3) return OK;
    char name[TENSOR_NAME_MAX + 16];
    snprintf(name, sizeof name, "%s_scale_inv", s->name);
    struct range rows = layout_blocks((struct range){0, s->rows}, c->scale_block);
    struct range cols = layout_blocks((struct range){0, s->cols}, c->scale_block);
    return wanted(l, s, name, rows.n, cols.n, true, list->e);
}

static int by_place(const void *a, const void *b)
{
    const struct tensor *x = ((const struct load_part *) a)->tensor;
    const struct tensor *y = ((const struct load_part *) b)->tensor;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

// Every rank's part together: the stage as one rank would have it.
static struct placement whole_stage(const struct load_options *o)
{
    struct placement p = o->place;
    p.tp_rank = 0;
    p.tp = 1;
    return p;
}

static enum status list_parts(struct load *l, struct error *e)
{
    struct listing list = {l, e};
    struct placement place = whole_stage(&l->options);
    try(layout_walk(l->options.config, &place, list_slice, &list));
    l->parts = calloc((size_t) l->n_parts + 1, sizeof *l->parts);
    if (l->parts == NULL) {
        return error_set(e, ERR_NOMEM, NULL, "no memory for a list of %d tensors", l->n_parts);
    }
    l->n_parts = 0;
    l->bytes = 0;
    try(layout_walk(l->options.config, &place, list_slice, &list));
    qsort(l->parts, (size_t) l->n_parts, sizeof *l->parts, by_place);
    return OK;
}

// --- pieces

// Rows that come in one piece: W_UK of a head is turned as a whole, and so are its scales.
static int64_t rows_together(const struct model_config *c, const struct slice *s, bool scales)
{
    if (s->role != ROLE_KV_B) return scales ? 1 : LOAD_PANEL_ROWS;
    if (scales) return layout_blocks((struct range){0, s->rows}, c->scale_block).n;
    return c->qk_nope_head_dim > LOAD_PANEL_ROWS ? c->qk_nope_head_dim : LOAD_PANEL_ROWS;
}

// Where the next piece of the part must begin: at each rank's first row, at each head's two halves.
static int64_t next_mark(const struct load *l, const struct load_part *part, int64_t row)
{
    const struct model_config *c = l->options.config;
    int64_t rows = part->tensor->n_dims > 0 ? part->tensor->shape[0] : 1, mark = rows;
    if (part->scales) return rows;
    if (part->slice.role == ROLE_KV_B) {
        int64_t head = c->qk_nope_head_dim + c->v_head_dim, at = row % head;
        return row - at + (at < c->qk_nope_head_dim ? c->qk_nope_head_dim : head);
    }
    for (int rank = 0; part->slice.cut == CUT_ROWS && rank < l->options.place.tp; rank++) {
        struct slice s = part->slice;
        layout_cut(c, &s, rank, l->options.place.tp);
        if (s.row.begin > row && s.row.begin < mark) mark = s.row.begin;
    }
    return mark;
}

static size_t row_bytes(const struct tensor *t)
{
    return (size_t) (t->n_dims > 1 ? t->shape[1] : 1) * dtype_size(t->dtype);
}

static uint64_t row_offset(const struct load_part *part, int64_t row)
{
    return part->tensor->offset + (uint64_t) row * row_bytes(part->tensor);
}

static size_t piece_bytes(const struct load_piece *p)
{
    return (size_t) p->n_rows * row_bytes(p->part->tensor);
}

// Whether row `row` of the part lies right behind the piece in its file.
static bool follows(const struct load_piece *p, const struct load_part *part, int64_t row)
{
    return part->tensor->file == p->part->tensor->file &&
           row_offset(part, row) == row_offset(p->part, p->row0) + piece_bytes(p);
}

// Where the next piece comes in the buffer: behind the last one, if it is so in the file; else as
// far into a block as it lies in the file (direct.h).
static size_t next_place(const struct load *l, const struct buffer_of_pieces *b)
{
    const struct load_part *part = &l->parts[l->part];
    if (b->n > 0 && follows(&b->pieces[b->n - 1], part, l->row)) return b->end;
    return direct_aligned(b->end) + row_offset(part, l->row) % DIRECT_ALIGN;
}

// Adds the next piece to the buffer; false if there is no room, or nothing left.
static bool add_piece(struct load *l, struct buffer_of_pieces *b)
{
    if (l->part == l->n_parts || b->n == PIECES_MAX) return false;
    const struct load_part *part = &l->parts[l->part];
    const struct tensor *t = part->tensor;
    int64_t left = next_mark(l, part, l->row) - l->row;
    int64_t together = rows_together(l->options.config, &part->slice, part->scales);
    size_t place = next_place(l, b);
    int64_t fit = place < l->room ? (int64_t) ((l->room - place) / row_bytes(t)) : 0;
    int64_t n = left <= fit ? left : fit / LOAD_PANEL_ROWS * LOAD_PANEL_ROWS;
    if (part->scales && left > fit) n = fit;
    if (n == 0 || (n < left && n < together)) return false;
    b->pieces[b->n++] = (struct load_piece){part, l->row, n, b->bytes + place};
    b->end = place + (size_t) n * row_bytes(t);
    b->n_bytes += (size_t) n * row_bytes(t);
    l->row += n;
    int64_t rows = t->n_dims > 0 ? t->shape[0] : 1;
    if (l->row == rows) {
        l->row = 0;
        l->part++;
    }
    return true;
}

// --- what the threads tell each other

// The first error is the one that is told. It wakes whoever waits.
static void fail(struct load *l, enum status status, const struct error *e)
{
    pthread_mutex_lock(&l->mutex);
    if (l->status == OK) {
        l->status = status;
        l->error = *e;
    }
    pthread_cond_broadcast(&l->change);
    pthread_mutex_unlock(&l->mutex);
}

static bool ended(const struct load *l) { return l->stop || l->status != OK; }

// The last that was freed is filled first: it is in the CPU's caches, so the disk's bytes need not
// go through memory.
static bool has_room(const struct load *l) { return l->begin_ns > 0 && l->n_free > 0; }

// The next buffer, with the pieces that are to be read into it. NULL: nothing is left, or loading
// has ended.
static struct buffer_of_pieces *begin_buffer(struct load *l)
{
    struct buffer_of_pieces *b = NULL;
    pthread_mutex_lock(&l->mutex);
    while (!ended(l) && l->part < l->n_parts && !has_room(l)) {
        pthread_cond_wait(&l->change, &l->mutex);
    }
    if (!ended(l) && l->part < l->n_parts) {
        b = l->free[--l->n_free];
        l->begun[l->n_begun++ % LOAD_BUFFERS] = b;
        b->n = 0;
        b->end = 0;
        b->n_bytes = 0;
        b->read = false;
        while (add_piece(l, b)) {}
        check(b->n > 0, "no row of %s fits a buffer", l->parts[l->part].tensor->name);
    }
    pthread_mutex_unlock(&l->mutex);
    return b;
}

static void set_read(struct load *l, struct buffer_of_pieces *b)
{
    pthread_mutex_lock(&l->mutex);
    b->read = true;
    pthread_cond_broadcast(&l->change);
    pthread_mutex_unlock(&l->mutex);
}

// The next buffer in order, when it was read. NULL: all were, or loading has ended.
static const struct buffer_of_pieces *wait_read(struct load *l)
{
    pthread_mutex_lock(&l->mutex);
    const struct buffer_of_pieces *b = NULL;
    while (!ended(l) && (l->n_checked < l->n_begun || l->part < l->n_parts)) {
        b = l->n_checked < l->n_begun ? l->begun[l->n_checked % LOAD_BUFFERS] : NULL;
        if (b != NULL && b->read) break;
        b = NULL;
        pthread_cond_wait(&l->change, &l->mutex);
    }
    pthread_mutex_unlock(&l->mutex);
    return b;
}

static void set_checked(struct load *l)
{
    pthread_mutex_lock(&l->mutex);
    l->n_checked++;
    pthread_cond_broadcast(&l->change);
    pthread_mutex_unlock(&l->mutex);
}

static void set_whole(struct load *l)
{
    pthread_mutex_lock(&l->mutex);
    l->whole = true;
    pthread_cond_broadcast(&l->change);
    pthread_mutex_unlock(&l->mutex);
}

// --- the readers

static void open_file(struct reader *r, int file)
{
    if (file == r->file) return;
    if (r->direct >= 0) close(r->direct);
    r->direct = file >= 0 ? checkpoint_open_direct(r->load->options.checkpoint, file) : -1;
    r->file = file;
}

// Pieces that lie one behind the other are read at once.
static enum status fill(struct reader *r, const struct buffer_of_pieces *b, struct error *e)
{
    const struct load *l = r->load;
    const struct checkpoint *c = l->options.checkpoint;
    for (int i = 0; i < b->n;) {
        const struct load_piece *first = &b->pieces[i], *p = first;
        const struct tensor *t = first->part->tensor;
        uint64_t offset = row_offset(first->part, first->row0);
        char *to = b->bytes + (first->bytes - b->bytes);
        size_t n = piece_bytes(first);
        while (++i < b->n && follows(p, b->pieces[i].part, b->pieces[i].row0)) {
            p = &b->pieces[i];
            n += piece_bytes(p);
        }
        open_file(r, t->file);
        if (r->direct >= 0) {
            try(checkpoint_read_direct(c, t, r->direct, offset, to, n, e));
            continue;
        }
        // The disk goes on while these bytes are copied.
        checkpoint_will_read(c, t, offset + n, LOAD_BUFFERS * l->room);
        try(checkpoint_read_file(c, t, offset, to, n, e));
    }
    return OK;
}

static void *reader_main(void *arg)
{
    struct reader *r = arg;
    struct error e = {0};
    struct buffer_of_pieces *b;
    while ((b = begin_buffer(r->load)) != NULL) {
        enum status status = fill(r, b, &e);
        if (status == OK) set_read(r->load, b);
        else fail(r->load, status, &e);
    }
    open_file(r, -1);
    return NULL;
}

// --- the checker

static enum status hash_piece(struct load *l, const struct load_piece *p, struct error *e)
{
    const struct tensor *t = p->part->tensor;
    int64_t rows = t->n_dims > 0 ? t->shape[0] : 1;
    char hex[TENSOR_HASH_SIZE];
    if (p->row0 == 0) tensor_hash_begin(l->hash);
    tensor_hash_add(l->hash, p->bytes, piece_bytes(p));
    if (p->row0 + p->n_rows < rows) return OK;
    tensor_hash_end(l->hash, hex);
    return manifest_check(l->options.manifest, t->name,
                          checkpoint_file(l->options.checkpoint, t->file), hex, e);
}

// What is loaded is whole, whether or not its hashes can be kept.
static void save_manifest(const struct load *l)
{
    struct error e = {0};
    if (l->options.manifest == NULL || manifest_save(l->options.manifest, &e) == OK) return;
    log_line(LOG_WARN, "manifest_not_saved", log_str("code", e.code), log_str("error", e.text));
}

static void *checker_main(void *arg)
{
    struct load *l = arg;
    struct error e = {0};
    const struct buffer_of_pieces *b;
    enum status status = OK;
    while ((b = wait_read(l)) != NULL) {
        for (int i = 0; i < b->n && l->options.manifest != NULL && status == OK; i++) {
            status = hash_piece(l, &b->pieces[i], &e);
        }
        if (status == OK) set_checked(l);
        else fail(l, status, &e);
    }
    pthread_mutex_lock(&l->mutex);
    bool all = !ended(l);
    pthread_mutex_unlock(&l->mutex);
    if (!all) return NULL;
    save_manifest(l);
    set_whole(l);
    return NULL;
}

// --- life

// The largest piece that must come whole decides, where it is larger than the usual buffer.
struct measure {
    const struct model_config *config;
    size_t bytes;
};

static enum status measure_slice(const struct slice *s, void *arg)
{
    struct measure *m = arg;
    size_t need = (size_t) (rows_together(m->config, s, false) * s->cols) * sizeof(float);
    if (need > m->bytes) m->bytes = need;
    int block = m->config->scale_block > 0 ? m->config->scale_block : SCALE_BLOCK;
    struct range cols = layout_blocks((struct range){0, s->cols}, block);
    need = (size_t) (rows_together(m->config, s, true) * cols.n) * sizeof(float);
    if (s->quantized && need > m->bytes) m->bytes = need;
    return OK;
}

// Beyond the piece itself: where it lies in a block of the disk, and where the memory does.
static size_t buffer_bytes(const struct load_options *o)
{
    struct measure m = {o->config, 0};
    struct placement place = whole_stage(o);
    layout_walk(o->config, &place, measure_slice, &m);
    size_t bytes = direct_aligned(m.bytes) + 2 * DIRECT_ALIGN;
    return bytes > LOAD_BUFFER_BYTES ? bytes : LOAD_BUFFER_BYTES;
}

uint64_t load_memory_bytes(const struct load_options *o)
{
    return (uint64_t) buffer_bytes(o) * LOAD_BUFFERS;
}

static void place_buffers(struct load *l)
{
    size_t bytes = buffer_bytes(&l->options);
    uintptr_t memory = (uintptr_t) l->options.memory;
    l->room = bytes - DIRECT_ALIGN;
    for (size_t i = 0; i < LOAD_BUFFERS; i++) {
        size_t at = direct_aligned(memory + i * bytes) - memory;
        l->buffers[i].bytes = (char *) l->options.memory + at;
        l->free[l->n_free++] = &l->buffers[i];
    }
}

static enum status start_threads(struct load *l, struct error *e)
{
    int failed = pthread_create(&l->checker, NULL, checker_main, l);
    l->checks = failed == 0;
    for (int i = 0; failed == 0 && i < LOAD_READERS; i++) {
        l->readers[i] = (struct reader){.load = l, .file = -1, .direct = -1};
        failed = pthread_create(&l->readers[i].thread, NULL, reader_main, &l->readers[i]);
        l->n_readers += failed == 0;
    }
    if (failed == 0) return OK;
    return error_set(e, ERR_IO, NULL, "cannot start a thread to read the checkpoint: %s",
                     strerror(failed));
}

enum status load_create(struct load **load, const struct load_options *o, struct error *e)
{
    struct load *l = calloc(1, sizeof *l);
    *load = l;
    if (l == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a loader");
    l->options = *o;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->change, NULL);
    l->buffers = calloc(LOAD_BUFFERS, sizeof *l->buffers);
    l->hash = tensor_hash_create();
    enum status status = OK;
    if (l->buffers == NULL || l->hash == NULL) {
        status = error_set(e, ERR_NOMEM, NULL, "no memory for the lists of a loader");
    }
    if (status == OK) place_buffers(l);
    if (status == OK) status = list_parts(l, e);
    if (status == OK) status = start_threads(l, e);
    if (status != OK) load_destroy(load);
    return status;
}

void load_join(struct load *l)
{
    pthread_mutex_lock(&l->mutex);
    if (++l->n_joined == l->options.place.tp) {
        l->begin_ns = clock_ns();
        pthread_cond_broadcast(&l->change);
    }
    pthread_mutex_unlock(&l->mutex);
}

enum status load_next(struct load *l, int rank, struct load_batch *batch, struct error *e)
{
    pthread_mutex_lock(&l->mutex);
    while (l->n_taken[rank] == l->n_checked && !l->whole && !ended(l)) {
        pthread_cond_wait(&l->change, &l->mutex);
    }
    enum status status = l->status;
    *batch = (struct load_batch){0};
    if (l->stop) {
        status = error_set(e, ERR_ABORTED, NULL, "loading was stopped");
    } else if (status != OK) {
        if (e != NULL) *e = l->error;
    } else if (l->n_taken[rank] < l->n_checked) {
        const struct buffer_of_pieces *b = l->begun[l->n_taken[rank] % LOAD_BUFFERS];
        *batch = (struct load_batch){b->pieces, b->n, b->n_bytes};
    } else if (++l->n_ended == l->options.place.tp) {
        l->end_ns = clock_ns();
    }
    pthread_mutex_unlock(&l->mutex);
    return status;
}

void load_done(struct load *l, int rank)
{
    pthread_mutex_lock(&l->mutex);
    uint64_t least = ++l->n_taken[rank];
    for (int i = 0; i < l->options.place.tp; i++) {
        if (l->n_taken[i] < least) least = l->n_taken[i];
    }
    while (l->n_freed < least) l->free[l->n_free++] = l->begun[l->n_freed++ % LOAD_BUFFERS];
    pthread_cond_broadcast(&l->change);
    pthread_mutex_unlock(&l->mutex);
}

void load_abort(struct load *l)
{
    pthread_mutex_lock(&l->mutex);
    l->stop = true;
    pthread_cond_broadcast(&l->change);
    pthread_mutex_unlock(&l->mutex);
}

uint64_t load_bytes(const struct load *l) { return l->bytes; }

int64_t load_ns(struct load *l)
{
    pthread_mutex_lock(&l->mutex);
    int64_t ns = l->end_ns > 0 ? l->end_ns - l->begin_ns : 0;
    pthread_mutex_unlock(&l->mutex);
    return ns;
}

void load_destroy(struct load **load)
{
    struct load *l = *load;
    if (l == NULL) return;
    *load = NULL;
    load_abort(l);
    for (int i = 0; i < l->n_readers; i++) pthread_join(l->readers[i].thread, NULL);
    if (l->checks) pthread_join(l->checker, NULL);
    pthread_cond_destroy(&l->change);
    pthread_mutex_destroy(&l->mutex);
    tensor_hash_destroy(&l->hash);
    free(l->buffers);
    free(l->parts);
    free(l);
}
