#include "tools/show_result.h"

#include "common/result.h"
#include "tools/commands.h"
#include "tools/outcome.h"

#include <stdio.h>

static int write_text(const struct result *r)
{
    bool line = r->text_bytes == 0 || r->text[r->text_bytes - 1] != '\n';
    fwrite(r->text, 1, r->text_bytes, stdout);
    if (line) putchar('\n');
    return fflush(stdout) == 0 ? EXIT_DONE : EXIT_FAILED;
}

static int write_ids(const struct result *r)
{
    for (int i = 0; i < r->n_tokens; i++) printf("%s%d", i > 0 ? " " : "", (int) r->tokens[i]);
    putchar('\n');
    return fflush(stdout) == 0 ? EXIT_DONE : EXIT_FAILED;
}

int show_result(const char *program, const void *bytes, size_t n, bool json)
{
    struct result r;
    struct error e = {0};
    int status = EXIT_FAILED;
    if (result_decode(&r, bytes, n, &e) != OK) {
        status = outcome_failed(program, &e, json);
    } else if (json) {
        status = outcome_json(result_to_json(&r), r.status == RESULT_OK ? EXIT_DONE : EXIT_FAILED);
    } else if (r.status != RESULT_OK) {
        if (r.text_bytes > 0) write_text(&r); // what a job has that was given up
        fprintf(stderr, "%s: job %s: %s: %s\n", program, r.id, result_status_name(r.status),
                r.error.message[0] != '\0' ? r.error.message : "no reason was given");
    } else {
        status = r.text != NULL ? write_text(&r) : write_ids(&r);
    }
    result_deinit(&r);
    return status;
}
