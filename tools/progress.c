#include "tools/progress.h"

#include "common/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BAR_WIDTH = 24, TERMINAL_PERIOD_MS = 100, PLAIN_PERIOD_MS = 5000 };

void progress_init(struct progress *p, int64_t total, int64_t before)
{
    *p = (struct progress){.terminal = isatty(STDERR_FILENO) == 1,
                           .started_ms = clock_ms(),
                           .drawn_ms = INT64_MIN / 2,
                           .total = total,
                           .before = before};
}

// "", or ", ETA 1:02:03": at the speed so far, of what ended since the start.
static void print_eta(const struct progress *p, int64_t ended, double seconds, char *text, size_t n)
{
    int64_t here = ended - p->before, left = p->total - ended;
    text[0] = '\0';
    if (here <= 0 || left <= 0) return;
    long long s = (long long) (seconds / (double) here * (double) left + 0.5);
    if (s >= 3600) snprintf(text, n, ", ETA %lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else snprintf(text, n, ", ETA %lld:%02lld", s / 60, s % 60);
}

static void print_bar(const struct progress *p, int64_t ended, char bar[BAR_WIDTH + 4])
{
    int full = (int) ((double) ended / (double) p->total * (double) BAR_WIDTH);
    memset(bar, ' ', BAR_WIDTH + 3);
    bar[0] = '[';
    memset(bar + 1, '#', (size_t) (full < BAR_WIDTH ? full : BAR_WIDTH));
    bar[BAR_WIDTH + 1] = ']';
    bar[BAR_WIDTH + 3] = '\0';
}

void progress_update(struct progress *p, int64_t done, int64_t failed, int64_t tokens, bool last)
{
    int64_t now = clock_ms();
    if (!last && now - p->drawn_ms < (p->terminal ? TERMINAL_PERIOD_MS : PLAIN_PERIOD_MS)) return;
    p->drawn_ms = now;
    double seconds = (double) (now - p->started_ms) / 1000.0;
    double rate = seconds > 0 ? (double) tokens / seconds : 0;
    char line[200], eta[40], bar[BAR_WIDTH + 4] = "", of[32] = "";
    print_eta(p, done + failed, seconds, eta, sizeof eta);
    if (p->terminal && p->total > 0) print_bar(p, done + failed, bar);
    if (p->total > 0) snprintf(of, sizeof of, "/%lld", (long long) p->total);
    int n = snprintf(line, sizeof line, "%s%lld%s done, %lld failed, %.0f tokens/s%s", bar,
                     (long long) done, of, (long long) failed, rate, eta);
    if (p->terminal) {
        int pad = p->drawn_width > n ? p->drawn_width - n : 0;
        fprintf(stderr, "\r%s%*s%s", line, pad, "", last ? "\n" : "");
        p->drawn_width = n;
    } else {
        fprintf(stderr, "%s\n", line);
    }
    fflush(stderr);
}

void progress_note(struct progress *p, const char *format, ...)
{
    va_list arguments;
    if (p->terminal && p->drawn_width > 0) fprintf(stderr, "\r%*s\r", p->drawn_width, "");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    p->drawn_width = 0;
    p->drawn_ms = INT64_MIN / 2;
}
