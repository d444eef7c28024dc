#include "common/handover.h"

#ifdef PENSTOCK_TSAN
char handover_place;
#else
typedef int nothing_to_define; // ISO C wants something in a file
#endif
