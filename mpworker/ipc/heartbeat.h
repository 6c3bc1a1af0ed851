/* The heartbeat: a thread that says "this process is alive" without needing the GIL.
 *
 * It stores the monotonic time into the child's claim page every interval. C code that holds the GIL for minutes does not
 * stop it; SIGSTOP, the freezer and a swapped-out machine do, which is what a lease must notice. All signals are blocked in
 * it, so that handlers of the task run in the task's thread, and the mapping it writes to is never unmapped. A fork of the
 * child has no such thread, as it has no lease.
 */
#ifndef MPW_HEARTBEAT_H
#define MPW_HEARTBEAT_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#include "clock.h"

typedef struct {
    _Atomic uint64_t *beat_ns;
    struct timespec interval;
} mpw_heartbeat;

static void *mpw_heartbeat_run(void *argument)
{
    const mpw_heartbeat *heartbeat = argument;
    for (;;) {
        /* relaxed: the time itself is the message; nothing is published with it. */
        atomic_store_explicit(heartbeat->beat_ns, mpw_now_ns(), memory_order_relaxed);
        clock_nanosleep(CLOCK_MONOTONIC, 0, &heartbeat->interval, NULL);
    }
    return NULL;
}

/* Start the thread. 0, or an errno. `heartbeat` must live as long as the process. */
static inline int mpw_heartbeat_start(mpw_heartbeat *heartbeat)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    int error = pthread_attr_init(&attributes);
    if (error)
        return error;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 128 * 1024); /* it calls two functions; the default is 8 MiB of address space */
    /* The first beat is ours: who says that it is ready has beaten, whenever the thread gets its first turn. */
    atomic_store_explicit(heartbeat->beat_ns, mpw_now_ns(), memory_order_relaxed);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited by the thread */
    error = pthread_create(&thread, &attributes, mpw_heartbeat_run, heartbeat);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

#endif
