#include "broker/reader.h"

#include "broker/loop.h"
#include "broker/pool.h"
#include "broker/queue_split.h"
#include "common/clock.h"
#include "common/log.h"

#include <stdlib.h>
#include <string.h>

enum { REFUSAL_BYTES_MAX = 8192 };

// A claimed job whose bytes the pool reads.
struct item {
    struct reader *reader;
    struct job_key key;
    struct prompt_limits limits;
    struct prompt prompt;
    struct error error;
    struct queue_usage prior; // of what was done for it before
    uint64_t need_blocks, most_blocks; // as admitted, and of pipelines; most 0: it fits
    uint32_t starts;
    bool stream;
    int64_t admitted_ms;
    size_t n_message, n_resume;
    uint8_t bytes[]; // the checkpoint (ids, aligned), then the message
};

struct reader {
    struct reader_options options;
    struct pool *pool;
    struct prompt_scratch *scratch; // (n_threads)
    int n_items;
    size_t n_bytes;
};

static void read_item(void *arg, void *work, int thread)
{
    struct reader *r = arg;
    struct item *item = work;
    prompt_read(&item->prompt, r->options.models, r->options.model, &item->limits,
                item->key.tenant, item->bytes + item->n_resume, item->n_message,
                &r->scratch[thread], &item->error);
    if (item->error.status != OK || item->most_blocks == 0) return;
    error_set(&item->error, ERR_LIMIT, "context_exceeded",
              "the job was admitted with a need of %llu KV blocks of %d tokens, and pipelines have "
              "%llu",
              (unsigned long long) item->need_blocks, KV_BLOCK_ROWS,
              (unsigned long long) item->most_blocks);
}

static void drop_item(void *work)
{
    struct item *item = work;
    prompt_deinit(&item->prompt);
    free(item);
}

static void refuse(struct reader *r, const struct item *item)
{
    struct buffer result;
    struct error e;
    buffer_init(&result, REFUSAL_BYTES_MAX);
    if (prompt_refusal(item->key.id, item->prompt.job.custom_id, (int) item->starts, &item->error,
                       &result, &e) != OK) {
        buffer_clear(&result);
    }
    bool retryable = item->error.status == ERR_NOMEM;
    jobs_refuse(r->options.jobs, item->key.attempt, &item->error, retryable, result.data, result.n);
    buffer_deinit(&result);
}

static void start(struct reader *r, const struct item *item)
{
    const struct prompt *p = &item->prompt;
    const struct job_body *body = &p->body;
    int64_t queued_ms = clock_wall_ms() - item->admitted_ms;
    struct wire_job job = {
        .key = item->key,
        .max_tokens = p->max_tokens,
        .sampling = body->sampling,
        .n_stop_ids = body->n_stop_ids,
        .ignore_eos = body->ignore_eos,
        .class = p->job.class,
        .stream = item->stream,
        .attempts = (int) item->starts,
        .queued_ms = queued_ms > 0 ? (uint64_t) queued_ms : 0,
        .prior_prompt = item->prior.prompt,
        .prior_cached = item->prior.cached,
        .prior_completion = item->prior.completion,
        .ids = {p->ids.ids, (size_t) p->ids.n * sizeof *p->ids.ids},
        .resume = {item->bytes, item->n_resume},
        .n_stops = body->n_stops,
    };
    snprintf(job.custom_id, sizeof job.custom_id, "%s", p->job.custom_id);
    memcpy(job.stop_ids, body->stop_ids, sizeof job.stop_ids);
    for (int i = 0; i < body->n_stops; i++) {
        job.stops[i] = (struct wire_bytes){body->stops[i], body->stop_bytes[i]};
    }
    // More than it may have: of another job's life, or damaged. It begins anew.
    if (wire_ids_count(job.resume) > job.max_tokens) job.resume.n = 0;
    // Nobody keeps logprobs but the head that chose the tokens. What has been shown stays as it is.
    if (body->sampling.n_logprobs >= 0 && !item->stream) job.resume.n = 0;
    jobs_start(r->options.jobs, &job, p->need_blocks);
}

static int on_read(zloop_t *loop, zmq_pollitem_t *poll, void *arg)
{
    struct reader *r = arg;
    (void) loop, (void) poll;
    for (struct item *item; (item = pool_done(r->pool)) != NULL;) {
        if (item->error.status != OK) refuse(r, item);
        else start(r, item);
        r->n_items--;
        r->n_bytes -= item->n_message + item->n_resume;
        drop_item(item);
    }
    r->options.read(r->options.arg);
    return 0;
}

bool reader_add(struct reader *r, const struct queue_job *j, const struct job_key *key,
                uint64_t most_blocks)
{
    size_t n_resume = j->n_checkpoint / sizeof(int32_t) * sizeof(int32_t);
    struct item *item = malloc(sizeof *item + n_resume + j->n_bytes);
    if (item == NULL) return false;
    *item = (struct item){.reader = r,
                          .key = *key,
                          .limits = r->options.limits,
                          .prior = queue_usage_read(j->prior),
                          .need_blocks = j->need_blocks,
                          .most_blocks = most_blocks,
                          .starts = j->starts,
                          .stream = j->stream, // as admitted, whatever the message is by now
                          .admitted_ms = j->admitted_ms,
                          .n_message = j->n_bytes,
                          .n_resume = n_resume};
    item->limits.max_tokens = j->max_tokens <= CONTEXT_MAX ? (int) j->max_tokens : CONTEXT_MAX;
    memcpy(item->bytes, j->checkpoint, n_resume);
    memcpy(item->bytes + n_resume, j->bytes, j->n_bytes);
    if (!pool_submit(r->pool, item)) {
        free(item);
        return false;
    }
    r->n_items++;
    r->n_bytes += n_resume + j->n_bytes;
    return true;
}

void reader_set_context(struct reader *r, int max_context)
{
    r->options.limits.max_context[r->options.model] = max_context;
}

int reader_room(const struct reader *r) { return READER_JOBS_MAX - r->n_items; }

size_t reader_bytes_room(const struct reader *r)
{
    return r->n_bytes < (size_t) READER_BYTES_MAX ? (size_t) READER_BYTES_MAX - r->n_bytes : 1;
}

bool reader_idle(const struct reader *r) { return r->n_items == 0; }

// --- life

static enum status create_scratch(struct reader *r, struct error *e)
{
    const struct reader_options *o = &r->options;
    r->scratch = calloc((size_t) o->n_threads, sizeof *r->scratch);
    if (r->scratch == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the pool");
    for (int i = 0; i < o->n_threads; i++) {
        try(prompt_scratch_init(&r->scratch[i], o->models, o->model, e));
    }
    return OK;
}

enum status reader_create(struct reader **reader, const struct reader_options *o, struct error *e)
{
    struct reader *r = calloc(1, sizeof *r);
    *reader = r;
    if (r == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a reader");
    r->options = *o;
    enum status status = create_scratch(r, e);
    if (status == OK) {
        status = pool_create(&r->pool, o->n_threads, READER_JOBS_MAX, read_item, r, e);
    }
    if (status != OK) {
        reader_destroy(reader);
        return status;
    }
    zmq_pollitem_t poll = {.fd = pool_fd(r->pool), .events = ZMQ_POLLIN};
    check(zloop_poller(o->loop, &poll, on_read, r) == 0);
    return OK;
}

void reader_destroy(struct reader **reader)
{
    struct reader *r = *reader;
    if (r == NULL) return;
    *reader = NULL;
    if (r->pool != NULL) {
        zmq_pollitem_t poll = {.fd = pool_fd(r->pool)};
        zloop_poller_end(r->options.loop, &poll);
        pool_destroy(&r->pool, drop_item);
    }
    for (int i = 0; r->scratch != NULL && i < r->options.n_threads; i++) {
        prompt_scratch_deinit(&r->scratch[i]);
    }
    free(r->scratch);
    free(r);
}
