#include "common/utf8.h"

#include <stdint.h>
#include <string.h>

// How many bytes the character has that begins with `lead`, and the bounds of its second byte (the
// table of well-formed byte sequences, Unicode 3.9); 0 if none begins so.
static size_t shape(uint8_t lead, uint8_t *low, uint8_t *high)
{
    *low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    *high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (lead < 0x80) return 1;
    if (lead < 0xc2 || lead > 0xf4) return 0;
    return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

// How many of at most n bytes fit one another as a character that has *length bytes.
static size_t fitting(const uint8_t *s, size_t n, size_t *length)
{
    uint8_t low, high;
    *length = shape(s[0], &low, &high);
    size_t at = *length > 0 ? 1 : 0;
    for (; at < *length && at < n; at++) {
        if (s[at] < low || s[at] > high) break;
        low = 0x80;
        high = 0xbf;
    }
    return at;
}

size_t utf8_valid_prefix(const void *bytes, size_t n)
{
    const uint8_t *s = bytes;
    size_t at = 0, length;
    while (at < n) {
        uint64_t eight;
        if (n - at >= sizeof eight) { // mostly ASCII
            memcpy(&eight, s + at, sizeof eight);
            if ((eight & 0x8080808080808080ull) == 0) {
                at += sizeof eight;
                continue;
            }
        }
        size_t fit = fitting(s + at, n - at, &length);
        if (fit == 0 || fit < length) break;
        at += length;
    }
    return at;
}

size_t utf8_broken(const void *bytes, size_t n, bool *cut)
{
    size_t length, fit = fitting(bytes, n, &length);
    *cut = fit == n && fit < length;
    return fit > 0 ? fit : 1;
}

void utf8_replacement(struct buffer *to)
{
    buffer_append(to, "\xef\xbf\xbd", 3);
}

void utf8_repair(struct buffer *to, const void *bytes, size_t n)
{
    const uint8_t *s = bytes;
    for (size_t at = 0; at < n;) {
        size_t valid = utf8_valid_prefix(s + at, n - at);
        buffer_append(to, s + at, valid);
        at += valid;
        if (at == n) break;
        bool cut;
        at += utf8_broken(s + at, n - at, &cut);
        utf8_replacement(to);
    }
}
