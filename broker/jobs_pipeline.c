// Pipelines come and go: their accounts, and what becomes of the attempts that they had.
#include "broker/attempts.h"

#include <stdio.h>

static int find(const struct jobs *j, uint64_t epoch)
{
    for (int i = 0; epoch != 0 && i < j->n_accounts; i++) {
        if (j->accounts[i].epoch == epoch) return i;
    }
    return -1;
}

struct account *jobs_account(struct jobs *j, uint64_t epoch)
{
    int i = find(j, epoch);
    return i >= 0 ? &j->accounts[i] : NULL;
}

bool jobs_serves(const struct jobs *j, uint64_t epoch) { return find(j, epoch) >= 0; }

struct account *jobs_headed_by(struct jobs *j, const struct peer *head)
{
    for (int i = 0; i < j->n_accounts; i++) {
        struct account *a = &j->accounts[i];
        if (a->epoch != 0 && fleet_same_peer(&a->head, head)) return a;
    }
    return NULL;
}

void jobs_say_cancel(struct jobs *j, const struct peer *head, const struct job_key *key,
                     enum wire_reason reason)
{
    struct wire_message m = {.command = WIRE_CANCEL, .cancel = {.key = *key, .reason = reason}};
    j->options.send(j->options.arg, head, &m);
}

// --- life

void jobs_up(struct jobs *j, const struct jobs_pipeline *p)
{
    int i = 0;
    while (i < j->n_accounts && j->accounts[i].epoch != 0) i++;
    check(i < (int) (sizeof j->accounts / sizeof *j->accounts));
    if (i == j->n_accounts) j->n_accounts++;
    struct account *account = &j->accounts[i];
    *account = (struct account){.epoch = p->epoch, .pipeline = p->id, .model = p->model,
                                .head = p->head, .slots = p->slots, .blocks = p->blocks,
                                .adopting = p->adopted, .paused = p->paused};
    snprintf(account->name, sizeof account->name, "%s", p->name);
}

static void lose(struct attempt *a)
{
    a->counted = false;
    if (a->state == CLAIMED) attempt_end(a, NACK);
    else if (a->state == AT_HEAD) attempt_end(a, NACK_LOST);
    attempt_set_account(a, NULL);
    a->credited = false;
}

void jobs_down(struct jobs *j, uint64_t epoch)
{
    struct account *account = jobs_account(j, epoch);
    if (account == NULL) return;
    account->adopting = false;
    account->n_unknown = 0;
    attempts_of(j, account, lose);
    *account = (struct account){0};
}

void jobs_close(struct jobs *j, uint64_t epoch)
{
    struct account *account = jobs_account(j, epoch);
    if (account != NULL) account->closed = true;
}

void jobs_set_paused(struct jobs *j, bool (*paused)(void *arg, int model, uint64_t id), void *arg)
{
    for (int i = 0; i < j->n_accounts; i++) {
        struct account *a = &j->accounts[i];
        if (a->epoch != 0) a->paused = paused(arg, a->model, a->pipeline);
    }
}

int jobs_paused_load(const struct jobs *j, uint64_t epoch)
{
    int i = find(j, epoch);
    const struct account *a = i >= 0 ? &j->accounts[i] : NULL;
    if (a == NULL || !a->paused) return -1;
    // What an adopted head holds is not known yet.
    return a->n_promised + a->n_held + (a->adopting ? 1 : 0);
}

uint64_t jobs_drained(const struct jobs *j)
{
    for (int i = 0; i < j->n_accounts; i++) {
        const struct account *a = &j->accounts[i];
        if (a->closed && a->n_promised == 0 && a->n_held == 0 && !a->adopting) return a->epoch;
    }
    return 0;
}

// --- HELLO

static void unsee(struct attempt *a) { a->seen = false; }

// A JOB that went down with its connection.
static void give_back_unseen(struct attempt *a)
{
    if (a->state != AT_HEAD || a->seen) return;
    attempt_give_credit_back(a);
    attempt_end(a, NACK);
}

static void take_over(struct jobs *j, struct account *account, const struct wire_running *r)
{
    struct attempt *a = attempts_find_key(j, &r->key);
    if (a == NULL) {
        if (attempts_find(j, r->key.attempt) != NULL) return; // attempts are unique
        if (attempts_insert(j, &r->key, AT_HEAD, false, &a) != OK) return;
        attempt_set_account(a, account);
        a->seen = true;
        attempt_log(LOG_INFO, "found_running", a, "", "");
        return;
    }
    a->seen = true;
    // The head has not heard that it is over.
    if (a->state == ENDING) jobs_say_cancel(j, &account->head, &r->key, a->reason);
}

void jobs_hello(struct jobs *j, uint64_t epoch, const struct peer *head, const struct wire_hello *h)
{
    struct account *account = jobs_account(j, epoch);
    if (account == NULL) return;
    bool replaced = !fleet_same_peer(head, &account->head);
    account->head = *head;
    attempts_of(j, account, unsee);
    for (int i = 0; i < h->n_running; i++) take_over(j, account, &h->running[i]);
    for (int i = 0; i < h->n_finished; i++) {
        struct attempt *a = attempts_find_key(j, &h->finished[i]);
        if (a != NULL) a->seen = true; // its RESULT comes again
    }
    if (replaced) attempts_of(j, account, give_back_unseen);
    if (account->adopting) account->listed = true;
    jobs_renew(j);
}

void jobs_settle(struct jobs *j, struct account *account)
{
    if (!account_settle(account)) return;
    log_line(LOG_INFO, "adopted", log_int("jobs", account->used_slots),
             log_int("blocks", account->used_blocks), log_int("pipeline", account->pipeline));
    j->options.freed(j->options.arg);
}

// --- for dispatch

// Places in the table that nobody was promised: whatever the heads grant, no more is claimed.
static uint64_t places(const struct jobs *j)
{
    int n = j->n;
    for (int i = 0; i < j->n_accounts; i++) n += j->accounts[i].n_promised;
    return n < JOBS_MAX ? (uint64_t) (JOBS_MAX - n) : 0;
}

// A token a step, once the prompt is in.
static uint64_t steps_left(const struct attempt *a)
{
    uint64_t n = (uint64_t) (a->first_id + a->n_ids);
    return a->steps > n ? a->steps - n : 1;
}

static void list_running(struct attempt *a)
{
    struct account *account = a->account;
    if (account == NULL || account->n_listed < 0 || !attempt_is_active(a)) return;
    int i = account->listed_from + account->n_listed++;
    a->jobs->running[i] = (struct dispatch_running){a->need_blocks, steps_left(a)};
}

int jobs_view(struct jobs *j, int model, struct dispatch_pipeline to[PIPELINES_MAX])
{
    const struct account *of[PIPELINES_MAX];
    uint64_t left = places(j);
    int n = 0, listed = 0;
    for (int i = 0; i < j->n_accounts; i++) {
        struct account *a = &j->accounts[i];
        a->n_listed = -1;
        bool wanted = a->model == model && n < PIPELINES_MAX;
        if (!wanted || !account_view(a, j->now_ms, &to[n])) continue;
        if (to[n].slots > left) to[n].slots = left;
        left -= to[n].slots;
        of[n++] = a;
        a->listed_from = listed;
        a->n_listed = 0;
        listed += a->n_active;
    }
    attempts_each(j, list_running);
    for (int i = 0; i < n; i++) {
        to[i].running = j->running + of[i]->listed_from;
        to[i].n_listed = of[i]->n_listed;
    }
    return n;
}

bool jobs_room(const struct jobs *j, int model)
{
    if (places(j) == 0) return false;
    for (int i = 0; i < j->n_accounts; i++) {
        struct dispatch_pipeline p;
        const struct account *a = &j->accounts[i];
        if (a->model != model || !account_view(a, j->now_ms, &p)) continue;
        if (p.slots > 0 && !p.alone) return true;
    }
    return false;
}

const char *jobs_promise(struct jobs *j, uint64_t epoch, uint64_t need_blocks, bool poison)
{
    struct account *account = jobs_account(j, epoch);
    check(account != NULL, "a pipeline of the last view");
    credit_take(&account->credit, need_blocks);
    account->n_promised++;
    account->n_promised_poison += poison;
    return account->name;
}

void jobs_withdraw(struct jobs *j, uint64_t epoch, uint64_t need_blocks, bool poison)
{
    struct account *account = jobs_account(j, epoch);
    if (account == NULL) return;
    credit_give_back(&account->credit, need_blocks);
    account->n_promised--;
    account->n_promised_poison -= poison;
}
