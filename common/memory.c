#include "common/memory.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// The number behind `word` at the beginning of a line of a file; `otherwise` where there is none.
static uint64_t number_in(const char *path, const char *word, uint64_t otherwise)
{
    char line[128];
    size_t length = strlen(word);
    FILE *f = fopen(path, "re");
    if (f == NULL) return otherwise;
    for (bool found = false; !found && fgets(line, sizeof line, f) != NULL;) {
        char *end;
        if (strncmp(line, word, length) != 0) continue;
        unsigned long long value = strtoull(line + length, &end, 10);
        found = end != line + length; // not "max"
        if (found) otherwise = value;
    }
    fclose(f);
    return otherwise;
}

uint64_t memory_available(void)
{
    long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t free_bytes = pages > 0 && page > 0 ? (uint64_t) pages * (uint64_t) page : 0;
    uint64_t most = number_in("/proc/meminfo", "MemAvailable:", free_bytes / 1024) * 1024;
    uint64_t limit = number_in("/sys/fs/cgroup/memory.max", "", UINT64_MAX);
    uint64_t used = number_in("/sys/fs/cgroup/memory.stat", "anon ", 0);
    limit = used < limit ? limit - used : 0;
    return limit < most ? limit : most;
}

uint64_t memory_share(int64_t n) { return memory_available() / 5 * 4 / (uint64_t) n; }
