// The ledger: the bytes of one region of memory, line by line. A rank's device has one, and so has
// the host memory of a group; the plan counts them before anything is loaded, and what is carved
// later is accounted to the same lines (carve.h), so that the two can be compared. Pure; any
// thread. Knows no sizes.
#ifndef PENSTOCK_COMMON_LEDGER_H
#define PENSTOCK_COMMON_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// In the order in which regions are carved. Padding belongs to the line that it follows.
enum ledger_line {
    LEDGER_WEIGHTS,     // in the checkpoint's own types
    LEDGER_SCALES,      // block scales of FP8 weights
    LEDGER_PACKING,     // what the device's form of the weights adds: panels, f32 vectors, padding
    LEDGER_MTP,         // layers of multi-token prediction, with their KV
    LEDGER_KV,          // the pool of KV blocks
    LEDGER_ACTIVATIONS, // buffers of a step, by token budget
    LEDGER_LOGITS,      // of the rows that are sampled
    LEDGER_HISTORY,     // ids of every slot, for penalties
    LEDGER_SAMPLER,     // the sampler's scratch beyond the logits
    LEDGER_SCRATCH,     // of the kernels
    LEDGER_COMM,        // collectives between the ranks of a group
    LEDGER_STEPS,       // steps in flight between leader and ranks
    LEDGER_SEQUENCES,   // the head's tables
    LEDGER_LINKS,       // frames between stages
    LEDGER_STAGING,     // the loader's buffers
    LEDGER_CONTEXT,     // what the driver takes for itself
    LEDGER_LIBRARIES,   // what the vendor's libraries take for themselves
    LEDGER_RESERVE,     // left alone
    LEDGER_LINES
};

enum { LEDGER_TEXT_MAX = LEDGER_LINES * 40 };

struct ledger {
    uint64_t bytes[LEDGER_LINES];
};

// Whether a process carves the line itself. The others are of the driver, of libraries and of whom
// the memory is left to: allowances.
bool ledger_is_carved(enum ledger_line line);

// A word in lower case, e.g. "weights"; the same in tables, JSON, logs and on the wire.
const char *ledger_name(enum ledger_line line);

uint64_t ledger_total(const struct ledger *l);

// Weights as the checkpoint has them, scales included.
uint64_t ledger_weights(const struct ledger *l);

// "weights 8192, kv 4096": the lines that are not 0, in bytes. LEDGER_TEXT_MAX is room for all.
void ledger_print(const struct ledger *l, char *text, size_t n);

// Where memory of `has` bytes ends, if the total is more: the line that passes it, when what nobody
// can do without comes first, and KV, which everything else is there for, last.
enum ledger_line ledger_line_beyond(const struct ledger *l, uint64_t has);

void ledger_add(struct ledger *to, const struct ledger *l);

// Whether all lines are equal. If not, says in `text` (n bytes) which differ and by how much, with
// what the two are called: "scratch is 8192 bytes in the plan, 12288 in the arena".
bool ledger_equal(const struct ledger *a, const char *called_a, const struct ledger *b,
                  const char *called_b, char *text, size_t n);

#endif
