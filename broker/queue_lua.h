// The Redis function library (queue_*.lua, in order) as bytes inside the program.
#ifndef PENSTOCK_BROKER_QUEUE_LUA_H
#define PENSTOCK_BROKER_QUEUE_LUA_H

#include <stddef.h>

extern const unsigned char queue_lua[];
extern const size_t queue_lua_size;

#endif
