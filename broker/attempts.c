#include "broker/attempts.h"

#include <stdlib.h>
#include <string.h>

struct attempt *attempts_find(const struct jobs *j, uint64_t attempt)
{
    struct attempt *a = j->buckets[attempt % ATTEMPT_BUCKETS];
    while (a != NULL && a->key.attempt != attempt) a = a->next;
    return a;
}

struct attempt *attempts_find_key(const struct jobs *j, const struct job_key *key)
{
    struct attempt *a = attempts_find(j, key->attempt);
    bool same = a != NULL && strcmp(a->key.id, key->id) == 0 &&
                strcmp(a->key.tenant, key->tenant) == 0;
    return same ? a : NULL;
}

bool attempt_is_active(const struct attempt *a)
{
    return a->state == CLAIMED || a->state == AT_HEAD;
}

// In the counts of table and account.
static void count(const struct attempt *a, int change)
{
    bool active = attempt_is_active(a), held = active || a->state == REPORTED;
    a->jobs->n_active += active ? change : 0;
    if (a->account == NULL) return;
    a->account->n_active += active ? change : 0;
    a->account->n_poison += active && a->poison ? change : 0;
    a->account->n_held += held ? change : 0;
}

void attempt_set_state(struct attempt *a, enum attempt_state state)
{
    count(a, -1);
    a->state = state;
    count(a, 1);
}

void attempt_set_account(struct attempt *a, struct account *account)
{
    count(a, -1);
    a->account = account;
    count(a, 1);
}

// What a group names may be anything.
static bool is_key(const struct job_key *key)
{
    struct error e;
    return key->attempt >= 1 && key->attempt <= ATTEMPT_MAX &&
           redis_name_check("tenant", key->tenant, TENANT_MAX, &e) == OK &&
           redis_name_check("id", key->id, JOB_ID_MAX, &e) == OK;
}

enum status attempts_insert(struct jobs *j, const struct job_key *key, enum attempt_state state,
                          bool poison, struct attempt **to)
{
    *to = NULL;
    if (!is_key(key)) return ERR_INPUT;
    if (j->n >= JOBS_MAX) return ERR_LIMIT;
    struct attempt *a = calloc(1, sizeof *a);
    if (a == NULL) return ERR_NOMEM;
    *a = (struct attempt){.jobs = j, .key = *key, .state = ENDING, .poison = poison};
    a->next = j->buckets[key->attempt % ATTEMPT_BUCKETS];
    j->buckets[key->attempt % ATTEMPT_BUCKETS] = a;
    j->n++;
    attempt_set_state(a, state);
    *to = a;
    return OK;
}

static void free_attempt(struct attempt *a)
{
    pending_text_free(&a->text, &a->jobs->text_bytes);
    free(a->ids);
    free(a->result);
    free(a);
}

// Nothing may be open about it.
static void drop(struct attempt *a)
{
    struct jobs *j = a->jobs;
    struct attempt **at = &j->buckets[a->key.attempt % ATTEMPT_BUCKETS];
    check(!a->open && !a->saving);
    while (*at != a) at = &(*at)->next;
    *at = a->next;
    j->n--;
    attempt_set_state(a, ENDING);
    if (a->counted && !a->need_known) {
        a->account->n_unknown--;
        jobs_settle(j, a->account);
    }
    free_attempt(a);
}

void attempt_drop(struct attempt *a)
{
    attempt_set_state(a, GONE);
    if (!a->open && !a->saving) drop(a);
}

void attempts_in(struct jobs *j, int bucket, attempt_fn *fn)
{
    for (struct attempt *a = j->buckets[bucket], *next; a != NULL; a = next) {
        next = a->next;
        fn(a);
    }
}

void attempts_each(struct jobs *j, attempt_fn *fn)
{
    for (int b = 0; b < ATTEMPT_BUCKETS; b++) attempts_in(j, b, fn);
}

void attempts_of(struct jobs *j, const struct account *account, attempt_fn *fn)
{
    for (int b = 0; b < ATTEMPT_BUCKETS; b++) {
        for (struct attempt *a = j->buckets[b], *next; a != NULL; a = next) {
            next = a->next;
            if (a->account == account) fn(a);
        }
    }
}

struct queue_attempt attempt_name(const struct attempt *a)
{
    return (struct queue_attempt){a->key.tenant, a->key.id, a->key.attempt};
}

void attempt_log(enum log_level level, const char *event, const struct attempt *a,
                        const char *word, const char *code)
{
    log_line(level, event, log_str("tenant", a->key.tenant), log_str("id", a->key.id),
             log_int("attempt", a->key.attempt), log_str("word", word), log_str("code", code),
             log_int("pipeline", a->account != NULL ? a->account->pipeline : 0));
}

void attempts_free(struct jobs *j) { attempts_each(j, free_attempt); }
