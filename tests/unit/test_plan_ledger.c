#include "common/cuda_comm_sizes.h"
#include "common/cuda_sizes.h"
#include "common/plan_cost.h"
#include "common/rank_layout.h"
#include "kernels/backend.h"
#include "workers/forward.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "plan_case.h"
#include "stage_case.h"

static void test_weights_of_deepseek_v3(void **state)
{
    (void) state;
    static const struct {
        int layers[4];
        double gib[4];
    } CASES[] = {
        {{15, 15, 15, 16}, {16.72, 20.33, 20.33, 21.90}},
        {{17, 15, 15, 14}, {19.43, 20.33, 20.33, 19.19}},
    };
    struct model_config c = load("deepseek-v3");
    for (size_t k = 0; k < sizeof CASES / sizeof *CASES; k++) {
        struct plan_request r = request(&c, 4, 8, 24564ull * MIB);
        memcpy(r.layers, CASES[k].layers, sizeof CASES[k].layers);
        struct plan p = make(&r);
        expect_layers(&p, 4, CASES[k].layers);
        for (int i = 0; i < 4; i++) {
            double gib = (double) p.weight_bytes[i] / (double) GIB;
            assert_float_equal(gib, CASES[k].gib[i], 0.00501);
        }
    }
}

// --- the counts against what is built from them

struct sum {
    const struct model_config *config;
    uint64_t bytes;
};

static enum status add(const struct slice *s, void *arg)
{
    struct sum *sum = arg;
    sum->bytes += layout_slice_bytes(sum->config, s);
    return OK;
}

static uint64_t largest_rank(const struct model_config *c, const struct plan *p, int stage)
{
    uint64_t most = 0;
    for (int rank = 0; rank < p->tp; rank++) {
        struct sum sum = {c, 0};
        struct placement place = {p->first[stage], p->first[stage] + p->layers[stage], stage == 0,
                                  stage == p->pp - 1, rank, p->tp};
        assert_int_equal(layout_walk(c, &place, add, &sum), OK);
        most = sum.bytes > most ? sum.bytes : most;
    }
    return most;
}

// Widths that cut through scale blocks, so that ranks differ and not the first is the largest.
static void test_weights_are_those_of_the_largest_rank(void **state)
{
    (void) state;
    static const char *const NAMES[] = {"tiny-fp8", "tiny-bf16"};
    for (int k = 0; k < 2; k++) {
        struct model_config c = load(NAMES[k]);
        c.vocab_size = 1021;
        c.intermediate_size = 509;
        c.moe_intermediate_size = 96 * 4;
        for (int tp = 1; tp <= 4; tp *= 2) {
            for (int pp = 1; pp <= 3; pp++) {
                struct plan_request r = request(&c, pp, tp, 1 * GIB);
                struct plan p = make(&r);
                for (int i = 0; i < pp; i++) {
                    assert_int_equal(p.weight_bytes[i], largest_rank(&c, &p, i));
                }
            }
        }
    }
}

// --- the ledger against what the ranks carve

static struct device *open_device(bool f32, int n_threads)
{
    struct device_options options = {.precision = f32 ? PRECISION_F32 : PRECISION_BF16,
                                     .n_threads = n_threads, .memory_bytes = 1 * GIB};
    struct device *device;
    struct error e = {0};
    if (backend_cpu()->open(&device, &options, &e) != OK) fail_msg("%s", e.text);
    return device;
}

static struct placement placement_of(const struct plan *p, int stage, int rank)
{
    return (struct placement){p->first[stage], p->first[stage] + p->layers[stage], stage == 0,
                              stage == p->pp - 1, rank, p->tp};
}

static struct ledger carve_rank(const struct plan_request *r, const struct checkpoint *checkpoint,
                                const struct plan *p, int stage, int rank, struct device *device)
{
    struct carve carve = {0};
    struct weights weights = {0};
    struct forward forward;
    struct error e = {0};
    struct placement place = placement_of(p, stage, rank);
    struct step_limits limits = {.max_rows = p->max_rows, .slots = p->slots,
                                 .max_blocks = p->max_blocks, .n_blocks = p->kv_blocks,
                                 .fp8_kv = r->fp8_kv, .max_out = p->max_out,
                                 .vocab_size = r->config->vocab_size};
    if (weights_layout(&weights, r->config, &place, checkpoint, backend_cpu(), &carve, &e) != OK) {
        fail_msg("%s", e.text);
    }
    forward_layout(&forward, &weights, backend_cpu(), device, NULL, NULL,
                   r->f32 ? PRECISION_F32 : PRECISION_BF16, &limits, &carve, &carve);
    weights_deinit(&weights);
    assert_int_equal(ledger_total(&carve.ledger), carve.used);
    return carve.ledger;
}

static void expect_what_is_carved(const struct plan_request *r, const struct checkpoint *checkpoint,
                                  struct device *device)
{
    struct plan p = make(r);
    assert_true(p.fits);
    for (int stage = 0; stage < p.pp; stage++) {
        uint64_t most = 0;
        for (int rank = 0; rank < p.tp; rank++) {
            struct ledger planned = plan_rank_ledger(&p, r, stage, rank);
            struct ledger carved = carve_rank(r, checkpoint, &p, stage, rank, device);
            char text[2048];
            if (!ledger_equal(&planned, "the plan", &carved, "the arena", text, sizeof text)) {
                fail_msg("tp %d pp %d stage %d rank %d: %s", p.tp, p.pp, stage, rank, text);
            }
            if (ledger_total(&carved) > most) most = ledger_total(&carved);
        }
        assert_int_equal(ledger_total(&p.stages[stage]), most);
    }
}

// Every rank of every cut of the checkpoints here, whatever the number of threads: not a byte more
// nor less than the plan has, in any line.
static void test_ranks_carve_what_is_planned(void **state)
{
    (void) state;
    static const char *const DIRS[] = {FIXTURES "/tiny-fp8", FIXTURES "/tiny-bf16",
                                       SOURCE_DIR "/tools/model"};
    for (int k = 0; k < 24; k++) {
        const char *dir = DIRS[k % 3];
        struct model_config c;
        struct checkpoint *checkpoint;
        struct layout_types types;
        assert_int_equal(model_config_load(&c, dir, NULL), OK);
        assert_int_equal(checkpoint_open(&checkpoint, dir, NULL), OK);
        layout_types_read(&types, &c, checkpoint);
        bool f32 = k / 3 % 2 == 0;
        struct device *device = open_device(f32, k / 6 % 2 == 0 ? 1 : 16);
        for (int n = 0; n < 9; n++) {
            struct plan_request r = request(&c, n % 3 + 1, 1 << n / 3, 4 * GIB);
            if (layout_check_tp(&c, r.tp, NULL) != OK || r.pp > c.n_layers) continue;
            r.types = &types;
            r.f32 = f32;
            r.fp8_kv = (k + n) % 2 == 0;
            if (k >= 12) {
                r.max_rows = 17;
                r.slots = 3;
                r.max_context = 100;
            }
            expect_what_is_carved(&r, checkpoint, device);
        }
        backend_cpu()->close(&device);
        checkpoint_close(&checkpoint);
    }
}

// --- and against what running stages have

// Its devices have exactly what is planned for the largest rank; a byte less is refused.
static void expect_running(const struct plan_request *r, const struct checkpoint *checkpoint,
                           const struct plan *p, int stage)
{
    struct stage_options o = {
        .config = r->config, .checkpoint = checkpoint, .backend = backend_cpu(),
        .first = p->first[stage], .last = p->first[stage] + p->layers[stage],
        .head = stage == 0, .tail = stage == p->pp - 1, .tp = p->tp, .n_threads = stage + 1,
        .precision = r->f32 ? PRECISION_F32 : PRECISION_BF16,
        .memory_bytes = ledger_total(&p->stages[stage]),
        .limits = {.max_rows = p->max_rows, .slots = p->slots, .max_blocks = p->max_blocks,
                   .n_blocks = p->kv_blocks, .fp8_kv = r->fp8_kv, .max_out = p->max_out,
                   .vocab_size = r->config->vocab_size},
        .n_steps = 1};
    o.memory = calloc(1, stage_memory_bytes(&o));
    o.staging = aligned_alloc(CARVE_ALIGN, carve_aligned(stage_staging_bytes(&o)));
    memset(o.staging, 0, stage_staging_bytes(&o));
    struct stage *s;
    struct error e = {0};
    assert_int_equal(stage_create(&s, &o, &e), OK);
    if (stage_case_wait(s, &e) != STAGE_READY) fail_msg("%s", e.text);
    for (int rank = 0; rank < p->tp; rank++) {
        struct ledger planned = plan_rank_ledger(p, r, stage, rank);
        struct ledger has = stage_rank_ledger(s, rank);
        char text[LEDGER_TEXT_MAX];
        if (!ledger_equal(&planned, "the plan", &has, "the rank", text, sizeof text)) {
            fail_msg("tp %d pp %d stage %d rank %d: %s", p->tp, p->pp, stage, rank, text);
        }
    }
    struct ledger most = stage_ledger(s);
    assert_memory_equal(&most, &p->stages[stage], sizeof most);
    stage_destroy(&s);
    o.memory_bytes--;
    assert_int_equal(stage_create(&s, &o, &e), OK);
    assert_int_equal(stage_case_wait(s, &e), STAGE_FAILED);
    assert_string_equal(e.code, "does_not_fit");
    stage_destroy(&s);
    free(o.staging);
    free(o.memory);
}

static void test_running_stages_have_what_is_planned(void **state)
{
    (void) state;
    static const char *const DIRS[] = {FIXTURES "/tiny-fp8", FIXTURES "/tiny-bf16",
                                       SOURCE_DIR "/tools/model"};
    for (int k = 0; k < 18; k++) {
        struct model_config c;
        struct checkpoint *checkpoint;
        struct layout_types types;
        assert_int_equal(model_config_load(&c, DIRS[k % 3], NULL), OK);
        assert_int_equal(checkpoint_open(&checkpoint, DIRS[k % 3], NULL), OK);
        layout_types_read(&types, &c, checkpoint);
        struct plan_request r = request(&c, k / 6 + 1, 1 << k / 6, 4 * GIB);
        r.types = &types;
        r.f32 = k / 3 % 2 == 0;
        r.fp8_kv = k % 2 == 0;
        r.max_context = 500 + k;
        r.slots = 1 + k;
        r.max_rows = 40;
        if (layout_check_tp(&c, r.tp, NULL) == OK && r.pp <= c.n_layers) {
            struct plan p = make(&r);
            for (int i = 0; i < p.pp; i++) expect_running(&r, checkpoint, &p, i);
        }
        checkpoint_close(&checkpoint);
    }
}

// --- other architectures, other devices

static void test_size_of_the_checkpoint(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    static struct layout_types types;
    layout_types_imply(&types, &c);
    struct model_size size = layout_model_size(&c, &types);
    assert_int_equal(size.tensors, 91991);
    assert_int_equal(size.elements, 684531386000);
    assert_int_equal(size.bytes, 688574839360);
    // Where there is a checkpoint, its own sums.
    static const char *const NAMES[] = {"tiny-fp8", "tiny-bf16"};
    for (int k = 0; k < 2; k++) {
        struct checkpoint *checkpoint;
        char path[256];
        snprintf(path, sizeof path, FIXTURES "/%s", NAMES[k]);
        c = load(NAMES[k]);
        assert_int_equal(checkpoint_open(&checkpoint, path, NULL), OK);
        layout_types_imply(&types, &c);
        size = layout_model_size(&c, &types);
        assert_int_equal(size.tensors, checkpoint_n_tensors(checkpoint));
        assert_int_equal(size.bytes, checkpoint_bytes(checkpoint));
        static struct layout_types read;
        layout_types_read(&read, &c, checkpoint);
        assert_memory_equal(&read, &types, sizeof read);
        checkpoint_close(&checkpoint);
    }
}

// 384 experts in one group, 64 heads, one dense layer: about a trillion parameters.
static void test_kimi_k2(void **state)
{
    (void) state;
    struct model_config c = load("kimi-k2");
    static struct layout_types types;
    layout_types_imply(&types, &c);
    struct model_size size = layout_model_size(&c, &types);
    assert_true(size.elements > 1020ll * 1000 * 1000 * 1000);
    assert_true(size.elements < 1030ll * 1000 * 1000 * 1000);
    struct plan_request r = request(&c, 8, 8, 24564ull * MIB);
    r.device = DEVICE_CUDA;
    struct plan p = make(&r);
    assert_true(p.fits);
    r = request(&c, 4, 8, 24564ull * MIB);
    assert_false(make(&r).fits);
}

static void test_layers_of_other_types(void **state)
{
    (void) state;
    struct model_config c = load("tiny-fp8");
    static struct layout_types types;
    layout_types_imply(&types, &c);
    struct plan_request r = request(&c, 1, 1, 4 * GIB);
    r.types = &types;
    struct plan plain = make(&r);
    types.layers[2][ROLE_O] = DTYPE_BF16; // a layer that was left unquantised in part
    struct plan p = make(&r);
    uint64_t values = (uint64_t) c.hidden_size * (uint64_t) (c.n_heads * c.v_head_dim);
    uint64_t blocks = (uint64_t) ((c.hidden_size + 127) / 128) *
                      (uint64_t) ((c.n_heads * c.v_head_dim + 127) / 128);
    assert_int_equal(p.weight_bytes[0] - plain.weight_bytes[0], values - 4 * blocks);
    // More kinds of layers than there is room for.
    c.n_layers = PLAN_KINDS_MAX + 1;
    c.n_dense_layers = 0;
    layout_types_imply(&types, &c);
    for (int i = 0; i < c.n_layers; i++) {
        static const enum role ROLES[] = {ROLE_O, ROLE_KV_A, ROLE_KV_B, ROLE_Q_A, ROLE_Q_B,
                                          ROLE_SHARED_UP};
        for (int bit = 0; bit < 6; bit++) {
            if (i >> bit & 1) types.layers[i][ROLES[bit]] = DTYPE_BF16;
        }
    }
    struct error e = {0};
    assert_int_equal(plan_make(&p, &r, &e), ERR_LIMIT);
    assert_string_equal(e.code, "bad_plan");
    c.n_layers--;
    assert_int_equal(plan_make(&p, &r, &e), OK);
}

// The layer's weights as the checkpoint has them, 14.36 GiB with the copies, of which the last
// stage needs those of the embedding alone; and KV of a layer more.
static void test_multi_token_prediction(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct plan_request r = request(&c, 4, 8, 48ull * GIB);
    r.kv_blocks = 1000;
    memcpy(r.layers, (int[]){17, 15, 15, 14}, 4 * sizeof *r.layers);
    struct plan without = make(&r);
    r.mtp = true;
    struct plan with = make(&r);
    assert_true(with.fits);
    double gib = (double) (with.weight_bytes[3] - without.weight_bytes[3]) / (double) GIB;
    assert_float_equal(gib, 1.62, 0.05);
    assert_int_equal(with.kv_block_bytes[3], (with.layers[3] + 1) * 64 * 576 * 2);
    assert_int_equal(with.kv_block_bytes[0], with.layers[0] * 64 * 576 * 2);
    uint64_t kv = 1000ull * 64 * 576 * 2;
    assert_true(with.stages[3].bytes[LEDGER_MTP] > kv);
    assert_int_equal(with.stages[2].bytes[LEDGER_MTP], 0);
    // On one stage the embedding is there already.
    r = request(&c, 1, 8, 200ull * GIB);
    struct plan one = make(&r);
    r.mtp = true;
    struct plan more = make(&r);
    uint64_t slice = (uint64_t) c.vocab_size / 8 * (uint64_t) c.hidden_size * 2;
    r = request(&c, 2, 8, 200ull * GIB);
    r.layers[0] = r.layers[1] = 30;
    r.layers[1]++;
    struct plan two = make(&r);
    r.mtp = true;
    struct plan more2 = make(&r);
    assert_int_equal(more2.weight_bytes[1] - two.weight_bytes[1],
                     more.weight_bytes[0] - one.weight_bytes[0] + slice);
    c.n_mtp_layers = 0;
    struct error e = {0};
    assert_int_equal(plan_make(&two, &r, &e), ERR_INPUT);
    assert_string_equal(e.code, "bad_plan");
}

// 24 GB beside 48 and 80: the larger ones take more.
static void test_groups_that_differ(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct plan_request r = request(&c, 4, 8, 24564ull * MIB);
    r.device = DEVICE_CUDA;
    r.device_bytes[2] = 48ull * GIB;
    r.device_bytes[3] = 80ull * GIB;
    struct plan p = make(&r);
    assert_true(p.fits);
    assert_true(p.layers[3] > p.layers[2] && p.layers[2] > p.layers[1]);
    for (int i = 0; i < 4; i++) {
        uint64_t context = device_sizes(DEVICE_CUDA)->context;
        assert_true(ledger_total(&p.stages[i]) <= r.device_bytes[i]);
        assert_int_equal(p.stages[i].bytes[LEDGER_CONTEXT], context);
    }
}

// A context that was measured takes the place of the allowance, and the pool what that leaves.
static void test_a_measured_context(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct plan_request r = request(&c, 4, 8, 24564ull * MIB);
    r.device = DEVICE_CUDA;
    struct plan allowed = make(&r);
    r.context = device_sizes(DEVICE_CUDA)->context - 200 * MIB;
    struct plan measured = make(&r);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(measured.stages[i].bytes[LEDGER_CONTEXT], r.context);
        assert_true(ledger_total(&measured.stages[i]) <= r.device_bytes[i]);
    }
    assert_true(plan_kv_room(&measured) > plan_kv_room(&allowed));
}

// A cut through the blocks of scales: both sides hold them, and the ledger has them.
static void test_scales_that_are_held_twice(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    uint64_t all[7] = {0};
    for (int i = 0; i < 7; i++) {
        struct plan_request r = request(&c, 4, 1 << i, 1000ull * GIB);
        if (layout_check_tp(&c, r.tp, NULL) != OK) break;
        struct plan p = make(&r);
        for (int s = 0; s < 4; s++) {
            for (int rank = 0; rank < r.tp; rank++) {
                struct ledger l = plan_rank_ledger(&p, &r, s, rank);
                all[i] += l.bytes[LEDGER_SCALES];
            }
        }
    }
    // Up to 16 ranks only what is replicated is held more than once: it grows evenly.
    assert_int_equal(all[4] - all[3], 2 * (all[3] - all[2]));
    assert_true(all[5] - all[4] > 2 * (all[4] - all[3]));
}

// The pool of a GPU takes all of its memory; the CPU's only what the slots can use.
static void test_slots_of_a_gpu(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct plan_request r = request(&c, 4, 8, 24564ull * MIB);
    r.device = DEVICE_CUDA;
    struct plan p = make(&r);
    expect_layers(&p, 4, (int[]){17, 15, 15, 14});
    int64_t room = p.kv_room[0];
    for (int i = 1; i < 4; i++) room = p.kv_room[i] < room ? p.kv_room[i] : room;
    assert_int_equal(p.kv_blocks, room);
    assert_int_equal(p.slots, (room + 63) / 64);
    assert_true(p.slots > 32);
    r.device_bytes[0] = r.device_bytes[1] = r.device_bytes[2] = r.device_bytes[3] = 141ull * GIB;
    p = make(&r);
    assert_int_equal(p.slots, 512);
}

// What ranks pin beside GPUs: all copy through staging; the last stage's hold what the host reads.
static void test_host_memory_of_ranks(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    for (int tail = 0; tail < 2; tail++) {
        struct rank_shape s = {.config = &c, .device = DEVICE_CUDA, .slots = 48, .max_blocks = 3,
                               .n_blocks = 99, .max_rows = 128, .max_out = 40,
                               .place = {.last = 2, .tail = tail, .tp_rank = 1, .tp = 8}};
        struct ledger l = rank_host_ledger(&s), none = {0}, large;
        uint64_t row = tail ? (uint64_t) (c.vocab_size / 8) * sizeof(float) : 0;
        assert_int_equal(l.bytes[LEDGER_STAGING], 2 * 8 * MIB + 2 * 2 * MIB);
        assert_int_equal(l.bytes[LEDGER_LOGITS], 0); // they stay on the GPU
        assert_int_equal(l.bytes[LEDGER_COMM], cuda_comm_pinned(8).bytes);
        assert_int_equal(l.bytes[LEDGER_HISTORY] > 0, tail);
        assert_int_equal(l.bytes[LEDGER_SAMPLER] > row, tail);
        assert_in_range(l.bytes[LEDGER_SAMPLER], row, SAMPLER_SCRATCH_MAX);
        assert_int_equal(l.bytes[LEDGER_WEIGHTS] + l.bytes[LEDGER_KV] + l.bytes[LEDGER_SCRATCH], 0);
        s.n_blocks = 9999; // the pool is the device's
        large = rank_host_ledger(&s);
        assert_memory_equal(&l, &large, sizeof l);
        s.device = DEVICE_CPU;
        l = rank_host_ledger(&s);
        assert_memory_equal(&l, &none, sizeof l);
    }
}

// Both halves hold a step, of those that are not larger than 32 MiB.
static void test_ways_between_host_and_gpu(void **state)
{
    (void) state;
    static const struct {
        int rows;
        uint64_t half;
    } cases[] = {{1, 2 * MIB}, {512, 512 * 7168}, {2048, 2048 * 7168}, {4096, 16 * MIB}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct scratch_shape s = {.max_rows = cases[i].rows, .hidden = 7168};
        struct cuda_scratch to;
        struct carve c = {0};
        cuda_scratch_carve(&to, &s, &c);
        assert_int_equal(to.wire_bytes, cases[i].half);
        assert_true(c.used >= 4 * to.wire_bytes);
    }
}

// What ranks on GPUs have for their sums: slots for each rank in the device; in pinned memory two
// of its own, and shares of all ranks with the sum of its own.
static void test_memory_of_sums_between_gpus(void **state)
{
    (void) state;
    uint64_t slot = 16 * (uint64_t) CUDA_COMM_FLOATS / 3, share = 16 * 32768;
    assert_int_equal(cuda_comm_device(1).bytes, 0);
    assert_int_equal(cuda_comm_pinned(1).bytes, 0);
    assert_int_equal(CUDA_COMM_FLOATS % 3, 0);
    assert_int_equal(cuda_comm_device(8).bytes, 512 + 16 * slot + 256);
    assert_int_equal(cuda_comm_pinned(8).bytes, 256 + 2 * slot + 9 * share);
    for (int tp = 2; tp <= TP_MAX; tp++) { // shares are whole tiles, and all fit
        assert_int_equal(cuda_shares_pitch(tp) % CUDA_SHARES_TILE, 0);
        assert_in_range(cuda_shares_pitch(tp) * (uint64_t) tp, CUDA_SHARES_WORDS / 2,
                        CUDA_SHARES_WORDS);
    }
    struct model_config c = load("deepseek-v3");
    struct rank_shape s = {.config = &c, .device = DEVICE_CUDA, .slots = 48, .max_blocks = 3,
                           .n_blocks = 99, .max_rows = 128, .max_out = 40,
                           .place = {.last = 2, .tp = 8}};
    struct carve device = {0}, host = {0};
    void *at[N_RANK_BUFFERS], *sampler;
    rank_carve(&s, &device, &host, at, &sampler);
    assert_int_equal(device.ledger.bytes[LEDGER_COMM], cuda_comm_device(8).bytes);
}

// Ranks on GPUs bring activations together in their devices: the host has room for the sampler's
// lists alone.
static void test_host_memory_of_collectives(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct backend cpu = {.kind = DEVICE_CPU}, cuda = {.kind = DEVICE_CUDA};
    struct stage_options o = {.config = &c, .backend = &cpu, .tp = 8,
                              .limits = {.max_rows = 2048, .slots = 48, .max_blocks = 64,
                                         .max_out = 48}};
    uint64_t on_cpus = stage_comm_bytes(&o);
    assert_true(on_cpus >= 9ull * 2048 * 7168 * sizeof(float));
    o.backend = &cuda;
    uint64_t on_gpus = stage_comm_bytes(&o);
    assert_true(on_gpus > 0 && on_gpus < on_cpus / 16);
    // The sampler beside a GPU gathers more rows at once than the host's.
    struct rank_shape shape = {.config = &c, .device = DEVICE_CUDA, .place = {.tp = 2},
                               .slots = 128, .max_blocks = 1024, .max_out = 128};
    struct sampler_shape sampler = rank_sampler_shape(&shape);
    o.tp = 2;
    o.limits.slots = o.limits.max_out = 128;
    o.limits.max_blocks = 1024;
    assert_true(sampler_gather_max(&sampler) >= 128 * 33 * 8);
    assert_true(stage_comm_bytes(&o) >= 2 * sampler_gather_max(&sampler));
    o.tp = 1;
    assert_int_equal(stage_comm_bytes(&o), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_of_deepseek_v3),
        cmocka_unit_test(test_weights_are_those_of_the_largest_rank),
        cmocka_unit_test(test_ranks_carve_what_is_planned),
        cmocka_unit_test(test_running_stages_have_what_is_planned),
        cmocka_unit_test(test_size_of_the_checkpoint),
        cmocka_unit_test(test_kimi_k2),
        cmocka_unit_test(test_layers_of_other_types),
        cmocka_unit_test(test_multi_token_prediction),
        cmocka_unit_test(test_groups_that_differ),
        cmocka_unit_test(test_scales_that_are_held_twice),
        cmocka_unit_test(test_a_measured_context),
        cmocka_unit_test(test_slots_of_a_gpu),
        cmocka_unit_test(test_host_memory_of_ranks),
        cmocka_unit_test(test_host_memory_of_collectives),
        cmocka_unit_test(test_memory_of_sums_between_gpus),
        cmocka_unit_test(test_ways_between_host_and_gpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
