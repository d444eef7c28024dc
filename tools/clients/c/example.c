// One job with its tokens as they come, then many with a bounded window. Queue by environment:
// PENSTOCK_REDIS, PENSTOCK_QUEUE, PENSTOCK_TENANT.
#include "penstock_client.h"

#include <stdio.h>
#include <stdlib.h>

static const char *setting(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value != NULL ? value : otherwise;
}

static void print_piece(void *arg, const char *bytes, size_t n)
{
    (void) arg;
    fwrite(bytes, 1, n, stdout);
    fflush(stdout);
}

struct many {
    int n, failed;
    char body[256];
};

static bool next_job(void *arg, struct penstock_job *job)
{
    struct many *m = arg;
    if (m->n == 20) return false;
    snprintf(m->body, sizeof m->body,
             "{\"messages\": [{\"role\": \"user\", "
             "\"content\": \"Extract JSON: WARN - billing - took %dms\"}], "
             "\"max_tokens\": 96, \"temperature\": 0}", m->n++);
    *job = (struct penstock_job){.op = "chat", .body = m->body};
    return true;
}

static void on_end(void *arg, const char *id, const struct penstock_result *r)
{
    struct many *m = arg;
    m->failed += r->error_code[0] != 0;
    printf("%s %s\n", id, r->text != NULL ? r->text : r->error_message);
}

int main(void)
{
    struct penstock *p;
    struct penstock_result r;
    struct penstock_job job = {
        .op = "chat", .stream = true,
        .body = "{\"messages\": [{\"role\": \"user\", \"content\": "
                "\"Extract JSON: reviews - WARN - sent 57862 mails, 2ms\"}], \"max_tokens\": 96, "
                "\"temperature\": 0}"};
    struct many many = {0};
    if (penstock_open(&p, setting("PENSTOCK_REDIS", "redis://127.0.0.1:6379"),
                      setting("PENSTOCK_QUEUE", "default"), setting("PENSTOCK_TENANT", "default"),
                      0) != PENSTOCK_DONE) {
        fputs("the URL, queue or tenant is wrong\n", stderr);
        return 2;
    }
    enum penstock_code code = penstock_enqueue(p, &job);
    if (code == PENSTOCK_DONE) code = penstock_stream(p, &job, 300000, 0, print_piece, NULL, &r);
    if (code == PENSTOCK_DONE) {
        printf("\n%s\n", r.status);
        penstock_result_free(&r);
        code = penstock_bulk(p, 8, next_job, on_end, &many);
    }
    if (code != PENSTOCK_DONE) fprintf(stderr, "%s\n", penstock_error(p));
    penstock_close(&p);
    return code == PENSTOCK_DONE && many.failed == 0 ? 0 : 1;
}
