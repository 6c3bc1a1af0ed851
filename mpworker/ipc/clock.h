/* The clock of every time in shared memory: monotonic, the same in all processes of a machine. */
#ifndef MPW_CLOCK_H
#define MPW_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t mpw_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
