#include "tools/csv.h"

#include <errno.h>
#include <string.h>

static enum status cannot_write(const char *path, struct error *e)
{
    return error_set(e, ERR_IO, NULL, "cannot write %s: %s", path, strerror(errno));
}

enum status csv_open(FILE **out, const char *path, struct error *e)
{
    *out = NULL;
    if (path == NULL) return OK;
    *out = fopen(path, "we");
    return *out != NULL ? OK : cannot_write(path, e);
}

enum status csv_close(FILE *out, const char *path, enum status status, struct error *e)
{
    if (out == NULL) return status;
    bool lost = ferror(out) != 0;
    lost = fclose(out) != 0 || lost;
    return status == OK && lost ? cannot_write(path, e) : status;
}
