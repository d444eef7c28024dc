// One message of each wire command, as small as it may be or with every field set. They point to
// static memory.
#ifndef PENSTOCK_TESTS_SUPPORT_WIRE_EXAMPLES_H
#define PENSTOCK_TESTS_SUPPORT_WIRE_EXAMPLES_H

#include "common/wire.h"

#include <stdbool.h>

struct wire_message wire_example(enum wire_command command, bool full);

#endif
