#include "common/plan_advice.h"

#include "common/layout.h"
#include "common/plan_cost.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

__attribute__((format(printf, 2, 3))) static void say(struct advice *to, const char *format, ...)
{
    if (to->n == ADVICE_MAX) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(to->at[to->n++], ADVICE_SIZE, format, arguments);
    va_end(arguments);
}

// --- the flags of a change

struct text {
    char at[ADVICE_SIZE];
    size_t n; // ADVICE_SIZE: it did not fit
};

__attribute__((format(printf, 2, 3))) static void put(struct text *to, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(to->at + to->n, ADVICE_SIZE - to->n, format, arguments);
    va_end(arguments);
    to->n = (size_t) n < ADVICE_SIZE - to->n ? to->n + (size_t) n : ADVICE_SIZE;
}

static void put_flag(struct text *to, const char *flag, int was, int is)
{
    if (is != was && is > 0) put(to, " --%s %d", flag, is);
}

static void put_bytes(struct text *to, uint64_t bytes)
{
    if (bytes % (uint64_t) GIB == 0) {
        put(to, "%lluGiB", (unsigned long long) (bytes / (uint64_t) GIB));
    } else if (bytes % (uint64_t) MIB == 0) {
        put(to, "%lluMiB", (unsigned long long) (bytes / (uint64_t) MIB));
    } else {
        put(to, "%llu", (unsigned long long) bytes);
    }
}

static void put_vram(struct text *to, const struct plan_machines *m)
{
    int n = 1;
    for (int i = 1; i < m->n_bytes; i++) n = m->bytes[i] != m->bytes[0] ? m->n_bytes : n;
    for (int i = 0; i < n; i++) {
        put(to, "%s", i == 0 ? " --vram " : ",");
        put_bytes(to, m->bytes[i]);
    }
}

static void put_rates(struct text *to, const struct plan_machines *m)
{
    int n = 1;
    for (int i = 1; i < m->n_rates; i++) n = m->rates[i] != m->rates[0] ? m->n_rates : n;
    for (int i = 0; i < n; i++) put(to, "%s%s", i == 0 ? " --rates " : ",", m->rates[i]->name);
}

static bool same_bytes(const struct plan_machines *a, const struct plan_machines *b)
{
    return a->n_bytes == b->n_bytes && memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

// What is to be typed for `m` and `r` where `was` and `asked` were.
static void put_change(struct text *to, const struct plan_machines *was,
                       const struct plan_request *asked, const struct plan_machines *m,
                       const struct plan_request *r)
{
    bool layers = memcmp(r->layers, asked->layers, sizeof r->layers) != 0;
    put_flag(to, "nodes", was->nodes, m->nodes);
    put_flag(to, "gpus", was->gpus, m->gpus);
    put_flag(to, "pp", was->pp, m->pp);
    put_flag(to, "tp", was->tp, m->tp);
    if (!same_bytes(was, m)) put_vram(to, m);
    if (m->n_rates != was->n_rates) put_rates(to, m);
    if (m->device != was->device) put(to, " --device %s", device_sizes(m->device)->name);
    for (int i = 0; layers && r->layers[0] > 0 && i < r->pp; i++) {
        put(to, "%s%d", i == 0 ? " --layers " : ",", r->layers[i]);
    }
    put_flag(to, "kv-blocks", asked->kv_blocks, r->kv_blocks);
    put_flag(to, "slots", asked->slots, r->slots);
    put_flag(to, "max-context", asked->max_context, r->max_context);
    put_flag(to, "max-rows", asked->max_rows, r->max_rows);
    if (r->f32 != asked->f32) put(to, " --precision bf16");
    if (r->fp8_kv != asked->fp8_kv) put(to, " --kv fp8");
    if (r->reserve != asked->reserve) put(to, " --reserve 0");
    if (layers && r->layers[0] == 0) put(to, " without --layers");
    if (r->mtp != asked->mtp) put(to, " without --mtp");
}

// --- remedies

struct search {
    struct plan_request typed, asked; // asked: where they differ, for all remedies
    struct plan_machines machines;
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

// Tells of a change if the flags that it takes lead to a plan that fits.
static bool offer(struct search *s, const struct plan_machines *machines,
                  const struct plan_request *request, const char *why)
{
    struct plan_machines m = *machines;
    struct plan_request r = *request;
    struct text text = {.n = 0};
    if (plan_machines_cut(&m, &r, NULL) != OK) return false;
    if (r.device != s->asked.device) { // auto, which memory decides
        m.device = s->asked.device;
        if (plan_machines_cut(&m, &r, NULL) != OK) return false;
    }
    if (plan_make(&s->plan, &r, NULL) != OK || !s->plan.fits) return false;
    put_change(&text, &s->machines, &s->typed, &m, &r);
    put(&text, ": %s", why);
    if (text.n == ADVICE_SIZE) return false;
    say(s->to, "%s", text.at + 1);
    return true;
}

// The largest value of `field`, a multiple of `step` from `least` on and below what it is, with
// which the request fits, if there is one.
static bool largest(struct search *s, struct plan_request *r, int *field, int step, int least)
{
    int low = (least + step - 1) / step - 1, none = low, high = (*field - 1) / step;
    while (low < high) {
        int middle = low + (high - low + 1) / 2;
        *field = middle * step;
        if (plan_would_fit(r, &s->cost)) low = middle;
        else high = middle - 1;
    }
    *field = low * step;
    return low > none;
}

// Blocks of a sequence whose length was pinned, else 1.
static int pinned_blocks(const struct plan_request *r)
{
    return r->max_context > 0 ? (r->max_context + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS : 1;
}

static void less_of_what_was_pinned(struct search *s)
{
    struct plan_request r = s->asked;
    char why[64];
    if (r.kv_blocks > 0 && largest(s, &r, &r.kv_blocks, 1, pinned_blocks(&r))) {
        snprintf(why, sizeof why, "a pool of %lld tokens", (long long) r.kv_blocks * KV_BLOCK_ROWS);
        offer(s, &s->machines, &r, why);
    }
    r = s->asked;
    if (r.slots > 0 && largest(s, &r, &r.slots, 1, 1)) {
        offer(s, &s->machines, &r, "fewer sequences at once");
    }
    r = s->asked;
    if (r.max_context > 0 && largest(s, &r, &r.max_context, KV_BLOCK_ROWS, 1)) {
        offer(s, &s->machines, &r, "shorter sequences");
    }
    r = s->asked;
    if (r.max_rows > 0 && largest(s, &r, &r.max_rows, 1, 1)) {
        offer(s, &s->machines, &r, "smaller steps");
    }
}

static void another_form(struct search *s)
{
    struct plan_request r = s->asked;
    if (r.layers[0] > 0) {
        memset(r.layers, 0, sizeof r.layers);
        if (plan_make(&s->plan, &r, NULL) == OK && s->plan.fits) {
            memcpy(r.layers, s->plan.layers, sizeof r.layers);
            offer(s, &s->machines, &r, "another split");
        }
        r = s->asked;
    }
    r.f32 = false;
    if (s->asked.f32) offer(s, &s->machines, &r, "activations and KV take half");
    r = s->asked;
    r.fp8_kv = true;
    if (!s->asked.fp8_kv) offer(s, &s->machines, &r, "KV takes little more than half");
    r = s->asked;
    r.reserve = 0;
    if (s->asked.reserve > 0) offer(s, &s->machines, &r, "nothing left to others");
    r = s->asked;
    r.mtp = false;
    if (s->asked.mtp) offer(s, &s->machines, &r, "no multi-token prediction");
}

static uint64_t smallest_device(const struct plan_request *r)
{
    uint64_t least = r->device_bytes[0];
    for (int i = 1; i < r->pp; i++) {
        if (r->device_bytes[i] < least) least = r->device_bytes[i];
    }
    return least;
}

// Nodes enough for pp stages; new ones are like the one with the smallest devices. Without --layers
// and --pp there are as many stages as nodes.
static void make_room(const struct search *s, struct plan_machines *m, int pp, bool layers)
{
    int each = m->gpus / (m->tp > 0 ? m->tp : m->gpus), nodes = (pp + each - 1) / each, like = 0;
    while (m->bytes[like] != smallest_device(&s->asked)) like++;
    for (int i = m->nodes; i < nodes; i++) {
        m->bytes[i] = m->bytes[like];
        m->rates[i] = m->rates[like];
    }
    if (nodes > m->nodes) {
        if (m->n_bytes > 1) m->n_bytes = nodes;
        if (m->n_rates > 1) m->n_rates = nodes;
        m->nodes = nodes;
    }
    bool given = layers || (m->pp == 0 && plan_machines_stages(m, s->asked.config) == pp);
    if (!given) m->pp = pp;
}

static void more_stages(struct search *s)
{
    int most = s->asked.config->n_layers < PP_MAX ? s->asked.config->n_layers : PP_MAX;
    for (int pp = s->asked.pp + 1; pp <= most; pp++) {
        struct plan_machines m = s->machines;
        struct plan_request r = s->asked;
        char why[64];
        memset(r.layers, 0, sizeof r.layers);
        make_room(s, &m, pp, false);
        if (plan_machines_cut(&m, &r, NULL) != OK || !plan_would_fit(&r, &s->cost)) continue;
        int each = plan_machines_per_node(&m, pp);
        if (each == 1) snprintf(why, sizeof why, "%d stages", pp);
        else snprintf(why, sizeof why, "%d stages, %d a node", pp, each);
        if (offer(s, &m, &r, why)) return;
    }
}

// Ranks share out the weights; a power of two keeps all sizes divisible as they were.
static void more_ranks(struct search *s)
{
    struct plan_request r = s->asked;
    while ((r.tp *= 2) <= TP_MAX) {
        struct plan_machines m = s->machines;
        if (layout_check_tp(r.config, r.tp, NULL) != OK) return;
        if (!count(s, &r) || !plan_would_fit(&r, &s->cost)) continue;
        bool more = r.tp > m.gpus;
        if (more) m.gpus = r.tp;
        m.tp = r.tp;
        make_room(s, &m, r.pp, r.layers[0] > 0);
        if (offer(s, &m, &r, more ? "nodes with more GPUs" : "more ranks a stage")) return;
    }
}

static void raise_devices(const struct search *s, struct plan_machines *m, struct plan_request *r,
                          uint64_t bytes)
{
    *m = s->machines;
    for (int i = 0; i < PP_MAX; i++) m->bytes[i] = m->bytes[i] > bytes ? m->bytes[i] : bytes;
    m->device = s->asked.device;
    check(plan_machines_cut(m, r, NULL) == OK, "it was cut so");
    m->device = s->machines.device;
}

static void larger_devices(struct search *s)
{
    struct plan_request r = s->asked;
    struct plan_machines m;
    uint64_t low = smallest_device(&r) / (uint64_t) MIB, high = 1ull << 42; // MiB
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        raise_devices(s, &m, &r, middle * (uint64_t) MIB);
        if (plan_would_fit(&r, &s->cost)) high = middle;
        else low = middle + 1;
    }
    raise_devices(s, &m, &r, low * (uint64_t) MIB);
    if (m.n_bytes <= PP_MAX && offer(s, &m, &r, "devices of at least so much")) return;
    // A list as long as this is of no use.
    for (int i = 0; i < PP_MAX; i++) m.bytes[0] = m.bytes[i] > m.bytes[0] ? m.bytes[i] : m.bytes[0];
    for (int i = 1; i < PP_MAX; i++) m.bytes[i] = m.bytes[0];
    m.n_bytes = 1;
    offer(s, &m, &r, "devices of at least so much");
}

// A sequence longer than the whole pool: each of both pins can yield. If memory is short, too, the
// sequence does, for all that follows.
static bool settle_pool(struct search *s)
{
    int blocks = pinned_blocks(&s->asked);
    if (s->asked.kv_blocks == 0 || s->asked.kv_blocks >= blocks) return false;
    struct plan_request r = s->asked;
    char why[64];
    r.kv_blocks = blocks;
    snprintf(why, sizeof why, "a pool of %lld tokens", (long long) blocks * KV_BLOCK_ROWS);
    bool settled = offer(s, &s->machines, &r, why);
    s->asked.max_context = s->asked.kv_blocks * KV_BLOCK_ROWS;
    return offer(s, &s->machines, &s->asked, "shorter sequences") || settled;
}

void plan_remedies(const struct plan_request *r, const struct plan_machines *m, struct advice *to)
{
    struct search s = {.typed = *r, .asked = *r, .machines = *m, .to = to};
    *to = (struct advice){0};
    if (r->types == NULL) {
        layout_types_imply(&s.implied, r->config);
        s.asked.types = &s.implied;
    }
    if (!count(&s, &s.asked) || settle_pool(&s)) return;
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
    char text[ADVICE_SIZE] = "", layers[PLAN_LAYERS_TEXT_MAX], others[PLAN_LAYERS_TEXT_MAX];
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
        snprintf(text + at, ADVICE_SIZE - at, "%slayers %s instead of %s", at > 0 ? ", " : "",
                 layers, others);
    }
    say(to, "%s: %.2000s", flag, text[0] != '\0' ? text : "costs nothing, it would be chosen");
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
