#include "tests/support/folder.h"

#include "common/status.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { IN_MAX = 47 };

void folder_make(char path[FOLDER_SIZE], const char *name)
{
    const char *in = getenv("TMPDIR");
    if (in == NULL || *in != '/' || strlen(in) > IN_MAX) in = "/tmp";
    int n = snprintf(path, FOLDER_SIZE, "%s/penstock-%s-XXXXXX", in, name);
    check(n < FOLDER_SIZE, "a test's folder has too long a name: %s", name);
    check(mkdtemp(path) != NULL, "cannot make %s: %s", path, strerror(errno));
}

static int remove_one(const char *path, const struct stat *s, int kind, struct FTW *at)
{
    (void) s, (void) kind, (void) at;
    return remove(path);
}

void folder_remove(const char *path)
{
    nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}
