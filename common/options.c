#include "common/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static enum status bad(struct error *e, const char *name, const char *wants, const char *got)
{
    return error_set(e, ERR_INPUT, "bad_usage", "--%s wants %s, not \"%s\"", name, wants, got);
}

enum status options_bytes(const char *text, int64_t *bytes, struct error *e)
{
    static const char units[] = "KMGT";
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    double unit = 1;
    const char *at = *end != 0 ? strchr(units, toupper((unsigned char) *end)) : NULL;
    if (end == text || !isdigit((unsigned char) text[0])) at = NULL;
    if (at != NULL && end != text) {
        bool binary = end[1] == 'i';
        unit = pow(binary ? 1024 : 1000, (double) (at - units + 1));
        end += binary ? 2 : 1;
    }
    if (*end == 'B' || *end == 'b') end++;
    if (end == text || *end != 0 || errno != 0 || !isfinite(value) || value < 0 ||
        value * unit > 9e18) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "\"%s\" is no count of bytes; write e.g. 24G, 24GiB or 1500M", text);
    }
    *bytes = (int64_t) (value * unit);
    return OK;
}

enum status options_layers(const char *text, int64_t pp, int layers[PP_MAX], int *n_stages,
                           struct error *e)
{
    layers[0] = 0;
    *n_stages = pp > 0 ? (int) pp : 1;
    if (text == NULL) return OK;
    int n = 0;
    for (const char *p = text;; p++) {
        char *end = NULL;
        long v = isdigit((unsigned char) *p) ? strtol(p, &end, 10) : 0;
        if (v < 1 || v > MODEL_LAYERS_MAX || n == PP_MAX || (*end != ',' && *end != 0)) {
            return error_set(e, ERR_INPUT, "bad_usage",
                             "--layers wants the layers of each of at most %d stages, like 3,4,2, "
                             "not \"%s\"", PP_MAX, text);
        }
        layers[n++] = (int) v;
        if (*end == 0) break;
        p = end;
    }
    *n_stages = n;
    if (pp == 0 || pp == n) return OK;
    return error_set(e, ERR_INPUT, "bad_usage", "--layers has %d stages, --pp says %d", n,
                     (int) pp);
}

static enum status set(struct option_spec *s, const char *text, struct error *e);

size_t options_name(const char *text)
{
    const char *equals = strchr(text, '=');
    return equals != NULL ? (size_t) (equals - text) : 0;
}

// The last value that is this model's own (*own), or for all; NULL: none.
static const char *value_for(const struct option_list *list, const char *model, bool *own)
{
    const char *found = NULL;
    *own = false;
    for (int i = 0; i < list->n; i++) {
        size_t n = options_name(list->at[i]);
        bool named = n == strlen(model) && n > 0 && memcmp(list->at[i], model, n) == 0;
        if (named) found = list->at[i] + n + 1;
        else if (n == 0 && !*own) found = list->at[i];
        *own = *own || named;
    }
    return found;
}

enum status options_stages(const struct option_list *pp, const struct option_list *layers,
                           const char *model, int to[PP_MAX], int *n_stages, struct error *e)
{
    bool own_pp, own_layers;
    const char *pp_text = value_for(pp, model, &own_pp);
    const char *layers_text = value_for(layers, model, &own_layers);
    if (own_layers && !own_pp) pp_text = NULL;
    if (own_pp && !own_layers) layers_text = NULL;
    int64_t n = 0;
    struct option_spec spec = {.name = "pp", .kind = OPTION_INT, .value = &n, .least = 1,
                               .most = PP_MAX};
    if (pp_text != NULL) try(set(&spec, pp_text, e));
    return options_layers(layers_text, n, to, n_stages, e);
}

static bool in_bounds(const struct option_spec *s, double v)
{
    return (s->least == 0 && s->most == 0) || (v >= s->least && v <= s->most);
}

static enum status bad_number(const struct option_spec *s, const char *text, struct error *e)
{
    char wants[80];
    const char *kind = s->kind == OPTION_INT ? "a whole number" : "a number";
    if (s->least == 0 && s->most == 0) return bad(e, s->name, kind, text);
    snprintf(wants, sizeof wants, "%s from %.15g to %.15g", kind, s->least, s->most);
    return bad(e, s->name, wants, text);
}

static enum status add(struct option_list *list, const char *name, const char *text,
                       struct error *e)
{
    if (list->from_environment) *list = (struct option_list){0};
    if (list->n < OPTION_LIST_MAX) {
        list->at[list->n++] = text;
        return OK;
    }
    return error_set(e, ERR_INPUT, "bad_usage", "--%s is given more than %d times", name,
                     OPTION_LIST_MAX);
}

static enum status add_all(struct option_list *list, const char *name, const char *text,
                           struct error *e)
{
    if (strlen(text) >= sizeof list->text) {
        return error_set(e, ERR_INPUT, "bad_usage", "more than %d bytes", OPTION_LIST_BYTES_MAX);
    }
    strcpy(list->text, text);
    char *rest = NULL;
    for (char *at = strtok_r(list->text, ";", &rest); at != NULL; at = strtok_r(NULL, ";", &rest)) {
        try(add(list, name, at, e));
    }
    list->from_environment = true;
    return OK;
}

static enum status set(struct option_spec *s, const char *text, struct error *e)
{
    char *end;
    errno = 0;
    s->given = true;
    switch (s->kind) {
    case OPTION_FLAG:
        if (strcmp(text, "1") != 0 && strcmp(text, "true") != 0 && strcmp(text, "0") != 0 &&
            strcmp(text, "false") != 0) {
            return bad(e, s->name, "1, 0, true or false", text);
        }
        *(bool *) s->value = text[0] == '1' || text[0] == 't';
        return OK;
    case OPTION_STRING: *(const char **) s->value = text; return OK;
    case OPTION_LIST: return add(s->value, s->name, text, e);
    case OPTION_INT: {
        long long v = strtoll(text, &end, 10);
        if (end == text || *end != 0 || errno != 0 || !in_bounds(s, (double) v)) {
            return bad_number(s, text, e);
        }
        *(int64_t *) s->value = v;
        return OK;
    }
    case OPTION_NUMBER: {
        double v = strtod(text, &end);
        if (end == text || *end != 0 || !isfinite(v) || !in_bounds(s, v)) {
            return bad_number(s, text, e);
        }
        *(double *) s->value = v;
        return OK;
    }
    case OPTION_BYTES:
        if (options_bytes(text, s->value, e) == OK) return OK;
        error_prefix(e, "--%s", s->name);
        return ERR_INPUT;
    }
    return OK;
}

static void print_help(const struct options *o)
{
    printf("usage: %s %s\n\n%s\n\nOptions:\n", o->program, o->usage, o->about);
    for (int i = 0; i < o->n_specs; i++) {
        const struct option_spec *s = &o->specs[i];
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", s->name, s->argument != NULL ? " " : "",
                 s->argument != NULL ? s->argument : "");
        printf("  %-26s %s\n", left, s->help);
    }
    printf("  %-26s %s\n", "--help", "Prints this.");
    if (o->environment) {
        puts("\nEvery option may be set by the environment instead: --some-name by "
             "PENSTOCK_SOME_NAME,\nor by a file of one line that PENSTOCK_SOME_NAME_FILE names.");
    }
}

static enum status read_file(const char *path, char text[OPTION_FILE_MAX + 1], struct error *e)
{
    FILE *f = fopen(path, "re");
    size_t n = f != NULL ? fread(text, 1, OPTION_FILE_MAX, f) : 0;
    bool ok = f != NULL && !ferror(f);
    int why = errno;
    if (f != NULL) fclose(f);
    if (!ok) {
        return error_set(e, ERR_INPUT, "bad_usage", "cannot read %s: %s", path, strerror(why));
    }
    text[n] = '\0';
    text[strcspn(text, "\r\n")] = '\0';
    if (n < OPTION_FILE_MAX && text[0] != '\0') return OK;
    return error_set(e, ERR_INPUT, "bad_usage", "%s wants one line of 1 to %d bytes", path,
                     OPTION_FILE_MAX - 1);
}

const char *options_environment(const char *name, struct error *e)
{
    char file[80], text[OPTION_FILE_MAX + 1];
    *e = (struct error){0};
    const char *value = getenv(name);
    if (value != NULL && *value != 0) return value;
    snprintf(file, sizeof file, "%s_FILE", name);
    const char *path = getenv(file);
    if (path == NULL || *path == 0) return NULL;
    if (read_file(path, text, e) != OK) {
        error_prefix(e, "%s", file);
        return NULL;
    }
    int status = setenv(name, text, 1);
    explicit_bzero(text, sizeof text);
    if (status == 0) return getenv(name);
    error_set(e, ERR_NOMEM, NULL, "no memory for the environment");
    return NULL;
}

static enum status from_environment(struct options *o, struct error *e)
{
    for (int i = 0; o->environment && i < o->n_specs; i++) {
        char name[64] = "PENSTOCK_";
        size_t n = strlen(name);
        for (const char *p = o->specs[i].name; *p != 0 && n < sizeof name - 1; p++) {
            name[n++] = *p == '-' ? '_' : (char) toupper((unsigned char) *p);
        }
        name[n] = 0;
        const char *value = options_environment(name, e);
        try(e->status);
        if (value == NULL) continue;
        struct option_spec *s = &o->specs[i];
        enum status status = s->kind == OPTION_LIST ? add_all(s->value, s->name, value, e)
                                                    : set(s, value, e);
        if (status != OK) {
            error_prefix(e, "%s", name);
            return status;
        }
    }
    return OK;
}

static struct option_spec *find(struct options *o, const char *name, size_t n)
{
    for (int i = 0; i < o->n_specs; i++) {
        const char *own = o->specs[i].name;
        if (strlen(own) == n && memcmp(own, name, n) == 0) return &o->specs[i];
    }
    return NULL;
}

enum status options_parse(struct options *o, int argc, char **argv, struct error *e)
{
    o->help = false;
    o->n_positional = 0;
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") != 0 && strcmp(argv[i], "-h") != 0) continue;
        print_help(o);
        o->help = true;
        return OK;
    }
    try(from_environment(o, e));
    bool flags = true;
    for (int i = 1; i < argc; i++) {
        const char *a = strcmp(argv[i], "-o") == 0 && flags ? "--output" : argv[i];
        if (flags && strcmp(a, "--") == 0) {
            flags = false;
            continue;
        }
        if (!flags || a[0] != '-' || a[1] == 0) {
            if (o->n_positional == o->max_positional) {
                return error_set(e, ERR_INPUT, "bad_usage", "\"%s\" is one argument too many", a);
            }
            o->positional[o->n_positional++] = a;
            continue;
        }
        const char *name = a + (a[1] == '-' ? 2 : 1), *equals = strchr(name, '=');
        size_t n = equals != NULL ? (size_t) (equals - name) : strlen(name);
        struct option_spec *s = a[1] == '-' ? find(o, name, n) : NULL;
        if (s == NULL) return error_set(e, ERR_INPUT, "bad_usage", "there is no option %s", a);
        if (s->kind == OPTION_FLAG) {
            try(set(s, equals != NULL ? equals + 1 : "true", e));
            continue;
        }
        if (equals == NULL && i + 1 == argc) return bad(e, s->name, "a value", "");
        try(set(s, equals != NULL ? equals + 1 : argv[++i], e));
    }
    return OK;
}
