// Prometheus' text format, version 0.0.4, as it is written: families of samples with labels. Into a
// buffer of the caller. Any thread; knows no metric.
#ifndef PENSTOCK_BROKER_EXPOSITION_H
#define PENSTOCK_BROKER_EXPOSITION_H

#include "common/buffer.h"
#include "common/histogram.h"

#define EXPOSITION_TYPE "text/plain; version=0.0.4; charset=utf-8"

enum { EXPOSITION_LABELS_MAX = 8 };

struct label {
    const char *name, *value; // any bytes that are UTF-8
};

// Ends where a name is NULL.
#define LABELS(...) ((const struct label[EXPOSITION_LABELS_MAX + 1]){__VA_ARGS__})

// Its samples come next. type: counter, gauge or histogram. help: one line.
void exposition_family(struct buffer *to, const char *name, const char *type, const char *help);

void exposition_count(struct buffer *to, const char *name, const struct label *labels,
                      uint64_t value);
void exposition_real(struct buffer *to, const char *name, const struct label *labels, double value);

// Of a family of type histogram, in seconds: buckets `first` to `last` of its bounds, and all.
void exposition_histogram(struct buffer *to, const char *name, const struct label *labels,
                          const struct histogram *h, int first, int last);

#endif
