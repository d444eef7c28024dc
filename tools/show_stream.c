#include "tools/show_stream.h"

#include "broker/queue_follow.h"
#include "common/result.h"
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/show_result.h"

#include <stdio.h>
#include <stdlib.h>

struct shown {
    bool any;  // was printed
    char last; // byte
};

static bool print(void *arg, const char *bytes, size_t n)
{
    struct shown *s = arg;
    if (n == 0) return true;
    s->any = true;
    s->last = bytes[n - 1];
    return fwrite(bytes, 1, n, stdout) == n && fflush(stdout) == 0;
}

// What the chunks did not have, the end of the line, and why there is no more.
static int print_rest(const char *program, struct shown *s, const struct queue_follow *f,
                      const struct result *r)
{
    bool more = r->text != NULL && f->offset < r->text_bytes;
    bool printed = !more || print(s, r->text + f->offset, r->text_bytes - (size_t) f->offset);
    if ((s->any && s->last != '\n') || (!s->any && r->status == RESULT_OK)) putchar('\n');
    if (!printed || fflush(stdout) != 0) {
        fprintf(stderr, "%s: stdout cannot be written\n", program);
        return EXIT_FAILED;
    }
    if (r->status == RESULT_OK) return EXIT_DONE;
    fprintf(stderr, "%s: job %s: %s: %s\n", program, r->id, result_status_name(r->status),
            r->error.message[0] != '\0' ? r->error.message : "no reason was given");
    return EXIT_FAILED;
}

int show_stream(const char *program, struct queue_sync *q, const char *tenant, const char *id,
                const char *from, uint64_t offset, int64_t timeout_ms)
{
    struct shown shown = {0};
    struct queue_follow f = {tenant, id, from, offset, &shown, print};
    struct result r = {0};
    struct error e = {0};
    uint8_t *bytes;
    size_t n;
    enum status status = queue_follow(q, &f, timeout_ms, &bytes, &n, &e);
    if (status == ERR_ABORTED) error_set(&e, ERR_IO, NULL, "stdout cannot be written");
    if (status == OK) status = result_decode(&r, bytes, n, &e);
    int exit;
    if (status != OK) {
        if (shown.any && shown.last != '\n') putchar('\n');
        exit = outcome_failed(program, &e, false);
    } else if (r.status == RESULT_OK && r.text == NULL) { // no tokenizer: its ids
        exit = show_result(program, bytes, n, false);
    } else {
        exit = print_rest(program, &shown, &f, &r);
    }
    result_deinit(&r);
    free(bytes);
    return exit;
}
