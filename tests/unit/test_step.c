#include "workers/step.h"

#include "tests/support/bytes.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>

static const struct step_limits limits = {
    .max_rows = 32, .slots = 4, .max_blocks = 3, .n_blocks = 10, .max_out = 6, .vocab_size = 1000};
static const struct link_id link_id = {.pipeline = 1, .epoch = 7, .token = "0123456789abcde"};

static struct step sent, got;
static void *memory[2];
static uint8_t *frame; // step_frame_max bytes
static struct error e;

static int setup(void **state)
{
    (void) state;
    struct step *steps[] = {&sent, &got};
    for (int i = 0; i < 2; i++) {
        memory[i] = malloc(step_bytes(&limits));
        step_init(steps[i], &limits, memory[i]);
    }
    frame = malloc(step_frame_max(&limits));
    e = (struct error){0};
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    for (int i = 0; i < 2; i++) free(memory[i]);
    free(frame);
    return 0;
}

static void open_slot(struct step *s, int slot, int n_blocks, int n_prompt)
{
    s->opens[s->n_opens++] = (struct step_open){slot, n_blocks, s->n_blocks, n_prompt,
                                                sampling_default()};
    for (int i = 0; i < n_blocks; i++, s->n_blocks++) s->blocks[s->n_blocks] = s->n_blocks;
}

static void add_run(struct step *s, int slot, int pos, int n, int logits)
{
    s->runs[s->n_runs++] = (struct step_run){slot, pos, n, logits};
    for (int i = 0; i < n; i++) s->ids[s->n_rows++] = 100 * slot + pos + i;
}

// Two sequences begin, a third goes on, a fourth has ended.
static void fill(struct step *s)
{
    step_reset(s, 5);
    s->closes[s->n_closes++] = 3;
    open_slot(s, 0, 2, 9);
    open_slot(s, 3, 1, 3);
    add_run(s, 1, 70, 1, RUN_LAST_ROW);
    add_run(s, 0, 0, 8, RUN_NO_LOGITS);
    add_run(s, 3, 0, 3, RUN_ALL_ROWS);
}

static enum status decode(size_t n)
{
    uint8_t *copy = bytes_copy(frame, n);
    e = (struct error){0};
    enum status status = step_decode(&got, &limits, &link_id, copy, n, &e);
    free(copy);
    return status;
}

static void a_step_travels_to_the_next_stage(void **state)
{
    (void) state;
    fill(&sent);
    size_t n = step_encode(&sent, &link_id, frame);
    assert_true(n <= step_frame_max(&limits));
    assert_int_equal(decode(n), OK);
    assert_int_equal(got.number, 5);
    assert_true(got.n_opens == 2 && got.n_blocks == 3 && got.n_runs == 3 && got.n_closes == 1);
    assert_memory_equal(got.opens, sent.opens, 2 * sizeof *sent.opens);
    assert_memory_equal(got.blocks, sent.blocks, 3 * sizeof *sent.blocks);
    assert_memory_equal(got.ids, sent.ids, 12 * sizeof *sent.ids);
    assert_int_equal(got.closes[0], 3);
    // What the devices read.
    static const int32_t pos[] = {70, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2};
    static const int32_t slot[] = {1, 0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 3}, out[] = {0, 9, 10, 11};
    assert_int_equal(got.n_rows, 12);
    assert_memory_equal(got.pos, pos, sizeof pos);
    assert_memory_equal(got.slot, slot, sizeof slot);
    assert_int_equal(got.n_out, 4);
    assert_memory_equal(got.out_rows, out, sizeof out);
}

static void the_largest_step_fits_its_frame(void **state)
{
    (void) state;
    step_reset(&sent, UINT64_MAX);
    for (int i = 0; i < limits.slots; i++) {
        sent.closes[sent.n_closes++] = i;
        open_slot(&sent, i, limits.max_blocks, limits.max_blocks * KV_BLOCK_ROWS);
        add_run(&sent, i, 0, limits.max_rows / limits.slots, RUN_LAST_ROW);
    }
    for (int i = 0; i < sent.n_blocks; i++) sent.blocks[i] = i % limits.n_blocks;
    for (int i = 0; i < sent.n_rows; i++) sent.ids[i] = limits.vocab_size - 1;
    size_t n = step_encode(&sent, &link_id, frame);
    assert_int_equal(n, step_frame_max(&limits));
    assert_int_equal(decode(n), OK);
    step_reset(&sent, 1); // and the smallest one
    assert_int_equal(decode(step_encode(&sent, &link_id, frame)), OK);
    assert_true(got.n_rows == 0 && got.n_out == 0);
}

// --- bounds: each case spoils one value of a good step

enum part { OPEN, BLOCK, RUN, CLOSE, ID };

static void spoil(struct step *s, enum part part, size_t at, int32_t value)
{
    char *to[] = {(char *) s->opens, (char *) s->blocks, (char *) s->runs, (char *) s->closes,
                  (char *) s->ids};
    memcpy(to[part] + at, &value, sizeof value);
}

static void every_bound_is_kept(void **state)
{
    (void) state;
    enum { SECOND_RUN = sizeof(struct step_run), SECOND_OPEN = sizeof(struct step_open) };
    static const struct {
        const char *what;
        enum part part;
        size_t at;
        int32_t bad, good; // `good` alone is accepted
    } table[] = {
        {"a slot", OPEN, offsetof(struct step_open, slot), 4, 2},
        {"a slot", OPEN, offsetof(struct step_open, slot), -1, 2},
        {"twice", OPEN, SECOND_OPEN + offsetof(struct step_open, slot), 0, 2},
        {"block list", OPEN, offsetof(struct step_open, n_blocks), 0, 1},
        {"block list", OPEN, offsetof(struct step_open, n_blocks), -1, 1},
        {"block list", OPEN, offsetof(struct step_open, n_blocks), 4, 3},
        {"block list", OPEN, offsetof(struct step_open, n_blocks), INT32_MAX, 3},
        {"block list", OPEN, offsetof(struct step_open, first_block), -1, 0},
        {"block list", OPEN, offsetof(struct step_open, first_block), 2, 1},
        {"block list", OPEN, offsetof(struct step_open, first_block), INT32_MAX, 1},
        {"prompt", OPEN, offsetof(struct step_open, n_prompt), -1, 1},
        {"prompt", OPEN, offsetof(struct step_open, n_prompt), 129, 128},
        {"top_k", OPEN, offsetof(struct step_open, sampling.top_k), -1, 0},
        {"n_logprobs", OPEN, offsetof(struct step_open, sampling.n_logprobs), 21, 20},
        {"temperature", OPEN, offsetof(struct step_open, sampling.temperature), 0x7fc00000, 0},
        {"block id", BLOCK, 4, 10, 9},
        {"block id", BLOCK, 8, -1, 0},
        {"a slot", RUN, offsetof(struct step_run, slot), 4, 2},
        {"a slot", RUN, offsetof(struct step_run, slot), -1, 2},
        {"twice", RUN, SECOND_RUN + offsetof(struct step_run, slot), 1, 2},
        {"positions", RUN, offsetof(struct step_run, pos), -1, 0},
        {"positions", RUN, offsetof(struct step_run, pos), 192, 191},
        {"positions", RUN, offsetof(struct step_run, pos), INT32_MAX, 191},
        {"positions", RUN, offsetof(struct step_run, n), 0, 1},
        {"positions", RUN, offsetof(struct step_run, n), -1, 1},
        {"positions", RUN, offsetof(struct step_run, n), INT32_MAX, 1},
        {"add up", RUN, offsetof(struct step_run, n), 2, 1},
        {"add up", RUN, SECOND_RUN + offsetof(struct step_run, n), 7, 8},
        {"logits", RUN, offsetof(struct step_run, logits), -1, RUN_NO_LOGITS},
        {"logits", RUN, offsetof(struct step_run, logits), 3, RUN_ALL_ROWS},
        {"more rows with logits", RUN, SECOND_RUN + offsetof(struct step_run, logits), RUN_ALL_ROWS,
         RUN_LAST_ROW},
        {"CLOSE", CLOSE, 0, 4, 0},
        {"CLOSE", CLOSE, 0, -1, 0},
        {"token id", ID, 0, 1000, 999},
        {"token id", ID, 44, -1, 0},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        fill(&sent);
        spoil(&sent, table[i].part, table[i].at, table[i].good);
        if (decode(step_encode(&sent, &link_id, frame)) != OK)
            fail_msg("case %zu, %s: %s", i, table[i].what, e.text);
        spoil(&sent, table[i].part, table[i].at, table[i].bad);
        if (decode(step_encode(&sent, &link_id, frame)) != ERR_INPUT ||
            strstr(e.text, table[i].what) == NULL)
            fail_msg("case %zu, %s: %s", i, table[i].what, e.text);
        assert_true(got.n_rows == 0 && got.n_opens == 0 && got.n_runs == 0); // the step is empty
    }
}

static void counts_are_believed_only_within_limits(void **state)
{
    (void) state;
    enum { MAGIC, OPENS, BLOCKS, RUNS, CLOSES, ROWS }; // words of the frame's header
    fill(&sent);
    size_t n = step_encode(&sent, &link_id, frame);
    for (int word = MAGIC; word <= ROWS; word++) {
        static const uint32_t values[] = {33, 4097, 0x7fffffff, 0x80000000, 0xffffffff};
        for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
            uint32_t good;
            memcpy(&good, frame + 4 * word, 4);
            memcpy(frame + 4 * word, &values[i], 4);
            assert_int_equal(decode(n), ERR_INPUT);
            assert_string_equal(e.code, "bad_step");
            memcpy(frame + 4 * word, &good, 4);
        }
    }
    for (size_t cut = 0; cut < n; cut++) assert_int_equal(decode(cut), ERR_INPUT);
    assert_int_equal(decode(n), OK);
    uint8_t *longer = malloc(n + 1);
    memcpy(longer, frame, n);
    longer[n] = 0;
    assert_int_equal(step_decode(&got, &limits, &link_id, longer, n + 1, &e), ERR_INPUT);
    free(longer);
    size_t whole = step_frame_padded(n);
    assert_true(whole > n && whole < 2 * n && whole % STEP_FRAME_UNIT == 0);
    longer = calloc(1, 2 * whole);
    memcpy(longer, frame, n);
    assert_int_equal(step_decode(&got, &limits, &link_id, longer, whole, &e), OK);
    assert_int_equal(step_decode(&got, &limits, &link_id, longer, whole - 1, &e), ERR_INPUT);
    assert_int_equal(step_decode(&got, &limits, &link_id, longer, 2 * whole, &e), ERR_INPUT);
    free(longer);
}

static void frames_of_another_link_are_stale(void **state)
{
    (void) state;
    struct link_id others[] = {link_id, link_id, link_id, link_id};
    others[0].pipeline++;
    others[1].epoch--;
    others[2].token[0] ^= 1;
    others[3].token[LINK_TOKEN_BYTES - 1] ^= 1;
    struct step_token token = {.slot = 1, .pos = 2, .id = 3}, tokens[6];
    uint64_t number;
    int n;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        fill(&sent);
        assert_int_equal(decode(step_encode(&sent, &others[i], frame)), ERR_STATE);
        assert_string_equal(e.code, "stale");
        assert_int_equal(got.n_rows, 0);
        size_t size = step_tokens_encode(&token, 1, 5, &others[i], frame);
        assert_int_equal(
            step_tokens_decode(tokens, &n, &number, &limits, &link_id, frame, size, &e), ERR_STATE);
        assert_int_equal(n, 0);
    }
}

// --- what only the sequence of steps can tell

static void slots_are_followed_over_the_steps(void **state)
{
    (void) state;
    int32_t rows[4] = {0};
    step_reset(&sent, 1);
    open_slot(&sent, 1, 2, 10);
    add_run(&sent, 1, 0, 10, RUN_LAST_ROW);
    assert_int_equal(step_follow(rows, &sent, &e), OK);
    assert_int_equal(rows[1], 2 * KV_BLOCK_ROWS);
    step_reset(&sent, 2);
    add_run(&sent, 1, 127, 1, RUN_LAST_ROW);
    assert_int_equal(step_follow(rows, &sent, &e), OK);
    step_reset(&sent, 3);
    add_run(&sent, 1, 128, 1, RUN_LAST_ROW); // its two blocks are full
    assert_int_equal(step_follow(rows, &sent, &e), ERR_INPUT);
    assert_string_equal(e.code, "bad_step");
    step_reset(&sent, 3);
    add_run(&sent, 2, 0, 1, RUN_LAST_ROW); // never opened
    assert_int_equal(step_follow(rows, &sent, &e), ERR_INPUT);
    step_reset(&sent, 3);
    open_slot(&sent, 1, 1, 1); // is open
    assert_int_equal(step_follow(rows, &sent, &e), ERR_INPUT);
    step_reset(&sent, 3);
    sent.closes[sent.n_closes++] = 1; // one sequence ends and the next begins in its slot
    open_slot(&sent, 1, 1, 1);
    add_run(&sent, 1, 0, 1, RUN_LAST_ROW);
    assert_int_equal(step_follow(rows, &sent, &e), OK);
    assert_int_equal(rows[1], KV_BLOCK_ROWS);
    step_reset(&sent, 4);
    sent.closes[sent.n_closes++] = 1;
    add_run(&sent, 1, 1, 1, RUN_LAST_ROW); // ended before these rows
    assert_int_equal(step_follow(rows, &sent, &e), ERR_INPUT);
}

// --- tokens

static void chosen_tokens_travel_back(void **state)
{
    (void) state;
    struct step_token tokens[] = {{.slot = 0, .pos = 7, .id = 999, .logprob = -0.5f},
                                  {.slot = 3, .pos = 191, .id = 0, .logprob = -INFINITY, .n_top = 2,
                                   .top_id = {1, 2}, .top_logprob = {-1, -2}}};
    struct step_token back[6];
    uint64_t number = 0;
    int n = 0;
    uint8_t *to = malloc(step_tokens_frame_max(&limits));
    size_t size = step_tokens_encode(tokens, 2, 5, &link_id, to);
    assert_true(size <= step_tokens_frame_max(&limits));
    assert_int_equal(step_tokens_decode(back, &n, &number, &limits, &link_id, to, size, &e), OK);
    assert_true(n == 2 && number == 5);
    for (int i = 0; i < 2; i++) {
        assert_true(back[i].slot == tokens[i].slot && back[i].pos == tokens[i].pos);
        assert_true(back[i].id == tokens[i].id && back[i].logprob == tokens[i].logprob);
        assert_int_equal(back[i].n_top, tokens[i].n_top);
    }
    assert_true(back[1].top_id[1] == 2 && back[1].top_logprob[1] == -2);
    // The largest frame.
    struct step_token most[6];
    for (int i = 0; i < limits.max_out; i++)
        most[i] = (struct step_token){.slot = i % limits.slots, .n_top = LOGPROBS_MAX};
    size = step_tokens_encode(most, limits.max_out, 5, &link_id, to);
    assert_int_equal(size, step_tokens_frame_max(&limits));
    assert_int_equal(step_tokens_decode(back, &n, &number, &limits, &link_id, to, size, &e), OK);
    assert_int_equal(n, limits.max_out);
    free(to);
}

static void tokens_keep_their_bounds(void **state)
{
    (void) state;
    static const struct step_token good = {.slot = 3, .pos = 191, .id = 999, .n_top = 1,
                                           .top_id = {999}};
    struct step_token bad[] = {good, good, good, good, good, good, good, good}, back[6];
    uint64_t number;
    int n;
    bad[0].slot = 4, bad[1].slot = -1, bad[2].id = 1000, bad[3].id = -1;
    bad[4].pos = -1, bad[5].pos = 192, bad[6].top_id[0] = 1000, bad[7].top_id[0] = -1;
    size_t size = step_tokens_encode(&good, 1, 5, &link_id, frame);
    assert_int_equal(step_tokens_decode(back, &n, &number, &limits, &link_id, frame, size, &e), OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        size = step_tokens_encode(&bad[i], 1, 5, &link_id, frame);
        if (step_tokens_decode(back, &n, &number, &limits, &link_id, frame, size, &e) != ERR_INPUT)
            fail_msg("token %zu", i);
        assert_int_equal(n, 0);
    }
    size = step_tokens_encode(&good, 1, 5, &link_id, frame);
    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *copy = bytes_copy(frame, cut);
        assert_int_equal(step_tokens_decode(back, &n, &number, &limits, &link_id, copy, cut, &e),
                         ERR_INPUT);
        free(copy);
    }
    frame[size] = 0;
    assert_int_equal(step_tokens_decode(back, &n, &number, &limits, &link_id, frame, size + 1, &e),
                     ERR_INPUT);
    assert_non_null(strstr(e.text, "left over"));
}

// --- damage

static void damaged_frames_never_crash(void **state)
{
    (void) state;
    enum { ROOM = 2048, TIMES = 200000 };
    static uint8_t work[ROOM];
    struct step_token token = {.slot = 3, .pos = 7, .id = 5, .n_top = 3, .top_id = {1, 2, 3}},
                      back[6];
    uint64_t r = 17, number;
    int passed = 0, n_tokens;
    for (int i = 0; i < TIMES; i++) {
        int32_t rows[4] = {0, KV_BLOCK_ROWS * 2, 0, KV_BLOCK_ROWS};
        bool is_step = i % 4 != 0;
        fill(&sent);
        size_t n = is_step ? step_encode(&sent, &link_id, work)
                           : step_tokens_encode(&token, 1, 5, &link_id, work);
        // Behind the link's token, mostly, where it isn't refused at once.
        size_t skip = i % 8 < 6 && n > 64 ? 64 : 0;
        n = skip + bytes_damage(work + skip, n - skip, ROOM - skip, &r);
        uint8_t *copy = bytes_copy(work, n);
        e = (struct error){0};
        if (is_step && step_decode(&got, &limits, &link_id, copy, n, &e) == OK) {
            passed++;
            step_follow(rows, &got, &e);
            for (int k = 0; k < got.n_rows; k++)
                assert_true(got.pos[k] >= 0 && got.pos[k] < limits.max_blocks * KV_BLOCK_ROWS &&
                            got.slot[k] >= 0 && got.slot[k] < limits.slots);
            assert_in_range(got.n_out, 0, limits.max_out);
        }
        if (!is_step)
            passed +=
                step_tokens_decode(back, &n_tokens, &number, &limits, &link_id, copy, n, &e) == OK;
        free(copy);
    }
    assert_in_range(passed, TIMES / 100, TIMES - TIMES / 100);
}

// Pinned: stages of different builds may meet. The words are little-endian.
static void bytes_stay(void **state)
{
    (void) state;
    step_reset(&sent, 5);
    sent.closes[sent.n_closes++] = 2;
    open_slot(&sent, 1, 1, 2);
    sent.blocks[0] = 9;
    add_run(&sent, 1, 0, 2, RUN_LAST_ROW);
    char *hex = bytes_to_hex(frame, step_encode(&sent, &link_id, frame));
    assert_string_equal(hex, "50535031" "01000000" "01000000" "01000000" "01000000" "02000000"
                             "0100000000000000" "0700000000000000" "0500000000000000"
                             "30313233343536373839616263646500"
                             "01000000" "01000000" "00000000" "02000000" // OPEN
                             "00000000" "0000803f" "00000000" "0000803f" "00000000" "00000000"
                             "00000000" "ffffffff" "0000000000000000" // sampling
                             "09000000" // blocks
                             "01000000" "00000000" "02000000" "01000000" // ROWS
                             "02000000" // CLOSE
                             "64000000" "65000000"); // ids
    free(hex);
    struct step_token token = {.slot = 1, .pos = 1, .id = 7, .logprob = -0.5f, .n_top = 1,
                               .top_id = {7}, .top_logprob = {-0.5f}};
    hex = bytes_to_hex(frame, step_tokens_encode(&token, 1, 5, &link_id, frame));
    assert_string_equal(hex, "50535431" "01000000" "0100000000000000" "0700000000000000"
                             "0500000000000000" "30313233343536373839616263646500"
                             "01000000" "01000000" "07000000" "000000bf" "01000000"
                             "07000000" "000000bf");
    free(hex);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_step_travels_to_the_next_stage, setup, teardown),
        cmocka_unit_test_setup_teardown(the_largest_step_fits_its_frame, setup, teardown),
        cmocka_unit_test_setup_teardown(every_bound_is_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(counts_are_believed_only_within_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(frames_of_another_link_are_stale, setup, teardown),
        cmocka_unit_test_setup_teardown(slots_are_followed_over_the_steps, setup, teardown),
        cmocka_unit_test_setup_teardown(chosen_tokens_travel_back, setup, teardown),
        cmocka_unit_test_setup_teardown(tokens_keep_their_bounds, setup, teardown),
        cmocka_unit_test_setup_teardown(damaged_frames_never_crash, setup, teardown),
        cmocka_unit_test_setup_teardown(bytes_stay, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
