#include "broker/queue_split.h"

#include "broker/queue_call.h"

#include <stdio.h>

enum { USAGE_SIZE = 64 };

static void put_parent(struct args *a, const struct queue_parent *p, int level)
{
    put(a, p->tenant);
    put(a, p->id);
    put_number(a, (uint64_t) level);
}

static const char *usage_text(char text[USAGE_SIZE], const struct queue_usage *u)
{
    snprintf(text, USAGE_SIZE, "%llu %llu %llu", (unsigned long long) u->prompt,
             (unsigned long long) u->cached, (unsigned long long) u->completion);
    return text;
}

struct queue_usage queue_usage_read(const char *text)
{
    unsigned long long prompt, cached, completion;
    struct queue_usage none = {0};
    if (sscanf(text, "%llu %llu %llu", &prompt, &cached, &completion) != 3) return none;
    return (struct queue_usage){prompt, cached, completion};
}

enum status queue_joins(struct queue *q, const char *model, size_t limit, queue_fn *fn,
                        void *arg)
{
    struct args a;
    try(call_begin(q, &a, "joins", 3));
    put(&a, model);
    put_number(&a, limit);
    return call_end(q, &a, QUEUE_FORM_JOINS, 0, fn, arg);
}

enum status queue_gather(struct queue *q, const struct queue_parent *p, int after,
                         size_t max_bytes, queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "gather", 6));
    put_parent(&a, p, p->level);
    put_number(&a, (uint64_t) after);
    put_number(&a, max_bytes);
    return call_end(q, &a, QUEUE_FORM_GATHER, 0, fn, arg);
}

enum status queue_split(struct queue *q, const struct queue_parent *p,
                        const struct queue_usage *usage, const struct queue_child *children,
                        size_t n, queue_fn *fn, void *arg)
{
    struct args a;
    char text[USAGE_SIZE];
    try(call_begin(q, &a, "split", 5 + 5 * n));
    put_parent(&a, p, p->level + 1);
    put(&a, usage_text(text, usage));
    for (size_t i = 0; i < n; i++) {
        const struct queue_child *c = &children[i];
        put(&a, c->body_hash);
        put_number(&a, c->need_blocks);
        put_number(&a, c->n_prompt);
        put_number(&a, c->max_tokens);
        put_bytes(&a, c->message, c->n_message);
    }
    return call_end(q, &a, QUEUE_FORM_WORD, 0, fn, arg);
}

enum status queue_reduce(struct queue *q, const struct queue_parent *p,
                         const struct queue_usage *usage, const struct queue_child *run,
                         queue_fn *fn, void *arg)
{
    struct args a;
    char text[USAGE_SIZE];
    try(call_begin(q, &a, "reduce", 9));
    put_parent(&a, p, p->level);
    put_number(&a, run->need_blocks);
    put_number(&a, run->n_prompt);
    put_number(&a, run->max_tokens);
    put(&a, usage_text(text, usage));
    put_bytes(&a, run->message, run->n_message);
    return call_end(q, &a, QUEUE_FORM_WORD, 0, fn, arg);
}

enum status queue_joined(struct queue *q, const struct queue_parent *p, const struct error *why,
                         const uint8_t *result, size_t n, const struct queue_text *text,
                         queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "joined", 9));
    put_parent(&a, p, p->level);
    put(&a, why != NULL ? "failed" : "done");
    put(&a, why != NULL ? why->code : "");
    put_sentence(&a, why != NULL ? why->text : "");
    put_bytes(&a, result, n);
    put_bytes(&a, text->bytes, text->n);
    return call_end(q, &a, QUEUE_FORM_WORD, 0, fn, arg);
}
