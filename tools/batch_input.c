#include "tools/batch_input.h"

#include "common/limits.h"

#include <ctype.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#define XXH_STATIC_LINKING_ONLY // the state on the stack
#include <xxhash.h>

enum { PIECE = 1 << 16 };

// --- survey

struct survey {
    XXH3_state_t hash;
    int64_t n_lines;
    bool blank; // the line so far
};

static void look_at(struct survey *s, const char *bytes, size_t n)
{
    XXH3_128bits_update(&s->hash, bytes, n);
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] == '\n') {
            s->n_lines += !s->blank;
            s->blank = true;
        } else if (s->blank && !isspace((unsigned char) bytes[i])) {
            s->blank = false;
        }
    }
}

static enum status survey_file(struct survey *s, FILE *f, const char *path, struct error *e)
{
    char piece[PIECE], real[PATH_MAX];
    if (realpath(path, real) == NULL) return error_set(e, ERR_IO, NULL, "cannot find %s: %m", path);
    XXH3_INITSTATE(&s->hash);
    XXH3_128bits_reset(&s->hash);
    XXH3_128bits_update(&s->hash, real, strlen(real) + 1);
    for (size_t n; (n = fread(piece, 1, sizeof piece, f)) > 0;) look_at(s, piece, n);
    if (ferror(f)) return error_set(e, ERR_IO, NULL, "cannot read %s: %m", path);
    s->n_lines += !s->blank;
    return OK;
}

enum status batch_input_survey(const char *path, char id[BATCH_ID_SIZE], int64_t *n_lines,
                               struct error *e)
{
    FILE *f = fopen(path, "rb");
    struct survey s = {.blank = true};
    if (f == NULL) return error_set(e, ERR_IO, NULL, "cannot open %s: %m", path);
    enum status status = survey_file(&s, f, path, e);
    fclose(f);
    if (status != OK) return status;
    XXH128_hash_t h = XXH3_128bits_digest(&s.hash);
    snprintf(id, BATCH_ID_SIZE, "batch-%016llx%016llx", (unsigned long long) h.high64,
             (unsigned long long) h.low64);
    *n_lines = s.n_lines;
    return OK;
}

// --- lines

enum status batch_input_open(struct batch_input *in, const char *path, struct error *e)
{
    *in = (struct batch_input){.f = fopen(path, "rb"), .text = malloc(JOB_MESSAGE_MAX + 1)};
    if (in->f != NULL && in->text != NULL) return OK;
    enum status status = in->f == NULL ? error_set(e, ERR_IO, NULL, "cannot open %s: %m", path)
                                       : error_set(e, ERR_NOMEM, NULL, "no memory for a line");
    batch_input_close(in);
    return status;
}

void batch_input_close(struct batch_input *in)
{
    if (in->f != NULL) fclose(in->f);
    free(in->text);
    *in = (struct batch_input){0};
}

// Reads on to the next newline. False if there is nothing more.
static bool read_line(struct batch_input *in)
{
    in->n = 0;
    in->too_long = false;
    int c = getc_unlocked(in->f);
    if (c == EOF) return false;
    for (; c != EOF && c != '\n'; c = getc_unlocked(in->f)) {
        if (in->n < (size_t) JOB_MESSAGE_MAX) in->text[in->n++] = (char) c;
        else in->too_long = true;
    }
    in->text[in->n] = '\0';
    in->number++;
    return true;
}

static bool is_blank(const struct batch_input *in)
{
    for (size_t i = 0; i < in->n; i++) {
        if (!isspace((unsigned char) in->text[i])) return false;
    }
    return true;
}

bool batch_input_next(struct batch_input *in, enum status *status, struct error *e)
{
    *status = OK;
    while (read_line(in)) {
        if (!is_blank(in)) return true;
    }
    if (ferror(in->f)) *status = error_set(e, ERR_IO, NULL, "cannot read the input: %m");
    return false;
}
