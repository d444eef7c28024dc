#include "common/limits.h"
#include "common/tokenizer_parts.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

__attribute__((format(printf, 2, 3))) static enum status bad(struct error *e, const char *format,
                                                             ...)
{
    struct error text;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text.text, sizeof text.text, format, arguments);
    va_end(arguments);
    return error_set(e, ERR_INPUT, "bad_tokenizer", "%s", text.text);
}

// Refuses `value` by name: "pre_tokenizer.type is "Metaspace", expected "Sequence"".
static enum status refuse(struct error *e, const char *where, const char *key, const json_t *value,
                          const char *wants)
{
    char *text = value != NULL ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    enum status status =
        error_set(e, ERR_UNSUPPORTED, "unsupported_tokenizer", "%s%s%s is %.80s, expected %s",
                  where, *where != 0 ? "." : "", key, text != NULL ? text : "missing", wants);
    free(text);
    return status;
}

static bool is_string(const json_t *value, const char *text)
{
    return json_is_string(value) && strcmp(json_string_value(value), text) == 0;
}

static enum status require_string(const json_t *object, const char *where, const char *key,
                                  const char *text, struct error *e)
{
    const json_t *value = json_object_get(object, key);
    if (is_string(value, text)) return OK;
    char wants[64];
    snprintf(wants, sizeof wants, "\"%s\"", text);
    return refuse(e, where, key, value, wants);
}

// A boolean that must be `wanted`; absent and null stand for `absent`.
static enum status require_bool(const json_t *object, const char *where, const char *key,
                                bool wanted, bool absent, struct error *e)
{
    const json_t *value = json_object_get(object, key);
    bool is = value == NULL || json_is_null(value) ? absent : json_is_true(value);
    bool given = value == NULL || json_is_null(value) || json_is_boolean(value);
    if (given && is == wanted) return OK;
    return refuse(e, where, key, value, wanted ? "true" : "false");
}

static enum status require_empty(const json_t *object, const char *where, const char *key,
                                 struct error *e)
{
    const json_t *value = json_object_get(object, key);
    if (value == NULL || json_is_null(value) || is_string(value, "")) return OK;
    if (json_is_number(value) && json_number_value(value) == 0) return OK;
    return refuse(e, where, key, value, "null");
}

// --- ids

// model.vocab must be an object of ids, added_tokens an array of objects; finds the largest id and
// how many bytes all texts have.
struct extent {
    int32_t largest;
    size_t vocab_bytes, added_bytes;
};

static enum status read_id(const json_t *value, const char *of, int32_t *id, struct error *e)
{
    json_int_t n = json_integer_value(value);
    if (!json_is_integer(value) || n < 0 || n >= MODEL_VOCAB_MAX) {
        return bad(e, "the id of \"%.80s\" is no whole number below %d", of, MODEL_VOCAB_MAX);
    }
    *id = (int32_t) n;
    return OK;
}

static enum status measure(const json_t *vocab, const json_t *added, struct extent *x,
                           struct error *e)
{
    const char *text;
    json_t *value;
    size_t i;
    int32_t id = 0;
    *x = (struct extent){.largest = -1};
    if (!json_is_object(vocab)) return bad(e, "model.vocab is no object");
    if (!json_is_array(added) && added != NULL) return bad(e, "added_tokens is no array");
    json_object_foreach((json_t *) vocab, text, value) {
        try(read_id(value, text, &id, e));
        if (id > x->largest) x->largest = id;
        x->vocab_bytes += strlen(text);
    }
    json_array_foreach((json_t *) added, i, value) {
        const json_t *content = json_object_get(value, "content");
        text = json_string_value(content);
        if (text == NULL) return bad(e, "added_tokens[%zu].content is no string", i);
        if (*text == 0) return bad(e, "added_tokens[%zu].content is empty", i);
        try(read_id(json_object_get(value, "id"), text, &id, e));
        if (id > x->largest) x->largest = id;
        x->added_bytes += strlen(text);
    }
    if (x->largest < 0) return bad(e, "model.vocab is empty");
    return OK;
}

static enum status read_vocab(struct tokenizer *t, const json_t *vocab, struct error *e)
{
    const char *text;
    json_t *value;
    json_object_foreach((json_t *) vocab, text, value) {
        int32_t id = (int32_t) json_integer_value(value);
        if (t->vocab.tokens[id].known) return bad(e, "model.vocab has the id %d twice", (int) id);
        vocab_put(&t->vocab, id, text, strlen(text), false);
    }
    return vocab_index(&t->vocab, e);
}

static enum status read_added_token(struct tokenizer *t, const json_t *vocab, const json_t *token,
                                    struct error *e)
{
    const char *text = json_string_value(json_object_get(token, "content"));
    int32_t id = (int32_t) json_integer_value(json_object_get(token, "id"));
    bool special = json_is_true(json_object_get(token, "special"));
    bool normalized = !json_is_false(json_object_get(token, "normalized"));
    char where[96];
    snprintf(where, sizeof where, "added token \"%.70s\"", text);
    try(require_bool(token, where, "single_word", false, false, e));
    try(require_bool(token, where, "lstrip", false, false, e));
    try(require_bool(token, where, "rstrip", false, false, e));
    const json_t *same = json_object_get(vocab, text);
    if (same != NULL && json_integer_value(same) != id) {
        return bad(e, "%s has the id %d, but %lld in model.vocab", where, (int) id,
                   (long long) json_integer_value(same));
    }
    if (same == NULL && t->vocab.tokens[id].known) {
        return bad(e, "%s has the id %d, which another token has", where, (int) id);
    }
    if (same == NULL) vocab_put(&t->vocab, id, text, strlen(text), special);
    t->vocab.tokens[id].special = special;
    added_put(&t->added[normalized ? ADDED_SECOND : ADDED_FIRST], text, strlen(text), id);
    return OK;
}

static enum status read_added(struct tokenizer *t, const json_t *vocab, const json_t *added,
                              size_t bytes, struct error *e)
{
    size_t i;
    json_t *token;
    for (int set = 0; set < ADDED_SETS; set++) {
        try(added_init(&t->added[set], (int) json_array_size(added), bytes, e));
    }
    json_array_foreach((json_t *) added, i, token) try(read_added_token(t, vocab, token, e));
    for (int set = 0; set < ADDED_SETS; set++) try(added_index(&t->added[set], e));
    return OK;
}

// --- merges

// The two texts of a merge, "left right" or ["left", "right"]; false if it is neither.
static bool merge_texts(const json_t *merge, const char **left, size_t *n_left, const char **right)
{
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        *left = json_string_value(json_array_get(merge, 0));
        *right = json_string_value(json_array_get(merge, 1));
        *n_left = *left != NULL ? strlen(*left) : 0;
    } else {
        *left = json_string_value(merge);
        const char *space = *left != NULL ? strchr(*left, ' ') : NULL;
        *right = space != NULL ? space + 1 : NULL;
        *n_left = space != NULL ? (size_t) (space - *left) : 0;
    }
    return *n_left > 0 && *right != NULL && **right != 0;
}

// `bytes` has room for `most`, twice the longest token's: a character of the byte-level alphabet
// has one or two bytes.
static enum status read_merge(struct tokenizer *t, const json_t *merge, size_t number, char *bytes,
                              size_t most, struct error *e)
{
    const char *left, *right;
    size_t left_length;
    if (!merge_texts(merge, &left, &left_length, &right)) {
        return bad(e, "model.merges[%zu] is no pair of tokens", number);
    }
    size_t right_length = strlen(right);
    bool fits = left_length + right_length <= most;
    int64_t n_left = fits ? byte_level_decode(left, left_length, bytes) : -1;
    int64_t n_right = n_left >= 0 ? byte_level_decode(right, right_length, bytes + n_left) : -1;
    int32_t ids[3] = {-1, -1, -1};
    if (n_right >= 0) {
        size_t a = (size_t) n_left, b = (size_t) n_right;
        ids[0] = vocab_find(&t->vocab, bytes, a);
        ids[1] = vocab_find(&t->vocab, bytes + a, b);
        ids[2] = vocab_find(&t->vocab, bytes, a + b);
    }
    if (ids[0] < 0 || ids[1] < 0 || ids[2] < 0) {
        return bad(e, "model.merges[%zu]: \"%.*s\" and \"%.60s\", or both as one, are not in "
                      "model.vocab", number, left_length < 60 ? (int) left_length : 60, left,
                   right);
    }
    bpe_merge(&t->bpe, ids[0], ids[1], ids[2]);
    return OK;
}

static enum status read_merges(struct tokenizer *t, const json_t *merges, struct error *e)
{
    size_t n = json_array_size(merges), most = 2 * t->vocab.longest + 1, i;
    json_t *merge;
    if (!json_is_array(merges)) return bad(e, "model.merges is no array");
    if (n > BPE_MERGES_MAX) {
        return error_set(e, ERR_LIMIT, "bad_tokenizer", "model.merges has more than %d entries",
                         BPE_MERGES_MAX);
    }
    try(bpe_init(&t->bpe, &t->vocab, (int) n, e));
    char *bytes = malloc(most);
    if (bytes == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory for the merges");
    enum status status = OK;
    json_array_foreach((json_t *) merges, i, merge) {
        status = read_merge(t, merge, i, bytes, most, e);
        if (status != OK) break;
    }
    free(bytes);
    return status;
}

// --- the parts of the file

static enum status read_model(struct tokenizer *t, const json_t *root, struct error *e)
{
    const json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab");
    const json_t *added = json_object_get(root, "added_tokens");
    if (!json_is_object(model)) return bad(e, "model is no object");
    try(require_string(model, "model", "type", "BPE", e));
    try(require_empty(model, "model", "dropout", e));
    try(require_empty(model, "model", "continuing_subword_prefix", e));
    try(require_empty(model, "model", "end_of_word_suffix", e));
    try(require_bool(model, "model", "byte_fallback", false, false, e));
    t->whole_first = json_is_true(json_object_get(model, "ignore_merges"));
    struct extent x;
    try(measure(vocab, added, &x, e));
    try(vocab_init(&t->vocab, x.largest + 1, x.vocab_bytes + x.added_bytes, e));
    try(read_vocab(t, vocab, e));
    try(read_added(t, vocab, added, x.added_bytes, e));
    return read_merges(t, json_object_get(model, "merges"), e);
}

static enum status read_split(struct tokenizer *t, const json_t *split, const char *where,
                              struct error *e)
{
    const json_t *pattern = json_object_get(split, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    if (!json_is_string(regex)) return refuse(e, where, "pattern", pattern, "a Regex");
    try(require_string(split, where, "behavior", "Isolated", e));
    try(require_bool(split, where, "invert", false, false, e));
    return splits_add(&t->splits, json_string_value(regex), json_string_length(regex), e);
}

// A sequence of splits and, last, the byte-level alphabet without a pattern of its own.
static enum status read_pre_tokenizer(struct tokenizer *t, const json_t *root, struct error *e)
{
    const json_t *pre = json_object_get(root, "pre_tokenizer");
    const json_t *list = json_object_get(pre, "pretokenizers");
    try(require_string(pre, "pre_tokenizer", "type", "Sequence", e));
    size_t n = json_array_size(list);
    if (n == 0) return bad(e, "pre_tokenizer.pretokenizers is no list, or empty");
    char where[64];
    for (size_t i = 0; i + 1 < n; i++) {
        snprintf(where, sizeof where, "pre_tokenizer.pretokenizers[%zu]", i);
        try(require_string(json_array_get(list, i), where, "type", "Split", e));
        try(read_split(t, json_array_get(list, i), where, e));
    }
    const json_t *last = json_array_get(list, n - 1);
    snprintf(where, sizeof where, "pre_tokenizer.pretokenizers[%zu]", n - 1);
    try(require_string(last, where, "type", "ByteLevel", e));
    try(require_bool(last, where, "add_prefix_space", false, true, e));
    return require_bool(last, where, "use_regex", false, true, e);
}

// The post-processor adds only what the callers here add themselves, BOS, and offsets.
static enum status read_rest(const json_t *root, struct error *e)
{
    const json_t *normalizer = json_object_get(root, "normalizer");
    bool none = normalizer == NULL || json_is_null(normalizer) ||
                (is_string(json_object_get(normalizer, "type"), "Sequence") &&
                 json_array_size(json_object_get(normalizer, "normalizers")) == 0);
    if (!none) return refuse(e, "", "normalizer", normalizer, "null or an empty Sequence");
    try(require_empty(root, "", "truncation", e));
    try(require_empty(root, "", "padding", e));
    return require_string(json_object_get(root, "decoder"), "decoder", "type", "ByteLevel", e);
}

enum status tokenizer_parse(struct tokenizer *t, const char *json, size_t n, struct error *e)
{
    json_error_t why;
    json_t *root = json_loadb(json, n, JSON_REJECT_DUPLICATES, &why);
    if (root == NULL) {
        if (json_error_code(&why) == json_error_out_of_memory) {
            return error_set(e, ERR_NOMEM, "no_memory", "no memory for JSON of %zu bytes", n);
        }
        char *near = strstr(why.text, " near "); // the file's own bytes, cut anywhere
        if (near != NULL) *near = 0;
        return bad(e, "no JSON at line %d, column %d: %s", why.line, why.column, why.text);
    }
    enum status status = json_is_object(root) ? OK : bad(e, "no JSON object");
    if (status == OK) status = read_rest(root, e);
    if (status == OK) status = read_pre_tokenizer(t, root, e);
    if (status == OK) status = read_model(t, root, e);
    json_decref(root);
    return status;
}
