#include "common/log.h"

#include "common/status.h"

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static FILE *taken; // what is written to stderr
static int real_stderr;

static int setup(void **state)
{
    (void) state;
    taken = tmpfile();
    real_stderr = dup(STDERR_FILENO);
    check(taken != NULL && real_stderr >= 0);
    check(fcntl(fileno(taken), F_SETFL, O_APPEND) == 0); // as a log is
    check(dup2(fileno(taken), STDERR_FILENO) == STDERR_FILENO);
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    fclose(taken);
    log_init("penstock", LOG_INFO, false);
    return 0;
}

// What was written since the last call; valid until the next.
static char *written(void)
{
    static char text[1 << 20];
    rewind(taken);
    size_t n = fread(text, 1, sizeof text - 1, taken);
    text[n] = '\0';
    check(ftruncate(fileno(taken), 0) == 0);
    return text;
}

// The line behind its time, which is a number.
static const char *behind_time(const char *line)
{
    char *end;
    assert_memory_equal(line, "t=", 2);
    assert_true(strtoll(line + 2, &end, 10) > 1600000000000);
    return end;
}

static void a_line_is_words_and_numbers(void **state)
{
    (void) state;
    log_line(LOG_INFO, "ready", log_int("port", 7300), log_str("model", "tiny"),
             log_real("seconds", 0.25));
    assert_string_equal(behind_time(written()), " level=info who=penstock event=ready port=7300 "
                                                "model=tiny seconds=0.25\n");
    log_init("head", LOG_DEBUG, false);
    log_line(LOG_DEBUG, "idle");
    assert_string_equal(behind_time(written()), " level=debug who=head event=idle\n");
}

static void lines_below_the_level_are_not_written(void **state)
{
    (void) state;
    log_init("x", LOG_WARN, false);
    assert_false(log_enabled(LOG_INFO));
    assert_true(log_enabled(LOG_WARN) && log_enabled(LOG_ERROR));
    log_line(LOG_INFO, "quiet");
    assert_string_equal(written(), "");
    log_line(LOG_ERROR, "loud");
    assert_non_null(strstr(written(), "level=error"));
}

// Text from outside can neither begin a line of its own nor look like another field.
static void foreign_text_stays_in_its_quotes(void **state)
{
    (void) state;
    static const struct {
        const char *value, *line;
    } table[] = {
        {"", "text=\"\""},
        {"two words", "text=\"two words\""},
        {"level=error", "text=\"level=error\""},
        {"a\nt=1 level=error", "text=\"a\\u000at=1 level=error\""},
        {"a\"b\\c", "text=\"a\\\"b\\\\c\""},
        {"\x1b[31mred", "text=\"\\u001b[31mred\""},
        {"h\xc3\xa9t\xe2\x82\xac", "text=\"h\xc3\xa9t\xe2\x82\xac\""},
        {"cut \xe2\x82", "text=\"cut ??\""},
        {"\xff\xfe", "text=\"??\""},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        log_line(LOG_INFO, "e", log_str("text", table[i].value));
        const char *line = written(), *field = strstr(line, "event=e ");
        assert_non_null(field);
        assert_memory_equal(field + 8, table[i].line, strlen(table[i].line));
        assert_string_equal(field + 8 + strlen(table[i].line), "\n");
    }
    log_line(LOG_INFO, "e", log_str("text", NULL));
    assert_non_null(strstr(written(), "text=\"\"\n"));
}

static void json_lines_are_json(void **state)
{
    (void) state;
    log_init("broker", LOG_INFO, true);
    log_line(LOG_WARN, "odd", log_str("text", "a\"b\\\n\xc3\xa9\xff\x01"), log_int("n", INT64_MIN),
             log_real("x", 1.5), log_real("nan", NAN), log_real("inf", -INFINITY));
    json_t *line = json_loads(written(), JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(line);
    assert_string_equal(json_string_value(json_object_get(line, "level")), "warn");
    assert_string_equal(json_string_value(json_object_get(line, "who")), "broker");
    assert_string_equal(json_string_value(json_object_get(line, "text")), "a\"b\\\n\xc3\xa9?\x01");
    assert_true(json_integer_value(json_object_get(line, "n")) == INT64_MIN);
    assert_true(json_real_value(json_object_get(line, "x")) == 1.5);
    json_decref(line);
}

// However long its values are, a line keeps its form.
static void long_lines_are_cut_where_it_does_no_harm(void **state)
{
    (void) state;
    static const char *const pieces[] = {
        "x", "\"", "\n", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xff"};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        for (int n = 150; n < 2100; n += 13) {
            char value[10000] = "";
            size_t used = 0, size = strlen(pieces[i]);
            for (int k = 0; k < n; k++, used += size) memcpy(value + used, pieces[i], size + 1);
            log_init("broker", LOG_INFO, true);
            log_line(LOG_INFO, "long", log_str("text", value), log_int("n", n),
                     log_str("more", value), log_int("last", 1));
            json_t *line = json_loads(written(), JSON_REJECT_DUPLICATES, NULL);
            if (line == NULL) fail_msg("%d times piece %zu is no JSON", n, i);
            json_decref(line);
            log_init("broker", LOG_INFO, false);
            log_line(LOG_INFO, "long", log_str("text", value), log_int("n", n));
            const char *text = written();
            assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
            assert_true(strlen(text) <= 2048);
        }
    }
}

static void *write_lines(void *arg)
{
    for (int i = 0; i < 500; i++)
        log_line(LOG_INFO, "e", log_int("thread", (intptr_t) arg), log_str("text", "some words"));
    return NULL;
}

static void threads_write_whole_lines(void **state)
{
    (void) state;
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    log_init("broker", LOG_INFO, true);
    for (intptr_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_lines, (void *) i), 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    int n = 0, of[THREADS] = {0};
    char *save = NULL;
    for (char *l = strtok_r(written(), "\n", &save); l != NULL;
         l = strtok_r(NULL, "\n", &save), n++) {
        json_t *line = json_loads(l, 0, NULL);
        assert_non_null(line);
        of[json_integer_value(json_object_get(line, "thread"))]++;
        json_decref(line);
    }
    assert_int_equal(n, THREADS * 500);
    for (int i = 0; i < THREADS; i++) assert_int_equal(of[i], 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_line_is_words_and_numbers, setup, teardown),
        cmocka_unit_test_setup_teardown(lines_below_the_level_are_not_written, setup, teardown),
        cmocka_unit_test_setup_teardown(foreign_text_stays_in_its_quotes, setup, teardown),
        cmocka_unit_test_setup_teardown(json_lines_are_json, setup, teardown),
        cmocka_unit_test_setup_teardown(long_lines_are_cut_where_it_does_no_harm, setup, teardown),
        cmocka_unit_test_setup_teardown(threads_write_whole_lines, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
