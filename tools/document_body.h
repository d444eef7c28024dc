// A document as the body of a map_reduce job: from a file and the flags of penstock enqueue. Knows
// no queue.
#ifndef PENSTOCK_TOOLS_DOCUMENT_BODY_H
#define PENSTOCK_TOOLS_DOCUMENT_BODY_H

#include "common/options.h"
#include "common/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct document_flags {
    const char *document;    // file, - is stdin; NULL: there is none
    const char *map, *reduce; // messages with {chunk} and {results}
    bool lines;              // each line of the file is a text of its own
    int64_t chunk_tokens, overlap_tokens; // -1: not given
    const char *separator;
};

#define DOCUMENT_FLAG_ROWS(f)                                                                      \
    {.name = "document", .kind = OPTION_STRING, .value = &(f).document, .argument = "FILE",        \
     .help = "Long text to be split and worked on in parts (- is stdin); with --map."},            \
    {.name = "map", .kind = OPTION_STRING, .value = &(f).map, .argument = "TEXT",                  \
     .help = "Message that is asked of each part; holds {chunk}."},                                \
    {.name = "reduce", .kind = OPTION_STRING, .value = &(f).reduce, .argument = "TEXT",            \
     .help = "Message that joins the answers; holds {results} (default: joined as they are)."},    \
    {.name = "each-line", .kind = OPTION_FLAG, .value = &(f).lines,                                \
     .help = "Each line of the document is a part of its own."},                                   \
    {.name = "chunk-tokens", .kind = OPTION_INT, .value = &(f).chunk_tokens, .argument = "N",      \
     .help = "Most tokens of a part (default: what the context takes).",                           \
     .least = MAP_CHUNK_TOKENS_MIN, .most = CONTEXT_MAX},                                          \
    {.name = "overlap-tokens", .kind = OPTION_INT, .value = &(f).overlap_tokens, .argument = "N",  \
     .help = "About so many come again in the next part (default 64).", .least = 0,                \
     .most = CONTEXT_MAX},                                                                         \
    {.name = "separator", .kind = OPTION_STRING, .value = &(f).separator, .argument = "TEXT",      \
     .help = "Between answers (default: an empty line, with --each-line a line's end)."}

struct document_flags document_flags_default(void);

// ERR_INPUT bad_usage: flags that want others.
enum status document_flags_check(const struct document_flags *f, struct error *e);

// Reads the file: new reference in *body. ERR_IO; ERR_INPUT bad_body: it is empty, or not UTF-8;
// ERR_LIMIT too_large.
enum status document_body(const struct document_flags *f, json_t **body, struct error *e);

#endif
