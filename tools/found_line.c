#include "tools/found_line.h"

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char JSON_BEGINS[] = "{\"t\":", DOCKER_BEGINS[] = "{\"log\":\"";

// The line inside of Docker's object takes its place: escapes are longer than what they stand for.
static void unwrap(char *text)
{
    if (strncmp(text, DOCKER_BEGINS, sizeof DOCKER_BEGINS - 1) != 0) return;
    json_t *o = json_loads(text, JSON_ALLOW_NUL, NULL);
    const json_t *log = json_object_get(o, "log");
    size_t n = json_string_length(log);
    if (json_is_string(log) && n < strlen(text)) {
        memcpy(text, json_string_value(log), n);
        text[n] = '\0';
    }
    json_decref(o);
}

// Where our own line begins; NULL: nowhere.
static const char *begin_of(const char *text)
{
    const char *json = strstr(text, JSON_BEGINS);
    if (json != NULL) return json;
    for (const char *at = text; (at = strstr(at, "t=")) != NULL; at++) {
        bool begins = at == text || at[-1] == ' ' || at[-1] == '\t';
        const char *end = at + 2;
        while (isdigit((unsigned char) *end)) end++;
        if (begins && end > at + 2 && strncmp(end, " level=", 7) == 0) return at;
    }
    return NULL;
}

// The value of a field; NULL: there is none. Numbers and words alike.
static const char *value_of(const struct found_line *l, const char *name)
{
    char wanted[32];
    bool json = *l->said == '{';
    size_t n = (size_t) snprintf(wanted, sizeof wanted, json ? ",\"%s\":" : " %s=", name);
    const char *at = strstr(l->said, wanted);
    if (at == NULL) return NULL;
    return at[n] == '"' ? at + n + 1 : at + n;
}

static int step_of(const char *event)
{
    static const char *const steps[] = {"admitted",    "sent",  "accepted",
                                        "first_token", "ended", "result"};
    enum { N_STEPS = sizeof steps / sizeof *steps };
    for (int i = 0; i < N_STEPS; i++) {
        size_t n = strlen(steps[i]);
        if (strncmp(event, steps[i], n) == 0 && event[n] != '_') return i;
    }
    return N_STEPS;
}

bool found_line_read(char *text, struct found_line *to)
{
    unwrap(text);
    const char *said = begin_of(text);
    if (said == NULL) return false;
    bool json = *said == '{';
    *to = (struct found_line){.shown = text,
                              .said = said,
                              .t_ms = atoll(said + (json ? sizeof JSON_BEGINS - 1 : 2))};
    const char *attempt = value_of(to, "attempt"), *event = value_of(to, "event");
    to->attempt = attempt != NULL ? atoll(attempt) : 0;
    to->step = step_of(event != NULL ? event : "");
    return true;
}

bool found_line_says(const struct found_line *l, const char *name, const char *value)
{
    char wanted[160];
    bool json = *l->said == '{';
    size_t n = (size_t) snprintf(wanted, sizeof wanted, json ? ",\"%s\":\"%s\"" : " %s=%s", name,
                                 value);
    if (n >= sizeof wanted) return false;
    for (const char *at = l->said; (at = strstr(at, wanted)) != NULL; at++) {
        if (json || at[n] == ' ' || at[n] == '\r' || at[n] == '\n' || at[n] == '\0') return true;
    }
    return false;
}
