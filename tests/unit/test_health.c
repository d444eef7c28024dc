#include "common/health.h"

#include "tests/support/folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[FOLDER_SIZE], path[FOLDER_SIZE + 8];

static struct health reread(void)
{
    struct health h;
    struct error e = {0};
    if (health_read(&h, path, &e) != OK) fail_msg("%s", e.text);
    return h;
}

// As a group does: look whether it is time, fill, write; somebody else reads and judges.
static void test_what_is_written_is_read(void **state)
{
    (void) state;
    struct health_writer w = {.path = path};
    struct health h = {.state = HEALTH_SERVING, .heard = true, .stage = 3, .work = true,
                       .steps = 17, .patience_ms = 60000, .loaded_bytes = 5, .load_bytes = 9};
    struct error e = {0};
    char text[HEALTH_TEXT_SIZE];
    assert_true(health_due(&w, 1000));
    error_set(&h.trouble, ERR_STATE, "bad_model", "two\nlines of \"it\"");
    health_write(&w, &h, 1000);
    struct health r = reread();
    assert_int_equal(r.state, HEALTH_SERVING);
    assert_int_equal(r.written_ms, 1000);
    assert_true(r.heard && r.work && !r.redis);
    assert_int_equal(r.stage, 3);
    assert_int_equal(r.steps, 17);
    assert_int_equal(r.moved_ms, 1000);
    assert_int_equal(r.patience_ms, 60000);
    assert_int_equal(r.loaded_bytes, 5);
    assert_int_equal(r.load_bytes, 9);
    assert_string_equal(r.trouble.code, "bad_model");
    assert_string_equal(r.trouble.text, "two lines of \"it\"");
    assert_int_equal(health_judge(&r, 1500, false, text, &e), OK);
    assert_string_equal(text, "serving stage 3; 17 steps, at work");
    health_end(&w);
    assert_int_equal(access(path, F_OK), -1);
}

static void test_written_once_a_second(void **state)
{
    (void) state;
    struct health_writer w = {.path = path}, none = {0};
    struct health h = {.state = HEALTH_WAITING};
    assert_false(health_due(&none, 5000));
    health_write(&w, &h, 5000);
    assert_false(health_due(&w, 5000 + HEALTH_MS - 1));
    assert_true(health_due(&w, 5000 + HEALTH_MS));
}

// The clock of work that stands still begins when work comes, and again with each step.
static void test_when_steps_moved(void **state)
{
    (void) state;
    static const struct {
        int64_t now_ms;
        bool work;
        uint64_t steps;
        int64_t moved_ms;
    } rows[] = {{1000, false, 7, 1000},  {9000, false, 7, 9000},   {10000, true, 7, 9000},
                {12000, true, 7, 9000},  {13000, true, 8, 13000},  {20000, true, 8, 13000},
                {21000, false, 8, 21000}};
    struct health_writer w = {.path = path};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct health h = {.state = HEALTH_SERVING, .work = rows[i].work, .steps = rows[i].steps};
        health_write(&w, &h, rows[i].now_ms);
        if (h.moved_ms != rows[i].moved_ms) fail_msg("row %zu: %lld", i, (long long) h.moved_ms);
    }
}

static void test_judgement(void **state)
{
    (void) state;
    const struct error model = {ERR_STATE, "bad_model", "another model"};
    static const char *const well = NULL;
    const struct {
        const char *name, *code; // NULL: well
        struct health h;
        int64_t now_ms;
        bool idle_ok;
    } rows[] = {
        {"leads", well, {.state = HEALTH_LEADING, .redis = true}, 0, false},
        {"stands by", well, {.state = HEALTH_STANDBY, .redis = true}, 0, false},
        {"without Redis", "no_redis", {.state = HEALTH_LEADING}, 0, false},
        {"never had Redis", "no_redis", {.state = HEALTH_WAITING, .redis = true}, 0, false},
        {"old", "hung", {.state = HEALTH_LEADING, .redis = true}, HEALTH_STALE_MS + 1, false},
        {"not yet old", well, {.state = HEALTH_LEADING, .redis = true}, HEALTH_STALE_MS, false},
        {"from before a reboot", "hung", {.state = HEALTH_LEADING, .redis = true}, -1, false},
        {"no broker", "no_broker", {.state = HEALTH_IDLE}, 0, true},
        {"waits for a stage", "no_stage", {.state = HEALTH_IDLE, .heard = true}, 0, false},
        {"a spare", well, {.state = HEALTH_IDLE, .heard = true}, 0, true},
        {"refused", "bad_model", {.state = HEALTH_IDLE, .heard = true, .trouble = model}, 0, true},
        {"loads", "loading", {.state = HEALTH_LOADING, .heard = true}, 0, true},
        {"waits for links", well, {.state = HEALTH_LOADED}, 0, false},
        {"serves, though the broker is away", well, {.state = HEALTH_SERVING}, 0, false},
        {"long without work", well, {.state = HEALTH_SERVING, .moved_ms = -100}, 0, false},
        {"moves", well, {.state = HEALTH_SERVING, .work = true, .moved_ms = -50}, 0, false},
        {"stuck", "stuck", {.state = HEALTH_SERVING, .work = true, .moved_ms = -51}, 0, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct health h = rows[i].h;
        struct error e = {0};
        char text[HEALTH_TEXT_SIZE];
        h.patience_ms = 50;
        enum status status = health_judge(&h, rows[i].now_ms, rows[i].idle_ok, text, &e);
        if ((status == OK) != (rows[i].code == well) ||
            strcmp(e.code, rows[i].code == well ? "" : rows[i].code) != 0) {
            fail_msg("%s: \"%s\" %s", rows[i].name, text, e.code);
        }
        assert_true((status == OK) == (text[0] != '\0'));
    }
}

static void put(const char *text, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
}

static void test_what_is_no_status(void **state)
{
    (void) state;
    struct health h = {.state = HEALTH_LEADING};
    struct error e = {0};
    static const char *const bad[] = {"", "state ", "state flying\n", "leading\n", "state leading"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put(bad[i], strlen(bad[i]));
        if (health_read(&h, path, &e) != ERR_INPUT) fail_msg("\"%s\" was taken", bad[i]);
        assert_string_equal(e.code, "bad_status");
    }
    static char big[3 * HEALTH_FILE_MAX];
    memset(big, 'x', sizeof big);
    put(big, sizeof big);
    assert_int_equal(health_read(&h, path, &e), ERR_INPUT);
    unlink(path);
    assert_int_equal(health_read(&h, path, &e), ERR_UNAVAILABLE);
    assert_string_equal(e.code, "not_running");
    assert_int_equal(health_read(&h, folder, &e), ERR_IO);
}

// The daemon goes on where its file can't be written.
static void test_a_folder_that_is_not_there(void **state)
{
    (void) state;
    struct health_writer w = {.path = "/nowhere/at/all"};
    struct health h = {.state = HEALTH_LEADING};
    health_write(&w, &h, 1000);
    assert_true(w.told);
    assert_true(health_due(&w, 1000 + HEALTH_MS));
}

static int make_folder(void **state)
{
    (void) state;
    folder_make(folder, "health");
    snprintf(path, sizeof path, "%s/status", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void) state;
    folder_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_written_is_read),
        cmocka_unit_test(test_written_once_a_second),
        cmocka_unit_test(test_when_steps_moved),
        cmocka_unit_test(test_judgement),
        cmocka_unit_test(test_what_is_no_status),
        cmocka_unit_test(test_a_folder_that_is_not_there),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
