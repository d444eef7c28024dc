// CZMQ's zloop. Its header brings <grp.h>, whose `struct group` is none of ours, and <syslog.h>,
// whose levels would hide those of common/log.h.
#ifndef PENSTOCK_BROKER_LOOP_H
#define PENSTOCK_BROKER_LOOP_H

#define group posix_group
#include <czmq.h>
#undef group
#undef LOG_DEBUG
#undef LOG_INFO

#endif
