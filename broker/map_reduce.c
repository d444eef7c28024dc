#include "broker/map_reduce.h"

#include "common/map_reduce_body.h"
#include "common/result.h"
#include "common/split.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NUMBER_SLACK = 8 }; // tokens that {index} and {count} may take beyond those of the largest

// A job that is taken on.
struct work {
    const struct map_reduce_context *c;
    struct job job;
    struct map_reduce_body body;
};

static const struct model *model_of(const struct work *w)
{
    return &w->c->models->at[w->c->model];
}

static struct tokenizer_scratch *scratch_of(const struct work *w)
{
    return w->c->scratch->of[w->c->model];
}

static int context_of(const struct work *w) { return w->c->limits->max_context[w->c->model]; }

// --- one request

// How much text a request takes.
struct room {
    const struct map_reduce_request *request;
    int base;    // tokens of the prompt without the text
    int output;  // kept for what is generated
    int text;    // left
};

static enum status encode_message(const struct work *w, const struct map_reduce_request *r,
                                  const struct map_reduce_fill *f, const char *id, bool last,
                                  struct buffer *to, struct error *e)
{
    struct buffer body;
    struct job job = job_default();
    buffer_init(&body, JOB_BODY_MAX);
    enum status status = map_reduce_fill(r, f, &body, e);
    snprintf(job.id, sizeof job.id, "%s", id);
    job.op = r->op;
    memcpy(job.model, w->job.model, sizeof job.model);
    if (last) { // the job itself
        memcpy(job.custom_id, w->job.custom_id, sizeof job.custom_id);
        job.stream = w->job.stream;
    }
    job.class = w->job.class;
    job.body_form = JOB_BODY_JSON;
    job.body = (struct job_text){(const char *) body.data, body.n};
    if (status == OK) status = job_encode(&job, to, e);
    buffer_deinit(&body);
    return status;
}

static enum status read_message(const struct work *w, const struct prompt_limits *limits,
                                const void *message, size_t n, struct prompt *p, struct error *e)
{
    return prompt_read(p, w->c->models, w->c->model, limits, w->c->tenant, message, n,
                       w->c->scratch, e);
}

// Tokens of the prompt that the request becomes.
static enum status count_prompt(const struct work *w, const struct map_reduce_request *r,
                                const struct map_reduce_fill *f, int *n_tokens, struct error *e)
{
    struct prompt_limits any = {.max_tokens = 1};
    any.max_context[w->c->model] = CONTEXT_MAX;
    struct buffer message;
    struct prompt p = {0};
    buffer_init(&message, JOB_MESSAGE_MAX);
    enum status status = encode_message(w, r, f, w->job.id, false, &message, e);
    if (status == OK) status = read_message(w, &any, message.data, message.n, &p, e);
    *n_tokens = p.ids.n;
    prompt_deinit(&p);
    buffer_deinit(&message);
    return status;
}

// Measured with a text of one token, since a prompt without any is none.
static enum status find_room(const struct work *w, const struct map_reduce_request *r,
                             struct room *to, struct error *e)
{
    const struct map_reduce_fill fill = {"x", 1, MAP_CHUNKS_MAX, MAP_CHUNKS_MAX};
    int with_one = 0, all = context_of(w), some = all / 2;
    int usual = w->c->limits->default_max_tokens;
    enum status status = count_prompt(w, r, &fill, &with_one, e);
    if (status != OK) {
        error_prefix(e, "%s", r->name);
        return status;
    }
    *to = (struct room){.request = r, .base = with_one - 1, .output = r->max_tokens};
    if (r->numbered) to->base += NUMBER_SLACK;
    if (to->output == 0) {
        to->output = usual < some ? usual : some;
    }
    to->text = all - to->base - to->output;
    if (to->text >= MAP_CHUNK_TOKENS_MIN) return OK;
    return error_set(e, ERR_INPUT, "prompt_too_long",
                     "%s: the request itself has %d tokens and its output may have %d; of the %d "
                     "that both may have, %d are left for %s, and it takes at least %d", r->name,
                     to->base, to->output, all, to->text > 0 ? to->text : 0,
                     r->name[0] == 'm' ? "a chunk" : "results", MAP_CHUNK_TOKENS_MIN);
}

// Tokens that a text takes where the request has its place.
static enum status count_text(const struct work *w, const struct room *room, const char *text,
                              size_t n, int *n_tokens, struct error *e)
{
    const struct map_reduce_fill fill = {text, n, MAP_CHUNKS_MAX, MAP_CHUNKS_MAX};
    int all = 0;
    try(count_prompt(w, room->request, &fill, &all, e));
    *n_tokens = all - (room->base - (room->request->numbered ? NUMBER_SLACK : 0));
    return OK;
}

// --- children

static enum status add_child(struct map_reduce_next *to, const struct prompt *p, size_t end,
                             size_t begin, struct error *e)
{
    if (to->n == to->capacity) {
        int capacity = to->capacity > 0 ? 2 * to->capacity : 16;
        void *children = realloc(to->children, (size_t) capacity * sizeof *to->children);
        if (children != NULL) to->children = children;
        void *hashes = realloc(to->hashes, (size_t) capacity * sizeof *to->hashes);
        if (hashes != NULL) to->hashes = hashes;
        if (children == NULL || hashes == NULL) {
            return error_set(e, ERR_NOMEM, "no_memory", "no memory for children");
        }
        to->capacity = capacity;
    }
    to->children[to->n] = (struct queue_child){.need_blocks = p->need_blocks,
                                               .n_prompt = (uint64_t) p->ids.n,
                                               .max_tokens = (uint64_t) p->max_tokens,
                                               .n_message = end - begin};
    memcpy(to->hashes[to->n++], p->body_hash, JOB_HASH_SIZE);
    return OK;
}

// Appends the request as a child of `level`, or, with level 0, as the job's own last run.
static enum status put_child(struct map_reduce_next *to, const struct work *w,
                             const struct map_reduce_request *r, const struct map_reduce_fill *f,
                             int level, struct error *e)
{
    char id[JOB_ID_MAX + 1], tail[32] = "";
    size_t begin = to->bytes.n;
    struct prompt p = {0};
    if (level > 0) snprintf(tail, sizeof tail, "-m%d-%d", level, to->n + 1);
    int n_id = snprintf(id, sizeof id, "%s%s", w->job.id, tail);
    check(n_id <= JOB_ID_MAX, "the parent's id is short");
    if (encode_message(w, r, f, id, level == 0, &to->bytes, e) != OK) {
        if (to->bytes.status != ERR_LIMIT) return e->status;
        return error_set(e, ERR_LIMIT, "too_large", "the requests of level %d have together more "
                         "than %lld bytes; the request that is made of each chunk is long, or "
                         "overlap_tokens large", level, MAP_BYTES_MAX);
    }
    enum status status = read_message(w, w->c->limits, to->bytes.data + begin,
                                      to->bytes.n - begin, &p, e);
    if (status == OK) status = add_child(to, &p, to->bytes.n, begin, e);
    else error_prefix(e, "%s %d", r->name, f->index);
    prompt_deinit(&p);
    return status;
}

// Once the bytes don't move any more.
static void point_at_bytes(struct map_reduce_next *to)
{
    const uint8_t *at = to->bytes.data;
    for (int i = 0; i < to->n; i++) {
        to->children[i].message = at;
        to->children[i].body_hash = to->hashes[i];
        at += to->children[i].n_message;
    }
}

// --- the first level

struct chunk_counter {
    const struct work *w;
    const struct room *room;
};

static enum status count_chunk(void *arg, const char *text, size_t n, int *n_tokens,
                               struct error *e)
{
    const struct chunk_counter *c = arg;
    return count_text(c->w, c->room, text, n, n_tokens, e);
}

static enum status find_chunk_tokens(const struct work *w, struct room *room, int *chunk,
                                     int *overlap, struct error *e)
{
    const struct map_reduce_body *b = &w->body;
    try(find_room(w, &b->map, room, e));
    *chunk = b->chunk_tokens > 0 ? b->chunk_tokens : room->text;
    if (*chunk > room->text) {
        return error_set(e, ERR_INPUT, "bad_body",
                         "chunk_tokens is %d, but map itself has %d tokens and its output may have "
                         "%d: of the %d that all may have, %d are left", *chunk, room->base,
                         room->output, context_of(w), room->text);
    }
    int some = *chunk / 4 < MAP_OVERLAP_TOKENS ? *chunk / 4 : MAP_OVERLAP_TOKENS;
    *overlap = b->overlap_tokens >= 0 ? b->overlap_tokens : some;
    if (*overlap < (*chunk + 1) / 2) return OK;
    return error_set(e, ERR_INPUT, "bad_body", "overlap_tokens is %d, but must be less than half "
                     "of a chunk, which may have %d", *overlap, *chunk);
}

// Chunks of all texts; firsts[i] is the first one of text i, firsts[n_texts] their number.
static enum status cut_texts(const struct work *w, struct split_chunks *chunks, int *firsts,
                             struct error *e)
{
    struct room room;
    struct chunk_counter counter = {w, &room};
    struct split_options o = {.tokenizer = model_of(w)->tokenizer, .scratch = scratch_of(w),
                              .most = MAP_CHUNKS_MAX, .count = count_chunk, .arg = &counter};
    try(find_chunk_tokens(w, &room, &o.chunk_tokens, &o.overlap_tokens, e));
    for (int i = 0; i < w->body.n_texts; i++) {
        size_t n;
        const char *text = map_reduce_text(&w->body, i, &n);
        firsts[i] = chunks->n;
        enum status status = split_text(chunks, &o, text, n, e);
        if (status != OK && strcmp(e->code, "too_many_chunks") == 0) {
            return error_set(e, ERR_LIMIT, "too_many_chunks", "the document makes more than %d "
                             "chunks of %d tokens; allow larger ones, or divide it",
                             MAP_CHUNKS_MAX, o.chunk_tokens);
        }
        if (status != OK) return status;
    }
    firsts[w->body.n_texts] = chunks->n;
    return OK;
}

static enum status put_chunks(struct map_reduce_next *to, const struct work *w,
                              const struct split_chunks *chunks, const int *firsts,
                              struct error *e)
{
    for (int i = 0; i < w->body.n_texts; i++) {
        size_t n;
        const char *text = map_reduce_text(&w->body, i, &n);
        for (int k = firsts[i]; k < firsts[i + 1]; k++) {
            const struct split_chunk *c = &chunks->at[k];
            const struct map_reduce_fill fill = {text + c->begin, c->end - c->begin, k + 1,
                                                 chunks->n};
            try(put_child(to, w, &w->body.map, &fill, 1, e));
        }
    }
    return OK;
}

static enum status split_document(struct map_reduce_next *to, const struct work *w,
                                  struct error *e)
{
    struct split_chunks chunks = {0};
    int *firsts = calloc((size_t) w->body.n_texts + 1, sizeof *firsts);
    if (firsts == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory for chunks");
    enum status status = cut_texts(w, &chunks, firsts, e);
    if (status == OK) status = put_chunks(to, w, &chunks, firsts, e);
    split_chunks_deinit(&chunks);
    free(firsts);
    to->step = MAP_REDUCE_SPLIT;
    return status;
}

// --- further levels

void map_reduce_results_init(struct map_reduce_results *r, const char *prior)
{
    *r = (struct map_reduce_results){.usage = queue_usage_read(prior)};
    buffer_init(&r->texts, MAP_RESULTS_MAX);
}

void map_reduce_results_deinit(struct map_reduce_results *r)
{
    buffer_deinit(&r->texts);
    free(r->ends);
    *r = (struct map_reduce_results){0};
}

static enum status keep_text(struct map_reduce_results *r, const struct result *result,
                             struct error *e)
{
    if (r->n == r->capacity) {
        int capacity = r->capacity > 0 ? 2 * r->capacity : 64;
        size_t *ends = realloc(r->ends, (size_t) capacity * sizeof *ends);
        if (ends == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory for results");
        r->ends = ends;
        r->capacity = capacity;
    }
    if (buffer_append(&r->texts, result->text, result->text_bytes) == ERR_LIMIT) {
        return error_set(e, ERR_LIMIT, "too_large", "what the children made has together more "
                         "than %lld bytes; ask for less with max_tokens, or divide the document",
                         MAP_RESULTS_MAX);
    }
    try(buffer_check(&r->texts, "what the children made", e));
    r->ends[r->n++] = r->texts.n;
    r->usage.prompt += (uint64_t) result->usage.prompt;
    r->usage.cached += (uint64_t) result->usage.cached;
    r->usage.completion += (uint64_t) result->usage.completion;
    r->cut = r->cut || result->finish_reason == RESULT_LENGTH;
    return OK;
}

enum status map_reduce_results_add(struct map_reduce_results *r, const void *result, size_t n,
                                   struct error *e)
{
    struct result decoded;
    enum status status = result_decode(&decoded, result, n, e);
    if (status == OK) status = keep_text(r, &decoded, e);
    result_deinit(&decoded);
    return status;
}

static const char *result_text(const struct map_reduce_results *r, int i, size_t *n)
{
    size_t begin = i > 0 ? r->ends[i - 1] : 0;
    *n = r->ends[i] - begin;
    return r->texts.n > 0 ? (const char *) r->texts.data + begin : "";
}

// Results [first, last), with the separator between.
static enum status join(struct buffer *to, const struct work *w,
                        const struct map_reduce_results *r, int first, int last, struct error *e)
{
    for (int i = first; i < last; i++) {
        size_t n;
        const char *text = result_text(r, i, &n);
        if (i > first) buffer_append(to, w->body.separator, w->body.separator_bytes);
        buffer_append(to, text, n);
    }
    if (to->status == ERR_LIMIT) {
        return error_set(e, ERR_LIMIT, "too_large", "the joined results have more than %lld bytes",
                         MAP_RESULTS_MAX);
    }
    return buffer_check(to, "the joined results", e);
}

// Where groups of results that the reduce request takes at once end.
struct groups_of_results {
    const struct room *room;
    int *counts; // (n) tokens of each result, alone
    int separator;
    int *ends;   // (n_groups)
    int n_groups;
};

static enum status count_alone(const struct work *w, const char *text, size_t n, int *n_tokens,
                               struct error *e)
{
    struct token_ids ids = {0};
    enum status status = tokenizer_encode(model_of(w)->tokenizer, scratch_of(w), text, n, false,
                                          &ids, e);
    *n_tokens = ids.n;
    token_ids_deinit(&ids);
    return status;
}

static enum status does_not_fit(const struct work *w, const struct room *room, int result,
                                int n_tokens, struct error *e)
{
    return error_set(e, ERR_INPUT, "reduce_does_not_fit",
                     "result %d has %d tokens, reduce itself %d, and its output may have %d: of "
                     "the %d that all may have, only %d are left for results; ask map for less, "
                     "or reduce", result + 1, n_tokens, room->base, room->output,
                     context_of(w), room->text);
}

// The group that begins with result `first`: as many as their own counts allow, then as many fewer
// as the whole takes in its place.
static enum status find_group(const struct work *w, const struct map_reduce_results *r,
                              struct groups_of_results *g, int first, struct error *e)
{
    int last = first, total = 0, in_place = 0;
    while (last < r->n) {
        int more = g->counts[last] + (last > first ? g->separator : 0);
        if (last > first && total > g->room->text - more) break;
        total += more;
        last++;
    }
    for (;; last--) {
        struct buffer text;
        buffer_init(&text, MAP_RESULTS_MAX);
        enum status status = join(&text, w, r, first, last, e);
        if (status == OK) {
            status = count_text(w, g->room, text.n > 0 ? (const char *) text.data : "", text.n,
                                &in_place, e);
        }
        buffer_deinit(&text);
        if (status != OK) return status;
        if (in_place <= g->room->text) break;
        if (last == first + 1) return does_not_fit(w, g->room, first, in_place, e);
    }
    g->ends[g->n_groups++] = last;
    return OK;
}

static enum status find_groups(const struct work *w, const struct map_reduce_results *r,
                               struct groups_of_results *g, struct error *e)
{
    try(count_alone(w, w->body.separator, w->body.separator_bytes, &g->separator, e));
    for (int i = 0; i < r->n; i++) {
        size_t n;
        const char *text = result_text(r, i, &n);
        try(count_alone(w, text, n, &g->counts[i], e));
    }
    for (int first = 0; first < r->n; first = g->ends[g->n_groups - 1]) {
        try(find_group(w, r, g, first, e));
    }
    return OK;
}

static enum status put_groups(struct map_reduce_next *to, const struct work *w,
                              const struct map_reduce_results *r,
                              const struct groups_of_results *g, int level, struct error *e)
{
    for (int i = 0, first = 0; i < g->n_groups; first = g->ends[i++]) {
        struct buffer text;
        buffer_init(&text, MAP_RESULTS_MAX);
        enum status status = join(&text, w, r, first, g->ends[i], e);
        const struct map_reduce_fill fill = {text.n > 0 ? (const char *) text.data : "", text.n,
                                             i + 1, g->n_groups};
        if (status == OK) status = put_child(to, w, &w->body.reduce, &fill, level, e);
        buffer_deinit(&text);
        if (status != OK) return status;
    }
    return OK;
}

// A level that does not get shorter, or too many of them.
static enum status check_shrinks(const struct map_reduce_results *r,
                                 const struct groups_of_results *g, int level, struct error *e)
{
    if (g->n_groups < r->n && level < MAP_LEVELS_MAX) return OK;
    return error_set(e, ERR_INPUT, "reduce_does_not_fit",
                     "the %d results of level %d make %d requests of at most %d tokens of results, "
                     "after which there would be no fewer, or more than %d levels; ask map and "
                     "reduce for less with max_tokens", r->n, level, g->n_groups, g->room->text,
                     MAP_LEVELS_MAX);
}

static enum status reduce(struct map_reduce_next *to, const struct work *w, int level,
                          const struct map_reduce_results *r, struct error *e)
{
    struct room room;
    struct groups_of_results g = {.room = &room};
    try(find_room(w, &w->body.reduce, &room, e));
    g.counts = calloc((size_t) r->n + 1, sizeof *g.counts);
    g.ends = calloc((size_t) r->n + 1, sizeof *g.ends);
    enum status status = g.counts != NULL && g.ends != NULL
                             ? find_groups(w, r, &g, e)
                             : error_set(e, ERR_NOMEM, "no_memory", "no memory for results");
    bool last = status == OK && g.n_groups == 1;
    if (status == OK && !last) status = check_shrinks(r, &g, level, e);
    to->step = last ? MAP_REDUCE_RUN : MAP_REDUCE_SPLIT;
    if (status == OK) status = put_groups(to, w, r, &g, last ? 0 : level + 1, e);
    free(g.counts);
    free(g.ends);
    return status;
}

// Without a reduce request the joined texts are the result.
static enum status end(struct map_reduce_next *to, const struct work *w,
                       const struct map_reduce_results *r, struct error *e)
{
    struct buffer *text = &to->text;
    struct result result = {.status = RESULT_OK,
                            .finish_reason = r->cut ? RESULT_LENGTH : RESULT_STOP};
    enum status status = join(text, w, r, 0, r->n, e);
    memcpy(result.id, w->job.id, sizeof result.id);
    memcpy(result.custom_id, w->job.custom_id, sizeof result.custom_id);
    result.text = text->n > 0 ? (const char *) text->data : "";
    result.text_bytes = text->n;
    result_add_usage(&result, r->usage.prompt, r->usage.cached, r->usage.completion);
    snprintf(result.engine.version, sizeof result.engine.version, "%s", PENSTOCK_VERSION);
    snprintf(result.engine.model, sizeof result.engine.model, "%s", model_of(w)->hash);
    if (status == OK) status = result_encode(&result, &to->bytes, e);
    to->step = MAP_REDUCE_END;
    to->stream = w->job.stream;
    return status;
}

// --- the whole

static enum status begin(struct work *w, const struct map_reduce_context *c, const struct job *job,
                         struct error *e)
{
    *w = (struct work){.c = c, .job = *job};
    try(map_reduce_body_parse(&w->body, job, e));
    if (model_of(w)->tokenizer != NULL) return OK;
    return error_set(e, ERR_UNSUPPORTED, "no_tokenizer",
                     "the model has no tokenizer.json: a document cannot be split");
}

enum status map_reduce_check(const struct map_reduce_context *c, const struct job *job,
                             char hash[JOB_HASH_SIZE], struct error *e)
{
    struct work w;
    struct room room;
    int chunk, overlap;
    enum status status = begin(&w, c, job, e);
    if (status == OK) status = find_chunk_tokens(&w, &room, &chunk, &overlap, e);
    if (status == OK && w.body.reduce.fields != NULL) {
        status = find_room(&w, &w.body.reduce, &room, e);
    }
    if (status == OK) status = map_reduce_body_hash(&w.body, job, hash, e);
    map_reduce_body_deinit(&w.body);
    return status;
}

enum status map_reduce_take_on(struct map_reduce_next *to, const struct map_reduce_context *c,
                               const void *message, size_t n, int level,
                               const struct map_reduce_results *results, struct error *e)
{
    struct job job;
    struct work w = {0};
    *to = (struct map_reduce_next){0};
    buffer_init(&to->bytes, MAP_BYTES_MAX);
    buffer_init(&to->text, MAP_RESULTS_MAX);
    try(job_decode(&job, message, n, e));
    enum status status = begin(&w, c, &job, e);
    if (status == OK) {
        status = level == 0                     ? split_document(to, &w, e)
                 : w.body.reduce.fields != NULL ? reduce(to, &w, level, results, e)
                                                : end(to, &w, results, e);
    }
    if (status == OK) point_at_bytes(to);
    map_reduce_body_deinit(&w.body);
    return status;
}

void map_reduce_next_deinit(struct map_reduce_next *next)
{
    buffer_deinit(&next->bytes);
    buffer_deinit(&next->text);
    free(next->children);
    free(next->hashes);
    *next = (struct map_reduce_next){0};
}
