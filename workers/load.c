#include "workers/load.h"

#include "common/clock.h"
#include "common/log.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECES_MAX = 1024, PIECE_ALIGN = 64 };

struct buffer_of_pieces {
    char *bytes;
    struct load_piece pieces[PIECES_MAX];
    int n;
    size_t used;
};

struct load {
    struct load_options options;
    struct load_part *parts; // (n_parts) by file and offset
    int n_parts;
    uint64_t bytes;
    size_t buffer_bytes;
    struct buffer_of_pieces *buffers; // (LOAD_BUFFERS)
    struct tensor_hash *hash;
    // Of the reader: where it stands.
    int part;
    int64_t row;
    pthread_t reader;
    bool started;

    pthread_mutex_t mutex; // guards what follows
    pthread_cond_t change;
    int n_joined, n_ended;
    int64_t begin_ns, end_ns;
    uint64_t n_filled;          // buffers that were filled, ever
    uint64_t n_taken[TP_MAX];   // of them, by rank
    bool read_all, stop;
    enum status status;         // of the reader
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

// Adds the next piece to the buffer; false if there is no room, or nothing left.
static bool add_piece(struct load *l, struct buffer_of_pieces *b)
{
    if (l->part == l->n_parts || b->n == PIECES_MAX) return false;
    const struct load_part *part = &l->parts[l->part];
    const struct tensor *t = part->tensor;
    int64_t left = next_mark(l, part, l->row) - l->row;
    int64_t together = rows_together(l->options.config, &part->slice, part->scales);
    int64_t fit = (int64_t) ((l->buffer_bytes - b->used) / row_bytes(t));
    int64_t n = left <= fit ? left : fit / LOAD_PANEL_ROWS * LOAD_PANEL_ROWS;
    if (part->scales && left > fit) n = fit;
    if (n == 0 || (n < left && n < together)) return false;
    b->pieces[b->n++] = (struct load_piece){part, l->row, n, b->bytes + b->used};
    b->used += (size_t) n * row_bytes(t);
    l->row += n;
    int64_t rows = t->n_dims > 0 ? t->shape[0] : 1;
    if (l->row == rows) {
        l->row = 0;
        l->part++;
    }
    return true;
}

static uint64_t file_offset(const struct load_piece *p)
{
    return p->part->tensor->offset + (uint64_t) p->row0 * row_bytes(p->part->tensor);
}

static size_t piece_bytes(const struct load_piece *p)
{
    return (size_t) p->n_rows * row_bytes(p->part->tensor);
}

// Whether b lies behind a in the file and in the buffer.
static bool follows(const struct load_piece *a, const struct load_piece *b)
{
    return b->part->tensor->file == a->part->tensor->file &&
           file_offset(b) == file_offset(a) + piece_bytes(a) &&
           b->bytes == a->bytes + piece_bytes(a);
}

// --- the reader

static enum status hash_piece(struct load *l, const struct load_piece *p, struct error *e)
{
    const struct tensor *t = p->part->tensor;
    int64_t rows = t->n_dims > 0 ? t->shape[0] : 1;
    char hex[TENSOR_HASH_SIZE];
    if (l->options.manifest == NULL) return OK;
    if (p->row0 == 0) tensor_hash_begin(l->hash);
    tensor_hash_add(l->hash, p->bytes, piece_bytes(p));
    if (p->row0 + p->n_rows < rows) return OK;
    tensor_hash_end(l->hash, hex);
    return manifest_check(l->options.manifest, t->name,
                          checkpoint_file(l->options.checkpoint, t->file), hex, e);
}

// Pieces that lie one behind the other are read at once.
static enum status fill(struct load *l, struct buffer_of_pieces *b, struct error *e)
{
    b->n = 0;
    b->used = 0;
    while (add_piece(l, b)) {}
    check(b->n > 0, "no row of %s fits a buffer", l->parts[l->part].tensor->name);
    for (int i = 0; i < b->n;) {
        const struct load_piece *first = &b->pieces[i];
        size_t n = 0;
        int end = i;
        do n += piece_bytes(&b->pieces[end++]);
        while (end < b->n && follows(&b->pieces[end - 1], &b->pieces[end]));
        // The disk goes on while these bytes are copied and hashed.
        checkpoint_will_read(l->options.checkpoint, first->part->tensor, file_offset(first) + n,
                             LOAD_BUFFERS * l->buffer_bytes);
        try(checkpoint_read_file(l->options.checkpoint, first->part->tensor, file_offset(first),
                                 b->bytes + (first->bytes - b->bytes), n, e));
        for (; i < end; i++) try(hash_piece(l, &b->pieces[i], e));
    }
    return OK;
}

// Waits for a buffer that all ranks are done with; false when loading was stopped.
static bool wait_for_room(struct load *l)
{
    pthread_mutex_lock(&l->mutex);
    for (;;) {
        uint64_t least = l->n_filled;
        for (int i = 0; i < l->options.place.tp; i++) {
            if (l->n_taken[i] < least) least = l->n_taken[i];
        }
        if (l->stop || (l->begin_ns > 0 && l->n_filled - least < LOAD_BUFFERS)) break;
        pthread_cond_wait(&l->change, &l->mutex);
    }
    bool go = !l->stop;
    pthread_mutex_unlock(&l->mutex);
    return go;
}

static void publish(struct load *l, enum status status, bool all, const struct error *e)
{
    pthread_mutex_lock(&l->mutex);
    l->status = status;
    if (status != OK) l->error = *e;
    else l->n_filled += !all;
    l->read_all = all;
    pthread_cond_broadcast(&l->change);
    pthread_mutex_unlock(&l->mutex);
}

// What is loaded is whole, whether or not its hashes can be kept.
static void save_manifest(const struct load *l)
{
    struct error e = {0};
    if (l->options.manifest == NULL || manifest_save(l->options.manifest, &e) == OK) return;
    log_line(LOG_WARN, "manifest_not_saved", log_str("code", e.code), log_str("error", e.text));
}

static void *reader_main(void *arg)
{
    struct load *l = arg;
    struct error e = {0};
    enum status status = OK;
    while (status == OK && l->part < l->n_parts) {
        if (!wait_for_room(l)) return NULL;
        status = fill(l, &l->buffers[l->n_filled % LOAD_BUFFERS], &e);
        publish(l, status, false, &e);
    }
    if (status != OK) return NULL;
    save_manifest(l);
    publish(l, OK, true, &e);
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

static size_t buffer_bytes(const struct load_options *o)
{
    struct measure m = {o->config, LOAD_BUFFER_BYTES};
    struct placement place = whole_stage(o);
    layout_walk(o->config, &place, measure_slice, &m);
    return (m.bytes + PIECE_ALIGN - 1) / PIECE_ALIGN * PIECE_ALIGN;
}

uint64_t load_memory_bytes(const struct load_options *o)
{
    return (uint64_t) buffer_bytes(o) * LOAD_BUFFERS;
}

enum status load_create(struct load **load, const struct load_options *o, struct error *e)
{
    struct load *l = calloc(1, sizeof *l);
    *load = l;
    if (l == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a loader");
    l->options = *o;
    l->buffer_bytes = buffer_bytes(o);
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->change, NULL);
    l->buffers = calloc(LOAD_BUFFERS, sizeof *l->buffers);
    l->hash = tensor_hash_create();
    enum status status = OK;
    if (l->buffers == NULL || l->hash == NULL) {
        status = error_set(e, ERR_NOMEM, NULL, "no memory for the lists of a loader");
    }
    if (status == OK) status = list_parts(l, e);
    for (int i = 0; status == OK && i < LOAD_BUFFERS; i++) {
        l->buffers[i].bytes = (char *) o->memory + (size_t) i * l->buffer_bytes;
    }
    if (status == OK) {
        int failed = pthread_create(&l->reader, NULL, reader_main, l);
        l->started = failed == 0;
        if (failed != 0) {
            status = error_set(e, ERR_IO, NULL, "cannot start a thread to read the checkpoint: %s",
                               strerror(failed));
        }
    }
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
    while (l->n_taken[rank] == l->n_filled && !l->read_all && !l->stop && l->status == OK) {
        pthread_cond_wait(&l->change, &l->mutex);
    }
    enum status status = l->status;
    *batch = (struct load_batch){0};
    if (l->stop) {
        status = error_set(e, ERR_ABORTED, NULL, "loading was stopped");
    } else if (status != OK) {
        if (e != NULL) *e = l->error;
    } else if (l->n_taken[rank] < l->n_filled) {
        const struct buffer_of_pieces *b = &l->buffers[l->n_taken[rank] % LOAD_BUFFERS];
        *batch = (struct load_batch){b->pieces, b->n, b->used};
    } else if (++l->n_ended == l->options.place.tp) {
        l->end_ns = clock_ns();
    }
    pthread_mutex_unlock(&l->mutex);
    return status;
}

void load_done(struct load *l, int rank)
{
    pthread_mutex_lock(&l->mutex);
    l->n_taken[rank]++;
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
    if (l->started) pthread_join(l->reader, NULL);
    pthread_cond_destroy(&l->change);
    pthread_mutex_destroy(&l->mutex);
    tensor_hash_destroy(&l->hash);
    free(l->buffers);
    free(l->parts);
    free(l);
}
