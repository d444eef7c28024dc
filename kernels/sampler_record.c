#include "kernels/sampler_record.h"

static uint32_t place_of(int32_t id, const struct record_slice *s)
{
    return (uint32_t) id - (uint32_t) s->vocab_begin; // beyond the slice: vocab_n or more
}

// From the end, so that the first that is met of an id is its last.
void record_mark(int32_t *ids, int n, const struct record_slice *s)
{
    for (int i = n - 1; i >= 0; i--) {
        int32_t id = record_id(ids[i]);
        uint32_t at = place_of(id, s);
        if (at >= (uint32_t) s->vocab_n) continue;
        uint64_t *word = &s->seen[at / 64];
        ids[i] = (int32_t) ((uint32_t) id | (*word >> at % 64 & 1 ? RECORD_AGAIN : 0));
        *word |= 1ull << at % 64;
    }
    for (int i = 0; i < n; i++) {
        uint32_t at = place_of(record_id(ids[i]), s);
        if (at < (uint32_t) s->vocab_n) s->seen[at / 64] = 0;
    }
}

void record_append(int32_t *ids, int n, int32_t id)
{
    for (int i = 0; i < n; i++) {
        ids[i] = (int32_t) ((uint32_t) ids[i] | (ids[i] == id ? RECORD_AGAIN : 0));
    }
    ids[n] = id;
}

// A marked id is beyond every slice. No branch: it could not be predicted.
int record_places(const int32_t *ids, int n, const struct record_slice *s,
                  struct sampler_patch *patch)
{
    int count = 0;
    for (int i = 0; i < n; i++) {
        uint32_t place = place_of(ids[i], s);
        patch[count].at = (int32_t) place;
        count += place < (uint32_t) s->vocab_n;
    }
    return count;
}
