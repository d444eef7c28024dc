// `penstock top` as text: a page of lines from the JSON that top_view reads, of which nothing is
// trusted. Pure. Knows no terminal but its width, and colours if they are wanted.
#ifndef PENSTOCK_TOOLS_TOP_PAGE_H
#define PENSTOCK_TOOLS_TOP_PAGE_H

#include "common/buffer.h"

#include <jansson.h>
#include <stdbool.h>

enum { TOP_COLUMNS_LEAST = 40, TOP_COLUMNS_MOST = 400, TOP_HEAD_LINES = 3 };

struct top_style {
    int columns;         // no line is wider
    bool colour;         // SGR sequences, which take no columns
    int64_t now_ms;      // wall clock: ages are counted up to here
    const char *trouble; // why the view is an old one; NULL: it is not
};

// Appends the page; view NULL: there was none yet. The first TOP_HEAD_LINES lines are always there.
// Whatever bytes names have, no control character leaves but line feed and SGR.
void top_page(const json_t *view, const struct top_style *style, struct buffer *to);

#endif
