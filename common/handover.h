// Tells ThreadSanitizer what it cannot see: memory that one thread hands to libzmq belongs to the
// thread that receives it. Nothing in other builds.
#ifndef PENSTOCK_COMMON_HANDOVER_H
#define PENSTOCK_COMMON_HANDOVER_H

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PENSTOCK_TSAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define PENSTOCK_TSAN 1
#endif

#ifdef PENSTOCK_TSAN
void __tsan_acquire(void *address);
void __tsan_release(void *address);
extern char handover_place; // any address will do, as long as all use it
#define handover_send() __tsan_release(&handover_place)
#define handover_receive() __tsan_acquire(&handover_place)
#else
#define handover_send() ((void) 0)
#define handover_receive() ((void) 0)
#endif

#endif
