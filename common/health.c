#include "common/health.h"

#include "common/log.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const NAMES[HEALTH_STATES] = {"waiting", "standby", "leading", "idle",
                                                 "loading", "loaded",  "serving"};

static bool is_group(enum health_state state) { return state >= HEALTH_IDLE; }

// --- writing

bool health_due(const struct health_writer *w, int64_t now_ms)
{
    return w->path != NULL && now_ms >= w->due_ms;
}

// A line a field, the text of the trouble last, since it may hold anything but control characters.
static size_t print(char to[HEALTH_FILE_MAX], const struct health *h)
{
    char sentence[ERROR_TEXT_SIZE];
    size_t n = 0;
    for (const char *p = h->trouble.text; *p != '\0'; p++) {
        sentence[n++] = iscntrl((unsigned char) *p) ? ' ' : *p;
    }
    sentence[n] = '\0';
    int length = snprintf(
        to, HEALTH_FILE_MAX,
        "state %s\nwritten_ms %" PRId64 "\nredis %d\nheard %d\nstage %d\nwork %d\nsteps %" PRIu64
        "\nmoved_ms %" PRId64 "\npatience_ms %" PRId64 "\nloaded_bytes %" PRIu64
        "\nload_bytes %" PRIu64 "\ncode %s\ntrouble %s\n",
        NAMES[h->state], h->written_ms, h->redis, h->heard, h->stage, h->work, h->steps,
        h->moved_ms, h->patience_ms, h->loaded_bytes, h->load_bytes, h->trouble.code, sentence);
    check(length > 0 && length < HEALTH_FILE_MAX);
    return (size_t) length;
}

static bool replace(const char *path, const char *bytes, size_t n)
{
    char fresh[PATH_MAX];
    if (snprintf(fresh, sizeof fresh, "%s.new", path) >= (int) sizeof fresh) {
        errno = ENAMETOOLONG;
        return false;
    }
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return false;
    bool ok = write(fd, bytes, n) == (ssize_t) n;
    return close(fd) == 0 && ok && rename(fresh, path) == 0;
}

void health_write(struct health_writer *w, struct health *h, int64_t now_ms)
{
    char text[HEALTH_FILE_MAX];
    if (!h->work || h->steps != w->steps || w->moved_ms == 0) w->moved_ms = now_ms;
    w->steps = h->steps;
    w->due_ms = now_ms + HEALTH_MS;
    h->moved_ms = w->moved_ms;
    h->written_ms = now_ms;
    if (replace(w->path, text, print(text, h)) || w->told) return;
    w->told = true;
    log_line(LOG_ERROR, "status_unwritable", log_str("path", w->path),
             log_str("error", strerror(errno)));
}

void health_end(const struct health_writer *w)
{
    if (w->path != NULL) unlink(w->path);
}

// --- reading

static bool read_state(enum health_state *state, const char *text)
{
    for (int i = 0; i < HEALTH_STATES; i++) {
        if (strcmp(text, NAMES[i]) != 0) continue;
        *state = (enum health_state) i;
        return true;
    }
    return false;
}

static bool read_field(struct health *h, const char *name, const char *value)
{
    const struct {
        const char *name;
        int64_t *to;
    } signed_[] = {{"written_ms", &h->written_ms},
                   {"moved_ms", &h->moved_ms},
                   {"patience_ms", &h->patience_ms}};
    const struct {
        const char *name;
        uint64_t *to;
    } unsigned_[] = {{"steps", &h->steps},
                     {"loaded_bytes", &h->loaded_bytes},
                     {"load_bytes", &h->load_bytes}};
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, signed_[i].name) == 0) *signed_[i].to = strtoll(value, NULL, 10);
        if (strcmp(name, unsigned_[i].name) == 0) *unsigned_[i].to = strtoull(value, NULL, 10);
    }
    if (strcmp(name, "redis") == 0) h->redis = value[0] == '1';
    if (strcmp(name, "heard") == 0) h->heard = value[0] == '1';
    if (strcmp(name, "work") == 0) h->work = value[0] == '1';
    if (strcmp(name, "stage") == 0) h->stage = atoi(value);
    if (strcmp(name, "code") == 0) snprintf(h->trouble.code, ERROR_CODE_SIZE, "%s", value);
    if (strcmp(name, "trouble") == 0) snprintf(h->trouble.text, ERROR_TEXT_SIZE, "%s", value);
    return strcmp(name, "state") != 0 || read_state(&h->state, value);
}

enum status health_read(struct health *h, const char *path, struct error *e)
{
    char text[HEALTH_FILE_MAX];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        return error_set(e, ERR_UNAVAILABLE, "not_running",
                         "there is no %s: the daemon does not run yet, or was started without "
                         "--status", path);
    }
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    int why = errno;
    if (fd >= 0) close(fd);
    if (n < 0) return error_set(e, ERR_IO, NULL, "cannot read %s: %s", path, strerror(why));
    text[n] = '\0';
    *h = (struct health){.stage = -1};
    bool ok = strncmp(text, "state ", 6) == 0 && n > 0 && text[n - 1] == '\n';
    char *rest = text;
    for (char *line; ok && (line = strsep(&rest, "\n")) != NULL;) {
        char *value = strchr(line, ' ');
        if (value == NULL) continue;
        *value = '\0';
        ok = read_field(h, line, value + 1);
    }
    if (ok) return OK;
    return error_set(e, ERR_INPUT, "bad_status", "%s is no status of a broker or a group", path);
}

// --- judging

static enum status wrong(struct error *e, const char *code, const char *text)
{
    return error_set(e, ERR_STATE, code, "%s", text);
}

static enum status judge_broker(const struct health *h, char *text, struct error *e)
{
    if (h->state == HEALTH_WAITING || !h->redis) {
        return wrong(e, "no_redis", "Redis is not reached, or not usable; the log says why");
    }
    snprintf(text, HEALTH_TEXT_SIZE, "%s; Redis is reached", NAMES[h->state]);
    return OK;
}

static enum status judge_idle(const struct health *h, bool idle_ok, char *text, struct error *e)
{
    if (!h->heard) return wrong(e, "no_broker", "no broker answers; the log says more");
    if (h->trouble.text[0] != '\0') return wrong(e, h->trouble.code, h->trouble.text);
    if (!idle_ok) {
        return wrong(e, "no_stage", "the broker has given no stage: it waits for more groups, or "
                                    "this one is a spare (--idle-ok)");
    }
    snprintf(text, HEALTH_TEXT_SIZE, "ready as a spare");
    return OK;
}

static enum status judge_loading(const struct health *h, struct error *e)
{
    double percent = h->load_bytes == 0 ? 0
                                        : 100.0 * (double) h->loaded_bytes / (double) h->load_bytes;
    return error_set(e, ERR_STATE, "loading", "stage %d is loading: %.0f%% of %.1f GiB", h->stage,
                     percent, (double) h->load_bytes / (double) GIB);
}

static enum status judge_serving(const struct health *h, char *text, struct error *e)
{
    int64_t still_ms = h->written_ms - h->moved_ms;
    if (h->work && still_ms > h->patience_ms) {
        return error_set(e, ERR_STATE, "stuck",
                         "stage %d has work, but no step has moved for %" PRId64 " s", h->stage,
                         still_ms / 1000);
    }
    snprintf(text, HEALTH_TEXT_SIZE, "%s stage %d; %" PRIu64 " steps, %s", NAMES[h->state],
             h->stage, h->steps, h->work ? "at work" : "no work");
    return OK;
}

enum status health_judge(const struct health *h, int64_t now_ms, bool idle_ok,
                         char text[HEALTH_TEXT_SIZE], struct error *e)
{
    int64_t age_ms = now_ms - h->written_ms;
    text[0] = '\0';
    if (age_ms < 0 || age_ms > HEALTH_STALE_MS) { // negative: of an earlier life of the machine
        return error_set(e, ERR_STATE, "hung",
                         "it has not said anything for %" PRId64 " s: it hangs, or was killed",
                         age_ms / 1000);
    }
    if (!is_group(h->state)) return judge_broker(h, text, e);
    if (h->state == HEALTH_IDLE) return judge_idle(h, idle_ok, text, e);
    if (h->state == HEALTH_LOADING) return judge_loading(h, e);
    return judge_serving(h, text, e);
}
