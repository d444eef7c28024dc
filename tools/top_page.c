#include "tools/top_page.h"

#include "broker/tenants.h"
#include "common/ledger.h"
#include "common/limits.h"
#include "common/utf8.h"
#include "tools/fleet_view.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { PIECE_MAX = 1024, AMOUNT_SIZE = 24, STALE_MS = 15000, BAR_TEXT = 33, BAR_LEAST = 8 };

struct page {
    struct buffer *to;
    const struct top_style *style;
    int at;      // columns of the line so far
    char colour; // letter of the colour that is on; 0: none
};

// --- members that may be missing, or anything: as numbers that can be calculated with

#define NUMBER_MAX (1ll << 53)

static double real(const json_t *object, const char *name)
{
    double x = json_number_value(json_object_get(object, name));
    return x > 0 ? x < (double) NUMBER_MAX ? x : (double) NUMBER_MAX : 0;
}

static json_int_t number(const json_t *object, const char *name)
{
    json_int_t n = json_integer_value(json_object_get(object, name));
    return n > 0 ? n < NUMBER_MAX ? n : NUMBER_MAX : 0;
}

// --- text within the columns

static void put_raw(struct page *p, const char *bytes, size_t n)
{
    buffer_append(p->to, bytes, n);
}

// Bytes of the character at `s` (n left), and whether it may be shown as it is.
static size_t character(const char *s, size_t n, bool *shown)
{
    unsigned char c = (unsigned char) s[0];
    size_t size = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    *shown = size <= n && utf8_valid_prefix(s, size) == size && c >= 0x20 && c != 0x7f &&
             !(c == 0xc2 && (unsigned char) s[1] < 0xa0);
    return *shown ? size : 1;
}

static void put_text(struct page *p, const char *text)
{
    size_t n = strlen(text);
    while (n > 0 && p->at < p->style->columns) {
        bool shown;
        size_t size = character(text, n, &shown);
        put_raw(p, shown ? text : "?", shown ? size : 1);
        p->at++;
        text += size;
        n -= size;
    }
}

static void put(struct page *p, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(struct page *p, const char *format, ...)
{
    char piece[PIECE_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(piece, sizeof piece, format, args);
    va_end(args);
    put_text(p, piece);
}

// Columns, not bytes: what is too long is cut, what is too short filled up.
static void put_field(struct page *p, int width, const char *text)
{
    size_t n = strlen(text);
    while (width > 0 && n > 0) {
        bool shown;
        size_t size = character(text, n, &shown);
        char one[5] = "?";
        if (shown) memcpy(one, text, size);
        put_text(p, one);
        text += size;
        n -= size;
        width--;
    }
    put(p, "%*s", width, "");
}

static void fill_to(struct page *p, int column)
{
    if (p->at < column) put(p, "%*s", column - p->at, "");
}

static void end_line(struct page *p)
{
    put_raw(p, "\n", 1);
    p->at = 0;
}

// 'b' bold, 'i' inverse; 'w', 'k', ... as bars have them; 0 plain.
static void colour(struct page *p, char which)
{
    static const char *const codes[128] = {
        ['b'] = "\033[1m",  ['i'] = "\033[7m",  ['w'] = "\033[34m", ['k'] = "\033[32m",
        ['a'] = "\033[33m", ['s'] = "\033[35m", ['c'] = "\033[36m", ['#'] = "\033[32m",
        ['='] = "\033[36m", ['!'] = "\033[31m"};
    if (!p->style->colour || which == p->colour) return;
    const char *code = which > 0 ? codes[(int) which] : NULL;
    put_raw(p, "\033[0m", 4);
    if (code != NULL) put_raw(p, code, strlen(code));
    p->colour = which;
}

// --- numbers as people say them

static const char *amount(double bytes, char to[AMOUNT_SIZE])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int i = 0;
    for (; bytes >= 1000 && i < 4; i++) bytes /= 1024;
    snprintf(to, AMOUNT_SIZE, i > 0 && bytes < 100 ? "%.1f %s" : "%.0f %s", bytes, units[i]);
    return to;
}

static const char *count(json_int_t n, char to[AMOUNT_SIZE])
{
    if (n < 100000) snprintf(to, AMOUNT_SIZE, "%lld", (long long) n);
    else if (n < 10000000) snprintf(to, AMOUNT_SIZE, "%lldk", (long long) n / 1000);
    else snprintf(to, AMOUNT_SIZE, "%lldM", (long long) n / 1000000);
    return to;
}

static const char *age(json_int_t ms, char to[AMOUNT_SIZE])
{
    long long s = ms > 0 ? ms / 1000 : 0;
    if (s < 120) snprintf(to, AMOUNT_SIZE, "%lld s", s);
    else if (s < 120 * 60) snprintf(to, AMOUNT_SIZE, "%lld min", s / 60);
    else if (s < 72 * 3600) snprintf(to, AMOUNT_SIZE, "%lld h", s / 3600);
    else snprintf(to, AMOUNT_SIZE, "%lld d", s / 86400);
    return to;
}

static const char *rate(double per_s, char to[AMOUNT_SIZE])
{
    snprintf(to, AMOUNT_SIZE, per_s > 0 && per_s < 100 ? "%.1f" : "%.0f", per_s);
    return to;
}

static const char *time_of(json_int_t us, char to[AMOUNT_SIZE])
{
    if (us < 10000) snprintf(to, AMOUNT_SIZE, "%.1f ms", (double) us / 1e3);
    else if (us < 10000000) snprintf(to, AMOUNT_SIZE, "%lld ms", (long long) us / 1000);
    else snprintf(to, AMOUNT_SIZE, "%lld s", (long long) us / 1000000);
    return to;
}


// --- bars

struct part {
    char letter;
    double n;
};

// A bar from here on, so wide that BAR_TEXT columns are left behind it; parts of `all`.
static void put_bar(struct page *p, const struct part *parts, int n_parts, double all)
{
    int width = p->style->columns - p->at - BAR_TEXT - 2, filled = 0;
    double sum = 0;
    if (width < BAR_LEAST) width = BAR_LEAST;
    put(p, "[");
    for (int i = 0; i < n_parts; i++) {
        sum += parts[i].n;
        int until = all > 0 ? (int) (sum / all * width + 0.5) : 0;
        colour(p, parts[i].letter);
        for (; filled < until && filled < width; filled++) put(p, "%c", parts[i].letter);
    }
    colour(p, 0);
    for (; filled < width; filled++) put(p, ".");
    put(p, "]");
}

static char letter_of(enum ledger_line line)
{
    switch (line) {
    case LEDGER_WEIGHTS: case LEDGER_SCALES: case LEDGER_PACKING: case LEDGER_MTP: return 'w';
    case LEDGER_KV: return 'k';
    case LEDGER_ACTIVATIONS: case LEDGER_LOGITS: return 'a';
    case LEDGER_HISTORY: case LEDGER_SAMPLER: return 's';
    case LEDGER_SCRATCH: case LEDGER_COMM: return 'c';
    default: return 'o';
    }
}

static double add_lines(const json_t *memory, struct part parts[LEDGER_LINES])
{
    double total = 0;
    for (int i = 0; i < LEDGER_LINES; i++) {
        enum ledger_line line = (enum ledger_line) i;
        double bytes = real(memory, ledger_name(line));
        parts[i] = (struct part){letter_of(line), bytes > 0 ? bytes : 0};
        total += parts[i].n;
    }
    return total;
}

// --- the head of the page

static void put_leader(struct page *p, const json_t *view)
{
    char text[AMOUNT_SIZE];
    const json_t *leads = json_object_get(view, "leads"), *fleet = json_object_get(view, "fleet");
    const json_t *said = json_object_get(fleet, "leader");
    bool own = json_is_object(leads) &&
               number(leads, "term") == number(said, "term");
    if (!json_is_object(leads)) {
        colour(p, '!');
        put(p, "nobody leads");
        colour(p, 0);
        return;
    }
    put(p, "%s leads, term %lld", fleet_text(leads, "name"),
        (long long) number(leads, "term"));
    if (own) put(p, ", for %s", age(p->style->now_ms - number(said, "since"), text));
}

static void put_clock(struct page *p)
{
    time_t s = (time_t) (p->style->now_ms / 1000);
    struct tm utc;
    char text[16] = "";
    if (gmtime_r(&s, &utc) != NULL) strftime(text, sizeof text, "%H:%M:%S UTC", &utc);
    int column = p->style->columns - (int) strlen(text);
    if (p->at + 1 > column) return;
    fill_to(p, column);
    put(p, "%s", text);
}

static void put_counts(struct page *p, const json_t *jobs, const char *const *names)
{
    char text[AMOUNT_SIZE];
    for (int i = 0; names[i] != NULL; i++) {
        put(p, "%s%s ", i > 0 ? "   " : "", names[i]);
        colour(p, 'b');
        put(p, "%s", count(number(jobs, names[i]), text));
        colour(p, 0);
    }
}

static void put_head(struct page *p, const json_t *view)
{
    static const char *const now[] = {"inbox", "ready", "delayed", "running", "dead", NULL};
    static const char *const ever[] = {"admitted", "done",  "failed", "cancelled",
                                       "retried",  "lost", NULL};
    const json_t *jobs = json_object_get(view, "jobs");
    colour(p, 'b');
    put(p, "penstock top");
    colour(p, 0);
    put(p, "   queue %s   ", fleet_text(view, "queue"));
    put_leader(p, view);
    put_clock(p);
    end_line(p);
    put_counts(p, jobs, now);
    if (json_is_true(json_object_get(jobs, "paused"))) put(p, "   (paused)");
    end_line(p);
    put_counts(p, jobs, ever);
    end_line(p);
}

// --- tenants

enum { TENANTS_SHOWN = 10, NAME_COLUMNS = 18 };

static json_int_t depth(const json_t *tenant)
{
    size_t i;
    json_t *n;
    json_int_t sum = number(tenant, "inbox") + number(tenant, "running");
    json_array_foreach(json_object_get(tenant, "ready"), i, n) {
        json_int_t ready = json_integer_value(n);
        if (ready > 0 && ready < NUMBER_MAX) sum += ready;
        if (sum > NUMBER_MAX) sum = NUMBER_MAX;
    }
    return sum;
}

// The deepest of them that has not been shown, or NULL.
static const json_t *next_tenant(const json_t *tenants, bool *shown)
{
    size_t i, found = 0;
    json_t *t;
    const json_t *best = NULL;
    json_array_foreach(tenants, i, t) {
        if (i >= TENANTS_MAX || shown[i] || (best != NULL && depth(t) <= depth(best))) continue;
        best = t;
        found = i;
    }
    if (best != NULL) shown[found] = true;
    return best;
}

static void put_tenant(struct page *p, const json_t *t)
{
    char name[TENANT_MAX + 16], text[AMOUNT_SIZE];
    bool paused = json_is_true(json_object_get(t, "paused"));
    const json_t *ready = json_object_get(t, "ready");
    snprintf(name, sizeof name, "%.*s%s", paused ? NAME_COLUMNS - 9 : TENANT_MAX,
             fleet_text(t, "name"), paused ? " (paused)" : "");
    put_field(p, NAME_COLUMNS, name);
    put(p, "%7s", count(number(t, "inbox"), text));
    for (size_t i = 0; i < JOB_CLASSES; i++) {
        put(p, "%9s", count(json_integer_value(json_array_get(ready, i)), text));
    }
    put(p, "%9s", count(number(t, "running"), text));
    json_int_t waited_ms = number(t, "waited_ms");
    put(p, "%10s", waited_ms > 0 ? age(waited_ms, text) : "-");
    end_line(p);
}

static void put_tenants(struct page *p, const json_t *view)
{
    static const char *const heads[] = {"class 0", "class 1", "class 2", "class 3"};
    const json_t *tenants = json_object_get(view, "tenants"), *t;
    const json_t *oldest = json_object_get(view, "oldest");
    bool shown[TENANTS_MAX] = {false};
    char text[AMOUNT_SIZE];
    size_t n = json_array_size(tenants);
    end_line(p);
    colour(p, 'b');
    put_field(p, NAME_COLUMNS, "tenant");
    put(p, "%7s", "inbox");
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) put(p, "%9s", heads[i]);
    put(p, "%9s%10s", "running", "oldest");
    colour(p, 0);
    end_line(p);
    for (int i = 0; i < TENANTS_SHOWN && (t = next_tenant(tenants, shown)) != NULL; i++) {
        put_tenant(p, t);
    }
    if (n > TENANTS_SHOWN) {
        put(p, "(and %zu more)", n - TENANTS_SHOWN);
        end_line(p);
    }
    if (!json_is_object(oldest)) return;
    put(p, "oldest ready job: %s of %s, class %lld, %s", fleet_text(oldest, "id"),
        fleet_text(oldest, "tenant"), (long long) number(oldest, "class"),
        age(number(oldest, "waited_ms"), text));
    end_line(p);
}

// --- groups and ranks

static void put_group(struct page *p, const json_t *g, const char *place)
{
    char text[AMOUNT_SIZE];
    const json_t *f = json_object_get(g, "figures"), *failure = json_object_get(g, "failure");
    const char *state = fleet_text(g, "state");
    double load = real(g, "load_bytes");
    put(p, "  ");
    put_field(p, 8, place);
    put_field(p, 18, fleet_text(g, "name"));
    put(p, " ");
    if (strcmp(state, "loading") == 0 && load > 0) {
        put(p, "loading %.0f%%", 100 * real(g, "loaded_bytes") / load);
    } else {
        put(p, "%s", json_is_true(json_object_get(g, "draining")) ? "leaves" : state);
    }
    if (f != NULL && json_is_integer(json_object_get(g, "stage"))) {
        json_int_t decode = number(json_object_get(f, "decode_steps"), "median_us");
        fill_to(p, 37);
        put(p, "%8s steps/s", rate(real(f, "steps_per_s"), text));
        put(p, " %3.0f%% busy", 100 * real(f, "busy"));
        if (decode > 0) put(p, "  decode %s", time_of(decode, text));
        if (number(f, "heap_calls") > 0) put(p, "  HEAP CALLS");
    }
    end_line(p);
    if (failure == NULL) return;
    colour(p, '!');
    put(p, "          %s", fleet_text(failure, "message"));
    colour(p, 0);
    end_line(p);
}

// Ranks whose ledgers look alike share a bar.
static void put_ranks(struct page *p, const json_t *g)
{
    const json_t *ranks = json_object_get(json_object_get(g, "figures"), "ranks");
    struct part parts[LEDGER_LINES], next[LEDGER_LINES];
    char label[56], text[2][AMOUNT_SIZE];
    double device = real(g, "device_bytes");
    size_t n = json_array_size(ranks);
    for (size_t i = 0, end; i < n; i = end) {
        double total = add_lines(json_object_get(json_array_get(ranks, i), "memory"), parts);
        for (end = i + 1; end < n; end++) {
            double other = add_lines(json_object_get(json_array_get(ranks, end), "memory"), next);
            if (other > total * 1.005 || other < total * 0.995) break;
        }
        if (total <= 0) continue;
        if (end - i > 1) snprintf(label, sizeof label, "ranks %zu-%zu", i, end - 1);
        else snprintf(label, sizeof label, "rank %zu", i);
        put(p, "    ");
        put_field(p, 11, label);
        put_bar(p, parts, LEDGER_LINES, device > total ? device : total);
        put(p, " %s of %s", amount(total, text[0]), amount(device, text[1]));
        end_line(p);
    }
}

// --- pipelines and models

static const json_t *group_of(const json_t *model, json_int_t pipeline, json_int_t stage)
{
    size_t i;
    json_t *g;
    json_array_foreach(json_object_get(model, "groups"), i, g) {
        if (number(g, "pipeline") == pipeline && number(g, "stage") == stage &&
            json_is_integer(json_object_get(g, "stage"))) {
            return g;
        }
    }
    return NULL;
}

static void put_kv(struct page *p, const json_t *kv)
{
    double all = real(kv, "blocks"), used = real(kv, "used"), reserved = real(kv, "reserved");
    const struct part parts[] = {{'#', used}, {'=', reserved > used ? reserved - used : 0}};
    char text[3][AMOUNT_SIZE];
    put(p, "  ");
    put_field(p, 13, "KV blocks");
    put_bar(p, parts, 2, all);
    put(p, " %s used %s reserved of %s", count((json_int_t) used, text[0]),
        count((json_int_t) reserved, text[1]), count((json_int_t) all, text[2]));
    end_line(p);
}

static void put_pipeline(struct page *p, const json_t *model, const json_t *pipeline)
{
    size_t i;
    json_t *name;
    char text[2][AMOUNT_SIZE], place[32];
    json_int_t id = number(pipeline, "id");
    const json_t *head = json_object_get(group_of(model, id, 0), "figures");
    const json_t *tokens = json_object_get(head, "tokens"), *kv = json_object_get(head, "kv");
    put(p, " pipeline %lld  %s", (long long) id, fleet_text(pipeline, "state"));
    if (json_is_true(json_object_get(pipeline, "paused"))) put(p, ", paused");
    if (tokens != NULL) {
        put(p, "  %lld/%lld sequences", (long long) number(head, "running"),
            (long long) number(head, "slots"));
        put(p, "  decode %s/s, prefill %s/s", rate(real(tokens, "decode_per_s"), text[0]),
            rate(real(tokens, "prefill_per_s"), text[1]));
    }
    end_line(p);
    if (kv != NULL) put_kv(p, kv);
    json_array_foreach(json_object_get(pipeline, "stages"), i, name) {
        const json_t *g = group_of(model, id, (json_int_t) i);
        snprintf(place, sizeof place, "stage %zu", i);
        if (g != NULL) {
            put_group(p, g, place);
            put_ranks(p, g);
        } else {
            put(p, "  %-8s(waits for a group)", place);
            end_line(p);
        }
    }
}

static void put_plan(struct page *p, const json_t *model)
{
    const json_t *plan = json_object_get(model, "plan");
    const json_t *refused = json_object_get(model, "refused");
    size_t i;
    json_t *n;
    colour(p, 'b');
    put(p, "model %s", fleet_text(model, "name"));
    colour(p, 0);
    if (refused != NULL) {
        put(p, "   no plan: %s", fleet_text(refused, "message"));
    } else if (!json_is_object(plan)) {
        put(p, "   no plan yet; it takes %lld groups",
            (long long) number(model, "stages_wanted"));
    } else {
        put(p, "   ");
        json_array_foreach(json_object_get(plan, "layers"), i, n) {
            put(p, "%s%lld", i > 0 ? "+" : "", (long long) json_integer_value(n));
        }
        put(p, " layers, tp %lld, %s, context %lld", (long long) number(plan, "tp"),
            fleet_text(plan, "precision"), (long long) number(plan, "max_context"));
    }
    end_line(p);
}

static void put_model(struct page *p, const json_t *model)
{
    size_t i;
    json_t *x;
    end_line(p);
    put_plan(p, model);
    json_array_foreach(json_object_get(model, "pipelines"), i, x) put_pipeline(p, model, x);
    json_array_foreach(json_object_get(model, "groups"), i, x) {
        if (!json_is_integer(json_object_get(x, "pipeline"))) put_group(p, x, "spare");
    }
}

static void put_fleet(struct page *p, const json_t *view)
{
    const json_t *fleet = json_object_get(view, "fleet");
    const json_t *said = json_object_get(fleet, "leader"), *leads = json_object_get(view, "leads");
    size_t i;
    json_t *model;
    char text[AMOUNT_SIZE];
    json_int_t old_ms = number(view, "at") - number(fleet, "at");
    bool own = json_is_object(leads) && number(leads, "term") == number(said, "term");
    if (!json_is_object(fleet)) {
        end_line(p);
        put(p, "Nothing is known of the fleet: no broker has said anything of it lately.");
        end_line(p);
        return;
    }
    // Every ten seconds it is said in any case.
    if (!own || old_ms > STALE_MS) {
        end_line(p);
        colour(p, '!');
        put(p, "As %s said %s ago:", fleet_text(said, "name"), age(old_ms, text));
        colour(p, 0);
        end_line(p);
    }
    json_array_foreach(json_object_get(fleet, "models"), i, model) put_model(p, model);
    end_line(p);
    put(p, "# used = reserved   w weights k KV a activations s sampler c scratch o other");
    end_line(p);
}

void top_page(const json_t *view, const struct top_style *style, struct buffer *to)
{
    struct page p = {.to = to, .style = style};
    put_head(&p, view);
    if (style->trouble != NULL) {
        end_line(&p);
        colour(&p, '!');
        put(&p, "%s", style->trouble);
        if (view != NULL) {
            char text[AMOUNT_SIZE];
            end_line(&p);
            put(&p, "What follows is %s old.", age(style->now_ms - number(view, "at"), text));
        }
        colour(&p, 0);
        end_line(&p);
    }
    if (view == NULL) return;
    put_tenants(&p, view);
    put_fleet(&p, view);
}
