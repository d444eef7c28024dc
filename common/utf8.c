#include "common/utf8.h"

#include <stdint.h>

size_t utf8_broken(const void *bytes, size_t n, bool *cut)
{
    const uint8_t *s = bytes;
    uint8_t low = 0x80, high = 0xbf; // bounds of the second byte
    size_t length = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    *cut = false;
    if (s[0] < 0xc2 || s[0] > 0xf4) return 1;
    if (s[0] == 0xe0) low = 0xa0;
    if (s[0] == 0xed) high = 0x9f;
    if (s[0] == 0xf0) low = 0x90;
    if (s[0] == 0xf4) high = 0x8f;
    size_t at = 1;
    for (; at < length && at < n; at++) {
        if (s[at] < low || s[at] > high) return at;
        low = 0x80, high = 0xbf;
    }
    *cut = at == n && at < length;
    return at;
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
