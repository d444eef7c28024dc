#include "common/mpwalk.h"

#include "common/limits.h"
#include "tests/support/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <msgpack.h>
#include <stdio.h>
#include <string.h>

static struct buffer bytes;

static int setup(void **state)
{
    (void) state;
    buffer_init(&bytes, 1 << 20);
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    buffer_deinit(&bytes);
    return 0;
}

static enum status walk(struct error *e)
{
    uint8_t *copy = bytes_copy(bytes.data, bytes.n);
    enum status status = mpwalk(copy, bytes.n, e);
    free(copy);
    return status;
}

static enum status walk_hex(const char *hex, struct error *e)
{
    *e = (struct error){0};
    buffer_clear(&bytes);
    bytes_hex(&bytes, hex);
    return walk(e);
}

// Walk first, then read in place: nothing can fail any more.
static void a_walked_map_is_read_in_place(void **state)
{
    (void) state;
    struct error e = {0};
    bytes_json(&bytes, "{'id': 'a', 'list': [1, -2, 2.5, true, null]}");
    assert_int_equal(mpwalk(bytes.data, bytes.n, &e), OK);
    struct mp_cursor c = mp_cursor(bytes.data, bytes.n);
    struct mp_value v;
    assert_true(mp_take(&c, &v) && v.type == MP_MAP && v.n == 2);
    assert_true(mp_take(&c, &v) && mp_is(&v, "id") && !mp_is(&v, "i") && !mp_is(&v, "id2"));
    assert_true(mp_take(&c, &v) && mp_is(&v, "a"));
    assert_true(mp_take(&c, &v) && mp_is(&v, "list"));
    struct mp_cursor before = c;
    assert_true(mp_take(&c, &v) && v.type == MP_ARRAY && v.n == 5);
    assert_true(mp_take(&c, &v) && v.type == MP_UINT && v.uint == 1);
    assert_true(mp_take(&c, &v) && v.type == MP_INT && v.sint == -2);
    assert_true(mp_take(&c, &v) && v.type == MP_FLOAT && v.real == 2.5);
    assert_true(mp_take(&c, &v) && v.type == MP_BOOL && v.boolean);
    assert_true(mp_take(&c, &v) && v.type == MP_NIL);
    assert_false(mp_take(&c, &v));
    assert_true(mp_skip(&before) && before.at == before.end);
}

static void every_encoding_of_a_number_reads_the_same(void **state)
{
    (void) state;
    static const struct {
        const char *hex;
        enum mp_type type;
        int64_t number;
    } table[] = {
        {"00", MP_UINT, 0},
        {"7f", MP_UINT, 127},
        {"cc 07", MP_UINT, 7},
        {"cd 0007", MP_UINT, 7},
        {"ce 00000007", MP_UINT, 7},
        {"cf 0000000000000007", MP_UINT, 7},
        {"d0 07", MP_UINT, 7},
        {"d1 0007", MP_UINT, 7},
        {"d2 00000007", MP_UINT, 7},
        {"d3 7fffffffffffffff", MP_UINT, INT64_MAX},
        {"ff", MP_INT, -1},
        {"e0", MP_INT, -32},
        {"d0 80", MP_INT, -128},
        {"d1 8000", MP_INT, -32768},
        {"d2 ffffffff", MP_INT, -1},
        {"d3 8000000000000000", MP_INT, INT64_MIN},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct error e;
        struct mp_value v;
        assert_int_equal(walk_hex(table[i].hex, &e), OK);
        struct mp_cursor c = mp_cursor(bytes.data, bytes.n);
        assert_true(mp_take(&c, &v));
        assert_int_equal(v.type, table[i].type);
        if (v.type == MP_INT) assert_true(v.sint == table[i].number);
        else assert_true(v.uint == (uint64_t) table[i].number);
    }
}

static void malformed_bytes_are_named_by_their_offset(void **state)
{
    (void) state;
    static const struct {
        const char *what, *hex;
        int at;
        const char *text;
    } table[] = {
        {"nothing", "", 0, "ends where"},
        {"the unused byte", "c1", 0, "malformed"},
        {"a map without its value", "81 a161", 3, "ends where"},
        {"an array of gigabytes", "dd ffffffff", 0, "longer"},
        {"an array of gigabytes in a map", "81 a161 dd 7fffffff", 3, "longer"},
        {"a map of gigabytes", "df ffffffff a161", 0, "longer"},
        {"a map of one pair too many", "82 a161 01", 0, "longer"},
        {"a map of half a pair too many", "82 a161 01 a162", 6, "ends where"},
        {"an array of one element too many", "92 01", 0, "longer"},
        {"a str of gigabytes", "db ffffffff 61", 0, "longer"},
        {"a bin of gigabytes", "c6 ffffffff 61", 0, "longer"},
        {"an ext of gigabytes", "c9 ffffffff 01 61", 0, "longer"},
        {"an ext without its type", "c7 00", 0, "longer"},
        {"half a float", "cb 3ff0", 0, "longer"},
        {"half an integer", "ce 00", 0, "longer"},
        {"half a length", "da 00", 0, "longer"},
        {"a byte behind", "c0 c0", 1, "follow"},
        {"bytes behind a map", "81 a161 01 00", 4, "follow"},
        {"an integer as key", "81 01 01", 1, "no str"},
        {"nil as key", "82 a161 01 c0 01", 4, "no str"},
        {"bin as key", "81 c401 61 01", 1, "no str"},
        {"a key twice", "82 a161 01 a161 02", 4, "twice"},
        {"a key twice, longer length", "82 a161 01 d901 61 02", 4, "twice"},
        {"the empty key twice", "82 a0 01 a0 02", 3, "twice"},
        {"a key twice inside", "91 82 a162 01 a162 02", 5, "twice"},
        {"a lone continuation byte", "a1 80", 1, "UTF-8"},
        {"a key that is no UTF-8", "81 a2 61ff 01", 3, "UTF-8"},
        {"half a character", "a3 61 e282", 2, "UTF-8"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct error e;
        char where[32];
        snprintf(where, sizeof where, "at byte %d:", table[i].at);
        if (walk_hex(table[i].hex, &e) != ERR_INPUT || strstr(e.text, where) == NULL ||
            strstr(e.text, table[i].text) == NULL)
            fail_msg("%s: %s", table[i].what, e.text);
        assert_string_equal(e.code, "bad_msgpack");
    }
}

// One value of every encoding there is, in a map.
static const char every_type[] =
    "de 0011"
    "a16e c0" // nil
    "a174 c3 a166 c2"
    "a131 cc80 a132 cd0100 a133 ce00010000 a134 cf0000000100000000"
    "a135 d080 a136 d18000 a137 d280000000 a138 d38000000000000000"
    "a139 ca3fc00000 a161 cb3ff8000000000000"
    "a173 94 a178 d90179 da000179 db0000000179" // str
    "a162 93 c40101 c5000101 c60000000101"
    "a165 98 d401aa d501aaaa d601aaaaaaaa d701aaaaaaaaaaaaaaaa"
    "        d801aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa c70101aa c8000101aa c90000000101aa"
    "a16d 93 dc0001 7f dd00000001 e0 df00000001 a171 80";

static void every_type_passes_and_no_prefix_of_it_does(void **state)
{
    (void) state;
    struct error e;
    assert_int_equal(walk_hex(every_type, &e), OK);
    size_t whole = bytes.n;
    for (size_t n = 0; n < whole; n++) {
        bytes.n = n;
        assert_int_equal(walk(&e), ERR_INPUT);
        uint8_t *copy = bytes_copy(bytes.data, n);
        struct mp_cursor c = mp_cursor(copy, n);
        assert_false(mp_skip(&c));
        assert_true(c.at <= c.end);
        free(copy);
    }
}

static void nesting_is_bounded(void **state)
{
    (void) state;
    struct error e = {0};
    for (int depth = 1; depth <= 40; depth++) {
        for (int maps = 0; maps < 2; maps++) {
            buffer_clear(&bytes);
            for (int i = 0; i < depth; i++) bytes_hex(&bytes, maps && i % 2 ? "81 a161" : "91");
            bytes_hex(&bytes, "01");
            assert_int_equal(walk(&e), depth <= MSGPACK_DEPTH_MAX ? OK : ERR_INPUT);
        }
    }
    assert_non_null(strstr(e.text, "too deeply"));
    buffer_clear(&bytes);
    for (int i = 0; i < 1 << 19; i++) bytes_hex(&bytes, "91"); // a stack of half a million frames
    bytes_hex(&bytes, "01");
    assert_int_equal(walk(&e), ERR_INPUT);
    struct mp_cursor c = mp_cursor(bytes.data, bytes.n);
    assert_true(mp_skip(&c) && c.at == c.end); // needs no stack at all
}

// A map of n keys k00000, k00001, ...; the key at `twin` is the same as the one at `of`.
static void make_map(int n, int twin, int of)
{
    char text[32];
    buffer_clear(&bytes);
    snprintf(text, sizeof text, "de %04x", n);
    bytes_hex(&bytes, text);
    for (int i = 0; i < n; i++) {
        int number = i == twin ? of : i;
        // Not in order, so that sorting has work to do.
        snprintf(text, sizeof text, "'k%05d'", number * 7919 % 100003);
        bytes_json(&bytes, text);
        bytes_hex(&bytes, "01");
    }
}

static void pairs_are_bounded_and_twins_are_found_anywhere(void **state)
{
    (void) state;
    struct error e;
    make_map(MSGPACK_MAP_MAX, -1, -1);
    assert_int_equal(walk(&e), OK);
    make_map(MSGPACK_MAP_MAX + 1, -1, -1);
    assert_int_equal(walk(&e), ERR_INPUT);
    assert_non_null(strstr(e.text, "too many pairs"));
    uint64_t r = 1;
    for (int i = 0; i < 50; i++) {
        int of = (int) (bytes_random(&r) % (MSGPACK_MAP_MAX - 1));
        int twin = of + 1 + (int) (bytes_random(&r) % (uint32_t) (MSGPACK_MAP_MAX - 1 - of));
        char where[32];
        make_map(MSGPACK_MAP_MAX, twin, of);
        assert_int_equal(walk(&e), ERR_INPUT);
        snprintf(where, sizeof where, "at byte %d:", 3 + 8 * twin); // 7 bytes of key, 1 of value
        assert_non_null(strstr(e.text, where));
    }
}

// What passes the walk is msgpack to msgpack-c as well, and the cursor reads all of it.
static void check_walked(const uint8_t *data, size_t n)
{
    struct mp_cursor c = mp_cursor(data, n);
    assert_true(mp_skip(&c));
    assert_true(c.at == c.end);
    msgpack_unpacked result;
    msgpack_unpacked_init(&result);
    size_t at = 0;
    assert_int_equal(msgpack_unpack_next(&result, (const char *) data, n, &at),
                     MSGPACK_UNPACK_SUCCESS);
    assert_int_equal(at, n);
    msgpack_unpacked_destroy(&result);
}

static void damaged_bytes_never_pass_the_end(void **state)
{
    (void) state;
    enum { ROOM = 2048, TIMES = 100000 };
    static const char small[] = "83 a26964 a161 a162 93 01 02 81 a178 c0 a163 a3e282ac";
    uint64_t r = 42;
    uint8_t work[ROOM];
    int passed = 0;
    for (int i = 0; i < TIMES; i++) {
        buffer_clear(&bytes);
        bytes_hex(&bytes, i % 2 ? every_type : small);
        memcpy(work, bytes.data, bytes.n);
        size_t n = bytes_damage(work, bytes.n, ROOM, &r);
        uint8_t *copy = bytes_copy(work, n);
        if (mpwalk(copy, n, NULL) == OK) {
            check_walked(copy, n);
            passed++;
        }
        struct mp_cursor c = mp_cursor(copy, n);
        struct mp_value v;
        while (mp_take(&c, &v)) assert_true(c.at <= c.end);
        free(copy);
    }
    assert_in_range(passed, TIMES / 100, TIMES - TIMES / 100); // both ways were gone
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_walked_map_is_read_in_place, setup, teardown),
        cmocka_unit_test_setup_teardown(every_encoding_of_a_number_reads_the_same, setup, teardown),
        cmocka_unit_test_setup_teardown(malformed_bytes_are_named_by_their_offset, setup, teardown),
        cmocka_unit_test_setup_teardown(every_type_passes_and_no_prefix_of_it_does, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(nesting_is_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(pairs_are_bounded_and_twins_are_found_anywhere, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(damaged_bytes_never_pass_the_end, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
