#include "tools/progress.h"

#include "common/clock.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BAR_WIDTH = 24, TERMINAL_PERIOD_MS = 100, PLAIN_PERIOD_MS = 5000 };

void progress_init(struct progress *p, int64_t total)
{
    *p = (struct progress){.terminal = isatty(STDERR_FILENO) == 1,
                           .started_ms = clock_ms(),
                           .drawn_ms = INT64_MIN / 2,
                           .total = total};
}

void progress_update(struct progress *p, int64_t done, int64_t failed, int64_t tokens, bool last)
{
    int64_t now = clock_ms();
    if (!last && now - p->drawn_ms < (p->terminal ? TERMINAL_PERIOD_MS : PLAIN_PERIOD_MS)) return;
    p->drawn_ms = now;
    double seconds = (double) (now - p->started_ms) / 1000.0;
    double rate = seconds > 0 ? (double) tokens / seconds : 0;
    char eta[32] = "";
    if (p->total > 0 && done > 0 && done < p->total) {
        int64_t left = (int64_t) (seconds / (double) done * (double) (p->total - done));
        snprintf(eta, sizeof eta, ", ETA %lld:%02lld", (long long) (left / 60),
                 (long long) (left % 60));
    }
    char line[200];
    int n;
    if (p->terminal && p->total > 0) {
        char bar[BAR_WIDTH + 1];
        int full = (int) (done * BAR_WIDTH / p->total);
        memset(bar, ' ', BAR_WIDTH);
        memset(bar, '#', (size_t) (full < BAR_WIDTH ? full : BAR_WIDTH));
        bar[BAR_WIDTH] = '\0';
        n = snprintf(line, sizeof line, "[%s] %lld/%lld done, %lld failed, %.0f tokens/s%s", bar,
                     (long long) done, (long long) p->total, (long long) failed, rate, eta);
    } else {
        n = snprintf(line, sizeof line, "%lld/%lld done, %lld failed, %.0f tokens/s%s",
                     (long long) done, (long long) p->total, (long long) failed, rate, eta);
    }
    if (p->terminal) {
        int pad = p->drawn_width > n ? p->drawn_width - n : 0;
        fprintf(stderr, "\r%s%*s%s", line, pad, "", last ? "\n" : "");
        p->drawn_width = n;
    } else {
        fprintf(stderr, "%s\n", line);
    }
    fflush(stderr);
}
