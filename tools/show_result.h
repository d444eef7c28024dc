// A job's result on stdout, for people or as JSON.
#ifndef PENSTOCK_TOOLS_SHOW_RESULT_H
#define PENSTOCK_TOOLS_SHOW_RESULT_H

#include <stdbool.h>
#include <stddef.h>

// Decodes msgpack bytes of a result. json: the whole result as one object; else its text (its token
// ids where there is no tokenizer), or on stderr why there is none. The exit status: EXIT_FAILED
// unless the result is ok.
int show_result(const char *program, const void *bytes, size_t n, bool json);

#endif
