#include "common/bars.h"

#include "common/log.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { WIDTH = 80, WIDTH_MAX = 400, PERIOD_MS = 100, GAP = 2, BAR_LEAST = 6 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; // guards what follows
static struct bar bars[BARS_MAX];
static int64_t since_ms[BARS_MAX];
static uint64_t first_done[BARS_MAX];
static int n_bars;
static int64_t drawn_ms = INT64_MIN / 2;

static int percent_of(const struct bar *b)
{
    return b->total > 0 ? (int) ((double) b->done / (double) b->total * 100) : 100;
}

// One bar in exactly `width` columns.
static void print_cell(const struct bar *b, int width, char *text)
{
    char name[BAR_NAME_MAX + 8], rate[24];
    int n = snprintf(name, sizeof name, "%s %3d%%", b->name, percent_of(b));
    int r = snprintf(rate, sizeof rate, " %.2f GB/s", b->rate / 1e9);
    int bar = width - n - r - 3; // "[] " around it
    memset(text, ' ', (size_t) width);
    if (n > width) n = width;
    memcpy(text, name, (size_t) n);
    if (n + r <= width) memcpy(text + n, rate, (size_t) r);
    if (bar < BAR_LEAST) return;
    int full = bar * percent_of(b) / 100;
    text[n + r + 1] = '[';
    memset(text + n + r + 2, '#', (size_t) full);
    text[n + r + 2 + bar] = ']';
}

size_t bars_print(const struct bar *b, int n, int width, char *text)
{
    enum { LEAST = 14, MORE = 5 }; // a name and a percentage; "+127"
    int fit = (width + GAP) / (LEAST + GAP), shown = n <= fit ? n : (width - MORE) / (LEAST + GAP);
    int room = n <= shown ? width : width - MORE, at = 0;
    if (shown < 1) shown = n > 0, room = width;
    for (int i = 0; i < shown; i++) {
        int cell = (room - (shown - 1) * GAP) / shown;
        if (i > 0) {
            memset(text + at, ' ', GAP);
            at += GAP;
        }
        print_cell(&b[i], cell, text + at);
        at += cell;
    }
    if (n > shown && at + MORE <= width) at += snprintf(text + at, MORE + 1, " +%d", n - shown);
    while (at > 0 && text[at - 1] == ' ') at--;
    text[at] = 0;
    return (size_t) at;
}

static int terminal_width(void)
{
    struct winsize w;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) != 0 || w.ws_col == 0) return WIDTH;
    return w.ws_col - 1 < WIDTH_MAX ? w.ws_col - 1 : WIDTH_MAX; // the last column would wrap
}

static void draw(void)
{
    char line[WIDTH_MAX + 16] = "\r\033[K";
    size_t n = strlen(line);
    n += bars_print(bars, n_bars, terminal_width(), line + n);
    log_overwrites(n_bars > 0);
    ssize_t ignored = write(STDERR_FILENO, line, n);
    (void) ignored;
}

static int find(const char *name)
{
    int i = 0;
    while (i < n_bars && strncmp(bars[i].name, name, BAR_NAME_MAX) != 0) i++;
    return i;
}

static void drop(const char *name)
{
    int i = find(name);
    if (i == n_bars) return;
    n_bars--;
    memmove(&bars[i], &bars[i + 1], (size_t) (n_bars - i) * sizeof *bars);
    memmove(&since_ms[i], &since_ms[i + 1], (size_t) (n_bars - i) * sizeof *since_ms);
    memmove(&first_done[i], &first_done[i + 1], (size_t) (n_bars - i) * sizeof *first_done);
    draw();
}

static void show(const char *name, uint64_t done, uint64_t total, int64_t now_ms)
{
    int i = find(name);
    if (i == n_bars) {
        if (n_bars == BARS_MAX) return;
        bars[i] = (struct bar){.total = total};
        snprintf(bars[i].name, sizeof bars[i].name, "%.*s", BAR_NAME_MAX, name);
        since_ms[i] = now_ms;
        first_done[i] = done;
        n_bars++;
    }
    int64_t ms = now_ms - since_ms[i];
    bars[i].done = done;
    bars[i].total = total;
    bars[i].rate = ms > 0 ? (double) (done - first_done[i]) / (double) ms * 1e3 : 0;
    if (now_ms - drawn_ms < PERIOD_MS) return;
    drawn_ms = now_ms;
    draw();
}

void bars_show(const char *name, uint64_t done, uint64_t total, int64_t now_ms)
{
    if (isatty(STDERR_FILENO) != 1) return;
    pthread_mutex_lock(&mutex);
    if (done >= total) drop(name);
    else show(name, done, total, now_ms);
    pthread_mutex_unlock(&mutex);
}

void bars_drop(const char *name)
{
    pthread_mutex_lock(&mutex);
    drop(name);
    pthread_mutex_unlock(&mutex);
}

void bars_clear(void)
{
    pthread_mutex_lock(&mutex);
    if (n_bars > 0) {
        ssize_t ignored = write(STDERR_FILENO, "\r\033[K", 4);
        (void) ignored;
        log_overwrites(false);
    }
    pthread_mutex_unlock(&mutex);
}
