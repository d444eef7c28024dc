#include "broker/redis.h"

#include "broker/redis_tls.h"

#include <ctype.h>
#include <errno.h>
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { READER_IDLE_BYTES = 1 << 20, READER_ELEMENTS_MAX = 1 << 20 };

// --- the URL

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c = (char) tolower((unsigned char) c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// Copies [from, to) without its percent escapes.
static enum status copy_part(const char *what, const char *from, const char *to, char *out,
                             size_t most, struct error *e)
{
    size_t n = 0;
    while (from < to) {
        char c = *from++;
        if (c == '%') {
            int high = from < to ? hex_digit(from[0]) : -1;
            int low = to - from > 1 ? hex_digit(from[1]) : -1;
            if (high < 0 || low < 0 || high + low == 0) {
                return error_set(e, ERR_INPUT, "bad_redis_url",
                                 "the %s in the Redis URL has a bad %% escape", what);
            }
            c = (char) (high * 16 + low);
            from += 2;
        }
        if (n == most) {
            return error_set(e, ERR_INPUT, "bad_redis_url",
                             "the %s in the Redis URL is longer than %zu bytes", what, most);
        }
        out[n++] = c;
    }
    out[n] = '\0';
    return OK;
}

static enum status parse_number(const char *what, const char *text, const char *end, int most,
                                int *number, struct error *e)
{
    long n = 0;
    for (const char *p = text; p < end; p++) {
        if (*p < '0' || *p > '9' || n > most) {
            n = -1;
            break;
        }
        n = n * 10 + (*p - '0');
    }
    if (text == end || n < 0 || n > most) {
        return error_set(e, ERR_INPUT, "bad_redis_url",
                         "the %s in the Redis URL is not a number up to %d", what, most);
    }
    *number = (int) n;
    return OK;
}

static enum status parse_unix(const char *rest, struct redis_url *url, struct error *e)
{
    if (strncmp(rest, "//", 2) == 0) rest += 2;
    const char *query = strstr(rest, "?db=");
    const char *end = query != NULL ? query : rest + strlen(rest);
    if (query != NULL)
        try(parse_number("db", query + 4, query + strlen(query), 65535, &url->db, e));
    if (*rest != '/') {
        return error_set(e, ERR_INPUT, "bad_redis_url",
                         "the Redis URL needs an absolute path: unix:///run/redis.sock");
    }
    return copy_part("path", rest, end, url->path, REDIS_HOST_MAX, e);
}

static enum status parse_login(const char *rest, const char *at, struct redis_url *url,
                               struct error *e)
{
    const char *colon = memchr(rest, ':', (size_t) (at - rest));
    if (colon == NULL) {
        return error_set(e, ERR_INPUT, "bad_redis_url",
                         "the Redis URL has a user but no password: redis://user:password@host");
    }
    try(copy_part("user", rest, colon, url->user, REDIS_USER_MAX, e));
    return copy_part("password", colon + 1, at, url->password, REDIS_PASSWORD_MAX, e);
}

static enum status parse_scheme(const char *text, struct redis_url *url, struct error *e)
{
    url->tls = strncmp(text, "rediss://", 9) == 0;
    if (url->tls && !redis_tls_available()) {
        return error_set(e, ERR_UNSUPPORTED, "no_tls",
                         "this build has no TLS for rediss://: it needs hiredis 1.0 with "
                         "hiredis_ssl (not in Debian 12); put stunnel before Redis "
                         "(broker/README.md)");
    }
    if (url->tls || strncmp(text, "redis://", 8) == 0) return OK;
    return error_set(e, ERR_INPUT, "bad_redis_url",
                     "the Redis URL does not begin with redis://, rediss:// or unix://");
}

enum status redis_url_parse(const char *text, struct redis_url *url, struct error *e)
{
    *url = (struct redis_url){.port = 6379};
    if (strncmp(text, "unix:", 5) == 0) return parse_unix(text + 5, url, e);
    try(parse_scheme(text, url, e));
    const char *rest = strstr(text, "//") + 2, *slash = strchr(rest, '/');
    const char *end = slash != NULL ? slash : rest + strlen(rest);
    const char *at = memrchr(rest, '@', (size_t) (end - rest));
    if (at != NULL) {
        try(parse_login(rest, at, url, e));
        rest = at + 1;
    }
    const char *host_end = end, *colon = memrchr(rest, ':', (size_t) (end - rest));
    if (*rest == '[') { // an IPv6 address
        const char *close = memchr(rest, ']', (size_t) (end - rest));
        if (close == NULL) {
            return error_set(e, ERR_INPUT, "bad_redis_url", "the Redis URL has no ] after its [");
        }
        if (colon != NULL && colon < close) colon = NULL;
        rest++;
        host_end = close;
        if (colon == NULL && close + 1 != end) {
            return error_set(e, ERR_INPUT, "bad_redis_url", "the Redis URL has text after its ]");
        }
    } else if (colon != NULL) {
        host_end = colon;
    }
    if (colon != NULL) try(parse_number("port", colon + 1, end, 65535, &url->port, e));
    if (slash != NULL && slash[1] != '\0') {
        try(parse_number("database", slash + 1, slash + strlen(slash), 65535, &url->db, e));
    }
    if (rest == host_end) {
        return error_set(e, ERR_INPUT, "bad_redis_url", "the Redis URL has no host");
    }
    return copy_part("host", rest, host_end, url->host, REDIS_HOST_MAX, e);
}

void redis_url_show(const struct redis_url *url, char *text, size_t n)
{
    bool ip6 = strchr(url->host, ':') != NULL, local = url->host[0] == '\0';
    char db[16] = "";
    if (url->db != 0) snprintf(db, sizeof db, local ? "?db=%d" : "/%d", url->db);
    if (local) {
        snprintf(text, n, "unix://%s%s", url->path, db);
    } else {
        snprintf(text, n, ip6 ? "%s://[%s]:%d%s" : "%s://%s:%d%s", url->tls ? "rediss" : "redis",
                 url->host, url->port, db);
    }
}

enum status redis_name_check(const char *what, const char *name, size_t most, struct error *e)
{
    size_t n = strlen(name);
    bool good = n >= 1 && n <= most;
    for (size_t i = 0; i < n && good; i++) {
        good = isalnum((unsigned char) name[i]) || name[i] == '_' || name[i] == '-';
    }
    if (good) return OK;
    return error_set(e, ERR_INPUT, "bad_name",
                     "the %s is not 1 to %zu characters of A-Z a-z 0-9 _ -", what, most);
}

// --- failures

static const char *remedy(const char *code)
{
    if (strcmp(code, "redis_forbidden") == 0) return " (penstock acl prints what each role may)";
    if (strcmp(code, "redis_login") == 0) return " (as in redis://USER:PASSWORD@HOST:PORT)";
    return "";
}

enum status redis_reply_check(const struct redisReply *reply, struct error *e)
{
    static const struct {
        const char *word;
        enum status status;
        const char *code;
    } known[] = {
        {"STALETERM ", ERR_STATE, "stale_term"},
        {"BADARG ", ERR_INPUT, "bad_argument"},
        {"OOM ", ERR_LIMIT, "redis_full"},
        {"LOADING ", ERR_UNAVAILABLE, "redis_loading"},
        {"BUSY ", ERR_UNAVAILABLE, "redis_busy"},
        {"READONLY ", ERR_UNAVAILABLE, "redis_replica"},
        {"MASTERDOWN ", ERR_UNAVAILABLE, "redis_replica"},
        {"MISCONF ", ERR_UNAVAILABLE, "redis_disk"},
        {"NOPERM ", ERR_UNSUPPORTED, "redis_forbidden"},
        {"NOAUTH ", ERR_UNSUPPORTED, "redis_login"},
        {"WRONGPASS ", ERR_UNSUPPORTED, "redis_login"},
        {"ERR invalid password", ERR_UNSUPPORTED, "redis_login"},
        {"ERR Function not found", ERR_UNAVAILABLE, "no_library"},
    };
    if (reply == NULL) {
        return error_set(e, ERR_UNAVAILABLE, "redis_unavailable",
                         "the connection to Redis was lost; the outcome is unknown");
    }
    if (reply->type != REDIS_REPLY_ERROR) return OK;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strncmp(reply->str, known[i].word, strlen(known[i].word)) == 0) {
            return error_set(e, known[i].status, known[i].code, "Redis says: %s%s", reply->str,
                             remedy(known[i].code));
        }
    }
    return error_set(e, ERR_IO, "redis_error", "Redis says: %s", reply->str);
}

enum status redis_connection_error(const struct redisContext *c, const struct redis_url *url,
                                   struct error *e)
{
    char where[REDIS_HOST_MAX + 32];
    redis_url_show(url, where, sizeof where);
    return error_set(e, ERR_UNAVAILABLE, "redis_unavailable", "no Redis at %s: %s", where,
                     url->tls && redis_tls_why()[0] != '\0' ? redis_tls_why()
                     : c == NULL ? "out of memory"
                     : c->err == REDIS_ERR_IO && errno != 0 && c->errstr[0] == '\0'
                         ? strerror(errno)
                         : c->errstr);
}

void redis_reader_limit(struct redisContext *c)
{
    c->reader->maxbuf = READER_IDLE_BYTES;
#if HIREDIS_MAJOR >= 1
    c->reader->maxelements = READER_ELEMENTS_MAX;
#endif
}

// --- stats

static uint64_t number_of(const redisReply *r)
{
    if (r->type == REDIS_REPLY_INTEGER) return r->integer > 0 ? (uint64_t) r->integer : 0;
    if (r->type == REDIS_REPLY_STRING) return strtoull(r->str, NULL, 10);
    return 0;
}

enum status queue_stats_decode(const struct redisReply *reply, struct queue_stats *stats,
                               struct error *e)
{
    *stats = (struct queue_stats){0};
    const struct {
        const char *name;
        uint64_t *value;
    } fields[] = {
        {"term", &stats->term},           {"inbox", &stats->inbox},
        {"taken", &stats->taken},         {"ready", &stats->ready},
        {"delayed", &stats->delayed},     {"running", &stats->running},
        {"dead", &stats->dead},           {"oldest_ms", &stats->oldest_ms},
        {"raw", &stats->raw},             {"bytes", &stats->bytes},
        {"paused", &stats->paused},       {"paused_tenants", &stats->paused_tenants},
        {"admitted", &stats->admitted},
        {"done", &stats->done},           {"failed", &stats->failed},
        {"cancelled", &stats->cancelled}, {"expired", &stats->expired},
        {"rejected", &stats->rejected},   {"duplicates", &stats->duplicates},
        {"conflicts", &stats->conflicts}, {"retried", &stats->retried},
        {"lost", &stats->lost},           {"stale", &stats->stale},
    };
    try(redis_reply_check(reply, e));
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements % 2 != 0) {
        return error_set(e, ERR_IO, "redis_reply", "Redis answered stats in an unknown form");
    }
    for (size_t i = 0; i < reply->elements; i += 2) {
        const redisReply *name = reply->element[i];
        if (name->type != REDIS_REPLY_STRING) continue;
        for (size_t j = 0; j < sizeof fields / sizeof *fields; j++) {
            if (strcmp(name->str, fields[j].name) == 0) {
                *fields[j].value = number_of(reply->element[i + 1]);
            }
        }
    }
    return OK;
}
