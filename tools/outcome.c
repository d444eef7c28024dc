#include "tools/outcome.h"

#include "tools/commands.h"

#include <stdio.h>
#include <string.h>

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

// Codes of arguments that are wrong in themselves, or for the model.
static int exit_status(const struct error *e)
{
    static const char *const usage[] = {"bad_usage", "bad_plan", "bad_tp", "bad_redis_url",
                                        "bad_name"};
    for (size_t i = 0; i < sizeof usage / sizeof *usage; i++) {
        if (strcmp(e->code, usage[i]) == 0) return EXIT_USAGE;
    }
    return EXIT_FAILED;
}

int outcome_failed(const char *program, const struct error *e, bool json)
{
    fprintf(stderr, "%s: %s\n", program, e->text);
    int status = exit_status(e);
    if (json) outcome_json(json_pack("{s:o}", "error", outcome_error(e)), status);
    return status;
}

int outcome_usage(const char *program, const struct error *e)
{
    fprintf(stderr, "%s: %s\n", program, e->text);
    return EXIT_USAGE;
}
