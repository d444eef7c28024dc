#include "common/plan_split.h"

#include <string.h>

enum { PICOSECONDS = 1000 * 1000 * 1000 }; // of a millisecond

// What a split must keep to: this many KV blocks, no stage beyond its device by more than `lack`,
// nor beyond `most` bytes, nor slower than `time` picoseconds.
struct bounds {
    int64_t kv_blocks;
    uint64_t lack, most, time;
};

#define NO_BOUND (UINT64_MAX / 4)

struct plan_stage plan_split_stage(const struct plan_split *s, int i, int first, int n)
{
    return (struct plan_stage){first, first + n, i == 0, i == s->pp - 1};
}

static bool fits(const struct plan_split *s, const struct bounds *b, int i, int first, int n)
{
    struct plan_stage stage = plan_split_stage(s, i, first, n);
    uint64_t bytes = plan_cost_bytes(s->cost, &stage, b->kv_blocks);
    if (bytes > b->most || bytes > s->device_bytes[i] + b->lack) return false;
    return b->time == NO_BOUND || plan_split_time(s, i, first, n) <= b->time;
}

uint64_t plan_split_time(const struct plan_split *s, int i, int first, int n)
{
    struct plan_stage stage = plan_split_stage(s, i, first, n);
    const struct plan_times *t = s->times;
    double ms = 1e3 * cost_stage(&t->model, &stage, t->rates[i], &t->step).seconds;
    double ps = ms * PICOSECONDS, most = (double) (NO_BOUND / 2);
    return (uint64_t) (ps < most ? ps : most);
}

// can[i][l]: the stages i .. pp-1 can take the layers l .. n_layers-1, each one or more. Since
// fewer layers cost less of everything, a stage need only try the nearest layer from which the
// later stages can go on.
struct table {
    bool can[PP_MAX + 1][MODEL_LAYERS_MAX + 1];
};

static bool fill_table(struct table *t, const struct plan_split *s, const struct bounds *b)
{
    memset(t, 0, sizeof *t);
    t->can[s->pp][s->n_layers] = true;
    for (int i = s->pp - 1; i >= 0; i--) {
        int next = -1;
        for (int first = s->n_layers - 1; first >= 0; first--) {
            if (t->can[i + 1][first + 1]) next = first + 1;
            t->can[i][first] = next > 0 && fits(s, b, i, first, next - first);
        }
    }
    return t->can[0][0];
}

// Lowers *bound, a member of b, to the smallest value from `low` on under which there is a split;
// at its present value there is one.
static void lower(struct table *t, const struct plan_split *s, struct bounds *b, uint64_t *bound,
                  uint64_t low)
{
    uint64_t high = *bound;
    while (low < high) {
        *bound = low + (high - low) / 2;
        if (fill_table(t, s, b)) high = *bound;
        else low = *bound + 1;
    }
    *bound = high;
}

// The most KV blocks, 0 to `most`, for which there is a split.
static int64_t most_blocks(struct table *t, const struct plan_split *s, struct bounds b,
                           int64_t most)
{
    int64_t low = 0, high = most;
    while (low < high) {
        b.kv_blocks = high - (high - low) / 2;
        if (fill_table(t, s, &b)) low = b.kv_blocks;
        else high = b.kv_blocks - 1;
    }
    return low;
}

bool plan_split_fits(const struct plan_split *s, int64_t kv_blocks)
{
    struct table t;
    struct bounds b = {.kv_blocks = kv_blocks, .most = NO_BOUND, .time = NO_BOUND};
    return fill_table(&t, s, &b);
}

int64_t plan_split_choose(const struct plan_split *s, int64_t need, int64_t most, int *layers)
{
    struct table t;
    struct bounds b = {.kv_blocks = need, .most = NO_BOUND, .time = NO_BOUND};
    if (s->times != NULL && fill_table(&t, s, &b)) {
        b.time = NO_BOUND - 1;
        lower(&t, s, &b, &b.time, 0);
    }
    int64_t blocks = most_blocks(&t, s, b, most);
    b.kv_blocks = blocks;
    if (blocks == 0) {
        b.kv_blocks = 1;
        b.lack = NO_BOUND;
        lower(&t, s, &b, &b.lack, 0);
    }
    lower(&t, s, &b, &b.most, 0);
    check(fill_table(&t, s, &b), "the bounds allow a split");
    for (int i = 0, first = 0; i < s->pp; first += layers[i++]) {
        int n = s->n_layers - first;
        while (!t.can[i + 1][first + n] || !fits(s, &b, i, first, n)) n--;
        check(n > 0, "the table led nowhere");
        layers[i] = n;
    }
    return blocks;
}

int64_t plan_split_room(const struct plan_split *s, int i, int first, int n)
{
    struct plan_stage stage = plan_split_stage(s, i, first, n);
    uint64_t fixed = plan_cost_bytes(s->cost, &stage, 0);
    if (fixed >= s->device_bytes[i]) return 0;
    int64_t room = (int64_t) ((s->device_bytes[i] - fixed) / plan_cost_block(s->cost, &stage));
    // Padding.
    while (room > 0 && plan_cost_bytes(s->cost, &stage, room) > s->device_bytes[i]) room--;
    return room;
}

int64_t plan_split_blocks(const struct plan_split *s, const int *layers, int64_t most)
{
    int64_t blocks = most;
    for (int i = 0, first = 0; i < s->pp; first += layers[i++]) {
        int64_t room = plan_split_room(s, i, first, layers[i]);
        if (room < blocks) blocks = room;
    }
    return blocks;
}
