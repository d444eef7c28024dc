#include "common/text_stream.h"

#include "common/utf8.h"

#include <string.h>

void text_stream_init(struct text_stream *s, const struct tokenizer *t, const char *const *stops,
                      const size_t *stop_bytes, int n_stops)
{
    check(n_stops >= 0 && n_stops <= STOP_STRINGS_MAX, "%d stop strings", n_stops);
    memset(s, 0, sizeof *s);
    s->tokenizer = t;
    s->n_stops = n_stops;
    buffer_init(&s->text, WIRE_BODY_MAX);
    for (int i = 0; i < n_stops; i++) {
        check(stop_bytes[i] > 0 && stop_bytes[i] <= STOP_STRING_BYTES_MAX, "%zu bytes",
              stop_bytes[i]);
        memcpy(s->stops[i], stops[i], stop_bytes[i]);
        s->stop_bytes[i] = stop_bytes[i];
    }
}

void text_stream_deinit(struct text_stream *s)
{
    buffer_deinit(&s->text);
}

// Moves what is certain of the bytes in s->part to the text: a whole character, or U+FFFD for one
// that can't become whole.
static void settle_part(struct text_stream *s)
{
    while (s->part_bytes > 0) {
        bool cut;
        size_t valid = utf8_valid_prefix(s->part, s->part_bytes);
        size_t done = valid > 0 ? valid : utf8_broken(s->part, s->part_bytes, &cut);
        if (valid > 0) {
            buffer_append(&s->text, s->part, valid);
        } else if (!cut) {
            utf8_replacement(&s->text);
        } else {
            return;
        }
        s->part_bytes -= done;
        memmove(s->part, s->part + done, s->part_bytes);
    }
}

static void append(struct text_stream *s, const char *bytes, size_t n)
{
    for (size_t at = 0; at < n;) {
        if (s->part_bytes == 0) {
            size_t valid = utf8_valid_prefix(bytes + at, n - at);
            buffer_append(&s->text, bytes + at, valid);
            at += valid;
            if (at == n) break;
        }
        s->part[s->part_bytes++] = bytes[at++];
        settle_part(s);
    }
}

// Whether stop string i, or its first n bytes, ends the first `end` bytes of the text.
static bool ends_with(const struct text_stream *s, size_t end, int i, size_t n)
{
    return n <= end && memcmp(s->text.data + end - n, s->stops[i], n) == 0;
}

// Looks for a stop string that ends behind byte `from`, and cuts the text before it.
static void find_stop(struct text_stream *s, size_t from)
{
    for (size_t end = from + 1; end <= s->text.n && !s->stopped; end++) {
        size_t longest = 0;
        for (int i = 0; i < s->n_stops; i++) {
            size_t n = s->stop_bytes[i];
            if (n > longest && ends_with(s, end, i, n)) longest = n;
        }
        if (longest == 0) continue;
        check(end - longest >= s->ready, "a stop string was shown");
        s->stopped = true;
        s->text.n = end - longest;
        s->part_bytes = 0;
    }
}

// Bytes at the end of the text that a stop string may begin with.
static size_t held_back(const struct text_stream *s)
{
    size_t most = 0;
    for (int i = 0; i < s->n_stops; i++) {
        for (size_t n = s->stop_bytes[i] - 1; n > most; n--) {
            if (ends_with(s, s->text.n, i, n)) most = n;
        }
    }
    return most;
}

enum status text_stream_token(struct text_stream *s, int32_t id, struct error *e)
{
    check(!s->stopped, "a token after the stop string");
    if (s->tokenizer == NULL) return OK;
    size_t n, from = s->text.n;
    bool special;
    const char *bytes = tokenizer_bytes(s->tokenizer, id, &n, &special);
    if (special) return OK;
    append(s, bytes, n);
    try(buffer_check(&s->text, "the text", e));
    find_stop(s, from);
    s->ready = s->stopped ? s->text.n : s->text.n - held_back(s);
    return OK;
}

enum status text_stream_finish(struct text_stream *s, struct error *e)
{
    size_t from = s->text.n;
    if (s->part_bytes > 0) utf8_replacement(&s->text);
    s->part_bytes = 0;
    try(buffer_check(&s->text, "the text", e));
    if (!s->stopped) find_stop(s, from);
    s->ready = s->text.n;
    return OK;
}
