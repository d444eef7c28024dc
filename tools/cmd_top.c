// penstock top: a live view of queue, fleet and memory, or one page of it. Redis is read by a
// thread of its own, so that keys are heard while it is away.
#include "common/clock.h"
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"
#include "tools/top_page.h"
#include "tools/top_screen.h"
#include "tools/top_view.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { DRAW_MS = 1000, LEAVE_MS = 300 };
#define PAGE_MAX (1 * MIB)

struct top {
    struct queue_flags flags;
    bool once, json, no_colour;
    double interval_s;
    struct screen screen;
    pthread_t reader;
    int wake_fd; // eventfd: the reader has something
    pthread_mutex_t mutex; // guards what follows
    pthread_cond_t changed;
    bool stop;
    json_t *view;          // the latest; NULL: none yet
    struct error trouble;  // why there is none, or no newer one
};

// --- reading

static void hand_over(struct top *t, json_t *view, const struct error *why)
{
    uint64_t one = 1;
    pthread_mutex_lock(&t->mutex);
    if (view != NULL) {
        json_decref(t->view);
        t->view = view;
    }
    t->trouble = *why;
    pthread_mutex_unlock(&t->mutex);
    if (write(t->wake_fd, &one, sizeof one) < 0) return; // it is awake already
}

// Waits for the next time; false: it is over.
static bool pause_reading(struct top *t)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t ns = until.tv_nsec + (int64_t) (t->interval_s * 1e9);
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    pthread_mutex_lock(&t->mutex);
    while (!t->stop && pthread_cond_timedwait(&t->changed, &t->mutex, &until) == 0) {}
    bool go = !t->stop;
    pthread_mutex_unlock(&t->mutex);
    return go;
}

static void *read_views(void *arg)
{
    struct top *t = arg;
    struct queue_sync *q = NULL;
    do {
        struct error e = {0};
        json_t *view = NULL;
        enum status status = q == NULL ? queue_flags_open(&t->flags, &q, &e) : OK;
        if (status == OK) status = top_view(q, t->flags.queue, &view, &e);
        hand_over(t, view, &e);
        if (status != OK && q != NULL) queue_sync_close(&q);
    } while (pause_reading(t));
    if (q != NULL) queue_sync_close(&q);
    return NULL;
}

static enum status start_reading(struct top *t, struct error *e)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&t->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&t->mutex, NULL);
    t->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (t->wake_fd >= 0 && pthread_create(&t->reader, NULL, read_views, t) == 0) return OK;
    return error_set(e, ERR_IO, NULL, "no thread to read with");
}

// Redis that hangs is not waited for.
static void stop_reading(struct top *t)
{
    struct timespec until;
    pthread_mutex_lock(&t->mutex);
    t->stop = true;
    pthread_cond_signal(&t->changed);
    pthread_mutex_unlock(&t->mutex);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += LEAVE_MS * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    if (pthread_timedjoin_np(t->reader, NULL, &until) == 0) json_decref(t->view);
}

// --- showing

static void draw(struct top *t)
{
    struct buffer page;
    char why[ERROR_TEXT_SIZE + 64];
    pthread_mutex_lock(&t->mutex);
    json_t *view = json_incref(t->view);
    struct error trouble = t->trouble;
    pthread_mutex_unlock(&t->mutex);
    snprintf(why, sizeof why, "%s; trying again", trouble.text);
    struct top_style style = {.columns = t->screen.columns,
                              .colour = !t->no_colour,
                              .now_ms = clock_wall_ms(),
                              .trouble = trouble.status != OK ? why : NULL};
    buffer_init(&page, PAGE_MAX);
    top_page(view, &style, &page);
    json_decref(view);
    screen_show(&t->screen, (const char *) page.data, page.n, TOP_HEAD_LINES);
    buffer_deinit(&page);
}

static int live(struct top *t, const char *program)
{
    struct error e = {0};
    enum screen_event event = SCREEN_NOTHING;
    if (screen_open(&t->screen, &e) != OK) return outcome_failed(program, &e, false);
    enum status status = start_reading(t, &e);
    while (status == OK && event != SCREEN_QUIT) {
        uint64_t n;
        event = screen_wait(&t->screen, t->wake_fd, DRAW_MS);
        if (event == SCREEN_WOKEN && read(t->wake_fd, &n, sizeof n) < 0) continue;
        if (event != SCREEN_QUIT) draw(t);
    }
    screen_close(&t->screen);
    if (status != OK) return outcome_failed(program, &e, false);
    stop_reading(t);
    return EXIT_DONE;
}

static int once(struct top *t, const char *program)
{
    struct error e = {0};
    struct queue_sync *q;
    json_t *view;
    enum status status = queue_flags_open(&t->flags, &q, &e);
    if (status != OK) return outcome_failed(program, &e, t->json);
    status = top_view(q, t->flags.queue, &view, &e);
    queue_sync_close(&q);
    if (status != OK) return outcome_failed(program, &e, t->json);
    if (t->json) return outcome_json(view, EXIT_DONE);
    struct top_style style = {.columns = screen_columns(), .now_ms = clock_wall_ms()};
    struct buffer page;
    buffer_init(&page, PAGE_MAX);
    top_page(view, &style, &page);
    json_decref(view);
    bool written = page.status == OK && fwrite(page.data, 1, page.n, stdout) == page.n;
    buffer_deinit(&page);
    return written ? EXIT_DONE : EXIT_FAILED;
}

int cmd_top(int argc, char **argv)
{
    static struct top t; // a reader that hangs outlives this function
    t = (struct top){.flags = queue_flags_default(), .interval_s = 1};
    struct option_spec specs[] = {
        {.name = "once", .kind = OPTION_FLAG, .value = &t.once,
         .help = "Prints one page and ends."},
        {.name = "json", .kind = OPTION_FLAG, .value = &t.json,
         .help = "With --once: one JSON object."},
        {.name = "interval", .kind = OPTION_NUMBER, .value = &t.interval_s, .argument = "S",
         .help = "Seconds between looks (default 1).", .least = 0.1, .most = 3600},
        {.name = "no-colour", .kind = OPTION_FLAG, .value = &t.no_colour,
         .help = "Bars are told by letters alone; so they are where NO_COLOR is set."},
        QUEUE_ONLY_ROWS(t.flags),
    };
    struct options o = {.program = "penstock top",
                        .usage = "[OPTIONS]",
                        .about = "Shows queue, pipelines, KV blocks and each rank's memory until q "
                                 "is pressed. Arrows, space and b scroll. A viewer's rights are "
                                 "enough.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (t.json && !t.once) {
        error_set(&e, ERR_INPUT, "bad_usage", "--json goes with --once");
        return outcome_usage(o.program, &e);
    }
    if (getenv("NO_COLOR") != NULL && getenv("NO_COLOR")[0] != '\0') t.no_colour = true;
    return t.once ? once(&t, o.program) : live(&t, o.program);
}
