#include "common/wire.h"

#include "common/wire_grammar.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "ids and logits travel little-endian");
_Static_assert(sizeof(struct wire_bytes) == sizeof(struct schema_bytes), "stops are pieces");

static const char magic[] = {'P', 'S', 'T', 'K'};
static const char first_frame[] = {'P', 'S', 'T', 'K', WIRE_MAJOR};

const char *wire_command_name(enum wire_command command)
{
    return wire_grammars[command].name;
}

const char *wire_reason_name(enum wire_reason reason)
{
    return wire_reason_names[reason];
}

int wire_ids_count(struct wire_bytes ids)
{
    return (int) (ids.n / sizeof(int32_t));
}

void wire_ids_copy(struct wire_bytes ids, int32_t *to)
{
    if (ids.n > 0) memcpy(to, ids.at, ids.n / sizeof(int32_t) * sizeof(int32_t));
}

static enum status check_sizes(const char *name, const struct wire_frame *frames, struct error *e)
{
    if (frames[2].n <= WIRE_HEADER_MAX && frames[3].n <= WIRE_BODY_MAX) return OK;
    return error_set(e, ERR_LIMIT, "too_large",
                     "%s: header %zu, body %zu bytes; at most %lld and %lld", name, frames[2].n,
                     frames[3].n, WIRE_HEADER_MAX, WIRE_BODY_MAX);
}

// What no table can say.
static enum status check_message(const struct wire_message *m, struct error *e)
{
    if (m->command == WIRE_LOGITS &&
        m->logits.rows.n != sizeof(float) * (uint64_t) m->logits.n * (uint64_t) m->logits.vocab)
        return error_set(e, ERR_INPUT, "bad_frame", "n * vocab floats are not the body's %zu bytes",
                         m->logits.rows.n);
    if (m->command != WIRE_JOB) return OK;
    for (int i = 0; i < m->job.n_stops; i++)
        if (m->job.stops[i].n < 1 || m->job.stops[i].n > STOP_STRING_BYTES_MAX)
            return error_set(e, ERR_INPUT, "bad_frame",
                             "a stop string has %zu bytes; 1 to %d may be", m->job.stops[i].n,
                             STOP_STRING_BYTES_MAX);
    return sampling_check(&m->job.sampling, e);
}

static bool has_body(const struct wire_grammar *g, const struct wire_message *m)
{
    return g->body.n > 0 && (!g->optional || ((const char *) m)[g->there_at] != '\0');
}

enum status wire_encode(const struct wire_message *m, struct buffer *space,
                        struct wire_frame frames[WIRE_FRAMES], struct error *e)
{
    check(m->command < WIRE_N_COMMANDS, "command %d", (int) m->command);
    const struct wire_grammar *g = &wire_grammars[m->command];
    buffer_clear(space);
    try(schema_encode(&g->header, m, space, "bad_frame", e));
    size_t n_header = space->n;
    if (has_body(g, m)) try(schema_encode(&g->body, m, space, "bad_frame", e));
    try(buffer_check(space, g->name, e));
    try(check_message(m, e));

    frames[0] = (struct wire_frame){first_frame, sizeof first_frame};
    frames[1] = (struct wire_frame){g->name, strlen(g->name)};
    frames[2] = (struct wire_frame){space->data, n_header};
    frames[3] = (struct wire_frame){space->data + n_header, space->n - n_header};
    if (g->raw) {
        struct wire_bytes raw;
        memcpy(&raw, (const char *) m + g->raw_at, sizeof raw);
        frames[3] = (struct wire_frame){raw.n > 0 ? raw.at : "", raw.n};
    }
    return check_sizes(g->name, frames, e);
}

static enum status check_frames(const struct wire_frame *frames, size_t n, struct error *e)
{
    if (n != WIRE_FRAMES)
        return error_set(e, ERR_INPUT, "bad_frame", "a message has %d frames, not %zu", WIRE_FRAMES,
                         n);
    const uint8_t *first = frames[0].data;
    if (frames[0].n != sizeof first_frame || memcmp(first, magic, sizeof magic) != 0)
        return error_set(e, ERR_INPUT, "bad_frame", "the first frame is not PSTK and a version");
    if (first[sizeof magic] != WIRE_MAJOR)
        return error_set(e, ERR_UNSUPPORTED, "bad_version", "protocol %d is spoken here, not %d",
                         WIRE_MAJOR, first[sizeof magic]);
    return OK;
}

static enum status find_command(enum wire_command *command, const struct wire_frame *frame,
                                struct error *e)
{
    for (int i = 0; i < WIRE_N_COMMANDS; i++) {
        const char *name = wire_grammars[i].name;
        if (frame->n != strlen(name) || memcmp(frame->data, name, frame->n) != 0) continue;
        *command = (enum wire_command) i;
        return OK;
    }
    return error_set(e, ERR_UNSUPPORTED, "unknown_command", "a command of %zu bytes is not known",
                     frame->n);
}

enum status wire_decode(struct wire_message *m, const struct wire_frame *frames, size_t n_frames,
                        struct error *e)
{
    memset(m, 0, sizeof *m);
    try(check_frames(frames, n_frames, e));
    try(find_command(&m->command, &frames[1], e));
    const struct wire_grammar *g = &wire_grammars[m->command];
    try(check_sizes(g->name, frames, e));
    enum status status = schema_decode(&g->header, m, frames[2].data, frames[2].n, &m->storage,
                                       "bad_frame", e);
    if (status != OK) {
        error_prefix(e, "%s header", g->name);
        return status;
    }
    if (g->optional) ((char *) m)[g->there_at] = frames[3].n > 0;
    if (has_body(g, m))
        status =
            schema_decode(&g->body, m, frames[3].data, frames[3].n, &m->storage, "bad_frame", e);
    if (g->raw) {
        struct wire_bytes raw = {frames[3].data, frames[3].n};
        memcpy((char *) m + g->raw_at, &raw, sizeof raw);
    }
    if (status == OK) status = check_message(m, e);
    if (status != OK) error_prefix(e, "%s body", g->name);
    return status;
}

void wire_message_deinit(struct wire_message *m)
{
    schema_release(&m->storage);
}
