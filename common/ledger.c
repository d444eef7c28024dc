#include "common/ledger.h"

#include <stdio.h>

static const char *const names[LEDGER_LINES] = {
    [LEDGER_WEIGHTS] = "weights",
    [LEDGER_SCALES] = "scales",
    [LEDGER_PACKING] = "packing",
    [LEDGER_MTP] = "mtp",
    [LEDGER_KV] = "kv",
    [LEDGER_ACTIVATIONS] = "activations",
    [LEDGER_LOGITS] = "logits",
    [LEDGER_HISTORY] = "history",
    [LEDGER_SAMPLER] = "sampler",
    [LEDGER_SCRATCH] = "scratch",
    [LEDGER_COMM] = "comm",
    [LEDGER_STEPS] = "steps",
    [LEDGER_SEQUENCES] = "sequences",
    [LEDGER_LINKS] = "links",
    [LEDGER_STAGING] = "staging",
    [LEDGER_CONTEXT] = "context",
    [LEDGER_LIBRARIES] = "libraries",
    [LEDGER_RESERVE] = "reserve",
};

const char *ledger_name(enum ledger_line line) { return names[line]; }

bool ledger_is_carved(enum ledger_line line)
{
    return line != LEDGER_CONTEXT && line != LEDGER_LIBRARIES && line != LEDGER_RESERVE;
}

uint64_t ledger_total(const struct ledger *l)
{
    uint64_t sum = 0;
    for (int i = 0; i < LEDGER_LINES; i++) sum += l->bytes[i];
    return sum;
}

uint64_t ledger_weights(const struct ledger *l)
{
    return l->bytes[LEDGER_WEIGHTS] + l->bytes[LEDGER_SCALES];
}

void ledger_print(const struct ledger *l, char *text, size_t n)
{
    size_t at = 0;
    if (n > 0) text[0] = '\0';
    for (int i = 0; i < LEDGER_LINES && at < n; i++) {
        if (l->bytes[i] == 0) continue;
        at += (size_t) snprintf(text + at, n - at, "%s%s %llu", at > 0 ? ", " : "", names[i],
                                (unsigned long long) l->bytes[i]);
    }
}

void ledger_add(struct ledger *to, const struct ledger *l)
{
    for (int i = 0; i < LEDGER_LINES; i++) to->bytes[i] += l->bytes[i];
}

bool ledger_equal(const struct ledger *a, const char *called_a, const struct ledger *b,
                  const char *called_b, char *text, size_t n)
{
    size_t at = 0;
    bool equal = true;
    if (n > 0) text[0] = '\0';
    for (int i = 0; i < LEDGER_LINES; i++) {
        if (a->bytes[i] == b->bytes[i]) continue;
        if (at < n) {
            at += (size_t) snprintf(text + at, n - at, "%s%s is %llu bytes in %s, %llu in %s",
                                    equal ? "" : "; ", names[i], (unsigned long long) a->bytes[i],
                                    called_a, (unsigned long long) b->bytes[i], called_b);
        }
        equal = false;
    }
    return equal;
}

// What nobody can do without comes first, and KV, which everything else is there for, last.
static const enum ledger_line by_need[] = {
    LEDGER_CONTEXT, LEDGER_LIBRARIES, LEDGER_RESERVE, LEDGER_WEIGHTS, LEDGER_SCALES,
    LEDGER_PACKING, LEDGER_MTP,       LEDGER_ACTIVATIONS, LEDGER_SCRATCH, LEDGER_COMM,
    LEDGER_STEPS,   LEDGER_SEQUENCES, LEDGER_LINKS,   LEDGER_STAGING, LEDGER_LOGITS,
    LEDGER_HISTORY, LEDGER_SAMPLER,   LEDGER_KV,
};

_Static_assert(sizeof by_need / sizeof *by_need == LEDGER_LINES, "every line is needed once");

enum ledger_line ledger_line_beyond(const struct ledger *l, uint64_t has)
{
    uint64_t sum = 0;
    size_t i = 0;
    while (i < LEDGER_LINES - 1 && (sum += l->bytes[by_need[i]]) <= has) i++;
    return by_need[i];
}
