#include "common/split.h"

#include "common/limits.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LOOK_BACK = 32 }; // bytes that a bound is judged by

// --- bounds

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

static bool is_wide(char c) { return (unsigned char) c >= 0x80; }

static bool is_letter(char c) { return is_ascii_letter(c) || is_wide(c); }

static bool ends_with(const char *text, size_t at, const char *with)
{
    size_t n = strlen(with);
    return at >= n && memcmp(text + at - n, with, n) == 0;
}

// Quotes and brackets that may stand behind a sentence's end.
static size_t without_closers(const char *text, size_t at)
{
    static const char *const closers[] = {"\"", "'", ")", "]", "”", "’", "»", "」", "』", "）"};
    size_t least = at > LOOK_BACK ? at - LOOK_BACK : 0;
    for (bool found = true; found && at > least;) {
        found = false;
        for (size_t i = 0; i < sizeof closers / sizeof *closers && !found; i++) {
            found = ends_with(text, at, closers[i]);
            if (found) at -= strlen(closers[i]);
        }
    }
    return at;
}

static bool ends_wide(const char *text, size_t at)
{
    static const char *const ends[] = {"。", "！", "？", "…", "．"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if (ends_with(text, at, ends[i])) return true;
    }
    return false;
}

// A full stop at text[at - 1] that shortens a word: an initial, letters with stops between them
// (e.g., U.S.), a title; or a number in a list's front (2. ...).
static bool is_abbreviation(const char *text, size_t at)
{
    static const char *const known[] = {"Dr", "Mr", "Ms", "Mrs", "St", "Prof", "vs", "cf", "No",
                                        "Nr", "Fig", "fig", "approx", "Sect", "Eq", "resp", "al"};
    size_t end = at - 1, begin = end, least = end > LOOK_BACK ? end - LOOK_BACK : 0;
    bool inner = false, digits = true;
    while (begin > least && (is_letter(text[begin - 1]) || is_digit(text[begin - 1]) ||
                             text[begin - 1] == '.')) {
        begin--;
        inner = inner || text[begin] == '.';
        digits = digits && is_digit(text[begin]);
    }
    size_t n = end - begin;
    if (n == 0) return false; // "..." or a stop alone
    bool letters = is_letter(text[begin]);
    if (inner && letters && text[begin + 1] == '.') return true;
    if (n == 1 && letters) return true;
    if (digits && (begin == 0 || text[begin - 1] == '\n')) return true;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strlen(known[i]) == n && memcmp(text + begin, known[i], n) == 0) return true;
    }
    return false;
}

// Behind a mark, its closers and blanks; what goes on in small letters has not ended.
static bool is_sentence(const char *text, size_t n, size_t at)
{
    if (text[at - 1] == '\n') return true;
    if (is_digit(text[at - 1]) || is_ascii_letter(text[at - 1])) return false;
    size_t mark = at, least = at > LOOK_BACK ? at - LOOK_BACK : 0;
    while (mark > least && is_blank(text[mark - 1])) mark--;
    bool blanks = mark < at;
    mark = without_closers(text, mark);
    if (mark == 0) return false;
    if (ends_wide(text, mark)) return blanks || mark == at || !ends_wide(text, at);
    if (!blanks) return false;
    char c = text[mark - 1];
    if (c == '!' || c == '?') return true;
    if (c != '.') return false;
    bool small = at < n && text[at] >= 'a' && text[at] <= 'z';
    return !small && !is_abbreviation(text, mark);
}

static bool is_paragraph(const char *text, size_t at)
{
    return ends_with(text, at, "\n\n") || ends_with(text, at, "\n\r\n");
}

enum split_bound split_bound_at(const char *text, size_t n, size_t at)
{
    if (((unsigned char) text[at] & 0xc0) == 0x80) return SPLIT_NONE; // within a character
    bool blank_on = is_blank(text[at]);
    // Blanks stay with what they follow.
    if (!blank_on && is_paragraph(text, at)) return SPLIT_PARAGRAPH;
    if (!blank_on && is_sentence(text, n, at)) return SPLIT_SENTENCE;
    if (!blank_on && is_blank(text[at - 1])) return SPLIT_WORD;
    return SPLIT_CHARACTER;
}

// --- where to cut

// The best bound in (least, limit], the latest of its kind, least >= begin; the first half of what
// begins at `begin` is searched only for want of any.
static size_t cut_at(const char *text, size_t n, size_t begin, size_t least, size_t limit)
{
    if (limit >= n) return n;
    size_t half = begin + (limit - begin + 1) / 2, found[SPLIT_PARAGRAPH + 1] = {0};
    for (size_t at = limit; at >= half && at > least; at--) {
        enum split_bound bound = split_bound_at(text, n, at);
        if (bound == SPLIT_PARAGRAPH) return at;
        if (found[bound] == 0) found[bound] = at;
    }
    for (int bound = SPLIT_SENTENCE; bound > SPLIT_NONE; bound--) {
        if (found[bound] != 0) return found[bound];
    }
    size_t at = limit; // characters are longer than what was searched
    while (at > least && split_bound_at(text, n, at) == SPLIT_NONE) at--;
    if (at > least) return at;
    for (at = limit; at < n && split_bound_at(text, n, at) == SPLIT_NONE;) at++;
    return at;
}

// Where the next chunk begins: at or behind `from`, and before `end`, at the first sentence, else
// at the first word; `end` if nothing is to be repeated, or there is no such place.
static size_t begin_at(const char *text, size_t n, size_t from, size_t end)
{
    size_t word = end;
    for (size_t at = from; at < end; at++) {
        enum split_bound bound = split_bound_at(text, n, at);
        if (bound >= SPLIT_SENTENCE) return at;
        if (bound == SPLIT_WORD && word == end) word = at;
    }
    if (word < end) return word;
    // Scripts that do not part words may begin anywhere, others not within a word.
    while (from < end && (split_bound_at(text, n, from) == SPLIT_NONE || !is_wide(text[from - 1]) ||
                          !is_wide(text[from]))) {
        from++;
    }
    return from;
}

// --- chunks

void split_chunks_deinit(struct split_chunks *c)
{
    free(c->at);
    *c = (struct split_chunks){0};
}

static enum status append(struct split_chunks *to, int most, struct split_chunk chunk,
                          struct error *e)
{
    if (to->n >= most) {
        return error_set(e, ERR_LIMIT, "too_many_chunks", "it makes more than %d chunks", most);
    }
    if (to->n == to->capacity) {
        int capacity = to->capacity > 0 ? 2 * to->capacity : 64;
        struct split_chunk *more = realloc(to->at, (size_t) capacity * sizeof *more);
        if (more == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory for chunks");
        to->at = more;
        to->capacity = capacity;
    }
    to->at[to->n++] = chunk;
    return OK;
}

// A text on its way: its tokens by where they end.
struct splitting {
    const struct split_options *o;
    const char *text;
    size_t n;
    int32_t *ends; // (n_tokens) bytes
    int n_tokens;
    int first;     // token that ends behind the chunk's begin
    int budget;    // tokens of the whole text that a chunk is tried with
};

// Ids become the bytes at which they end.
static enum status find_ends(struct splitting *s, struct token_ids *ids, struct error *e)
{
    const struct split_options *o = s->o;
    try(tokenizer_encode(o->tokenizer, o->scratch, s->text, s->n, false, ids, e));
    size_t at = 0;
    for (int i = 0; i < ids->n; i++) {
        size_t n;
        bool special;
        tokenizer_bytes(o->tokenizer, ids->ids[i], &n, &special);
        at += n;
        ids->ids[i] = (int32_t) (at < s->n ? at : s->n);
    }
    if (ids->n > 0) ids->ids[ids->n - 1] = (int32_t) s->n;
    s->ends = ids->ids;
    s->n_tokens = ids->n;
    return OK;
}

// What to try after a chunk up to `end` took too many: in proportion, and less than it had.
static int fewer_tokens(const struct splitting *s, size_t end, int got)
{
    int fewer = (int) ((int64_t) s->budget * s->o->chunk_tokens / got);
    if (s->n_tokens - s->first < fewer) fewer = s->n_tokens - s->first;
    while (fewer > 1 && (size_t) s->ends[s->first + fewer - 1] >= end) fewer--;
    return fewer > 1 ? fewer : 1;
}

// The longest chunk from `begin` on, about, that goes beyond `done`; *end is `done` if none does.
// The first try takes as many tokens as the last chunk could: what the text's own tokens say and
// what `count` says differ at the edges, or by a factor where a chunk stands more than once.
static enum status take_chunk(struct splitting *s, size_t begin, size_t done, size_t *end,
                              struct error *e)
{
    const struct split_options *o = s->o;
    while (s->first < s->n_tokens - 1 && (size_t) s->ends[s->first] <= begin) s->first++;
    for (;;) {
        int last = s->first + s->budget - 1, got = 0;
        size_t limit = s->n_tokens - s->first <= s->budget ? s->n : (size_t) s->ends[last];
        *end = done;
        if (limit <= done && begin < done) return OK;
        if (limit <= begin) limit = begin + 1;
        *end = cut_at(s->text, s->n, begin, done, limit);
        try(o->count(o->arg, s->text + begin, *end - begin, &got, e));
        if (got <= o->chunk_tokens) return OK;
        if (s->budget == 1) {
            *end = done;
            if (begin < done) return OK;
            return error_set(e, ERR_INPUT, "bad_chunk",
                             "the character at byte %zu takes %d tokens, but a chunk may have %d",
                             begin, got, o->chunk_tokens);
        }
        s->budget = fewer_tokens(s, *end, got);
    }
}

// The byte about overlap_tokens before `end`; at least half of the chunk stays behind.
static size_t overlap_from(const struct splitting *s, size_t begin, size_t end)
{
    size_t half = begin + (end - begin + 1) / 2;
    int i = s->first, k = s->o->overlap_tokens;
    while (i < s->n_tokens - 1 && (size_t) s->ends[i] < end) i++; // the token that reaches it
    int before = i - k;
    size_t from = before >= s->first ? (size_t) s->ends[before] : half;
    return from > half ? from : half;
}

static enum status run(struct splitting *s, struct split_chunks *to, struct error *e)
{
    const struct split_options *o = s->o;
    for (size_t begin = 0, done = 0, end; done < s->n;) {
        try(take_chunk(s, begin, done, &end, e));
        if (end == done) { // what would be repeated leaves no room
            begin = done;
            s->budget = o->chunk_tokens;
            continue;
        }
        try(append(to, o->most, (struct split_chunk){begin, end}, e));
        // A text that grows denser or thinner is followed by a quarter a chunk.
        int wider = s->budget + s->budget / 4 + 1;
        s->budget = wider < o->chunk_tokens ? wider : o->chunk_tokens;
        size_t from = o->overlap_tokens > 0 ? overlap_from(s, begin, end) : end;
        begin = begin_at(s->text, s->n, from, end);
        done = end;
    }
    return OK;
}

enum status split_text(struct split_chunks *to, const struct split_options *o, const char *text,
                       size_t n, struct error *e)
{
    struct splitting s = {.o = o, .text = text, .n = n, .budget = o->chunk_tokens};
    struct token_ids ids = {0};
    enum status status = find_ends(&s, &ids, e);
    if (status == OK) status = run(&s, to, e);
    token_ids_deinit(&ids);
    return status;
}
