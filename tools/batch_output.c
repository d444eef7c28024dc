#include "tools/batch_output.h"

#include "tools/batch_input.h"
#include "tools/batch_line.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

// --- answered lines

bool batch_is_answered(const struct batch_answered *a, int64_t number)
{
    return number < a->n_bits && (a->bits[number / 8] >> (number % 8) & 1) != 0;
}

enum status batch_set_answered(struct batch_answered *a, int64_t number, struct error *e)
{
    if (number >= a->n_bits) {
        int64_t n_bits = (number + 1) * 2 + 8192;
        uint8_t *bits = realloc(a->bits, (size_t) (n_bits / 8 + 1));
        if (bits == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for %lld lines",
                                           (long long) n_bits);
        int64_t old = a->bits != NULL ? a->n_bits / 8 + 1 : 0;
        memset(bits + old, 0, (size_t) (n_bits / 8 + 1 - old));
        a->bits = bits;
        a->n_bits = n_bits;
    }
    a->bits[number / 8] = (uint8_t) (a->bits[number / 8] | 1 << (number % 8));
    return OK;
}

// --- what an earlier run left

// The input line that an output line answers; 0: it is none of this batch.
static int64_t answers(const char *text, size_t n, const char *batch_id)
{
    json_t *line = json_loadb(text, n, 0, NULL);
    const char *id = json_string_value(json_object_get(line, "id"));
    int64_t number = id != NULL ? batch_job_number(id, batch_id) : 0;
    json_decref(line);
    return number;
}

// Whether bytes that are no line are the beginning of one, or zeros, as a crash leaves them.
// Anything else is somebody's, and not cut off.
static bool is_torn(const char *text, size_t n, const char *batch_id)
{
    char begins[BATCH_ID_SIZE + 16];
    size_t most = (size_t) snprintf(begins, sizeof begins, "{\"id\":\"%s-", batch_id);
    if (strncmp(text, begins, n < most ? n : most) == 0) return true;
    for (size_t i = 0; i < n; i++) {
        if (text[i] != '\0') return false;
    }
    return true;
}

// Reads the lines; *good is where the last whole one ends.
static enum status read_lines(struct batch_output *o, FILE *f, const char *batch_id,
                              struct batch_answered *answered, off_t *good, struct error *e)
{
    char *text = NULL;
    size_t size = 0;
    bool torn = false;
    enum status status = OK;
    *good = 0;
    for (ssize_t n; status == OK && (n = getline(&text, &size, f)) > 0;) {
        int64_t number = text[n - 1] == '\n' ? answers(text, (size_t) n, batch_id) : 0;
        if (torn || (number == 0 && !is_torn(text, (size_t) n, batch_id))) {
            status = error_set(e, ERR_INPUT, "other_batch",
                               "%s holds something else than answers to this input (%s): move it "
                               "away, or name another file",
                               o->path, batch_id);
        } else if (number == 0) {
            torn = true;
        } else {
            status = batch_set_answered(answered, number, e);
            *good += n;
            o->n_lines++;
        }
    }
    if (status == OK && ferror(f)) {
        status = error_set(e, ERR_IO, NULL, "cannot read %s: %m", o->path);
    }
    free(text);
    return status;
}

static enum status take_over(struct batch_output *o, const char *batch_id,
                             struct batch_answered *answered, struct error *e)
{
    off_t good = 0;
    if (flock(o->fd, LOCK_EX | LOCK_NB) != 0) {
        return error_set(e, ERR_STATE, "in_use", "%s is being written by another run", o->path);
    }
    FILE *f = fopen(o->path, "rb");
    if (f == NULL) return error_set(e, ERR_IO, NULL, "cannot read %s: %m", o->path);
    enum status status = read_lines(o, f, batch_id, answered, &good, e);
    fclose(f);
    if (status != OK) return status;
    if (ftruncate(o->fd, good) == 0) return OK;
    return error_set(e, ERR_IO, NULL, "cannot cut the torn line off %s: %m", o->path);
}

enum status batch_output_open(struct batch_output *o, const char *path, const char *batch_id,
                              struct batch_answered *answered, struct error *e)
{
    *o = (struct batch_output){.path = path};
    o->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (o->fd < 0) return error_set(e, ERR_IO, NULL, "cannot write %s: %m", path);
    enum status status = take_over(o, batch_id, answered, e);
    if (status == OK) return OK;
    close(o->fd);
    o->fd = -1;
    return status;
}

// --- appending

static enum status write_all(struct batch_output *o, const char *text, size_t n, struct error *e)
{
    while (n > 0) {
        ssize_t done = write(o->fd, text, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return error_set(e, ERR_IO, NULL, "cannot write %s: %m", o->path);
        text += done;
        n -= (size_t) done;
    }
    return OK;
}

enum status batch_output_append(struct batch_output *o, json_t *line, struct error *e)
{
    char *text = line != NULL ? json_dumps(line, JSON_COMPACT) : NULL;
    json_decref(line);
    if (text == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a line of %s", o->path);
    size_t n = strlen(text);
    text[n] = '\n'; // in the place of its end: one write, so that a line is torn by crashes only
    enum status status = write_all(o, text, n + 1, e);
    free(text);
    if (status == OK) o->n_lines++;
    return status;
}

enum status batch_output_close(struct batch_output *o, struct error *e)
{
    if (o->fd < 0) return OK;
    // A pipe or a device cannot be synced.
    bool synced = fsync(o->fd) == 0 || errno == EINVAL || errno == EROFS;
    bool closed = close(o->fd) == 0;
    o->fd = -1;
    if (synced && closed) return OK;
    return error_set(e, ERR_IO, NULL, "cannot bring %s to the disk: %m", o->path);
}
