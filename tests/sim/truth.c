#include "tests/sim/truth.h"

#include "common/job.h"
#include "common/result.h"
#include "tests/sim/sim_redis.h"
#include "tests/sim/sim_stage.h"
#include "tests/sim/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_MAX = 256, MESSAGE_MAX = 1 << 22 };

struct truth truth;

// --- checkpoints

// Ids are job-N, N being its place.
static struct truth_job *find(struct bytes tenant, struct bytes id)
{
    char text[JOB_ID_MAX + 1];
    int i;
    snprintf(text, sizeof text, "%.*s", (int) id.n, id.at);
    if (sscanf(text, "job-%d", &i) != 1 || i < 0 || i >= truth.n) return NULL;
    struct truth_job *j = &truth.jobs[i];
    bool same = strlen(j->tenant) == tenant.n && memcmp(j->tenant, tenant.at, tenant.n) == 0;
    return same ? j : NULL;
}

static void check_tokens(const struct truth_job *j, int first, const void *bytes, int n,
                         const char *where)
{
    for (int i = 0; i < n; i++) {
        int32_t id;
        memcpy(&id, (const char *) bytes + (size_t) i * sizeof id, sizeof id);
        if (first + i < j->n_tokens && j->tokens[first + i] == id) continue;
        sim_fail("%s of %s: token %d of %d is %d, not %d", where, j->id, first + i, j->n_tokens, id,
                 first + i < j->n_tokens ? j->tokens[first + i] : -1);
    }
    truth.n_checked_tokens += n;
}

// Behind the term: tenant, id, attempt, offset, bytes.
static void on_called(const char *function, const struct bytes *args, int n, bool failed)
{
    bool saves = strcmp(function, "checkpoint") == 0 || strcmp(function, "stream") == 0;
    if (failed || !saves || n < 6) return;
    const struct truth_job *j = find(args[1], args[2]);
    if (j == NULL) sim_fail("a checkpoint of a job that nobody asked for");
    char digits[24];
    snprintf(digits, sizeof digits, "%.*s", (int) args[4].n, args[4].at);
    check_tokens(j, atoi(digits) / 4, args[5].at, (int) args[5].n / 4, "a checkpoint");
}

void truth_begin(const struct model_config *c, int n)
{
    truth = (struct truth){.config = c, .n = n};
    truth.jobs = sim_alloc((size_t) n * sizeof *truth.jobs);
    sim_redis_watch(on_called);
}

// --- what is right

void truth_settle(struct truth_job *j)
{
    const struct model_config *c = truth.config;
    uint64_t state[MODEL_LAYERS_MAX] = {0};
    int32_t token = 0;
    j->ids = sim_alloc((size_t) j->n_prompt * sizeof *j->ids);
    j->tokens = sim_alloc((size_t) j->max_tokens * sizeof *j->tokens);
    for (int i = 0; i < j->n_prompt; i++) {
        j->ids[i] = (int32_t) sim_between(2, c->vocab_size - 1);
        token = sim_stage_next(c, state, j->ids[i], i);
    }
    while (j->n_tokens < j->max_tokens) {
        bool end = false;
        j->tokens[j->n_tokens++] = token;
        for (int i = 0; i < c->n_eos_ids && !j->ignore_eos; i++) {
            end = end || token == c->eos_ids[i];
        }
        if (end || j->n_tokens == j->max_tokens) return;
        token = sim_stage_next(c, state, token, j->n_prompt + j->n_tokens - 1);
    }
}

// --- messages

void truth_push_bytes(const char *tenant, const void *bytes, size_t n)
{
    sim_redis_push(WORLD_QUEUE, tenant, bytes, n);
}

static void push(const char *tenant, const struct job *job)
{
    struct buffer b;
    struct error e = {0};
    buffer_init(&b, MESSAGE_MAX);
    if (job_encode(job, &b, &e) != OK) sim_fail("a message: %s", e.text);
    truth_push_bytes(tenant, b.data, b.n);
    buffer_deinit(&b);
}

void truth_push(struct truth_job *j)
{
    size_t room = (size_t) j->n_prompt * 8 + 128, n = 0;
    char *body = malloc(room);
    struct job job = job_default();
    n += (size_t) snprintf(body, room, "{\"max_tokens\":%d,\"temperature\":0,\"ignore_eos\":%s,"
                           "\"tokens\":[", j->max_tokens, j->ignore_eos ? "true" : "false");
    for (int i = 0; i < j->n_prompt; i++) {
        n += (size_t) snprintf(body + n, room - n, i > 0 ? ",%d" : "%d", j->ids[i]);
    }
    n += (size_t) snprintf(body + n, room - n, "]}");
    snprintf(job.id, sizeof job.id, "%s", j->id);
    job.op = JOB_TOKENS;
    job.class = j->class;
    job.stream = j->stream;
    job.at_ms = j->at_ms;
    job.deadline_ms = j->deadline_ms;
    job.attempts = JOB_ATTEMPTS_MAX;
    job.body_form = JOB_BODY_JSON;
    job.body = (struct job_text){body, n};
    push(j->tenant, &job);
    free(body);
    if (j->pushed_ns == 0) j->pushed_ns = sim_now() + 1;
}

void truth_push_cancel(const struct truth_job *j)
{
    struct job job = job_default();
    snprintf(job.id, sizeof job.id, "%s", j->id);
    job.op = JOB_CANCEL;
    job.body_form = JOB_BODY_NONE;
    push(j->tenant, &job);
}

// --- ends

static struct answer ask(const char *command, const char *kind, const struct truth_job *j,
                         const char *field)
{
    char key[KEY_MAX];
    int n = snprintf(key, sizeof key, "ps:{" WORLD_QUEUE "}:%s:%s:%s", kind, j->tenant, j->id);
    const struct bytes argv[] = {{command, strlen(command)}, {key, (size_t) n},
                                 {field, field != NULL ? strlen(field) : 0}};
    return sim_redis_run(argv, field != NULL ? 3 : 2);
}

static bool is_word(const struct answer *a, const char *word)
{
    return a->kind == ANSWER_BYTES && a->bytes.n == strlen(word) &&
           memcmp(a->bytes.at, word, a->bytes.n) == 0;
}

static void check_failure(const struct truth_job *j, const struct result *r)
{
    struct answer lost = ask("HGET", "j", j, "lost");
    bool poison = strcmp(r->error.code, "poison") == 0 && is_word(&lost, "4");
    bool refused = strcmp(r->error.code, "context_exceeded") == 0 && j->refused;
    if (poison || refused) return;
    sim_fail("%s failed: %s: %s", j->id, r->error.code, r->error.message);
}

static void check_result(const struct truth_job *j, const char *state)
{
    struct answer a = ask("GET", "r", j, NULL);
    struct result r;
    struct error e = {0};
    if (a.kind != ANSWER_BYTES) sim_fail("%s is %s without a result", j->id, state);
    if (result_decode(&r, a.bytes.at, a.bytes.n, &e) != OK) sim_fail("%s: %s", j->id, e.text);
    if (strcmp(r.id, j->id) != 0) sim_fail("%s has the result of %s", j->id, r.id);
    if (strcmp(state, "failed") == 0) {
        check_failure(j, &r);
    } else {
        if (j->refused) sim_fail("%s ended as %s, but nobody can run it", j->id, state);
        check_tokens(j, 0, r.tokens, r.n_tokens, "the result");
    }
    bool whole = r.n_tokens == j->n_tokens;
    if (strcmp(state, "done") == 0 && !whole) {
        sim_fail("%s is done with %d tokens of %d", j->id, r.n_tokens, j->n_tokens);
    }
    if (strcmp(state, "cancelled") == 0 && !j->cancelled) sim_fail("%s was cancelled", j->id);
    if (strcmp(state, "expired") == 0 && j->deadline_ms == 0) sim_fail("%s expired", j->id);
    result_deinit(&r);
}

static void look_at(struct truth_job *j)
{
    static const char *const words[] = {"done", "failed", "cancelled", "expired"};
    if (j->pushed_ns == 0) return;
    struct answer state = ask("HGET", "j", j, "state");
    for (int i = 0; i < 4; i++) {
        if (!is_word(&state, words[i])) continue;
        check_result(j, words[i]);
        j->ended = true;
        truth.n_ended++;
        truth.n_by_word[i]++;
        return;
    }
}

bool truth_look(void)
{
    for (int i = 0; i < truth.n; i++) {
        if (!truth.jobs[i].ended) look_at(&truth.jobs[i]);
    }
    return truth.n_ended == truth.n;
}

void truth_show(void)
{
    for (int i = 0; i < truth.n; i++) {
        const struct truth_job *j = &truth.jobs[i];
        if (j->ended) continue;
        struct answer state = ask("HGET", "j", j, "state");
        printf("%s/%s: prompt %d, max_tokens %d, class %d: %.*s\n", j->tenant, j->id, j->n_prompt,
               j->max_tokens, j->class, state.kind == ANSWER_BYTES ? (int) state.bytes.n : 7,
               state.kind == ANSWER_BYTES ? state.bytes.at : "unknown");
    }
}
