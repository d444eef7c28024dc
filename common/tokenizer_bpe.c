#include "common/tokenizer_bpe.h"

#include <stdlib.h>
#include <string.h>

enum {
    SHORT_MAX = 128,   // bytes up to which a scan for the lowest rank beats a heap
    LANES = 8,         // of that scan
    WINDOW_LEAST = 1024,
    WINDOW_TOKENS = 8, // of the longest token's bytes, at least
    TAIL_TOKENS = 2,   // what a window's end may have spoilt, in the same measure
};

// A pair that merges, by the hash of its ids; rank NO_RANK: an empty slot.
struct bpe_pair {
    int32_t left, right, merged;
    uint32_t rank;
};

#define NO_RANK UINT32_MAX

// The filter has 2^FILTER_BITS bits for each slot of the table and is asked first: most pairs never
// merge, and it fits in a cache where the table does not.
enum { FILTER_BITS = 2 };

static uint64_t pair_hash(int32_t left, int32_t right)
{
    return ((uint64_t) left << 32 | (uint32_t) right) * 0x9e3779b97f4a7c15u;
}

// What this pair merges to, and at which rank; NO_RANK if it never does.
static inline uint32_t pair_rank(const struct bpe *b, int32_t left, int32_t right, int32_t *merged)
{
    uint64_t hash = pair_hash(left, right), mask = (1u << b->bits) - 1;
    uint64_t bit = hash >> (64 - b->bits - FILTER_BITS);
    if ((b->filter[bit / 64] >> bit % 64 & 1) == 0) return NO_RANK;
    for (uint64_t at = hash >> (64 - b->bits);; at = (at + 1) & mask) {
        const struct bpe_pair *p = &b->pairs[at];
        if (p->rank != NO_RANK && (p->left != left || p->right != right)) continue;
        *merged = p->merged;
        return p->rank;
    }
}

// Bytes 0xc0, 0xc1 and 0xf5 to 0xff occur in no UTF-8, and small vocabularies leave them out.
static bool occurs_in_utf8(int byte)
{
    return byte < 0xc0 || (byte > 0xc1 && byte < 0xf5);
}

enum status bpe_init(struct bpe *b, const struct vocab *vocab, int n_merges, struct error *e)
{
    *b = (struct bpe){.vocab = vocab, .bits = 4, .merges_capacity = n_merges};
    b->window = WINDOW_TOKENS * vocab->longest;
    if (b->window < WINDOW_LEAST) b->window = WINDOW_LEAST;
    for (int i = 0; i < 256; i++) {
        uint8_t byte = (uint8_t) i;
        b->byte_ids[i] = vocab_find(vocab, &byte, 1);
        if (b->byte_ids[i] < 0 && occurs_in_utf8(i)) {
            return error_set(e, ERR_INPUT, "bad_tokenizer",
                             "model.vocab has no token for the byte 0x%02x", i);
        }
    }
    while (1 << b->bits < 2 * n_merges) b->bits++;
    size_t n_slots = (size_t) 1 << b->bits;
    b->pairs = malloc(n_slots * sizeof *b->pairs);
    b->filter = calloc((n_slots << FILTER_BITS) / 64, sizeof *b->filter);
    if (b->pairs == NULL || b->filter == NULL) {
        return error_set(e, ERR_NOMEM, "no_memory", "no memory for %d merges", n_merges);
    }
    for (size_t i = 0; i < n_slots; i++) b->pairs[i].rank = NO_RANK;
    return OK;
}

void bpe_deinit(struct bpe *b)
{
    free(b->pairs);
    free(b->filter);
    *b = (struct bpe){0};
}

void bpe_merge(struct bpe *b, int32_t left, int32_t right, int32_t merged)
{
    check(b->n_merges < b->merges_capacity, "%d merges", b->n_merges);
    uint64_t hash = pair_hash(left, right), mask = (1u << b->bits) - 1;
    uint64_t at = hash >> (64 - b->bits), bit = hash >> (64 - b->bits - FILTER_BITS);
    b->filter[bit / 64] |= 1ull << bit % 64;
    struct bpe_pair *p = &b->pairs[at];
    while (p->rank != NO_RANK && (p->left != left || p->right != right)) {
        at = (at + 1) & mask;
        p = &b->pairs[at];
    }
    // Of a pair that comes twice the later rank holds, as in the tokenizers library.
    *p = (struct bpe_pair){left, right, merged, (uint32_t) b->n_merges++};
}

void bpe_scratch_deinit(struct bpe_scratch *s)
{
    free(s->ids);
    free(s->symbols);
    free(s->heap);
    *s = (struct bpe_scratch){0};
}

// --- few bytes: the lowest rank is found by looking at all

// Rank and place of a pair in one number, so that the smallest is the one to merge.
enum { PLACE_BITS = 7, NO_PAIR = INT32_MAX };

_Static_assert(SHORT_MAX <= 1 << PLACE_BITS, "a place fits");
_Static_assert(BPE_MERGES_MAX < 1 << (31 - PLACE_BITS), "and a rank");

struct few {
    int32_t pairs[SHORT_MAX]; // of each place that is left and the next one
    int32_t ids[SHORT_MAX], merged[SHORT_MAX];
    uint8_t before[SHORT_MAX], next[SHORT_MAX];
    int n;
};

static inline void pair_again(const struct bpe *b, struct few *f, int at)
{
    uint32_t rank = NO_RANK;
    if (f->next[at] < f->n) {
        rank = pair_rank(b, f->ids[at], f->ids[f->next[at]], &f->merged[at]);
    }
    f->pairs[at] = rank == NO_RANK ? NO_PAIR : (int32_t) (rank << PLACE_BITS | (uint32_t) at);
}

// Merges n <= SHORT_MAX bytes into `ids`; returns how many remain.
static int merge_short(const struct bpe *b, const uint8_t *piece, int n, int32_t *ids)
{
    struct few f;
    f.n = n;
    for (int i = 0; i < n; i++) {
        f.ids[i] = b->byte_ids[piece[i]];
        f.before[i] = (uint8_t) (i - 1);
        f.next[i] = (uint8_t) (i + 1);
    }
    for (int i = 0; i < n; i++) pair_again(b, &f, i);
    int places = (n + LANES - 1) / LANES * LANES;
    for (int i = n; i < places; i++) f.pairs[i] = NO_PAIR;
    for (;;) {
        int32_t best = NO_PAIR;
        for (int i = 0; i < places; i++) best = f.pairs[i] < best ? f.pairs[i] : best;
        if (best == NO_PAIR) break;
        int at = best & ((1 << PLACE_BITS) - 1), right = f.next[at];
        f.ids[at] = f.merged[at];
        f.next[at] = f.next[right];
        f.pairs[right] = NO_PAIR;
        if (f.next[at] < n) f.before[f.next[at]] = (uint8_t) at;
        pair_again(b, &f, at);
        if (at > 0) pair_again(b, &f, f.before[at]);
    }
    int n_ids = 0;
    for (int at = 0; at < n; at = f.next[at]) ids[n_ids++] = f.ids[at];
    return n_ids;
}

// --- many bytes: a heap of pairs by rank, then place

struct bpe_symbol {
    int32_t id, merged;   // merged: with the next one
    uint32_t rank;        // of that; an entry of the heap that differs is stale
    int32_t before, next; // -1: none
};

static enum status reserve(struct bpe_scratch *s, size_t n, struct error *e)
{
    if (n <= s->capacity) return OK;
    bpe_scratch_deinit(s);
    s->ids = malloc(n * sizeof *s->ids);
    s->symbols = malloc(n * sizeof *s->symbols);
    s->heap = malloc(2 * n * sizeof *s->heap);
    if (s->ids == NULL || s->symbols == NULL || s->heap == NULL) {
        bpe_scratch_deinit(s);
        return error_set(e, ERR_NOMEM, "no_memory", "no memory to tokenize %zu bytes", n);
    }
    s->capacity = n;
    return OK;
}

struct heap {
    uint64_t *entries; // rank, then place
    size_t n;
};

static void heap_push(struct heap *h, uint32_t rank, int32_t place)
{
    if (rank == NO_RANK) return;
    uint64_t entry = (uint64_t) rank << 32 | (uint32_t) place;
    size_t at = h->n++;
    for (; at > 0 && h->entries[(at - 1) / 2] > entry; at = (at - 1) / 2) {
        h->entries[at] = h->entries[(at - 1) / 2];
    }
    h->entries[at] = entry;
}

static uint64_t heap_pop(struct heap *h)
{
    uint64_t top = h->entries[0], last = h->entries[--h->n];
    size_t at = 0;
    for (size_t child = 1; child < h->n; child = 2 * at + 1) {
        if (child + 1 < h->n && h->entries[child + 1] < h->entries[child]) child++;
        if (h->entries[child] >= last) break;
        h->entries[at] = h->entries[child];
        at = child;
    }
    h->entries[at] = last;
    return top;
}

static void rank_again(const struct bpe *b, struct bpe_symbol *symbols, struct heap *h, int32_t at)
{
    struct bpe_symbol *s = &symbols[at];
    s->rank = s->next < 0 ? NO_RANK : pair_rank(b, s->id, symbols[s->next].id, &s->merged);
    heap_push(h, s->rank, at);
}

// Merges n bytes into s->ids; returns how many remain. The heap never holds more than 2 n entries:
// n - 1 at first, and each merge takes one out and puts at most two in.
static int merge_long(const struct bpe *b, struct bpe_scratch *s, const uint8_t *piece, int n)
{
    struct bpe_symbol *symbols = s->symbols;
    struct heap heap = {.entries = s->heap};
    for (int i = 0; i < n; i++) {
        symbols[i] = (struct bpe_symbol){
            .id = b->byte_ids[piece[i]], .before = i - 1, .next = i + 1};
    }
    symbols[n - 1].next = -1;
    for (int i = 0; i < n; i++) rank_again(b, symbols, &heap, i);
    while (heap.n > 0) {
        uint64_t top = heap_pop(&heap);
        uint32_t rank = (uint32_t) (top >> 32);
        int32_t at = (int32_t) (uint32_t) top;
        struct bpe_symbol *left = &symbols[at];
        if (left->rank != rank) continue;
        struct bpe_symbol *right = &symbols[left->next];
        left->id = left->merged;
        left->next = right->next;
        right->rank = NO_RANK;
        if (left->next >= 0) symbols[left->next].before = at;
        if (left->before >= 0) rank_again(b, symbols, &heap, left->before);
        rank_again(b, symbols, &heap, at);
    }
    int n_ids = 0;
    for (int32_t at = 0; at >= 0; at = symbols[at].next) s->ids[n_ids++] = symbols[at].id;
    return n_ids;
}

// --- any number of bytes: windows of them

// How many of the first ids a window's end cannot have touched; all if it is the piece's end.
static int settled(const struct bpe *b, const int32_t *ids, int n_ids, size_t window, bool last,
                   size_t *bytes)
{
    size_t most = last ? window : window - TAIL_TOKENS * b->vocab->longest;
    int n = 0;
    for (*bytes = 0; n < n_ids; n++) {
        size_t more = b->vocab->tokens[ids[n]].n;
        if (*bytes + more > most) break;
        *bytes += more;
    }
    return n;
}

// Two tokens that are neighbours in the encoding of some text encode to themselves, and ids of
// which all neighbours do are the encoding of their text: a first merge across a border would be
// one in the encoding of the two beside it as well. So a window may begin at a token of the window
// before if its own first token is that one. If it isn't, the settled part was too long, and a
// larger window begins further back.
static enum status encode_windows(const struct bpe *b, struct bpe_scratch *s, const uint8_t *piece,
                                  size_t n, struct token_ids *to, struct error *e)
{
    int first = to->n;
    int32_t expected = -1; // the token that follows to's last
    size_t window = b->window;
    for (size_t at = 0; at < n;) {
        size_t length = n - at < window ? n - at : window, bytes;
        try(reserve(s, length, e));
        int n_ids = merge_long(b, s, piece + at, (int) length);
        if (to->n > first && s->ids[0] != expected) {
            for (size_t back = 0; back < window && to->n > first;) {
                expected = to->ids[--to->n];
                back += b->vocab->tokens[expected].n;
                at -= b->vocab->tokens[expected].n;
            }
            window *= 2;
            continue;
        }
        int keep = settled(b, s->ids, n_ids, length, at + length == n, &bytes);
        if (keep < n_ids) expected = s->ids[keep];
        try(token_ids_append(to, s->ids, keep, e));
        at += bytes;
        window = b->window;
    }
    return OK;
}

enum status bpe_encode(const struct bpe *b, struct bpe_scratch *s, const uint8_t *piece, size_t n,
                       struct token_ids *to, struct error *e)
{
    if (n > SHORT_MAX) return encode_windows(b, s, piece, n, to, e);
    int32_t ids[SHORT_MAX];
    return token_ids_append(to, ids, merge_short(b, piece, (int) n, ids), e);
}
