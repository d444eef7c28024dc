// Packing weights: rows as they lie in a checkpoint become panels of groups. Wherever a tile is
// whole, four groups of sixteen rows are turned at a time, in vectors that every CPU has.
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/device.h"

#include <string.h>

enum { PACK_ROWS = CPU_PACK_ROWS, QUAD = 4 };
_Static_assert(PACK_ROWS == 4 * QUAD, "a tile is four quads of rows");

int gemm_phase(const struct matrix *w) { return w->dtype == DTYPE_F8_E4M3 ? w->col_phase : 0; }

uint64_t gemm_panel_bytes(const struct matrix *w)
{
    struct matrix_shape shape = matrix_shape(w);
    return cpu_panel_bytes(&shape);
}

uint64_t gemm_nan_bytes(const struct matrix *w)
{
    struct matrix_shape shape = matrix_shape(w);
    return cpu_nan_bytes(&shape);
}

// Sixteen rows of the slice on their way into one tile of a panel.
struct tile {
    const struct matrix *m;
    const char *rows; // (n, k) in the matrix's type, not aligned
    int n;            // rows there are; the others become zeros
    size_t row_bytes;
    char *to;         // the tile's dwords of the panel's first group
};

// The dword of row `row` that begins at value `at` of the slice: values outside it are zero.
static uint32_t pack_group(const struct matrix *m, const char *row, int at)
{
    static const int order[4] = {0, 2, 1, 3};
    int group = cpu_group_values(m->dtype), size = 4 / group;
    uint32_t dword = 0;
    for (int i = 0; i < group; i++) {
        if (at + i < 0 || at + i >= m->k) continue;
        uint32_t value = 0; // of `size` bytes, little end first on every CPU
        memcpy(&value, row + (size_t) (at + i) * size, (size_t) size);
        dword |= value << 8 * (group == 4 ? order[i] : size * i);
    }
    return dword;
}

// One group of the tile, value by value: at the edges.
static void pack_slowly(const struct tile *t, int at, char *to)
{
    uint32_t dwords[PACK_ROWS] = {0};
    for (int i = 0; i < t->n; i++) {
        dwords[i] = pack_group(t->m, t->rows + (size_t) i * t->row_bytes, at);
    }
    memcpy(to, dwords, sizeof dwords);
}

typedef uint32_t quad __attribute__((vector_size(16)));

static quad load_quad(const char *from)
{
    quad q;
    memcpy(&q, from, sizeof q);
    return q;
}

// The two middle values of four change places, as the inner loops want them.
static quad swap_middle(quad q)
{
    return (q & 0xff0000ffu) | (q & 0x0000ff00u) << 8 | (q >> 8 & 0x0000ff00u);
}

// QUAD groups of QUAD rows: dword g of row i becomes dword i of group g.
static void turn_quads(const struct tile *t, const char *from, char *to, bool swap)
{
    quad a = load_quad(from), b = load_quad(from + t->row_bytes);
    quad c = load_quad(from + 2 * t->row_bytes), d = load_quad(from + 3 * t->row_bytes);
    if (swap) {
        a = swap_middle(a);
        b = swap_middle(b);
        c = swap_middle(c);
        d = swap_middle(d);
    }
    quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    quad groups[QUAD] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
                         __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
                         __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                         __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
    for (int g = 0; g < QUAD; g++) memcpy(to + (size_t) g * GROUP_BYTES, &groups[g], sizeof(quad));
}

static void pack_tile(const struct tile *t)
{
    const struct matrix *m = t->m;
    int phase = gemm_phase(m), group = cpu_group_values(m->dtype);
    int at = phase / group * group - phase; // of the first group; it may begin before the slice
    char *to = t->to;
    for (; at < 0; at += group, to += GROUP_BYTES) pack_slowly(t, at, to);
    bool swap = m->dtype == DTYPE_F8_E4M3;
    for (; t->n == PACK_ROWS && at + QUAD * group <= m->k; at += QUAD * group) {
        const char *from = t->rows + (size_t) at * dtype_size(m->dtype);
        for (int i = 0; i < PACK_ROWS; i += QUAD) {
            turn_quads(t, from + (size_t) i * t->row_bytes, to + (size_t) i * 4, swap);
        }
        to += (size_t) QUAD * GROUP_BYTES;
    }
    for (; at < m->k; at += group, to += GROUP_BYTES) pack_slowly(t, at, to);
}

// A NaN of e4m3 has all bits but the sign.
static bool has_nan(const uint8_t *row, int k)
{
    uint8_t found = 0;
    for (int i = 0; i < k; i++) found |= (row[i] & 0x7f) == 0x7f;
    return found != 0;
}

struct pack {
    struct matrix *m;
    int row0, n_rows;
    const char *rows;
};

// Items are tiles of PACK_ROWS outputs, so that whole cache lines are written.
static void pack_tiles(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct pack *p = arg;
    struct matrix *m = p->m;
    for (int i = begin; i < end; i++) {
        int row = p->row0 + i * PACK_ROWS, left = p->n_rows - i * PACK_ROWS;
        struct tile t = {.m = m,
                         .n = left < PACK_ROWS ? left : PACK_ROWS,
                         .row_bytes = (size_t) m->k * dtype_size(m->dtype)};
        t.rows = p->rows + (size_t) i * PACK_ROWS * t.row_bytes;
        t.to = (char *) m->data + gemm_nan_bytes(m) +
               (size_t) (row / PANEL) * gemm_panel_bytes(m) + (size_t) (row % PANEL) * 4;
        pack_tile(&t);
        if (m->dtype != DTYPE_F8_E4M3) continue;
        uint16_t bits = 0;
        for (int k = 0; k < t.n; k++) {
            bool nan = has_nan((const uint8_t *) t.rows + (size_t) k * t.row_bytes, m->k);
            bits |= (uint16_t) (nan << k);
        }
        memcpy((uint16_t *) m->data + row / PACK_ROWS, &bits, sizeof bits);
    }
}

// Zeros the tiles that no row reaches, so that the last panel is whole.
static void pack_rest(struct matrix *m)
{
    int first = (m->n + PACK_ROWS - 1) / PACK_ROWS * PACK_ROWS;
    uint64_t panel = gemm_panel_bytes(m);
    for (int row = first; row < cpu_panels(m->n) * PANEL; row += PACK_ROWS) {
        char *to = (char *) m->data + gemm_nan_bytes(m) + (size_t) (row / PANEL) * panel;
        for (uint64_t at = (uint64_t) (row % PANEL) * 4; at < panel; at += GROUP_BYTES) {
            memset(to + at, 0, (size_t) PACK_ROWS * 4);
        }
        if (m->dtype == DTYPE_F8_E4M3) ((uint16_t *) m->data)[row / PACK_ROWS] = 0;
    }
}

void cpu_matrix_pack(struct device *d, struct matrix *m, int row0, int n_rows, const void *rows)
{
    check(row0 % PACK_ROWS == 0 && row0 + n_rows <= m->n, "rows [%d, %d) of %d", row0,
          row0 + n_rows, m->n);
    check(n_rows % PACK_ROWS == 0 || row0 + n_rows == m->n, "%d rows", n_rows);
    struct pack p = {m, row0, n_rows, rows};
    team_run(d->team, pack_tiles, &p, (n_rows + PACK_ROWS - 1) / PACK_ROWS, 1);
    if (row0 + n_rows == m->n) pack_rest(m);
}
