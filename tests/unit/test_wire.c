#include "common/wire.h"

#include "common/mpwalk.h"
#include "common/wire_grammar.h"
#include "tests/support/bytes.h"
#include "tests/support/wire_examples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static struct buffer space, other;
static struct error e;

static int setup(void **state)
{
    (void) state;
    buffer_init(&space, (size_t) (WIRE_HEADER_MAX + WIRE_BODY_MAX));
    buffer_init(&other, (size_t) (WIRE_HEADER_MAX + WIRE_BODY_MAX));
    e = (struct error){0};
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    buffer_deinit(&space);
    buffer_deinit(&other);
    return 0;
}

static void a_job_travels(void **state)
{
    (void) state;
    int32_t ids[] = {0, 5, 77}, back[3];
    struct wire_message m = {.command = WIRE_JOB, .term = 3}, got;
    struct wire_frame frames[WIRE_FRAMES];
    strcpy(m.job.key.tenant, "default");
    strcpy(m.job.key.id, "job-1");
    m.job.key.attempt = 42;
    m.job.max_tokens = 100;
    m.job.attempts = 1;
    m.job.sampling = sampling_default();
    m.job.ids = (struct wire_bytes){ids, sizeof ids};
    assert_int_equal(wire_encode(&m, &space, frames, &e), OK);
    assert_int_equal(wire_decode(&got, frames, WIRE_FRAMES, &e), OK);
    assert_true(got.command == WIRE_JOB && got.term == 3 && got.job.max_tokens == 100);
    assert_string_equal(got.job.key.id, "job-1");
    assert_int_equal(wire_ids_count(got.job.ids), 3);
    wire_ids_copy(got.job.ids, back);
    assert_memory_equal(back, ids, sizeof ids);
    wire_message_deinit(&got);
}

// --- decode(encode(x)) = x

static void assert_same_bytes(struct wire_bytes a, struct wire_bytes b)
{
    assert_int_equal(a.n, b.n);
    if (a.n > 0) assert_memory_equal(a.at, b.at, a.n);
}

// What is pointed to is compared here; the rest is plain memory.
static void compare_and_take_pointers(struct wire_message *got, const struct wire_message *m)
{
    got->storage = m->storage;
    switch (m->command) {
    case WIRE_HELLO: {
        struct wire_hello *a = &got->hello;
        const struct wire_hello *b = &m->hello;
        assert_memory_equal(a->devices, b->devices, (size_t) b->n_devices * sizeof *b->devices);
        if (b->n_running > 0)
            assert_memory_equal(a->running, b->running, (size_t) b->n_running * sizeof *b->running);
        if (b->n_finished > 0)
            assert_memory_equal(a->finished, b->finished,
                                (size_t) b->n_finished * sizeof *b->finished);
        a->devices = b->devices, a->running = b->running, a->finished = b->finished;
        break;
    }
    case WIRE_PONG: {
        struct wire_figures *a = &got->pong.figures;
        const struct wire_figures *b = &m->pong.figures;
        if (b->n_ranks > 0)
            assert_memory_equal(a->ranks, b->ranks, (size_t) b->n_ranks * sizeof *b->ranks);
        a->ranks = b->ranks;
        break;
    }
    case WIRE_JOB:
        assert_same_bytes(got->job.ids, m->job.ids);
        assert_same_bytes(got->job.resume, m->job.resume);
        for (int i = 0; i < m->job.n_stops; i++)
            assert_same_bytes(got->job.stops[i], m->job.stops[i]);
        got->job.ids = m->job.ids, got->job.resume = m->job.resume;
        memcpy(got->job.stops, m->job.stops, sizeof m->job.stops);
        break;
    case WIRE_TOKENS:
        assert_same_bytes(got->tokens.ids, m->tokens.ids);
        assert_same_bytes(got->tokens.text, m->tokens.text);
        got->tokens.ids = m->tokens.ids, got->tokens.text = m->tokens.text;
        break;
    case WIRE_LOGITS:
        assert_same_bytes(got->logits.rows, m->logits.rows);
        got->logits.rows = m->logits.rows;
        break;
    case WIRE_RESULT:
        assert_same_bytes(got->result.result, m->result.result);
        got->result.result = m->result.result;
        break;
    default: break;
    }
}

static void check_round_trip(const struct wire_message *m)
{
    struct wire_message got;
    struct wire_frame frames[WIRE_FRAMES];
    if (wire_encode(m, &space, frames, &e) != OK)
        fail_msg("%s: %s", wire_command_name(m->command), e.text);
    if (wire_decode(&got, frames, WIRE_FRAMES, &e) != OK)
        fail_msg("%s: %s", wire_command_name(m->command), e.text);
    struct wire_message decoded = got;
    compare_and_take_pointers(&decoded, m);
    assert_memory_equal(&decoded, m, sizeof *m);
    wire_message_deinit(&got);
}

static void every_command_comes_back_the_same(void **state)
{
    (void) state;
    for (int c = 0; c < WIRE_N_COMMANDS; c++) {
        for (int full = 0; full < 2; full++) {
            struct wire_message m = wire_example((enum wire_command) c, full);
            check_round_trip(&m);
        }
    }
}

// Sets what has one largest value to it; what is pointed to, floats and counts stay.
static void make_largest(const struct schema *s, char *to)
{
    for (int i = 0; i < s->n; i++) {
        const struct schema_field *f = &s->fields[i];
        int last = 0;
        switch (f->type) {
        case SCHEMA_U64: memset(to + f->at, 0xff, sizeof(uint64_t)); break;
        case SCHEMA_INT: last = (int) f->most, memcpy(to + f->at, &last, sizeof last); break;
        case SCHEMA_BOOL: to[f->at] = 1; break;
        case SCHEMA_TEXT: case SCHEMA_ID: memset(to + f->at, 'x', f->size - 1); break;
        case SCHEMA_FIXED: memset(to + f->at, 0xff, f->size); break;
        case SCHEMA_ENUM:
            while (f->names[last + 1] != NULL) last++;
            memcpy(to + f->at, &last, sizeof last);
            break;
        case SCHEMA_SUB: make_largest(f->sub, to + f->at); break;
        default: break;
        }
    }
}

static void the_largest_values_fit_their_frames(void **state)
{
    (void) state;
    for (int c = 0; c < WIRE_N_COMMANDS; c++) {
        struct wire_message m = wire_example((enum wire_command) c, true);
        make_largest(&wire_grammars[c].header, (char *) &m);
        make_largest(&wire_grammars[c].body, (char *) &m);
        if (c == WIRE_LOGITS) m.logits.n = 2, m.logits.vocab = 3;
        check_round_trip(&m);
    }
}

// --- golden bytes

static void print_hex(FILE *to, const void *bytes, size_t n)
{
    char *hex = bytes_to_hex(bytes, n);
    fprintf(to, " %s", n > 0 ? hex : "-");
    free(hex);
}

static void write_golden(FILE *to)
{
    fputs("# Every command, small and full: name, then its four frames in hex (-: empty).\n", to);
    fputs("# Written by `test_wire golden`; a change here is a change of the protocol.\n", to);
    for (int c = 0; c < WIRE_N_COMMANDS; c++) {
        for (int full = 0; full < 2; full++) {
            struct wire_message m = wire_example((enum wire_command) c, full);
            struct wire_frame frames[WIRE_FRAMES];
            check(wire_encode(&m, &space, frames, NULL) == OK);
            fprintf(to, "%s", wire_command_name(m.command));
            for (int i = 0; i < WIRE_FRAMES; i++) print_hex(to, frames[i].data, frames[i].n);
            fputc('\n', to);
        }
    }
}

static void bytes_are_those_of_the_fixture(void **state)
{
    (void) state;
    char *text, *fixture = bytes_file(FIXTURES "/wire-golden.txt", NULL);
    size_t n;
    FILE *memory = open_memstream(&text, &n);
    write_golden(memory);
    fclose(memory);
    char *save_a, *save_b, *a = strtok_r(text, "\n", &save_a),
                           *b = strtok_r(fixture, "\n", &save_b);
    for (; a != NULL && b != NULL;
         a = strtok_r(NULL, "\n", &save_a), b = strtok_r(NULL, "\n", &save_b))
        assert_string_equal(a, b);
    assert_true(a == NULL && b == NULL);
    free(text);
    free(fixture);
}

// --- what every field refuses, from the tables themselves

// One map of a frame, changed: `target` gets the bytes `value`, or is left out where they are NULL.
struct change {
    const struct schema_field *target;
    const char *value; // hex
};

static void put_head(uint8_t type, size_t n)
{
    uint8_t head[] = {type, (uint8_t) (n >> 8), (uint8_t) n};
    buffer_append(&other, head, sizeof head);
}

static void copy_map(struct mp_cursor *c, const struct schema *s, const struct change *change);

static void copy_value(struct mp_cursor *c, const struct schema_field *f,
                       const struct change *change)
{
    if (f != NULL && f->type == SCHEMA_SUB) {
        copy_map(c, f->sub, change);
    } else if (f != NULL && f->type == SCHEMA_LIST) {
        struct mp_value list;
        check(mp_take(c, &list));
        put_head(0xdc, list.n);
        for (size_t i = 0; i < list.n; i++) copy_map(c, f->sub, change);
    } else {
        const uint8_t *start = c->at;
        check(mp_skip(c));
        buffer_append(&other, start, (size_t) (c->at - start));
    }
}

static void copy_map(struct mp_cursor *c, const struct schema *s, const struct change *change)
{
    struct mp_value map, key;
    check(mp_take(c, &map) && map.type == MP_MAP);
    size_t head = other.n, n = 0;
    put_head(0xde, 0);
    for (size_t i = 0; i < map.n; i++) {
        const uint8_t *start = c->at;
        const struct schema_field *f = NULL;
        check(mp_take(c, &key));
        for (int k = 0; k < s->n; k++)
            if (mp_is(&key, s->fields[k].name)) f = &s->fields[k];
        if (f != NULL && f == change->target && change->value == NULL) {
            check(mp_skip(c));
            continue;
        }
        n++;
        buffer_append(&other, start, (size_t) (c->at - start));
        if (f != NULL && f == change->target) {
            bytes_hex(&other, change->value);
            check(mp_skip(c));
        } else {
            copy_value(c, f, change);
        }
    }
    other.data[head + 2] = (uint8_t) n;
}

// Decodes the message in `frames` with one field changed.
static enum status decode_changed(const struct wire_frame *frames, enum wire_command command,
                                  bool body, const struct change *change)
{
    struct wire_frame changed[WIRE_FRAMES];
    struct wire_message m;
    const struct wire_grammar *g = &wire_grammars[command];
    memcpy(changed, frames, sizeof changed);
    struct wire_frame *frame = &changed[body ? 3 : 2];
    struct mp_cursor c = mp_cursor(frame->data, frame->n);
    buffer_clear(&other);
    copy_map(&c, body ? &g->body : &g->header, change);
    check(other.status == OK);
    uint8_t *copy = bytes_copy(other.data, other.n);
    *frame = (struct wire_frame){copy, other.n};
    e = (struct error){0};
    enum status status = wire_decode(&m, changed, WIRE_FRAMES, &e);
    wire_message_deinit(&m);
    free(copy);
    return status;
}

// Whether the error is about this field.
static bool blames(const struct schema_field *f)
{
    char words[64];
    snprintf(words, sizeof words, "field %s ", f->name);
    return strcmp(e.code, "bad_frame") == 0 && strstr(e.text, words) != NULL;
}

struct place {
    const struct wire_frame *frames;
    enum wire_command command;
    bool body;
};

static void expect(const struct place *p, const struct schema_field *f, const char *value,
                   bool good)
{
    struct change change = {f, value};
    enum status status = decode_changed(p->frames, p->command, p->body, &change);
    if (good ? blames(f) : status != ERR_INPUT || !blames(f))
        fail_msg("%s: %s = %.80s: %s", wire_command_name(p->command), f->name,
                 value == NULL ? "(left out)" : value, e.text);
}

// The hex of a str of n bytes; valid until the next call.
static const char *str_hex(size_t n)
{
    static char hex[8192];
    size_t at = (size_t) snprintf(hex, sizeof hex, "da%04zx", n);
    for (size_t i = 0; i < n; i++) at += (size_t) snprintf(hex + at, sizeof hex - at, "78");
    return hex;
}

static const char *int_hex(int64_t n)
{
    static char hex[32];
    snprintf(hex, sizeof hex, "d3%016llx", (unsigned long long) n);
    return hex;
}

static const char *list_hex(int64_t n, const char *element)
{
    static char hex[1 << 20];
    size_t at = (size_t) snprintf(hex, sizeof hex, "dd%08llx", (unsigned long long) n);
    for (int64_t i = 0; i < n; i++)
        at += (size_t) snprintf(hex + at, sizeof hex - at, "%s", element);
    return hex;
}

static void check_types(const struct place *p, const struct schema_field *f)
{
    static const struct {
        const char *value;
        unsigned types; // of fields that take it
    } values[] = {
        {"c3", 1u << SCHEMA_BOOL},
        {"01", 1u << SCHEMA_U64 | 1u << SCHEMA_INT | 1u << SCHEMA_FLOAT},
        {"cb3fe0000000000000", 1u << SCHEMA_FLOAT},
        {"a178", 1u << SCHEMA_TEXT | 1u << SCHEMA_ID | 1u << SCHEMA_STR},
        {"c40178", 1u << SCHEMA_BIN},
        {"90", 1u << SCHEMA_PIECES | 1u << SCHEMA_INTS | 1u << SCHEMA_U64S | 1u << SCHEMA_INT_LIST |
                   1u << SCHEMA_LIST},
        {"91c0", 0},
        {"d40100", 0},
    };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        expect(p, f, values[i].value, values[i].types & 1u << f->type);
}

static void check_bounds(const struct place *p, const struct schema_field *f)
{
    switch (f->type) {
    case SCHEMA_INT:
        expect(p, f, int_hex(f->most), true);
        expect(p, f, int_hex(f->least), true);
        expect(p, f, int_hex(f->most + 1), false);
        expect(p, f, int_hex(f->least - 1), false);
        expect(p, f, int_hex(INT64_MIN), false);
        expect(p, f, "cfffffffffffffffff", false);
        break;
    case SCHEMA_U64:
        expect(p, f, "cfffffffffffffffff", true);
        expect(p, f, "ff", false);
        break;
    case SCHEMA_TEXT: case SCHEMA_ID:
        expect(p, f, str_hex(f->size - 1), true);
        expect(p, f, str_hex(f->size), false);
        expect(p, f, "a0", f->optional);
        expect(p, f, "a3610062", false);
        if (f->type == SCHEMA_ID) expect(p, f, "a3612062", false);
        break;
    case SCHEMA_FIXED:
        expect(p, f, "c410000102030405060708090a0b0c0d0e0f", true);
        expect(p, f, "c40f000102030405060708090a0b0c0d0e", false);
        expect(p, f, "c411000102030405060708090a0b0c0d0e0f10", false);
        break;
    case SCHEMA_ENUM: expect(p, f, "a3786978", false); break;
    case SCHEMA_IDS:
        expect(p, f, "c400", true);
        expect(p, f, "c40400000000", true);
        expect(p, f, "c403000000", false);
        break;
    case SCHEMA_PIECES: case SCHEMA_INTS: {
        const char *element = f->type == SCHEMA_INTS ? "07" : "c40178";
        expect(p, f, list_hex(f->most, element), true);
        expect(p, f, list_hex(f->most + 1, element), false);
        expect(p, f, "91ff", false);
        break;
    }
    case SCHEMA_U64S:
        expect(p, f, list_hex(f->most, "cfffffffffffffffff"), true);
        expect(p, f, list_hex(f->most + 1, "07"), false);
        expect(p, f, "91ff", false);
        break;
    case SCHEMA_LIST:
        expect(p, f, list_hex(f->most + 1, "80"), false);
        expect(p, f, "9180", true); // another field is missing in it
        expect(p, f, "9101", false);
        break;
    default: break;
    }
}

static void check_fields(const struct place *p, const struct schema *s)
{
    for (int i = 0; i < s->n; i++) {
        const struct schema_field *f = &s->fields[i];
        expect(p, f, NULL, f->optional);
        expect(p, f, "c0", f->optional); // nil counts as left out
        check_types(p, f);
        check_bounds(p, f);
        if (f->sub != NULL) check_fields(p, f->sub);
    }
}

static void every_field_keeps_its_bounds(void **state)
{
    (void) state;
    for (int c = 0; c < WIRE_N_COMMANDS; c++) {
        struct wire_message m = wire_example((enum wire_command) c, true);
        struct wire_frame frames[WIRE_FRAMES];
        assert_int_equal(wire_encode(&m, &space, frames, &e), OK);
        struct place p = {frames, m.command, false};
        check_fields(&p, &wire_grammars[c].header);
        p.body = true;
        if (wire_grammars[c].body.n > 0) check_fields(&p, &wire_grammars[c].body);
    }
}

// Groups that count nothing, and those of version 0, answer PING without a body.
static void a_pong_may_have_no_body(void **state)
{
    (void) state;
    struct wire_message m = wire_example(WIRE_PONG, false), got;
    struct wire_frame frames[WIRE_FRAMES];
    assert_int_equal(wire_encode(&m, &space, frames, &e), OK);
    assert_int_equal(frames[3].n, 0);
    assert_int_equal(wire_decode(&got, frames, WIRE_FRAMES, &e), OK);
    assert_false(got.pong.counted);
    wire_message_deinit(&got);
    m = wire_example(WIRE_PONG, true);
    assert_int_equal(wire_encode(&m, &space, frames, &e), OK);
    assert_int_equal(wire_decode(&got, frames, WIRE_FRAMES, &e), OK);
    assert_true(got.pong.counted);
    assert_int_equal(got.pong.figures.decode_steps.counts[2], 4);
    wire_message_deinit(&got);
}

// --- malformed messages

// Four frames: the first, the command, header and body as hex.
static enum status decode_hex(const char *first, const char *command, const char *header,
                              const char *body, struct wire_message *m)
{
    struct wire_frame frames[WIRE_FRAMES];
    const char *parts[] = {first, command, header, body};
    size_t ends[WIRE_FRAMES];
    buffer_clear(&other);
    for (int i = 0; i < WIRE_FRAMES; i++) {
        if (i == 1) buffer_append(&other, command, strlen(command));
        else bytes_hex(&other, parts[i]);
        ends[i] = other.n;
    }
    for (int i = 0; i < WIRE_FRAMES; i++) {
        size_t start = i > 0 ? ends[i - 1] : 0;
        frames[i] = (struct wire_frame){other.data + start, ends[i] - start};
    }
    e = (struct error){0};
    return wire_decode(m, frames, WIRE_FRAMES, &e);
}

static void malformed_messages_have_codes(void **state)
{
    (void) state;
    static const char pstk[] = "5053544b01", term[] = "81 a47465726d 01";
    static const struct {
        const char *what, *first, *command, *header, *body;
        enum status status;
        const char *code;
    } table[] = {
        {"good", pstk, "BYE", term, "", OK, ""},
        {"more fields", pstk, "BYE", "83 a161 c0 a47465726d 01 a162 93010203", "", OK, ""},
        {"a body that nobody reads", pstk, "BYE", term, "ff", OK, ""},
        {"no magic", "", "BYE", term, "", ERR_INPUT, "bad_frame"},
        {"another magic", "5053544c01", "BYE", term, "", ERR_INPUT, "bad_frame"},
        {"no version", "5053544b", "BYE", term, "", ERR_INPUT, "bad_frame"},
        {"a long first frame", "5053544b0100", "BYE", term, "", ERR_INPUT, "bad_frame"},
        {"another version", "5053544b02", "BYE", term, "", ERR_UNSUPPORTED, "bad_version"},
        {"version zero", "5053544b00", "BYE", term, "", ERR_UNSUPPORTED, "bad_version"},
        {"no command", pstk, "", term, "", ERR_UNSUPPORTED, "unknown_command"},
        {"another command", pstk, "HALLO", term, "", ERR_UNSUPPORTED, "unknown_command"},
        {"half a command", pstk, "BY", term, "", ERR_UNSUPPORTED, "unknown_command"},
        {"a lower-case command", pstk, "bye", term, "", ERR_UNSUPPORTED, "unknown_command"},
        {"no header", pstk, "BYE", "", "", ERR_INPUT, "bad_msgpack"},
        {"an array as header", pstk, "BYE", "91 01", "", ERR_INPUT, "bad_frame"},
        {"an empty header", pstk, "BYE", "80", "", ERR_INPUT, "bad_frame"},
        {"a term of text", pstk, "BYE", "81 a47465726d a131", "", ERR_INPUT, "bad_frame"},
        {"a field twice", pstk, "BYE", "82 a47465726d 01 a47465726d 02", "", ERR_INPUT,
         "bad_msgpack"},
        {"bytes behind", pstk, "BYE", "81 a47465726d 01 00", "", ERR_INPUT, "bad_msgpack"},
        {"no body", pstk, "TOKENS",
         "85 a47465726d 01 a674656e616e74 a161 a26964 a161 a7617474656d7074 01 a66f6666736574 00",
         "", ERR_INPUT, "bad_msgpack"},
        {"logits of another size", pstk, "LOGITS",
         "87 a47465726d 01 a674656e616e74 a161 a26964 a161 a7617474656d7074 01 a3706f73 00 a16e 01"
         " a5766f636162 02",
         "00000000", ERR_INPUT, "bad_frame"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct wire_message m;
        enum status status = decode_hex(table[i].first, table[i].command, table[i].header,
                                        table[i].body, &m);
        if (status != table[i].status || strcmp(e.code, table[i].code) != 0)
            fail_msg("%s: %s: %s", table[i].what, e.code, e.text);
        wire_message_deinit(&m);
    }
}

static void frames_are_counted_and_measured(void **state)
{
    (void) state;
    struct wire_message m = wire_example(WIRE_RESULT, true), got;
    struct wire_frame frames[WIRE_FRAMES + 1];
    assert_int_equal(wire_encode(&m, &space, frames, &e), OK);
    frames[WIRE_FRAMES] = frames[0];
    for (size_t n = 0; n <= WIRE_FRAMES + 1; n++) {
        assert_int_equal(wire_decode(&got, frames, n, &e), n == WIRE_FRAMES ? OK : ERR_INPUT);
        wire_message_deinit(&got);
    }
    // Refused by its size, before a byte of it is read.
    frames[3].n = (size_t) WIRE_BODY_MAX + 1;
    assert_int_equal(wire_decode(&got, frames, WIRE_FRAMES, &e), ERR_LIMIT);
    assert_string_equal(e.code, "too_large");
    frames[3].n = 1, frames[2].n = (size_t) WIRE_HEADER_MAX + 1;
    assert_int_equal(wire_decode(&got, frames, WIRE_FRAMES, &e), ERR_LIMIT);
    assert_string_equal(e.code, "too_large");
    m.result.result.n = (size_t) WIRE_BODY_MAX + 1;
    assert_int_equal(wire_encode(&m, &space, frames, &e), ERR_LIMIT);
    assert_string_equal(e.code, "too_large");
}

static void what_a_peer_would_refuse_is_not_sent(void **state)
{
    (void) state;
    struct wire_frame frames[WIRE_FRAMES];
    struct wire_message m[16];
    int n = 0;
    m[n] = wire_example(WIRE_JOB, true), m[n++].job.sampling.temperature = NAN;
    m[n] = wire_example(WIRE_JOB, true), m[n++].job.sampling.top_p = 0;
    m[n] = wire_example(WIRE_JOB, true), m[n++].job.stops[0].n = 0;
    m[n] = wire_example(WIRE_JOB, true), m[n++].job.stops[1].n = STOP_STRING_BYTES_MAX + 1;
    m[n] = wire_example(WIRE_JOB, true), m[n++].job.n_stops = STOP_STRINGS_MAX + 1;
    m[n] = wire_example(WIRE_JOB, true), m[n++].job.n_stop_ids = -1;
    m[n] = wire_example(WIRE_JOB, true), m[n++].job.stop_ids[0] = -1;
    m[n] = wire_example(WIRE_JOB, true), m[n++].job.ids.n = 7;
    m[n] = wire_example(WIRE_JOB, true), m[n++].job.ids.n = 4 * ((size_t) CONTEXT_MAX + 1);
    m[n] = wire_example(WIRE_JOB, true), m[n++].job.key.id[0] = '\0';
    m[n] = wire_example(WIRE_TOKENS, true), m[n++].tokens.offset = -1;
    m[n] = wire_example(WIRE_LOGITS, true), m[n++].logits.rows.n = 4;
    m[n] = wire_example(WIRE_COMMITTED, true), m[n++].committed.outcome = (enum wire_outcome) 9;
    // No stop of that length is there to be read.
    static char longest[STOP_STRING_BYTES_MAX + 1];
    m[3].job.stops[1].at = longest;
    for (int i = 0; i < n; i++) {
        e = (struct error){0};
        if (wire_encode(&m[i], &space, frames, &e) != ERR_INPUT) fail_msg("message %d was sent", i);
        assert_true(strcmp(e.code, "bad_frame") == 0 || strcmp(e.code, "bad_sampling") == 0);
    }
}

// A sentence that was cut within a character must not cost the message.
static void text_is_cut_to_whole_characters(void **state)
{
    (void) state;
    struct wire_message m = wire_example(WIRE_ERROR, true), got;
    struct wire_frame frames[WIRE_FRAMES];
    strcpy(m.error.message, "cut \xe2\x82");
    assert_int_equal(wire_encode(&m, &space, frames, &e), OK);
    assert_int_equal(wire_decode(&got, frames, WIRE_FRAMES, &e), OK);
    assert_string_equal(got.error.message, "cut ");
    wire_message_deinit(&got);
}

static void damaged_messages_never_crash(void **state)
{
    (void) state;
    enum { ROOM = 4096, TIMES = 150000 };
    uint64_t r = 11;
    int passed = 0;
    for (int i = 0; i < TIMES; i++) {
        uint8_t work[WIRE_FRAMES][ROOM], *copies[WIRE_FRAMES];
        struct wire_message m = wire_example((enum wire_command) (i % WIRE_N_COMMANDS), i % 3 != 0);
        struct wire_message got;
        struct wire_frame frames[WIRE_FRAMES];
        assert_int_equal(wire_encode(&m, &space, frames, &e), OK);
        uint32_t which = bytes_random(&r) % 8; // mostly header and body
        for (uint32_t k = 0; k < WIRE_FRAMES; k++) {
            size_t n = frames[k].n;
            memcpy(work[k], frames[k].data, n);
            bool hit = which < WIRE_FRAMES ? which == k : k == 2 + which % 2;
            if (hit) n = bytes_damage(work[k], n, ROOM, &r);
            copies[k] = bytes_copy(work[k], n);
            frames[k] = (struct wire_frame){copies[k], n};
        }
        e = (struct error){0};
        if (wire_decode(&got, frames, WIRE_FRAMES, &e) == OK) {
            struct wire_frame again[WIRE_FRAMES];
            passed++;
            // What was accepted may be said again.
            if (wire_encode(&got, &other, again, &e) != OK)
                fail_msg("%s: %s", wire_command_name(got.command), e.text);
        } else {
            assert_true(e.code[0] != '\0' && e.text[0] != '\0');
        }
        wire_message_deinit(&got);
        for (int k = 0; k < WIRE_FRAMES; k++) free(copies[k]);
    }
    assert_in_range(passed, TIMES / 100, TIMES - TIMES / 100);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "golden") == 0) {
        setup(NULL);
        write_golden(stdout);
        return teardown(NULL);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_job_travels, setup, teardown),
        cmocka_unit_test_setup_teardown(every_command_comes_back_the_same, setup, teardown),
        cmocka_unit_test_setup_teardown(the_largest_values_fit_their_frames, setup, teardown),
        cmocka_unit_test_setup_teardown(bytes_are_those_of_the_fixture, setup, teardown),
        cmocka_unit_test_setup_teardown(every_field_keeps_its_bounds, setup, teardown),
        cmocka_unit_test_setup_teardown(a_pong_may_have_no_body, setup, teardown),
        cmocka_unit_test_setup_teardown(malformed_messages_have_codes, setup, teardown),
        cmocka_unit_test_setup_teardown(frames_are_counted_and_measured, setup, teardown),
        cmocka_unit_test_setup_teardown(what_a_peer_would_refuse_is_not_sent, setup, teardown),
        cmocka_unit_test_setup_teardown(text_is_cut_to_whole_characters, setup, teardown),
        cmocka_unit_test_setup_teardown(damaged_messages_never_crash, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
