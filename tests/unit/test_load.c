// Loading: what comes out of the staging buffers is the file's bytes, for every rank; what is
// damaged is named.
#include "common/carve.h"
#include "common/log.h"
#include "tools/made_model.h"
#include "workers/load.h"
#include "workers/pack.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "model_dir.h"
#include "stage_case.h"

// A vocabulary whose embedding is larger than a staging buffer, and no multiple of anything.
static const struct made_shape LARGE = {.layers = 2, .hidden = 136, .heads = 4, .experts = 2,
                                        .q_lora = 24, .vocab = 33333, .dtype = DTYPE_BF16};
static const struct made_shape SMALL = {.layers = 3, .hidden = 144, .heads = 4, .experts = 4,
                                        .nope = 40, .v = 24, .kv_lora = 136,
                                        .dtype = DTYPE_F8_E4M3};

// An embedding larger than all staging buffers.
static const struct made_shape BEYOND = {.layers = 2, .hidden = 136, .heads = 4, .experts = 2,
                                         .q_lora = 24, .vocab = 133333, .dtype = DTYPE_BF16};

struct model {
    struct model_dir dir;
    struct model_config config;
    struct checkpoint *checkpoint;
    char hash[33], manifest[128];
};

static void model_open(struct model *m, const struct made_shape *shape)
{
    struct error e = {0};
    m->dir = model_dir_create();
    snprintf(m->manifest, sizeof m->manifest, "%s/manifest", m->dir.path);
    if (made_model_write(m->dir.path, shape, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(model_config_load(&m->config, m->dir.path, &e), OK);
    if (checkpoint_open(&m->checkpoint, m->dir.path, &e) != OK) fail_msg("%s", e.text);
    checkpoint_manifest_hash(m->checkpoint, m->hash);
}

static void model_close(struct model *m)
{
    checkpoint_close(&m->checkpoint);
    model_dir_remove(&m->dir);
}

// Loads all layers on `tp` ranks; the error, if it fails, in e.
static enum status load(const struct model *m, int tp, struct manifest *manifest, struct error *e)
{
    struct stage *stage;
    struct stage_options o = {.config = &m->config,
                              .checkpoint = m->checkpoint,
                              .backend = backend_cpu(),
                              .last = m->config.n_layers,
                              .head = true,
                              .tail = true,
                              .tp = tp,
                              .n_threads = 1,
                              .limits = {.max_rows = 16, .slots = 1, .max_blocks = 1,
                                         .n_blocks = 1, .max_out = 1,
                                         .vocab_size = m->config.vocab_size},
                              .n_steps = 1,
                              .manifest = manifest};
    o.memory = calloc(1, stage_memory_bytes(&o));
    o.staging = malloc(stage_staging_bytes(&o));
    enum status status = stage_create(&stage, &o, e);
    if (status == OK && stage_case_wait(stage, e) == STAGE_FAILED) status = e->status;
    if (status == OK) {
        uint64_t loaded, total;
        stage_progress(stage, &loaded, &total);
        assert_int_equal(total, checkpoint_bytes(m->checkpoint));
        assert_int_equal(loaded, total);
        assert_true(stage_load_ns(stage) > 0);
    }
    stage_destroy(&stage);
    free(o.memory);
    free(o.staging);
    return status;
}

// Adds `value` to a byte of the tensor, or sets a float there.
static void spoil(const struct model *m, const char *tensor, const float *value)
{
    const struct tensor *t = checkpoint_find(m->checkpoint, tensor);
    int fd = open(checkpoint_file(m->checkpoint, t->file), O_RDWR | O_CLOEXEC);
    uint8_t byte;
    off_t at = (off_t) (t->offset + t->bytes / 8 * 4);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 1;
    ssize_t n = value != NULL ? pwrite(fd, value, 4, at) : pwrite(fd, &byte, 1, at);
    assert_true(n > 0);
    close(fd);
}

static void a_restart_is_verified(void **state)
{
    (void) state;
    struct model m;
    struct manifest *manifest;
    struct error e = {0};
    model_open(&m, &SMALL);
    int n = checkpoint_n_tensors(m.checkpoint);
    for (int tp = 1; tp <= 4; tp *= 2) {
        assert_int_equal(manifest_open(&manifest, m.manifest, m.hash, &e), OK);
        if (load(&m, tp, manifest, &e) != OK) fail_msg("tp %d: %s", tp, e.text);
        assert_int_equal(manifest_n_learnt(manifest), tp == 1 ? n : 0);
        assert_int_equal(manifest_n_compared(manifest), tp == 1 ? 0 : n);
        manifest_close(&manifest);
    }
    static const char *const names[] = {
        "model.embed_tokens.weight", "model.layers.1.mlp.experts.3.down_proj.weight",
        "model.layers.2.self_attn.kv_b_proj.weight_scale_inv", "model.norm.weight",
        "model.layers.0.self_attn.o_proj.weight", "lm_head.weight"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        spoil(&m, names[i], NULL);
        assert_int_equal(manifest_open(&manifest, m.manifest, m.hash, &e), OK);
        assert_int_equal(load(&m, 1 + (int) i % 2, manifest, &e), ERR_INPUT);
        manifest_close(&manifest);
        assert_string_equal(e.code, "damaged");
        if (strstr(e.text, names[i]) == NULL) fail_msg("%s: %s", names[i], e.text);
        assert_non_null(strstr(e.text, "model.safetensors"));
        spoil(&m, names[i], NULL); // whole again
    }
    model_close(&m);
}

// A full disk, a folder that is for reading only: what was loaded is used all the same.
static void a_manifest_that_cannot_be_saved_stops_no_load(void **state)
{
    (void) state;
    struct model m;
    struct manifest *manifest;
    struct error e = {0};
    model_open(&m, &SMALL);
    for (int tp = 1; tp <= 2; tp++) {
        assert_int_equal(manifest_open(&manifest, "/nonexistent/manifest", m.hash, &e), OK);
        if (load(&m, tp, manifest, &e) != OK) fail_msg("tp %d: %s", tp, e.text);
        assert_int_equal(manifest_n_learnt(manifest), checkpoint_n_tensors(m.checkpoint));
        assert_int_equal(manifest_save(manifest, &e), ERR_IO);
        manifest_close(&manifest);
    }
    model_close(&m);
}

static void values_that_cannot_be_are_named(void **state)
{
    (void) state;
    static const struct {
        const char *tensor;
        float value;
        bool good;
    } cases[] = {
        {"model.layers.1.mlp.experts.3.down_proj.weight_scale_inv", NAN, false},
        {"model.layers.1.self_attn.q_proj.weight_scale_inv", -1, false},
        {"model.layers.2.self_attn.kv_b_proj.weight_scale_inv", INFINITY, false},
        {"model.layers.1.mlp.gate.e_score_correction_bias", NAN, false},
        {"model.layers.1.mlp.gate.e_score_correction_bias", -1, true},
        {"model.layers.1.self_attn.q_proj.weight_scale_inv", 0, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model m;
        struct error e = {0};
        model_open(&m, &SMALL);
        spoil(&m, cases[i].tensor, &cases[i].value);
        enum status status = load(&m, 2, NULL, &e);
        if (status != (cases[i].good ? OK : ERR_INPUT)) fail_msg("case %zu: %s", i, e.text);
        if (!cases[i].good) {
            assert_string_equal(e.code, "bad_checkpoint");
            if (strstr(e.text, cases[i].tensor) == NULL) fail_msg("case %zu: %s", i, e.text);
        }
        model_close(&m);
    }
}

// The file is cut while its checkpoint is open: the ranks end, and the error says where.
static void a_file_that_ends_early_is_named(void **state)
{
    (void) state;
    struct model m;
    struct error e = {0};
    model_open(&m, &SMALL);
    const char *file = checkpoint_file(m.checkpoint, 0);
    assert_int_equal(truncate(file, 100000), 0);
    assert_int_equal(load(&m, 2, NULL, &e), ERR_IO);
    assert_non_null(strstr(e.text, "model.safetensors"));
    model_close(&m);
}

// Every rank's rows of the embedding are the file's, though the tensor comes in several pieces.
static void large_tensors_come_whole(void **state)
{
    (void) state;
    struct model m;
    struct error e = {0};
    struct device *device;
    struct device_options device_options = {.n_threads = 1, .memory_bytes = 1 << 30};
    enum { TP = 4 };
    model_open(&m, &LARGE);
    const struct tensor *t = checkpoint_find(m.checkpoint, "model.embed_tokens.weight");
    assert_true(t->bytes > LOAD_BUFFER_BYTES);
    char *whole = malloc(t->bytes);
    assert_int_equal(checkpoint_read_file(m.checkpoint, t, t->offset, whole, t->bytes, &e), OK);
    for (int rank = 0; rank < TP; rank++) {
        struct load_options o = {.config = &m.config,
                                 .checkpoint = m.checkpoint,
                                 .place = {0, m.config.n_layers, true, true, 0, TP}};
        struct placement place = o.place;
        struct weights w = {0};
        struct carve c = {0};
        struct load *l;
        struct load_batch batch;
        place.tp_rank = rank;
        o.memory = malloc(load_memory_bytes(&o));
        assert_int_equal(backend_cpu()->open(&device, &device_options, &e), OK);
        for (int pass = 0; pass < 2; pass++) {
            void *base = NULL;
            if (pass == 1) {
                assert_int_equal(backend_cpu()->arena(device, c.used, &base, &e), OK);
                c = (struct carve){.base = base, .size = c.used};
            }
            assert_int_equal(weights_layout(&w, &m.config, &place, m.checkpoint, backend_cpu(),
                                            &c, &e), OK);
        }
        struct packer p = {.weights = &w, .backend = backend_cpu(), .device = device,
                           .scratch_bytes = pack_scratch_bytes(&m.config)};
        p.scratch = malloc(p.scratch_bytes);
        assert_int_equal(load_create(&l, &o, &e), OK);
        for (int i = 0; i < TP; i++) load_join(l);
        for (int ended = 0; ended < TP;) {
            ended = 0;
            for (int i = 0; i < TP; i++) { // all ranks in turn; only one packs
                if (load_next(l, i, &batch, &e) != OK) fail_msg("%s", e.text);
                for (int k = 0; k < batch.n && i == rank; k++) {
                    if (pack_piece(&p, &batch.pieces[k], &e) != OK) fail_msg("%s", e.text);
                }
                if (batch.n > 0) load_done(l, i);
                else ended++;
            }
        }
        size_t row = (size_t) m.config.hidden_size * 2;
        assert_memory_equal(w.embed, whole + (size_t) w.vocab.begin * row,
                            (size_t) w.vocab.n * row);
        load_destroy(&l);
        weights_deinit(&w);
        backend_cpu()->close(&device);
        free(p.scratch);
        free(o.memory);
    }
    free(whole);
    model_close(&m);
}

// --- the loader alone

// So that its bytes come from the disk.
static void forget(const struct model *m)
{
    for (int i = 0; i < checkpoint_n_files(m->checkpoint); i++) {
        int fd = open(checkpoint_file(m->checkpoint, i), O_RDONLY | O_CLOEXEC);
        assert_int_equal(fsync(fd), 0);
        assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
        close(fd);
    }
}

// A rank's thread.
struct taker {
    const struct model *m;
    struct load *load;
    int rank;
    pthread_t thread;
    uint64_t bytes;
    int64_t *next;     // (n_tensors) the row at which each goes on
    const char *wrong; // the tensor that has other bytes or rows than in the file; NULL: none
};

static void take_piece(struct taker *t, const struct load_piece *p)
{
    const struct tensor *tensor = p->part->tensor;
    size_t row = (size_t) (tensor->n_dims > 1 ? tensor->shape[1] : 1) * dtype_size(tensor->dtype);
    size_t n = (size_t) p->n_rows * row;
    char *bytes = malloc(n);
    uint64_t offset = tensor->offset + (uint64_t) p->row0 * row;
    enum status status = checkpoint_read_file(t->m->checkpoint, tensor, offset, bytes, n, NULL);
    if (status != OK || p->row0 != t->next[tensor->index] || memcmp(bytes, p->bytes, n) != 0) {
        t->wrong = tensor->name;
    }
    t->next[tensor->index] += p->n_rows;
    free(bytes);
}

static void *take_all(void *arg)
{
    struct taker *t = arg;
    const struct checkpoint *c = t->m->checkpoint;
    struct load_batch batch = {.n = 1};
    struct error e = {0};
    t->next = calloc((size_t) checkpoint_n_tensors(c), sizeof *t->next);
    load_join(t->load);
    while (batch.n > 0) {
        if (load_next(t->load, t->rank, &batch, &e) != OK) t->wrong = "no batch";
        for (int i = 0; i < batch.n; i++) take_piece(t, &batch.pieces[i]);
        t->bytes += batch.bytes;
        if (batch.n > 0) load_done(t->load, t->rank);
    }
    for (int i = 0; i < checkpoint_n_tensors(c); i++) {
        const struct tensor *tensor = checkpoint_tensor(c, i);
        int64_t rows = tensor->n_dims > 0 ? tensor->shape[0] : 1;
        if (t->next[i] != 0 && t->next[i] != rows) t->wrong = tensor->name;
    }
    free(t->next);
    return NULL;
}

// From the disk and from the page cache. The embedding and the last layer have a gap between them
// in the file.
static void ranks_see_the_files_bytes(void **state)
{
    (void) state;
    enum { TP = 2 };
    static const struct {
        const struct made_shape *shape;
        int first;
        bool head;
    } cases[] = {{&SMALL, 0, true}, {&SMALL, 2, true}, {&SMALL, 1, false}, {&LARGE, 1, true},
                 {&BEYOND, 1, true}};
    for (int i = 0; i < 2 * (int) (sizeof cases / sizeof *cases); i++) {
        struct model m;
        struct error e = {0};
        model_open(&m, cases[i / 2].shape);
        struct load_options o = {.config = &m.config,
                                 .checkpoint = m.checkpoint,
                                 .place = {cases[i / 2].first, m.config.n_layers,
                                           cases[i / 2].head, true, 0, TP}};
        char *memory = malloc(load_memory_bytes(&o) + 16);
        o.memory = memory + 16; // where a block of the disk does not begin
        struct load *l;
        if (i % 2 == 0) forget(&m);
        if (load_create(&l, &o, &e) != OK) fail_msg("%s", e.text);
        struct taker takers[TP];
        for (int r = 0; r < TP; r++) {
            takers[r] = (struct taker){.m = &m, .load = l, .rank = r};
            assert_int_equal(pthread_create(&takers[r].thread, NULL, take_all, &takers[r]), 0);
        }
        for (int r = 0; r < TP; r++) {
            pthread_join(takers[r].thread, NULL);
            if (takers[r].wrong != NULL) fail_msg("case %d, rank %d: %s", i, r, takers[r].wrong);
            assert_int_equal(takers[r].bytes, load_bytes(l));
        }
        if (cases[i / 2].shape == &BEYOND) assert_true(load_bytes(l) > load_memory_bytes(&o));
        assert_true(load_ns(l) > 0);
        load_destroy(&l);
        free(memory);
        model_close(&m);
    }
}

// Whether its threads wait for ranks, for room, or read.
static void it_ends_at_any_time(void **state)
{
    (void) state;
    struct model m;
    struct error e = {0};
    model_open(&m, &BEYOND);
    struct load_options o = {.config = &m.config,
                             .checkpoint = m.checkpoint,
                             .place = {0, m.config.n_layers, true, true, 0, 1}};
    o.memory = malloc(load_memory_bytes(&o));
    for (int taken = -1; taken < 4; taken++) {
        struct load *l;
        struct load_batch batch;
        assert_int_equal(load_create(&l, &o, &e), OK);
        if (taken >= 0) load_join(l);
        for (int i = 0; i < taken; i++) {
            assert_int_equal(load_next(l, 0, &batch, &e), OK);
            assert_true(batch.n > 0);
            if (i % 2 == 0) load_done(l, 0);
        }
        load_abort(l);
        if (taken >= 0) assert_int_equal(load_next(l, 0, &batch, &e), ERR_ABORTED);
        load_destroy(&l);
    }
    free(o.memory);
    model_close(&m);
}

int main(void)
{
    log_init("test", LOG_WARN, false);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_restart_is_verified),
        cmocka_unit_test(a_manifest_that_cannot_be_saved_stops_no_load),
        cmocka_unit_test(values_that_cannot_be_are_named),
        cmocka_unit_test(a_file_that_ends_early_is_named),
        cmocka_unit_test(large_tensors_come_whole),
        cmocka_unit_test(ranks_see_the_files_bytes),
        cmocka_unit_test(it_ends_at_any_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
