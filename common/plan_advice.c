#include "common/plan_advice.h"

#include "common/plan_cost.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int64_t plan_kv_room(const struct plan *p)
{
    int64_t least = p->kv_room[0];
    for (int i = 1; i < p->pp; i++) least = p->kv_room[i] < least ? p->kv_room[i] : least;
    return least;
}

void plan_print_layers(const struct plan *p, char *text, size_t n)
{
    size_t at = 0;
    text[0] = '\0';
    for (int i = 0; i < p->pp && at < n; i++) {
        at += (size_t) snprintf(text + at, n - at, i > 0 ? ",%d" : "%d", p->layers[i]);
    }
}

__attribute__((format(printf, 2, 3))) static void say(struct advice *to, const char *format, ...)
{
    if (to->n == ADVICE_MAX) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(to->at[to->n++], ADVICE_SIZE, format, arguments);
    va_end(arguments);
}

static void print_bytes(char *text, size_t n, uint64_t bytes)
{
    if (bytes >= 1024 * (uint64_t) MIB && bytes % (uint64_t) GIB == 0) {
        snprintf(text, n, "%lluGiB", (unsigned long long) (bytes / (uint64_t) GIB));
    } else {
        snprintf(text, n, "%lluMiB", (unsigned long long) (bytes / (uint64_t) MIB));
    }
}

// --- remedies

struct search {
    struct plan_request asked;
    const struct advice_site *site;
    struct advice *to;
    struct plan_cost cost;
    struct layout_types implied;
    struct plan plan; // of the last change that fits
};

static bool count(struct search *s, const struct plan_request *r)
{
    struct plan_source source = {r->config, r->types, r->device, r->tp, r->mtp};
    return plan_cost_init(&s->cost, &source, NULL) == OK;
}

// The word of plan_would_fit, checked by making the plan.
static bool fits(struct search *s, const struct plan_request *r)
{
    return plan_make(&s->plan, r, NULL) == OK && s->plan.fits;
}

// The largest value of `field`, a multiple of `step` below what it is, with which the request fits;
// 0: none.
static int largest(struct search *s, struct plan_request *r, int *field, int step)
{
    int low = 0, high = (*field - 1) / step;
    while (low < high) {
        int middle = low + (high - low + 1) / 2;
        *field = middle * step;
        if (plan_would_fit(r, &s->cost)) low = middle;
        else high = middle - 1;
    }
    *field = low * step;
    return low > 0 && fits(s, r) ? low * step : 0;
}

static void less_of_what_was_pinned(struct search *s)
{
    struct plan_request r = s->asked;
    int n;
    if (r.kv_blocks > 0 && (n = largest(s, &r, &r.kv_blocks, 1)) > 0) {
        say(s->to, "--kv-blocks %d: a pool of %lld tokens", n, (long long) n * KV_BLOCK_ROWS);
    }
    r = s->asked;
    if (r.slots > 0 && (n = largest(s, &r, &r.slots, 1)) > 0) {
        say(s->to, "--slots %d: fewer sequences at once", n);
    }
    r = s->asked;
    if (r.max_context > 0 && (n = largest(s, &r, &r.max_context, KV_BLOCK_ROWS)) > 0) {
        say(s->to, "--max-context %d: shorter sequences", n);
    }
    r = s->asked;
    if (r.max_rows > 0 && (n = largest(s, &r, &r.max_rows, 1)) > 0) {
        say(s->to, "--max-rows %d: smaller steps", n);
    }
}

static void another_form(struct search *s)
{
    struct plan_request r = s->asked;
    if (r.layers[0] > 0) {
        memset(r.layers, 0, sizeof r.layers);
        char layers[PP_MAX * 5];
        if (fits(s, &r)) {
            plan_print_layers(&s->plan, layers, sizeof layers);
            say(s->to, "--layers %.180s: another split", layers);
        }
        r = s->asked;
    }
    r.f32 = false;
    if (s->asked.f32 && fits(s, &r)) say(s->to, "--precision bf16: activations and KV take half");
    r = s->asked;
    r.reserve = 0;
    if (s->asked.reserve > 0 && fits(s, &r)) say(s->to, "--reserve 0: nothing left to others");
    r = s->asked;
    r.mtp = false;
    if (s->asked.mtp && fits(s, &r)) say(s->to, "no --mtp: without multi-token prediction");
}

static uint64_t smallest_device(const struct plan_request *r)
{
    uint64_t least = r->device_bytes[0];
    for (int i = 1; i < r->pp; i++) {
        if (r->device_bytes[i] < least) least = r->device_bytes[i];
    }
    return least;
}

static void more_stages(struct search *s)
{
    struct plan_request r = s->asked;
    int most = r.config->n_layers < PP_MAX ? r.config->n_layers : PP_MAX;
    uint64_t bytes = smallest_device(&r);
    memset(r.layers, 0, sizeof r.layers);
    while (++r.pp <= most) {
        r.device_bytes[r.pp - 1] = bytes;
        r.rates[r.pp - 1] = s->asked.rates[0];
        if (!plan_would_fit(&r, &s->cost) || !fits(s, &r)) continue;
        int each = s->site->stages_per_node, nodes = (r.pp + each - 1) / each;
        if (each == 1) say(s->to, "--nodes %d: %d stages", nodes, r.pp);
        else say(s->to, "--nodes %d --pp %d: %d stages, %d a node", nodes, r.pp, r.pp, each);
        return;
    }
}

// Ranks share out the weights; a power of two keeps all sizes divisible as they were.
static void more_ranks(struct search *s)
{
    struct plan_request r = s->asked;
    while ((r.tp *= 2) <= TP_MAX) {
        if (layout_check_tp(r.config, r.tp, NULL) != OK) return;
        if (!count(s, &r) || !plan_would_fit(&r, &s->cost) || !fits(s, &r)) continue;
        if (r.tp <= s->site->gpus) say(s->to, "--tp %d: more ranks a stage", r.tp);
        else say(s->to, "--gpus %d --tp %d: nodes with more GPUs", r.tp, r.tp);
        return;
    }
}

static void raise_devices(struct plan_request *r, const struct plan_request *asked, uint64_t bytes)
{
    for (int i = 0; i < r->pp; i++) {
        r->device_bytes[i] = asked->device_bytes[i] > bytes ? asked->device_bytes[i] : bytes;
    }
}

static void larger_devices(struct search *s)
{
    struct plan_request r = s->asked;
    uint64_t low = smallest_device(&r) / (uint64_t) MIB, high = 1ull << 40; // MiB
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        raise_devices(&r, &s->asked, middle * (uint64_t) MIB);
        if (plan_would_fit(&r, &s->cost)) high = middle;
        else low = middle + 1;
    }
    raise_devices(&r, &s->asked, low * (uint64_t) MIB);
    if (!fits(s, &r)) return;
    char text[32];
    print_bytes(text, sizeof text, low * (uint64_t) MIB);
    say(s->to, "--vram %s: devices of at least so much", text);
}

void plan_remedies(const struct plan_request *r, const struct advice_site *site, struct advice *to)
{
    struct search s = {.asked = *r, .site = site, .to = to};
    *to = (struct advice){0};
    if (r->types == NULL) {
        layout_types_imply(&s.implied, r->config);
        s.asked.types = &s.implied;
    }
    if (!count(&s, &s.asked)) return;
    less_of_what_was_pinned(&s);
    another_form(&s);
    more_stages(&s);
    larger_devices(&s);
    more_ranks(&s); // counts anew: the last
}

// --- pins

static size_t add(char *text, size_t at, const char *what, int64_t is, int64_t would)
{
    if (is == would || at >= ADVICE_SIZE) return at;
    return at + (size_t) snprintf(text + at, ADVICE_SIZE - at, "%s%s %lld instead of %lld",
                                  at > 0 ? ", " : "", what, (long long) is, (long long) would);
}

// What is otherwise in the plan of `r`, in which one pin is open.
static void open_pin(const struct plan_request *r, const struct plan *p, const char *flag,
                     struct advice *to)
{
    struct plan other;
    char text[ADVICE_SIZE] = "", layers[PP_MAX * 5], others[PP_MAX * 5];
    if (plan_make(&other, r, NULL) != OK) return;
    if (!other.fits) {
        say(to, "%s: without it, it would not fit", flag);
        return;
    }
    size_t at = add(text, 0, "room for KV blocks", plan_kv_room(p), plan_kv_room(&other));
    at = add(text, at, "KV blocks", p->kv_blocks, other.kv_blocks);
    at = add(text, at, "slots", p->slots, other.slots);
    at = add(text, at, "tokens of a sequence", p->max_context, other.max_context);
    at = add(text, at, "rows of a step", p->max_rows, other.max_rows);
    plan_print_layers(p, layers, sizeof layers);
    plan_print_layers(&other, others, sizeof others);
    if (strcmp(layers, others) != 0 && at < ADVICE_SIZE) {
        snprintf(text + at, ADVICE_SIZE - at, "%slayers %.80s instead of %.80s", at > 0 ? ", " : "",
                 layers, others);
    }
    say(to, "%s: %.180s", flag, text[0] != '\0' ? text : "costs nothing, it would be chosen");
}

void plan_pins(const struct plan_request *r, const struct plan *p, struct advice *to)
{
    struct plan_request open = *r;
    int *const pins[] = {&open.layers[0], &open.kv_blocks, &open.slots, &open.max_context,
                         &open.max_rows};
    static const char *const FLAGS[] = {"--layers", "--kv-blocks", "--slots", "--max-context",
                                        "--max-rows"};
    *to = (struct advice){0};
    for (size_t i = 0; i < sizeof pins / sizeof *pins; i++) {
        if (*pins[i] == 0) continue;
        *pins[i] = 0;
        open_pin(&open, p, FLAGS[i], to);
        open = *r;
    }
}
