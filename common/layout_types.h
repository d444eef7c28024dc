// The types that a checkpoint's tensors have, layer by layer: what the config implies, or what the
// headers say. Plain memory; a plan is made from it when no file is open. Any thread. Knows no
// bytes.
#ifndef PENSTOCK_COMMON_LAYOUT_TYPES_H
#define PENSTOCK_COMMON_LAYOUT_TYPES_H

#include "common/layout.h"

#include <stdint.h>

// enum dtype by role. The experts of a layer have one type a role (layout_check_checkpoint).
struct layout_types {
    uint8_t outside[N_ROLES];
    uint8_t layers[MODEL_LAYERS_MAX + MODEL_MTP_LAYERS_MAX][N_ROLES];
};

void layout_types_imply(struct layout_types *t, const struct model_config *c);

// A tensor that is missing keeps the implied type: layout_check_checkpoint refuses it.
void layout_types_read(struct layout_types *t, const struct model_config *c,
                       const struct checkpoint *checkpoint);

enum dtype layout_type(const struct layout_types *t, const struct slice *s);

// The whole checkpoint, layers of multi-token prediction and scales included.
struct model_size {
    int64_t tensors, elements;
    uint64_t bytes;
};

struct model_size layout_model_size(const struct model_config *c, const struct layout_types *t);

#endif
