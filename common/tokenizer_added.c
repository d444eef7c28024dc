#include "common/tokenizer_added.h"

#include <stdlib.h>
#include <string.h>

enum status added_init(struct added *a, int most, size_t text_bytes, struct error *e)
{
    *a = (struct added){0};
    a->strings = calloc((size_t) most + 1, sizeof *a->strings);
    a->bytes = malloc(text_bytes + 1);
    if (a->strings != NULL && a->bytes != NULL) return OK;
    added_deinit(a);
    return error_set(e, ERR_NOMEM, "no_memory", "no memory for %d added tokens", most);
}

void added_deinit(struct added *a)
{
    free(a->strings);
    free(a->bytes);
    *a = (struct added){0};
}

void added_put(struct added *a, const char *text, size_t n, int32_t id)
{
    check(n > 0, "an added token is empty");
    char *to = memcpy(a->bytes + a->n_bytes, text, n);
    a->n_bytes += n;
    a->strings[a->n++] = (struct added_string){.text = to, .n = n, .id = id};
    a->first[(uint8_t) text[0]] = true;
}

static int by_bytes(const void *a, const void *b)
{
    const struct added_string *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->n < y->n ? x->n : y->n);
    return order != 0 ? order : (x->n > y->n) - (x->n < y->n);
}

enum status added_index(struct added *a, struct error *e)
{
    qsort(a->strings, (size_t) a->n, sizeof *a->strings, by_bytes);
    for (int i = 1; i < a->n; i++) {
        if (by_bytes(&a->strings[i - 1], &a->strings[i]) != 0) continue;
        return error_set(e, ERR_INPUT, "bad_tokenizer", "added_tokens has \"%.*s\" twice",
                         a->strings[i].n > 80 ? 80 : (int) a->strings[i].n, a->strings[i].text);
    }
    return OK;
}

// The first of strings [low, high), which agree in `depth` bytes, whose next byte is at least
// `byte`. One that ends there comes before all others.
static int first_with(const struct added *a, int low, int high, size_t depth, int byte)
{
    while (low < high) {
        int middle = (low + high) / 2;
        const struct added_string *s = &a->strings[middle];
        if (s->n > depth && (uint8_t) s->text[depth] >= byte) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

// The longest string that `text` begins with.
static const struct added_string *longest_at(const struct added *a, const char *text, size_t n)
{
    const struct added_string *found = NULL;
    int low = 0, high = a->n;
    for (size_t depth = 0; low < high; depth++) {
        if (a->strings[low].n == depth) found = &a->strings[low];
        if (depth == n) break;
        int byte = (uint8_t) text[depth];
        low = first_with(a, low, high, depth, byte);
        high = first_with(a, low, high, depth, byte + 1);
    }
    return found;
}

size_t added_next(const struct added *a, const char *text, size_t n,
                  const struct added_string **which)
{
    for (size_t at = 0; a->n > 0 && at < n; at++) {
        if (!a->first[(uint8_t) text[at]]) continue;
        *which = longest_at(a, text + at, n - at);
        if (*which != NULL) return at;
    }
    return n;
}

int32_t added_find(const struct added *a, const char *text, size_t n)
{
    if (a->n == 0 || n == 0) return -1;
    const struct added_string key = {.text = text, .n = n};
    const struct added_string *s =
        bsearch(&key, a->strings, (size_t) a->n, sizeof *a->strings, by_bytes);
    return s != NULL ? s->id : -1;
}
