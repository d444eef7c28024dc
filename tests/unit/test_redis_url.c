// The parts of the Redis clients that need no Redis.
#include "broker/redis.h"

#include "broker/redis_tls.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <string.h>

static void a_url_names_a_server_and_is_shown_without_its_password(void **state)
{
    (void) state;
    struct redis_url url;
    struct error e = {0};
    char text[300];
    assert_int_equal(redis_url_parse("redis://anna:se%3Acret@db.example:6380/3", &url, &e), OK);
    assert_string_equal(url.host, "db.example");
    assert_int_equal(url.port, 6380);
    assert_int_equal(url.db, 3);
    assert_string_equal(url.user, "anna");
    assert_string_equal(url.password, "se:cret");
    redis_url_show(&url, text, sizeof text);
    assert_string_equal(text, "redis://db.example:6380/3");
    assert_int_equal(redis_url_parse("redis://:x@[::1]", &url, &e), OK);
    redis_url_show(&url, text, sizeof text);
    assert_string_equal(text, "redis://[::1]:6379");
    assert_int_equal(redis_url_parse("unix:///run/r.sock?db=4", &url, &e), OK);
    redis_url_show(&url, text, sizeof text);
    assert_string_equal(text, "unix:///run/r.sock?db=4");
}

static void urls_that_are_good(void **state)
{
    (void) state;
    static const struct {
        const char *text, *host, *path;
        int port, db;
        const char *user, *password;
    } table[] = {
        {"redis://h", "h", "", 6379, 0, "", ""},
        {"redis://h/", "h", "", 6379, 0, "", ""},
        {"redis://h:1/15", "h", "", 1, 15, "", ""},
        {"redis://127.0.0.1:65535", "127.0.0.1", "", 65535, 0, "", ""},
        {"redis://[::1]", "::1", "", 6379, 0, "", ""},
        {"redis://[fe80::1]:7000/1", "fe80::1", "", 7000, 1, "", ""},
        {"redis://:p@h", "h", "", 6379, 0, "", "p"},
        {"redis://u:@h", "h", "", 6379, 0, "u", ""},
        {"redis://u:p:q@h", "h", "", 6379, 0, "u", "p:q"},
        {"redis://u:p@q@h", "h", "", 6379, 0, "u", "p@q"},
        {"redis://u%40x:%2f%25@[::1]:1", "::1", "", 1, 0, "u@x", "/%"},
        {"unix:///run/redis.sock", "", "/run/redis.sock", 6379, 0, "", ""},
        {"unix:/run/redis.sock", "", "/run/redis.sock", 6379, 0, "", ""},
        {"unix:///a%20b?db=4", "", "/a b", 6379, 4, "", ""},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct redis_url url;
        struct error e = {0};
        if (redis_url_parse(table[i].text, &url, &e) != OK)
            fail_msg("%s: %s", table[i].text, e.text);
        assert_string_equal(url.host, table[i].host);
        assert_string_equal(url.path, table[i].path);
        assert_string_equal(url.user, table[i].user);
        assert_string_equal(url.password, table[i].password);
        if (table[i].path[0] == '\0') assert_int_equal(url.port, table[i].port);
        assert_int_equal(url.db, table[i].db);
    }
}

static void urls_that_are_bad_say_why(void **state)
{
    (void) state;
    static const struct {
        const char *text;
        enum status status;
        const char *word;
    } table[] = {
        {"", ERR_INPUT, "begin"},
        {"localhost", ERR_INPUT, "begin"},
        {"http://h", ERR_INPUT, "begin"},
        {"redis://", ERR_INPUT, "host"},
        {"redis:///1", ERR_INPUT, "host"},
        {"redis://:1", ERR_INPUT, "host"},
        {"redis://u:p@", ERR_INPUT, "host"},
        {"redis://[]", ERR_INPUT, "host"},
        {"redis://u@h", ERR_INPUT, "password"},
        {"redis://h:", ERR_INPUT, "port"},
        {"redis://h:x", ERR_INPUT, "port"},
        {"redis://h:65536", ERR_INPUT, "port"},
        {"redis://h:-1", ERR_INPUT, "port"},
        {"redis://h:99999999999999999999", ERR_INPUT, "port"},
        {"redis://h/x", ERR_INPUT, "database"},
        {"redis://h/1/2", ERR_INPUT, "database"},
        {"redis://h/-1", ERR_INPUT, "database"},
        {"redis://[::1", ERR_INPUT, "]"},
        {"redis://[::1]x", ERR_INPUT, "]"},
        {"redis://h%", ERR_INPUT, "escape"},
        {"redis://h%4", ERR_INPUT, "escape"},
        {"redis://h%zz", ERR_INPUT, "escape"},
        {"redis://u:%00@h", ERR_INPUT, "escape"},
        {"unix://relative", ERR_INPUT, "absolute"},
        {"unix:", ERR_INPUT, "absolute"},
        {"unix:///s?db=", ERR_INPUT, "db"},
        {"unix:///s?db=x", ERR_INPUT, "db"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct redis_url url;
        struct error e = {0};
        if (redis_url_parse(table[i].text, &url, &e) != table[i].status ||
            strstr(e.text, table[i].word) == NULL)
            fail_msg("%s: %s", table[i].text, e.text);
        assert_string_equal(e.code, "bad_redis_url");
    }
}

static void tls_is_asked_for_by_the_scheme(void **state)
{
    (void) state;
    struct redis_url url;
    struct error e = {0};
    char text[128];
    enum status status = redis_url_parse("rediss://u:p@redis.example:6380/2", &url, &e);
    if (!redis_tls_available()) {
        assert_int_equal(status, ERR_UNSUPPORTED);
        assert_string_equal(e.code, "no_tls");
        assert_non_null(strstr(e.text, "stunnel"));
        return;
    }
    assert_int_equal(status, OK);
    assert_true(url.tls && url.port == 6380 && url.db == 2);
    redis_url_show(&url, text, sizeof text);
    assert_string_equal(text, "rediss://redis.example:6380/2");
    assert_int_equal(redis_url_parse("redis://h", &url, &e), OK);
    assert_false(url.tls);
}

static void parts_of_a_url_are_bounded(void **state)
{
    (void) state;
    static const struct {
        const char *before, *after;
        int most;
    } table[] = {
        {"redis://", "", REDIS_HOST_MAX},
        {"redis://", ":p@h", REDIS_USER_MAX},
        {"redis://u:", "@h", REDIS_PASSWORD_MAX},
        {"unix:/", "", REDIS_HOST_MAX - 1}, // the slash counts
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        for (int over = 0; over < 2; over++) {
            struct redis_url url;
            struct error e = {0};
            char part[1024] = "", text[2048];
            memset(part, 'x', (size_t) (table[i].most + over));
            snprintf(text, sizeof text, "%s%s%s", table[i].before, part, table[i].after);
            assert_int_equal(redis_url_parse(text, &url, &e), over ? ERR_INPUT : OK);
            if (over) assert_non_null(strstr(e.text, "longer"));
            if (over) assert_null(strstr(e.text, "xxx")); // it may be the password
        }
    }
}

static void names_are_plain(void **state)
{
    (void) state;
    struct error e = {0};
    char longest[TENANT_MAX + 2] = "";
    memset(longest, 'a', TENANT_MAX);
    assert_int_equal(redis_name_check("tenant", "Team_7-b", TENANT_MAX, &e), OK);
    assert_int_equal(redis_name_check("tenant", longest, TENANT_MAX, &e), OK);
    longest[TENANT_MAX] = 'a';
    const char *bad[] = {"", "a b", "a:b", "{q}", "a*", "\xc3\xa9", "a\n", longest};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(redis_name_check("tenant", bad[i], TENANT_MAX, &e), ERR_INPUT);
        assert_string_equal(e.code, "bad_name");
        assert_non_null(strstr(e.text, "tenant"));
    }
}

static void errors_of_redis_have_codes(void **state)
{
    (void) state;
    static const struct {
        const char *text;
        enum status status;
        const char *code;
    } table[] = {
        {"STALETERM 4", ERR_STATE, "stale_term"},
        {"BADARG class", ERR_INPUT, "bad_argument"},
        {"OOM command not allowed", ERR_LIMIT, "redis_full"},
        {"LOADING Redis is loading", ERR_UNAVAILABLE, "redis_loading"},
        {"BUSY Redis is busy", ERR_UNAVAILABLE, "redis_busy"},
        {"READONLY You can't write", ERR_UNAVAILABLE, "redis_replica"},
        {"MISCONF Redis is configured", ERR_UNAVAILABLE, "redis_disk"},
        {"NOPERM this user has no permissions", ERR_UNSUPPORTED, "redis_forbidden"},
        {"NOAUTH Authentication required.", ERR_UNSUPPORTED, "redis_login"},
        {"WRONGPASS invalid username-password pair", ERR_UNSUPPORTED, "redis_login"},
        {"ERR Function not found", ERR_UNAVAILABLE, "no_library"},
        {"ERR wrong number of arguments", ERR_IO, "redis_error"},
        {"", ERR_IO, "redis_error"},
    };
    struct error e = {0};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char text[64];
        strcpy(text, table[i].text);
        redisReply reply = {.type = REDIS_REPLY_ERROR, .str = text, .len = strlen(text)};
        assert_int_equal(redis_reply_check(&reply, &e), table[i].status);
        assert_string_equal(e.code, table[i].code);
        assert_non_null(strstr(e.text, text));
    }
    redisReply good = {.type = REDIS_REPLY_NIL};
    assert_int_equal(redis_reply_check(&good, &e), OK);
    assert_int_equal(redis_reply_check(NULL, &e), ERR_UNAVAILABLE);
    assert_string_equal(e.code, "redis_unavailable");
}

static void stats_are_pairs(void **state)
{
    (void) state;
    char names[][12] = {"term", "ready", "new_one", "oldest_ms"}, number[] = "123";
    redisReply cells[8], *pointers[8];
    for (int i = 0; i < 8; i++) {
        cells[i] = (redisReply){.type = REDIS_REPLY_INTEGER, .integer = i};
        if (i % 2 == 0) cells[i] = (redisReply){.type = REDIS_REPLY_STRING, .str = names[i / 2]};
        pointers[i] = &cells[i];
    }
    cells[3].integer = -4; // never
    cells[7] = (redisReply){.type = REDIS_REPLY_STRING, .str = number};
    redisReply reply = {.type = REDIS_REPLY_ARRAY, .elements = 8, .element = pointers};
    struct queue_stats stats;
    struct error e = {0};
    assert_int_equal(queue_stats_decode(&reply, &stats, &e), OK);
    assert_true(stats.term == 1 && stats.ready == 0 && stats.oldest_ms == 123 && stats.done == 0);
    reply.elements = 7;
    assert_int_equal(queue_stats_decode(&reply, &stats, &e), ERR_IO);
    assert_string_equal(e.code, "redis_reply");
    assert_int_equal(queue_stats_decode(NULL, &stats, &e), ERR_UNAVAILABLE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_url_names_a_server_and_is_shown_without_its_password),
        cmocka_unit_test(urls_that_are_good),
        cmocka_unit_test(urls_that_are_bad_say_why),
        cmocka_unit_test(tls_is_asked_for_by_the_scheme),
        cmocka_unit_test(parts_of_a_url_are_bounded),
        cmocka_unit_test(names_are_plain),
        cmocka_unit_test(errors_of_redis_have_codes),
        cmocka_unit_test(stats_are_pairs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
