#include "tools/outcome.h"

#include "tools/commands.h"

#include <stdio.h>

json_t *outcome_error(const struct error *e)
{
    // Messages may quote foreign bytes.
    json_t *message = json_string(e->text);
    return json_pack("{s:s, s:o}", "code", e->code, "message",
                     message != NULL ? message : json_string("the message is not UTF-8"));
}

int outcome_json(json_t *object, int status)
{
    bool written = object != NULL && json_dumpf(object, stdout, JSON_COMPACT) == 0 &&
                   putchar('\n') != EOF && fflush(stdout) == 0;
    json_decref(object);
    if (written) return status;
    fputs("penstock: stdout cannot be written\n", stderr);
    return EXIT_FAILED;
}

int outcome_failed(const char *program, const struct error *e, bool json)
{
    fprintf(stderr, "%s: %s\n", program, e->text);
    if (json) outcome_json(json_pack("{s:o}", "error", outcome_error(e)), EXIT_FAILED);
    return EXIT_FAILED;
}

int outcome_usage(const char *program, const struct error *e)
{
    fprintf(stderr, "%s: %s\n", program, e->text);
    return EXIT_USAGE;
}
