#include "common/checkpoint.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "model_dir.h"

static struct checkpoint *open_or_fail(const char *dir)
{
    struct checkpoint *c;
    struct error e = {0};
    if (checkpoint_open(&c, dir, &e) != OK) fail_msg("%s", e.text);
    return c;
}

static void test_opens_and_reads(void **state)
{
    (void) state;
    struct checkpoint *c = open_or_fail(FIXTURES "/tiny-fp8");
    assert_int_equal(checkpoint_n_files(c), 2);
    assert_int_equal(checkpoint_n_tensors(c), 309 + 310);
    const struct tensor *t = checkpoint_find(c, "model.layers.0.mlp.down_proj.weight");
    assert_non_null(t);
    assert_int_equal(t->dtype, DTYPE_F8_E4M3);
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->shape[0], 256);
    assert_int_equal(t->shape[1], 512);
    assert_ptr_equal(checkpoint_tensor(c, t->index), t);
    assert_null(checkpoint_find(c, "model.layers.0.mlp.down_proj"));

    // A part is the same bytes as in the whole.
    static unsigned char whole[256 * 512], row[512];
    assert_int_equal(checkpoint_read_file(c, t, t->offset, whole, sizeof whole, NULL), OK);
    assert_int_equal(checkpoint_read_file(c, t, t->offset + 9 * 512, row, 512, NULL), OK);
    assert_memory_equal(row, whole + 9 * 512, 512);
    checkpoint_close(&c);
    assert_null(c);
}

// The hash is of the structure, whatever the files and the order.
static void test_manifest_hash(void **state)
{
    (void) state;
    struct model_dir d = model_dir_create();
    char a[33], b[33], other[33];
    model_dir_safetensors(&d, "model.safetensors",
                          "{\"x\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                          "\"y\":{\"dtype\":\"BF16\",\"shape\":[1,1],\"data_offsets\":[2,4]}}",
                          -1, 4);
    struct checkpoint *c = open_or_fail(d.path);
    checkpoint_manifest_hash(c, a);
    checkpoint_close(&c);
    model_dir_safetensors(&d, "model.safetensors",
                          "{\"y\":{\"dtype\":\"BF16\",\"shape\":[1,1],\"data_offsets\":[0,2]},"
                          "\"x\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]},"
                          "\"__metadata__\":{\"format\":\"pt\"}}  ",
                          -1, 4);
    c = open_or_fail(d.path);
    checkpoint_manifest_hash(c, b);
    checkpoint_close(&c);
    c = open_or_fail(FIXTURES "/tiny-bf16");
    checkpoint_manifest_hash(c, other);
    checkpoint_close(&c);
    assert_int_equal(strlen(a), 32);
    assert_string_equal(a, b);
    assert_string_not_equal(a, other);
    model_dir_remove(&d);
}

// --- hostile headers

#define TENSOR(dtype, shape, offsets)                                                              \
    "{\"w\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const struct {
    const char *header;
    int64_t length; // -1: true
    size_t n_data;
    const char *says;
} LIES[] = {
    {TENSOR("\"F32\"", "[2]", "[0,8]"), 1000, 8, "the header claims 1000 bytes"},
    {TENSOR("\"F32\"", "[2]", "[0,8]"), INT64_MAX, 8, "the header claims"},
    {TENSOR("\"F32\"", "[2]", "[0,8]"), 10, 8, "no JSON object"},
    {TENSOR("\"F32\"", "[2]", "[0,8]"), 0, 8, "no JSON object"},
    {"[]", -1, 0, "no JSON object"},
    {"{\"w\":1}", -1, 0, "the entry of w is no object"},
    {"{\"__metadata__\":1}", -1, 0, "no object"},
    {"{\"w\":{}}", -1, 0, "no dtype"},
    {TENSOR("7", "[2]", "[0,8]"), -1, 8, "no dtype"},
    {TENSOR("\"F32\"", "8", "[0,8]"), -1, 8, "shape is no array"},
    {TENSOR("\"F32\"", "[2.0]", "[0,8]"), -1, 8, "no whole number"},
    {TENSOR("\"F32\"", "[-2]", "[0,8]"), -1, 8, "no whole number"},
    {TENSOR("\"F32\"", "[1,1,1,1,2]", "[0,8]"), -1, 8, "5 dimensions"},
    {TENSOR("\"F32\"", "[4294967296,4294967296]", "[0,8]"), -1, 8, "overflows"},
    {TENSOR("\"F32\"", "[4611686018427387904]", "[0,0]"), -1, 0, "do not make"},
    {TENSOR("\"F32\"", "[3]", "[0,8]"), -1, 8, "3 values of F32 do not make 8 bytes"},
    {TENSOR("\"I64\"", "[2]", "[0,8]"), -1, 8, "2 values of I64 do not make 8 bytes"},
    {TENSOR("\"F32\"", "[2]", "[0,16]"), -1, 8, "do not lie in the data of 8 bytes"},
    {TENSOR("\"F32\"", "[2]", "[8,0]"), -1, 8, "do not lie"},
    {TENSOR("\"F32\"", "[2]", "[-8,0]"), -1, 8, "do not lie"},
    {TENSOR("\"F32\"", "[2]", "[0]"), -1, 8, "not two whole numbers"},
    {TENSOR("\"F32\"", "[2]", "[0,8,8]"), -1, 8, "not two whole numbers"},
    {TENSOR("\"F32\"", "[2]", "[0,8.0]"), -1, 8, "not two whole numbers"},
    {TENSOR("\"F32\"", "[2]", "[4,12]"), -1, 12, "a hole of 4 bytes before tensor w"},
    {TENSOR("\"F32\"", "[2]", "[0,8]"), -1, 9, "end 1 bytes before the file does"},
    {TENSOR("\"F32\"", "[2]", "[0,99999999999999999999]"), -1, 8, "no JSON object"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
     -1, 6, "tensor b overlaps a"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
     "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
     -1, 4, "duplicate"},
    {"{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", -1, 1, "name has 0 bytes"},
};

static void test_refuses_lying_headers(void **state)
{
    (void) state;
    struct model_dir d = model_dir_create();
    for (size_t i = 0; i < sizeof LIES / sizeof LIES[0]; i++) {
        model_dir_safetensors(&d, "model.safetensors", LIES[i].header, LIES[i].length,
                              LIES[i].n_data);
        struct checkpoint *c;
        struct error e = {0};
        enum status status = checkpoint_open(&c, d.path, &e);
        if ((status != ERR_INPUT && status != ERR_LIMIT) || strcmp(e.code, "bad_checkpoint") != 0 ||
            strstr(e.text, LIES[i].says) == NULL || strstr(e.text, "model.safetensors: ") == NULL) {
            fail_msg("case %zu: %s: %s", i, e.code, e.text);
        }
        assert_null(c);
    }
    model_dir_remove(&d);
}

static void test_allows_what_nobody_loads(void **state)
{
    (void) state;
    struct model_dir d = model_dir_create();
    model_dir_safetensors(&d, "model.safetensors",
                          "{\"scalar\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]},"
                          "\"none\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[8,8]},"
                          "\"strange\":{\"dtype\":\"F4_X\",\"shape\":[9],\"data_offsets\":[8,13]}}",
                          -1, 13);
    struct checkpoint *c = open_or_fail(d.path);
    assert_int_equal(checkpoint_n_tensors(c), 3);
    assert_int_equal(checkpoint_bytes(c), 13);
    assert_int_equal(checkpoint_find(c, "strange")->dtype, DTYPE_OTHER);
    assert_int_equal(dtype_size(DTYPE_OTHER), 0);
    checkpoint_close(&c);
    model_dir_remove(&d);
}

// Every length to which a file can be cut is refused.
static void test_refuses_truncated_files(void **state)
{
    (void) state;
    struct model_dir d = model_dir_create();
    const char *header = TENSOR("\"F32\"", "[2]", "[0,8]");
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", d.path);
    int n = 8 + (int) strlen(header) + 8;
    for (int cut = 0; cut < n; cut++) {
        model_dir_safetensors(&d, "model.safetensors", header, -1, 8);
        assert_int_equal(truncate(path, cut), 0);
        struct checkpoint *c;
        struct error e = {0};
        assert_int_equal(checkpoint_open(&c, d.path, &e), ERR_INPUT);
        assert_string_equal(e.code, "bad_checkpoint");
    }
    // A file that is cut after it was opened.
    model_dir_safetensors(&d, "model.safetensors", header, -1, 8);
    struct checkpoint *c = open_or_fail(d.path);
    assert_int_equal(truncate(path, n - 3), 0);
    const struct tensor *w = checkpoint_find(c, "w");
    float values[2];
    struct error e = {0};
    assert_int_equal(checkpoint_read_file(c, w, w->offset, values, 8, &e), ERR_IO);
    assert_non_null(strstr(e.text, "tensor w"));
    checkpoint_close(&c);
    model_dir_remove(&d);
}

static void test_index_and_headers_must_agree(void **state)
{
    (void) state;
    static const struct {
        const char *index, *says;
        enum status status;
    } CASES[] = {
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"two\"}}", NULL, OK},
        {"{\"weight_map\":{\"a\":\"one\"}}", NULL, OK},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"three\"}}", "three", ERR_IO},
        {"{\"weight_map\":{\"a\":\"two\",\"b\":\"one\"}}", "tensor a in two", ERR_INPUT},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"two\",\"c\":\"two\"}}", "tensor c", ERR_INPUT},
        {"{\"weight_map\":{\"b\":\"one\"}}", "tensor b", ERR_INPUT},
        {"{\"weight_map\":{\"a\":\"one\",\"a\":\"two\"}}", "duplicate", ERR_INPUT},
        {"{\"weight_map\":{\"a\":\"../one\"}}", "no valid file name", ERR_INPUT},
        {"{\"weight_map\":{\"a\":\"..\"}}", "no valid file name", ERR_INPUT},
        {"{\"weight_map\":{\"a\":1}}", "no valid file name", ERR_INPUT},
        {"{\"weight_map\":{}}", "lists no tensor", ERR_INPUT},
        {"{\"weight_map\":[]}", "no weight_map", ERR_INPUT},
        {"{}", "no weight_map", ERR_INPUT},
        {"weights", "no weight_map", ERR_INPUT},
        {"{\"weight_map\":{\"b\":\"two\",\"a\":\"one\",\"a2\":\"both\"}}", "tensor a is in",
         ERR_INPUT},
        {"{\"weight_map\":{\"a2\":\"both\"}}", "the index does not list it", ERR_INPUT},
    };
    struct model_dir d = model_dir_create();
    model_dir_safetensors(&d, "one",
                          "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", -1, 1);
    model_dir_safetensors(&d, "two",
                          "{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", -1, 1);
    model_dir_safetensors(&d, "both",
                          "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                          "\"a2\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                          -1, 2);
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        model_dir_write(&d, "model.safetensors.index.json", CASES[i].index, strlen(CASES[i].index));
        struct checkpoint *c;
        struct error e = {0};
        enum status status = checkpoint_open(&c, d.path, &e);
        if (status != CASES[i].status ||
            (CASES[i].says != NULL && strstr(e.text, CASES[i].says) == NULL)) {
            fail_msg("%s: %s: %s", CASES[i].index, e.code, e.text);
        }
        checkpoint_close(&c);
    }
    model_dir_remove(&d);
}

static void test_directory_without_weights(void **state)
{
    (void) state;
    struct checkpoint *c;
    struct error e = {0};
    assert_int_equal(checkpoint_open(&c, FIXTURES "/deepseek-v3", &e), ERR_IO);
    assert_string_equal(e.code, "no_checkpoint");
    assert_int_equal(checkpoint_open(&c, FIXTURES "/no-such-model", &e), ERR_IO);
    struct model_dir d = model_dir_create();
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", d.path);
    assert_int_equal(symlink("/dev/zero", path), 0);
    assert_int_equal(checkpoint_open(&c, d.path, &e), ERR_INPUT);
    assert_non_null(strstr(e.text, "no regular file"));
    model_dir_remove(&d);
}

// As many tensors as DeepSeek-V3 has, in one file: found by name, and opened without delay.
static void test_opens_ninety_thousand_tensors(void **state)
{
    (void) state;
    enum { N = 91991, ENTRY = 160 };
    struct model_dir d = model_dir_create();
    char *header = malloc((size_t) N * ENTRY);
    assert_non_null(header);
    size_t n = 0;
    for (int i = 0; i < N; i++) {
        n += (size_t) sprintf(
            header + n,
            "%c\"model.layers.%d.mlp.experts.%d.up_proj.weight\":{\"dtype\":\"U8\","
            "\"shape\":[1,1],\"data_offsets\":[%d,%d]}",
            i == 0 ? '{' : ',', i % 61, i / 61, i, i + 1);
    }
    strcpy(header + n, "}");
    model_dir_safetensors(&d, "model.safetensors", header, -1, N);
    free(header);
    struct checkpoint *c = open_or_fail(d.path);
    assert_int_equal(checkpoint_n_tensors(c), N);
    char name[80];
    for (int i = 0; i < N; i++) {
        sprintf(name, "model.layers.%d.mlp.experts.%d.up_proj.weight", i % 61, i / 61);
        const struct tensor *t = checkpoint_find(c, name);
        assert_non_null(t);
        unsigned char byte;
        if (i % 997 != 0) continue;
        assert_int_equal(checkpoint_read_file(c, t, t->offset, &byte, 1, NULL), OK);
        assert_int_equal(byte, i & 255);
    }
    checkpoint_close(&c);
    model_dir_remove(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_opens_and_reads),
        cmocka_unit_test(test_manifest_hash),
        cmocka_unit_test(test_refuses_lying_headers),
        cmocka_unit_test(test_allows_what_nobody_loads),
        cmocka_unit_test(test_refuses_truncated_files),
        cmocka_unit_test(test_index_and_headers_must_agree),
        cmocka_unit_test(test_directory_without_weights),
        cmocka_unit_test(test_opens_ninety_thousand_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
