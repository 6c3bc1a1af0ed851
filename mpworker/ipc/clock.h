/* The clock of every time in shared memory: monotonic, the same in all processes of a machine. */
#ifndef MPW_CLOCK_H
#define MPW_CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

static inline uint64_t mpw_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The time as it was some microseconds ago at the most, for what asks for it before each of very many short steps: a look at
 * the processor's counter, which says that no more have passed, costs a third of one at the clock. Where that counter may
 * stand still, or there is none that is as cheap, it is the time. */
typedef struct {
    uint64_t ns;    /* at the last look at the clock; 0 before the first */
    uint64_t ticks; /* of the counter then */
} mpw_recent;

enum { MPW_RECENT_TICKS = 8192 }; /* 1.6 to 8 us, for counters of 5 to 1 GHz */

#if defined(__x86_64__)
/* Does the counter run at one rate, whatever the processor does? Intel SDM, volume 3, "Invariant TSC": CPUID 80000007H, EDX 8. */
static inline bool mpw_ticks_evenly(void)
{
    static int evenly = -1;
    if (evenly < 0) {
        unsigned a, b, c, d;
        evenly = __get_cpuid(0x80000007u, &a, &b, &c, &d) && d >> 8 & 1;
    }
    return evenly;
}
#endif

static inline uint64_t mpw_recent_ns(mpw_recent *recent)
{
#if defined(__x86_64__)
    uint64_t ticks = __builtin_ia32_rdtsc(); /* less than before, on another core: that is a very large difference */
    if (ticks - recent->ticks < MPW_RECENT_TICKS && recent->ns && mpw_ticks_evenly())
        return recent->ns;
    recent->ticks = ticks;
#endif
    recent->ns = mpw_now_ns();
    return recent->ns;
}

#endif
