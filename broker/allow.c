#include "broker/allow.h"

#include "common/log.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

// --- the folder

static bool is_public(const char *name)
{
    size_t n = strlen(name);
    return n > 4 && name[0] != '.' && strcmp(name + n - 4, ".pub") == 0;
}

static void add(struct allow *a, const char *name, bool quiet)
{
    char path[PATH_MAX], key[CURVE_SIZE];
    struct error e = {0};
    if (snprintf(path, sizeof path, "%s/%s", a->folder, name) >= (int) sizeof path) return;
    if (curve_read_public(key, path, &e) != OK) {
        a->n_skipped++;
        log_line(quiet ? LOG_DEBUG : LOG_WARN, "key_skipped", log_str("code", e.code),
                 log_str("error", e.text));
    } else if (a->n == ALLOW_KEYS_MAX) {
        a->n_skipped++;
        log_line(quiet ? LOG_DEBUG : LOG_ERROR, "too_many_keys", log_str("skipped", path),
                 log_int("most", ALLOW_KEYS_MAX));
    } else if (!allow_has(a, key)) {
        memcpy(a->keys[a->n++], key, sizeof key);
    }
}

static int compare(const void *a, const void *b) { return strcmp(a, b); }

static enum status read_folder(struct allow *a, bool quiet, struct error *e)
{
    DIR *d = opendir(a->folder);
    if (d == NULL) {
        return error_set(e, ERR_IO, "cannot_read_allow",
                         "cannot read the allow-list %s: %s. It is a folder of public keys (*.pub)",
                         a->folder, strerror(errno));
    }
    a->n = a->n_skipped = 0;
    for (const struct dirent *entry = readdir(d); entry != NULL; entry = readdir(d)) {
        if (is_public(entry->d_name)) add(a, entry->d_name, quiet);
    }
    closedir(d);
    qsort(a->keys, (size_t) a->n, sizeof *a->keys, compare);
    return OK;
}

enum status allow_init(struct allow *a, const char *folder, struct error *e)
{
    *a = (struct allow){.folder = folder};
    try(read_folder(a, false, e));
    log_line(LOG_INFO, "allow_list", log_str("folder", folder), log_int("keys", a->n));
    return OK;
}

bool allow_refresh(struct allow *a)
{
    static struct allow fresh; // too large for the stack
    struct error e = {0};
    fresh = (struct allow){.folder = a->folder};
    if (read_folder(&fresh, true, &e) != OK) {
        if (!a->unreadable) {
            log_line(LOG_ERROR, "allow_list_kept", log_str("code", e.code),
                     log_str("error", e.text));
        }
        a->unreadable = true;
        return false;
    }
    a->unreadable = false;
    bool same = fresh.n == a->n &&
                memcmp(fresh.keys, a->keys, (size_t) a->n * sizeof *a->keys) == 0;
    if (!same || fresh.n_skipped != a->n_skipped) {
        log_line(LOG_INFO, "allow_list", log_str("folder", a->folder), log_int("keys", fresh.n),
                 log_int("skipped", fresh.n_skipped));
    }
    *a = fresh;
    return !same;
}

bool allow_has(const struct allow *a, const char *key)
{
    for (int i = 0; i < a->n; i++) {
        if (memcmp(a->keys[i], key, CURVE_SIZE) == 0) return true;
    }
    return false;
}

// --- ZAP: version, request id, domain, address, routing id, mechanism, credentials

enum { ZAP_FRAMES = 7, ZAP_TEXT = 256, KEY_BYTES = 32 };

struct zap_frame {
    char bytes[ZAP_TEXT];
    size_t n;
};

// The frames of one request; *n counts those that came, of which the first ZAP_FRAMES are kept.
static bool receive(void *zap, struct zap_frame frames[ZAP_FRAMES], int *n)
{
    int more = 1;
    size_t size = sizeof more;
    for (*n = 0; more; (*n)++) {
        char beyond[ZAP_TEXT], *to = *n < ZAP_FRAMES ? frames[*n].bytes : beyond;
        int got = zmq_recv(zap, to, ZAP_TEXT, ZMQ_DONTWAIT);
        if (got < 0) return false;
        if (*n < ZAP_FRAMES) frames[*n].n = (size_t) got < ZAP_TEXT ? (size_t) got : 0;
        zmq_getsockopt(zap, ZMQ_RCVMORE, &more, &size);
    }
    return true;
}

static bool is_text(const struct zap_frame *f, const char *text)
{
    return f->n == strlen(text) && memcmp(f->bytes, text, f->n) == 0;
}

static void say(void *zap, const void *bytes, size_t n, int flags)
{
    zmq_send(zap, bytes, n, ZMQ_DONTWAIT | flags); // libzmq waits for it on the other side
}

bool allow_answer(struct allow *a, void *zap)
{
    struct zap_frame frames[ZAP_FRAMES];
    char key[CURVE_SIZE] = "", address[ZAP_TEXT];
    int n;
    if (!receive(zap, frames, &n)) return false;
    bool known = n == ZAP_FRAMES && is_text(&frames[0], "1.0") && is_text(&frames[5], "CURVE") &&
                 frames[6].n == KEY_BYTES;
    if (known) zmq_z85_encode(key, (const uint8_t *) frames[6].bytes, KEY_BYTES);
    bool ok = known && allow_has(a, key);
    snprintf(address, sizeof address, "%.*s", n > 3 ? (int) frames[3].n : 0, frames[3].bytes);
    if (ok) refusals_forget(&a->refused, key, "");
    if (ok || refusals_new(&a->refused, key, "", &(struct error){.code = "not_allowed"})) {
        log_line(ok ? LOG_INFO : LOG_WARN, ok ? "key_admitted" : "key_refused",
                 log_str("key", key), log_str("address", address));
    }
    const char *status = ok ? "200" : "400", *text = ok ? "OK" : "this key is not allowed";
    say(zap, "1.0", 3, ZMQ_SNDMORE);
    say(zap, frames[1].bytes, n > 1 ? frames[1].n : 0, ZMQ_SNDMORE);
    say(zap, status, 3, ZMQ_SNDMORE);
    say(zap, text, strlen(text), ZMQ_SNDMORE);
    say(zap, key, ok ? CURVE_TEXT : 0, ZMQ_SNDMORE);
    say(zap, "", 0, 0);
    return true;
}
