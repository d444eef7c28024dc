#include "common/manifest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/limits.h"
#include "model_dir.h"

static const char MODEL[] = "00112233445566778899aabbccddeeff";
static const char HASH[] = "0123456789abcdef0123456789abcdef";
static const char OTHER[] = "0123456789abcdef0123456789abcdee";

static struct model_dir dir;
static char path[128];

static int setup(void **state)
{
    (void) state;
    dir = model_dir_create();
    snprintf(path, sizeof path, "%s/manifest.json", dir.path);
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    model_dir_remove(&dir);
    return 0;
}

static void what_was_read_first_is_known_later(void **state)
{
    (void) state;
    struct manifest *m;
    struct error e;
    assert_int_equal(manifest_open(&m, path, MODEL, &e), OK);
    assert_int_equal(manifest_check(m, "a.weight", "f.safetensors", HASH, &e), OK);
    assert_int_equal(manifest_check(m, "b.weight", "f.safetensors", OTHER, &e), OK);
    assert_int_equal(manifest_n_learnt(m), 2);
    assert_int_equal(manifest_save(m, &e), OK);
    manifest_close(&m);
    assert_int_equal(manifest_open(&m, path, MODEL, &e), OK);
    assert_int_equal(manifest_check(m, "a.weight", "f.safetensors", HASH, &e), OK);
    assert_int_equal(manifest_n_compared(m), 1);
    assert_int_equal(manifest_check(m, "b.weight", "g.safetensors", HASH, &e), ERR_INPUT);
    assert_string_equal(e.code, "damaged");
    assert_non_null(strstr(e.text, "b.weight"));
    assert_non_null(strstr(e.text, "g.safetensors"));
    assert_int_equal(manifest_n_learnt(m), 0);
    assert_int_equal(manifest_save(m, &e), OK);
    manifest_close(&m);
}

// Two groups of a node learn different stages at the same time.
static void what_others_learnt_is_kept(void **state)
{
    (void) state;
    struct manifest *a, *b;
    struct error e;
    unlink(path);
    assert_int_equal(manifest_open(&a, path, MODEL, &e), OK);
    assert_int_equal(manifest_open(&b, path, MODEL, &e), OK);
    assert_int_equal(manifest_check(a, "a", "f", HASH, &e), OK);
    assert_int_equal(manifest_check(b, "b", "f", HASH, &e), OK);
    assert_int_equal(manifest_save(a, &e), OK);
    assert_int_equal(manifest_save(b, &e), OK);
    manifest_close(&a);
    manifest_close(&b);
    assert_int_equal(manifest_open(&a, path, MODEL, &e), OK);
    assert_int_equal(manifest_check(a, "a", "f", HASH, &e), OK);
    assert_int_equal(manifest_check(a, "b", "f", HASH, &e), OK);
    assert_int_equal(manifest_n_compared(a), 2);
    manifest_close(&a);
}

static void other_files_are_refused(void **state)
{
    (void) state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "no manifest"},
        {"[]", "no object"},
        {"{}", "\"model\""},
        {"{\"model\": 1, \"tensors\": {}}", "\"model\""},
        {"{\"model\": \"00112233445566778899aabbccddeeff\", \"tensors\": []}", "\"tensors\""},
        {"{\"model\": \"ff112233445566778899aabbccddeeff\", \"tensors\": {}}", "other tensors"},
        {"{\"model\": \"00112233445566778899aabbccddeeff\", \"tensors\": {\"a\": \"12\"}}",
         "32 hex digits"},
        {"{\"model\": \"00112233445566778899aabbccddeeff\", \"tensors\": {\"a\": 1}}",
         "32 hex digits"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct manifest *m;
        struct error e = {0};
        model_dir_write(&dir, "manifest.json", cases[i].text, strlen(cases[i].text));
        if (manifest_open(&m, path, MODEL, &e) != ERR_INPUT) fail_msg("case %zu", i);
        assert_null(m);
        assert_string_equal(e.code, "bad_manifest");
        if (strstr(e.text, cases[i].says) == NULL) fail_msg("case %zu: %s", i, e.text);
    }
}

static void a_file_that_is_too_large_is_not_read(void **state)
{
    (void) state;
    struct manifest *m;
    struct error e;
    model_dir_write(&dir, "manifest.json", "", 0);
    assert_int_equal(truncate(path, MANIFEST_MAX + 1), 0);
    assert_int_equal(manifest_open(&m, path, MODEL, &e), ERR_LIMIT);
}

// Something else may be there by the time of saving: it is refused as at opening, and kept.
static void what_came_meanwhile_is_checked_too(void **state)
{
    (void) state;
    static const char other[] =
        "{\"model\": \"ff112233445566778899aabbccddeeff\", \"tensors\": {}}";
    char text[sizeof other] = "";
    struct manifest *m;
    struct error e;
    unlink(path);
    assert_int_equal(manifest_open(&m, path, MODEL, &e), OK);
    assert_int_equal(manifest_check(m, "a", "f", HASH, &e), OK);
    model_dir_write(&dir, "manifest.json", other, strlen(other));
    assert_int_equal(manifest_save(m, &e), ERR_INPUT);
    assert_string_equal(e.code, "bad_manifest");
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_int_equal(fread(text, 1, sizeof text, f), sizeof other - 1);
    fclose(f);
    assert_string_equal(text, other);
    assert_int_equal(truncate(path, MANIFEST_MAX + 1), 0);
    assert_int_equal(manifest_save(m, &e), ERR_LIMIT);
    unlink(path);
    assert_int_equal(manifest_save(m, &e), OK);
    manifest_close(&m);
}

static void a_folder_that_cannot_be_written_is_told(void **state)
{
    (void) state;
    struct manifest *m;
    struct error e;
    assert_int_equal(manifest_open(&m, "/nonexistent/manifest.json", MODEL, &e), OK);
    assert_int_equal(manifest_check(m, "a", "f", HASH, &e), OK);
    assert_int_equal(manifest_save(m, &e), ERR_IO);
    assert_non_null(strstr(e.text, "/nonexistent/manifest.json"));
    manifest_close(&m);
    unlink(path);
}

// The published value of XXH3-128 for no bytes, and the same bytes in any pieces.
static void hashes_are_xxh3(void **state)
{
    (void) state;
    struct tensor_hash *h = tensor_hash_create();
    char hex[TENSOR_HASH_SIZE], again[TENSOR_HASH_SIZE];
    char bytes[5000];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (char) (i * 7);
    tensor_hash_begin(h);
    tensor_hash_end(h, hex);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f");
    tensor_hash_begin(h);
    tensor_hash_add(h, bytes, sizeof bytes);
    tensor_hash_end(h, hex);
    tensor_hash_begin(h);
    for (size_t at = 0; at < sizeof bytes; at += 50) tensor_hash_add(h, bytes + at, 50);
    tensor_hash_end(h, again);
    assert_string_equal(hex, again);
    tensor_hash_destroy(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_read_first_is_known_later),
        cmocka_unit_test(what_others_learnt_is_kept),
        cmocka_unit_test(other_files_are_refused),
        cmocka_unit_test(a_file_that_is_too_large_is_not_read),
        cmocka_unit_test(what_came_meanwhile_is_checked_too),
        cmocka_unit_test(a_folder_that_cannot_be_written_is_told),
        cmocka_unit_test(hashes_are_xxh3),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
