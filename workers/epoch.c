#include "workers/epoch.h"

#include "common/carve.h"
#include "common/clock.h"
#include "common/seal.h"

#include <stdio.h>
#include <string.h>

static bool is_head(const struct epoch *ep) { return ep->options.stage == 0; }
static bool is_tail_of(const struct epoch_options *o) { return o->stage + 1 == o->n_stages; }
static bool is_tail(const struct epoch *ep) { return is_tail_of(&ep->options); }
static bool alone(const struct epoch *ep) { return ep->options.n_stages == 1; }

// "tcp://IP:*" as it is; an inproc address gets a name of its own for each epoch and kind.
static void endpoint_of(const struct epoch_options *o, const char *kind, char *to, size_t n)
{
    if (strncmp(o->data, "inproc://", 9) == 0) {
        snprintf(to, n, "%s-%s-%s-%llu", o->data, o->name, kind,
                 (unsigned long long) o->link.epoch);
    } else {
        snprintf(to, n, "%s", o->data);
    }
}

static size_t logits_bytes(const struct epoch_options *o)
{
    if (!o->limits.score) return 0;
    return (size_t) o->limits.max_out * (size_t) o->limits.vocab_size * sizeof(float);
}

static size_t row_bytes(const struct epoch_options *o)
{
    return stage_row_bytes(o->config, o->precision);
}

// Of a header or tokens frame, with the zeros behind it.
static size_t frame_bytes(const struct step_limits *l)
{
    size_t step = step_frame_max(l), tokens = step_tokens_frame_max(l);
    return step_frame_padded(step > tokens ? step : tokens);
}

// What leaves behind a header: rows of activations, or of logits where they are asked for.
static size_t payload_unit(const struct epoch_options *o)
{
    return is_tail_of(o) ? (size_t) o->limits.vocab_size * sizeof(float) : row_bytes(o);
}

static size_t payload_most(const struct epoch_options *o)
{
    if (is_tail_of(o)) return logits_bytes(o);
    return (size_t) o->limits.max_rows * row_bytes(o);
}

static void carve_epoch(struct epoch *ep, struct carve *c, bool real)
{
    const struct epoch_options *o = &ep->options;
    size_t steps = (size_t) o->steps_in_flight, frame = frame_bytes(&o->limits);
    size_t most = payload_most(o), unit = payload_unit(o);
    ep->places = carve_take(c, steps * sizeof *ep->places);
    ep->tokens = carve_take(c, (size_t) o->limits.max_out * sizeof *ep->tokens);
    ep->open_rows = carve_take(c, (size_t) o->limits.slots * sizeof *ep->open_rows);
    for (size_t i = 0; i < steps && !alone(ep); i++) {
        struct epoch_place none, *place = real ? &ep->places[i] : &none;
        place->frame = carve_take(c, frame);
        place->header.messages = carve_take(c, standing_bytes(frame, STEP_FRAME_UNIT, true));
        place->payload.messages = carve_take(c, most > 0 ? standing_bytes(most, unit, false) : 0);
    }
}

uint64_t epoch_bytes(const struct epoch_options *o)
{
    struct epoch ep = {.options = *o};
    struct carve c = {0};
    carve_epoch(&ep, &c, false);
    return c.used;
}

static enum status make_messages(struct epoch *ep, struct error *e)
{
    const struct epoch_options *o = &ep->options;
    size_t most = payload_most(o);
    for (int i = 0; i < o->steps_in_flight && !alone(ep); i++) {
        struct epoch_place *place = &ep->places[i];
        struct stage_step *step = stage_place(ep->stage, i);
        try(standing_init(&place->header, place->header.messages, place->frame,
                          frame_bytes(&o->limits), STEP_FRAME_UNIT, true, o->arena, e));
        if (most == 0) continue;
        void *payload = is_tail(ep) ? (void *) step->logits : step->out;
        try(standing_init(&place->payload, place->payload.messages, payload, most,
                          payload_unit(o), false, o->arena, e));
    }
    return OK;
}

// A link's high-water mark, so that it never binds: libzmq tells the sender only once in half a
// queue what has been read.
static int link_depth(const struct epoch_options *o) { return 2 * o->steps_in_flight + 2; }

// The largest frame that comes in: MAXMSGSIZE of the link.
static size_t message_max(const struct epoch_options *o)
{
    size_t frame = frame_bytes(&o->limits);
    size_t payload = o->stage == 0 ? logits_bytes(o) : (size_t) o->limits.max_rows * row_bytes(o);
    return payload > frame ? payload : frame;
}

uint64_t epoch_received_bytes(const struct epoch_options *o)
{
    if (o->n_stages == 1) return 0;
    return ((uint64_t) link_depth(o) + 2) * message_max(o);
}

static enum status bind_links(struct epoch *ep, struct error *e)
{
    const struct epoch_options *o = &ep->options;
    char endpoint[ENDPOINT_MAX];
    int depth = link_depth(&ep->options);
    if (alone(ep)) return OK;
    if (is_head(ep)) {
        endpoint_of(o, "tokens", endpoint, sizeof endpoint);
        return link_in_open(&ep->tokens_in, o->zmq, endpoint, depth, (int64_t) message_max(o), e);
    }
    endpoint_of(o, "steps", endpoint, sizeof endpoint);
    return link_in_open(&ep->in, o->zmq, endpoint, depth, (int64_t) message_max(o), e);
}

enum status epoch_open(struct epoch *ep, const struct epoch_options *o, struct stage *stage,
                       struct head *head, struct error *e)
{
    *ep = (struct epoch){.options = *o, .stage = stage, .head = head};
    struct carve c = {.base = o->memory, .size = epoch_bytes(o)};
    memset(o->memory, 0, c.size);
    carve_epoch(ep, &c, true);
    enum status status = make_messages(ep, e);
    if (status == OK) status = bind_links(ep, e);
    if (status != OK) epoch_close(ep);
    return status;
}

// Step number `n` (from 0) of the epoch has this place.
static struct epoch_place *place_of(struct epoch *ep, uint64_t n)
{
    return &ep->places[n % (uint64_t) ep->options.steps_in_flight];
}

// Received frames that steps still in the ring read from.
static void drop_held(struct epoch *ep)
{
    for (; !is_head(ep) && ep->n_out < ep->n_in; ep->n_out++) {
        link_message_close(&place_of(ep, ep->n_out)->held);
    }
}

void epoch_close(struct epoch *ep)
{
    if (ep->places == NULL) return;
    drop_held(ep);
    link_in_close(&ep->in);
    link_in_close(&ep->tokens_in);
    link_out_close(&ep->out);
    for (int i = 0; i < ep->options.steps_in_flight; i++) {
        standing_deinit(&ep->places[i].header);
        standing_deinit(&ep->places[i].payload);
    }
    *ep = (struct epoch){0};
}

enum status epoch_link(struct epoch *ep, const char *endpoint, struct error *e)
{
    if (alone(ep)) return OK;
    return link_out_open(&ep->out, ep->options.zmq, endpoint, link_depth(&ep->options), e);
}

bool epoch_linked(const struct epoch *ep) { return alone(ep) || link_out_connected(&ep->out); }

bool epoch_busy(const struct epoch *ep) { return ep->n_flying > 0 || ep->n_in > ep->n_out; }

static enum status lost_step(struct epoch *ep, uint64_t number, uint64_t expected, struct error *e)
{
    return error_set(e, ERR_STATE, "lost_step", "stage %d got step %llu where %llu was next",
                     ep->options.stage, (unsigned long long) number,
                     (unsigned long long) expected);
}

// --- what comes in

// The head begins steps while fewer than steps_in_flight are on their way.
static void begin_steps(struct epoch *ep, int64_t now_ms)
{
    struct stage_step *place;
    while (ep->n_flying < ep->options.steps_in_flight && (place = stage_next(ep->stage)) != NULL) {
        if (!head_plan(ep->head, &place->step, clock_ns())) return;
        stage_submit(ep->stage);
        if (ep->n_flying++ == 0) ep->moved_ms = now_ms;
        ep->n_in++;
    }
}

static enum status accept_step(struct epoch *ep, struct link_message *m, struct error *e)
{
    const struct epoch_options *o = &ep->options;
    struct stage_step *place = stage_next(ep->stage);
    if (place == NULL) {
        return error_set(e, ERR_STATE, "lost_step", "more than %d steps came to stage %d",
                         o->steps_in_flight, o->stage);
    }
    struct step *s = &place->step;
    try(step_decode(s, &o->limits, &o->link, zmq_msg_data(&m->frames[0]),
                    zmq_msg_size(&m->frames[0]), e));
    if (s->number != ep->n_in + 1) return lost_step(ep, s->number, ep->n_in + 1, e);
    try(step_follow(ep->open_rows, s, e));
    size_t want = (size_t) s->n_rows * row_bytes(o);
    if (zmq_msg_size(&m->frames[1]) != want) {
        return error_set(e, ERR_INPUT, "bad_step", "a step of %d rows came with %zu bytes, not %zu",
                         s->n_rows, zmq_msg_size(&m->frames[1]), want);
    }
    place->in = zmq_msg_data(&m->frames[1]);
    place_of(ep, ep->n_in++)->held = *m;
    stage_submit(ep->stage);
    return OK;
}

// Frames of another epoch are dropped and counted. True if one was there.
static bool skip_stale(struct epoch *ep, enum status *status)
{
    if (*status != ERR_STATE) return false;
    ep->n_stale++;
    *status = OK;
    return true;
}

static enum status receive_steps(struct epoch *ep, int64_t now_ms, struct error *e)
{
    for (;;) {
        struct link_message m;
        enum status status = link_receive(&ep->in, &m, e);
        if (status == ERR_UNAVAILABLE) return OK;
        if (status != OK) return status;
        status = accept_step(ep, &m, e);
        if (status == OK) {
            ep->moved_ms = now_ms;
            continue;
        }
        link_message_close(&m);
        if (strcmp(e->code, "stale") == 0 && skip_stale(ep, &status)) continue;
        return status;
    }
}

// --- what leaves

static enum status end_step(struct epoch *ep, uint64_t number, const struct step_token *tokens,
                            int n, const float *logits, int64_t now_ms, struct error *e)
{
    ep->n_flying--;
    ep->moved_ms = now_ms;
    return head_tokens(ep->head, number, tokens, n, logits, clock_ns(), e);
}

static enum status pass_on(struct epoch *ep, const struct stage_step *done, int64_t now_ms,
                           struct error *e)
{
    const struct epoch_options *o = &ep->options;
    const struct step *s = &done->step;
    if (alone(ep)) {
        return end_step(ep, s->number, done->tokens, s->n_out, done->logits, now_ms, e);
    }
    // The ring's place, not the epoch's: they differ once the stage has seen another epoch.
    struct epoch_place *place = &ep->places[done->index];
    size_t n, payload;
    if (is_tail(ep)) {
        n = step_tokens_encode(done->tokens, s->n_out, s->number, &o->link, place->frame);
        payload = done->logits != NULL ? (size_t) s->n_out * payload_unit(o) : 0;
    } else {
        n = step_encode(s, &o->link, place->frame);
        payload = (size_t) s->n_rows * payload_unit(o);
    }
    memset(place->frame + n, 0, step_frame_padded(n) - n);
    return link_send(&ep->out, standing_message(&place->header, n),
                     payload > 0 ? standing_message(&place->payload, payload) : NULL, e);
}

static enum status finish_steps(struct epoch *ep, int64_t now_ms, bool *device_failed,
                                struct error *e)
{
    for (;;) {
        enum status status;
        struct stage_step *done = stage_done(ep->stage, &status, e);
        *device_failed = status != OK;
        if (status != OK) return status;
        if (done == NULL) return OK;
        status = pass_on(ep, done, now_ms, e);
        stage_release(ep->stage);
        if (!is_head(ep)) {
            link_message_close(&place_of(ep, ep->n_out)->held);
        }
        ep->n_out++;
        ep->moved_ms = now_ms;
        if (status != OK) return status;
    }
}

static enum status accept_tokens(struct epoch *ep, struct link_message *m, int64_t now_ms,
                                 struct error *e)
{
    const struct epoch_options *o = &ep->options;
    uint64_t number, expected = ep->n_in - (uint64_t) ep->n_flying + 1;
    int n;
    try(step_tokens_decode(ep->tokens, &n, &number, &o->limits, &o->link,
                           zmq_msg_data(&m->frames[0]), zmq_msg_size(&m->frames[0]), e));
    if (ep->n_flying == 0 || number != expected) return lost_step(ep, number, expected, e);
    size_t want = o->limits.score
                      ? (size_t) n * (size_t) o->limits.vocab_size * sizeof(float) : 0;
    if (zmq_msg_size(&m->frames[1]) != want) {
        return error_set(e, ERR_INPUT, "bad_step", "%d tokens came with %zu bytes of logits, not "
                         "%zu", n, zmq_msg_size(&m->frames[1]), want);
    }
    const float *logits = want > 0 ? zmq_msg_data(&m->frames[1]) : NULL;
    return end_step(ep, number, ep->tokens, n, logits, now_ms, e);
}

static enum status receive_tokens(struct epoch *ep, int64_t now_ms, struct error *e)
{
    for (;;) {
        struct link_message m;
        enum status status = link_receive(&ep->tokens_in, &m, e);
        if (status == ERR_UNAVAILABLE) return OK;
        if (status != OK) return status;
        status = accept_tokens(ep, &m, now_ms, e);
        link_message_close(&m);
        if (status != OK && strcmp(e->code, "stale") == 0 && skip_stale(ep, &status)) continue;
        if (status != OK) return status;
    }
}

static enum status turn(struct epoch *ep, int64_t now_ms, bool *device_failed, struct error *e)
{
    *device_failed = false;
    if (!is_head(ep)) try(receive_steps(ep, now_ms, e));
    try(finish_steps(ep, now_ms, device_failed, e));
    if (is_head(ep)) {
        if (!alone(ep)) try(receive_tokens(ep, now_ms, e));
        begin_steps(ep, now_ms);
    }
    if (epoch_busy(ep) && now_ms - ep->moved_ms > ep->options.step_deadline_ms) {
        return error_set(e, ERR_STATE, "step_deadline", "no step moved through stage %d for "
                         "%lld ms", ep->options.stage, (long long) (now_ms - ep->moved_ms));
    }
    return OK;
}

enum status epoch_turn(struct epoch *ep, int64_t now_ms, bool *device_failed, struct error *e)
{
    bool was = seal_set(true);
    enum status status = turn(ep, now_ms, device_failed, e);
    seal_set(was);
    return status;
}
