// What a device, the ranks of its stage and the links between stages do in a second: what the cost
// model divides by. A table of presets and nothing else; any thread. Knows no model.
#ifndef PENSTOCK_COMMON_DEVICE_RATES_H
#define PENSTOCK_COMMON_DEVICE_RATES_H

#include "common/device_sizes.h"
#include "common/status.h"

// Bytes, floating-point operations and seconds.
struct device_rates {
    const char *name;
    double read;          // bytes/s from the device's memory
    double fp8_gemm;      // flop/s at many rows, FP8 inputs
    double bf16_gemm, f32_gemm;
    double attention;     // flop/s of MLA
    double step_s;        // fixed cost of a step in a stage: header, upload, launch
    double layer_s;       // fixed cost of a layer: launches, waits
    double reduce_s;      // latency of an all-reduce among the ranks of a stage
    double reduce;        // bytes/s of the vector that is reduced
    double link_s;        // latency of a frame between stages
    double link;          // bytes/s of it
};

// The preset of that name. ERR_INPUT bad_device lists the names there are.
enum status device_rates_named(struct device_rates *r, const char *name, struct error *e);

// The same, NULL if there is none.
const struct device_rates *device_rates_find(const char *name);

// The preset for a device of which no more is known than its kind.
const struct device_rates *device_rates_of(enum device_kind kind);

#endif
