#include "common/tokenizer.h"

#include "common/limits.h"
#include "common/tokenizer_parts.h"
#include "common/utf8.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

// --- load

static enum status read_file(const char *path, char **text, size_t *n, struct error *e)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL) return error_set(e, ERR_IO, "no_tokenizer", "cannot open %s: %m", path);
    *text = malloc(TOKENIZER_JSON_MAX + 1);
    *n = *text != NULL ? fread(*text, 1, TOKENIZER_JSON_MAX + 1, f) : 0;
    bool failed = *text == NULL || ferror(f) != 0;
    fclose(f);
    if (!failed && *n <= TOKENIZER_JSON_MAX) return OK;
    free(*text);
    if (failed) return error_set(e, ERR_IO, NULL, "cannot read %s", path);
    return error_set(e, ERR_LIMIT, "bad_tokenizer", "%s has over %lld bytes", path,
                     TOKENIZER_JSON_MAX);
}

enum status tokenizer_load(struct tokenizer **tokenizer, const char *path, struct error *e)
{
    char file[PATH_MAX + 16], *text = NULL;
    size_t n = 0;
    struct stat s;
    *tokenizer = NULL;
    if (stat(path, &s) != 0) return error_set(e, ERR_IO, "no_tokenizer", "no %s: %m", path);
    snprintf(file, sizeof file, "%s%s", path, S_ISDIR(s.st_mode) ? "/tokenizer.json" : "");
    try(read_file(file, &text, &n, e));
    struct tokenizer *t = calloc(1, sizeof *t);
    enum status status = t != NULL ? tokenizer_parse(t, text, n, e)
                                   : error_set(e, ERR_NOMEM, "no_memory", "no memory");
    if (status == OK) {
        *tokenizer = t;
    } else {
        error_prefix(e, "%s", file);
        tokenizer_destroy(&t);
    }
    free(text);
    return status;
}

void tokenizer_destroy(struct tokenizer **tokenizer)
{
    struct tokenizer *t = *tokenizer;
    if (t == NULL) return;
    bpe_deinit(&t->bpe);
    splits_deinit(&t->splits);
    for (int set = 0; set < ADDED_SETS; set++) added_deinit(&t->added[set]);
    vocab_deinit(&t->vocab);
    free(t);
    *tokenizer = NULL;
}

// --- scratch

// Pieces that were encoded before, by their hash; a new one takes the place of an old one. Most
// text is made of few words.
enum { CACHE_SLOTS = 8192, CACHED_BYTES = 38, CACHED_IDS = 6 };

struct cached {
    uint8_t n_bytes, n_ids; // n_bytes 0: empty
    uint8_t bytes[CACHED_BYTES];
    int32_t ids[CACHED_IDS];
};

_Static_assert(sizeof(struct cached) == 64, "one cache line");

struct tokenizer_scratch {
    struct split_scratch split;
    struct bpe_scratch bpe;
    struct cached *cache; // (CACHE_SLOTS)
};

enum status tokenizer_scratch_create(struct tokenizer_scratch **scratch, const struct tokenizer *t,
                                     struct error *e)
{
    (void) t;
    struct tokenizer_scratch *s = *scratch = calloc(1, sizeof *s);
    void *cache = NULL;
    if (s == NULL || posix_memalign(&cache, 64, CACHE_SLOTS * sizeof *s->cache) != 0) {
        tokenizer_scratch_destroy(scratch);
        return error_set(e, ERR_NOMEM, "no_memory", "no memory for a tokenizer's scratch");
    }
    s->cache = memset(cache, 0, CACHE_SLOTS * sizeof *s->cache);
    enum status status = split_scratch_init(&s->split, e);
    if (status != OK) tokenizer_scratch_destroy(scratch);
    return status;
}

void tokenizer_scratch_destroy(struct tokenizer_scratch **scratch)
{
    struct tokenizer_scratch *s = *scratch;
    if (s == NULL) return;
    split_scratch_deinit(&s->split);
    bpe_scratch_deinit(&s->bpe);
    free(s->cache);
    free(s);
    *scratch = NULL;
}

// --- ids

void token_ids_deinit(struct token_ids *to)
{
    free(to->ids);
    *to = (struct token_ids){.most = to->most};
}

enum status token_ids_append(struct token_ids *to, const int32_t *ids, int n, struct error *e)
{
    int most = to->most > 0 ? to->most : INT_MAX;
    if (n > most - to->n) {
        return error_set(e, ERR_LIMIT, "too_long", "the text has more than %d tokens", most);
    }
    if (to->n + n > to->capacity) {
        int64_t capacity = 2ll * to->capacity > 256 ? 2ll * to->capacity : 256;
        if (capacity < to->n + n) capacity = to->n + n;
        if (capacity > most) capacity = most;
        int32_t *more = realloc(to->ids, (size_t) capacity * sizeof *more);
        if (more == NULL) {
            return error_set(e, ERR_NOMEM, "no_memory", "no memory for %d ids", to->n + n);
        }
        to->ids = more;
        to->capacity = (int) capacity;
    }
    memcpy(to->ids + to->n, ids, (size_t) n * sizeof *ids);
    to->n += n;
    return OK;
}

// --- encode

struct encoding {
    const struct tokenizer *t;
    struct tokenizer_scratch *s;
    struct token_ids *to;
};

static enum status encode_piece(void *arg, const char *piece, size_t n, struct error *e)
{
    const struct encoding *c = arg;
    if (c->t->whole_first) {
        int32_t id = vocab_find(&c->t->vocab, piece, n);
        if (id >= 0) return token_ids_append(c->to, &id, 1, e);
    }
    const uint8_t *bytes = (const uint8_t *) piece;
    if (n > CACHED_BYTES) return bpe_encode(&c->t->bpe, &c->s->bpe, bytes, n, c->to, e);
    struct cached *cached = &c->s->cache[XXH3_64bits(piece, n) % CACHE_SLOTS];
    if (cached->n_bytes == n && memcmp(cached->bytes, piece, n) == 0) {
        return token_ids_append(c->to, cached->ids, cached->n_ids, e);
    }
    int before = c->to->n;
    try(bpe_encode(&c->t->bpe, &c->s->bpe, bytes, n, c->to, e));
    int n_ids = c->to->n - before;
    if (n_ids > CACHED_IDS) return OK;
    cached->n_bytes = (uint8_t) n;
    cached->n_ids = (uint8_t) n_ids;
    memcpy(cached->bytes, piece, n);
    memcpy(cached->ids, c->to->ids + before, (size_t) n_ids * sizeof *cached->ids);
    return OK;
}

// Cuts out the strings of `set` and those of later ones, and encodes what lies between.
static enum status encode_added(struct encoding *c, int set, const char *text, size_t n,
                                struct error *e)
{
    if (set == ADDED_SETS) {
        return splits_run(&c->t->splits, &c->s->split, text, n, encode_piece, c, e);
    }
    for (size_t at = 0; at < n;) {
        const struct added_string *found = NULL;
        size_t length = added_next(&c->t->added[set], text + at, n - at, &found);
        try(encode_added(c, set + 1, text + at, length, e));
        at += length;
        if (found == NULL) continue;
        try(token_ids_append(c->to, &found->id, 1, e));
        at += found->n;
    }
    return OK;
}

enum status tokenizer_encode(const struct tokenizer *t, struct tokenizer_scratch *s,
                             const char *text, size_t n, bool special, struct token_ids *to,
                             struct error *e)
{
    if (n > INT32_MAX) return error_set(e, ERR_LIMIT, "too_long", "the text has %zu bytes", n);
    size_t valid = utf8_valid_prefix(text, n);
    if (valid < n) {
        return error_set(e, ERR_INPUT, "bad_utf8", "the text is no UTF-8 at byte %zu", valid);
    }
    struct encoding c = {t, s, to};
    int before = to->n;
    enum status status = encode_added(&c, special ? ADDED_FIRST : ADDED_SETS, text, n, e);
    if (status != OK) to->n = before;
    return status;
}

// --- what ids are

int tokenizer_n_ids(const struct tokenizer *t)
{
    return t->vocab.n_ids;
}

const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, size_t *n, bool *special)
{
    bool known = id >= 0 && id < t->vocab.n_ids && t->vocab.tokens[id].known;
    *n = known ? t->vocab.tokens[id].n : 0;
    *special = known && t->vocab.tokens[id].special;
    return known ? t->vocab.bytes + t->vocab.tokens[id].at : NULL;
}

int32_t tokenizer_special(const struct tokenizer *t, const char *text, size_t n)
{
    int32_t id = added_find(&t->added[ADDED_FIRST], text, n);
    return id >= 0 ? id : added_find(&t->added[ADDED_SECOND], text, n);
}
