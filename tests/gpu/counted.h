// Counts the calls that take memory of a GPU or pin memory of the host: the linker puts counters in
// front of the CUDA runtime's own (tests/CMakeLists.txt). What libraries take inside the driver
// shows in the bytes that it says are free.
#ifndef PENSTOCK_TESTS_GPU_COUNTED_H
#define PENSTOCK_TESTS_GPU_COUNTED_H

#include <stdint.h>

// Calls since the program began.
uint64_t counted_calls(void);

// Free bytes of the present device.
uint64_t counted_free(void);

#endif
