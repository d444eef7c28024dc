// A checkpoint's golden outputs from the reference implementation (golden.safetensors). Tests only.
#ifndef PENSTOCK_TESTS_GOLDEN_H
#define PENSTOCK_TESTS_GOLDEN_H

#include <stdint.h>

enum { GOLDEN_PROMPTS = 8 };

struct golden_prompt {
    int n_ids, n_rows, n_greedy; // n_rows: rows of `logits`, the last ones of the prompt
    int32_t *ids;
    float *logits;  // (n_rows, vocab)
    int32_t *greedy;
    float *margin;  // (n_greedy) gap between the two best logits at each greedy step
};

struct golden {
    int n_prompts, vocab;
    struct golden_prompt prompts[GOLDEN_PROMPTS];
};

// Reads DIR/golden.safetensors; ends the test program if that fails.
void golden_load(struct golden *g, const char *dir);
void golden_free(struct golden *g);

#endif
