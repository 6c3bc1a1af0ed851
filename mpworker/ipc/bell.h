/* The bell: how a producer wakes a consumer that sleeps, and costs nothing when it does not.
 *
 * Each side of a channel owns one bell: a pipe and a word `sleeping` in shared memory. The owner sets the word before it
 * sleeps; whoever has published something for it looks at the word and writes a byte to the pipe only if it is set.
 *
 * Why no wake-up is lost (Dekker's argument). The sleeper and the ringer each write one location, then read the other's:
 *
 *     sleeper:  sleeping = 1;  fence;  read tail     (sleeps only if it saw nothing)
 *     ringer:   tail = new;    fence;  read sleeping (writes the pipe only if it saw 1)
 *
 * Both fences are sequentially consistent, so they have one total order. If the sleeper's fence comes first, the ringer's
 * read sees 1 and it writes the pipe, where the byte stays until it is read: the sleep ends or does not begin. If the
 * ringer's fence comes first, the sleeper's read sees the new tail and it does not sleep. Release and acquire alone allow
 * both to read old values: on x86 too, where a store may pass a later load.
 *
 * The sleeper drains the pipe after it woke, and always before it arms and looks again. A byte that it takes out was
 * written after what it announces was published, so that look sees it; a byte that comes later is there when the next
 * sleep begins. How many there are means nothing: a full pipe is readable too, which is all that a ringer wants.
 *
 * The ringer takes the word back to 0 with an exchange, so that a burst costs one system call. Only the ringer that takes
 * it writes, and the sleeper sets it anew before each sleep: a stale 1 (the sleeper woke for another reason) costs one
 * needless write, never a lost one. The same bell says "there is room again": the consumer of a ring rings its producer
 * after it released bytes, and the fence argument is the same with `head` in the place of `tail`.
 *
 * One thread at a time sleeps on a bell: a second one would be disarmed by the first, and would not see a byte that the
 * first has read.
 *
 * Neither side can make the other block. O_NONBLOCK belongs to an open file description, and whoever shares one may clear
 * it; so each side has one of its own, made by opening the pipe anew by way of /proc (an eventfd cannot be opened twice).
 * Each is open for reading and writing: a pipe whose every holder does both never raises SIGPIPE and never ends, whoever
 * dies. A peer may fill a pipe or empty it; then it is the one that is woken for nothing, or whose news comes late.
 *
 * This header needs Linux, but no Python, so that sanitizers and stress tests link it alone.
 */
#ifndef MPW_BELL_H
#define MPW_BELL_H

#include <errno.h>
#include <poll.h> /* ppoll: define _GNU_SOURCE */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

#include "clock.h"

/* In shared memory, alone on its cache line: the ringer reads it after every publication. */
typedef struct {
    _Alignas(64) _Atomic uint32_t sleeping;
    _Atomic uint32_t wants_room; /* the owner waits for its outbound ring to empty, not only for records */
} mpw_bell_word;

_Static_assert(sizeof(mpw_bell_word) == 64, "one cache line");

static inline void mpw_bell_arm(mpw_bell_word *bell)
{
    atomic_store_explicit(&bell->sleeping, 1, memory_order_relaxed);
    /* seq_cst: pairs with the fence in mpw_bell_pending; the store above comes before any look at a ring after it. */
    atomic_thread_fence(memory_order_seq_cst);
}

static inline void mpw_bell_disarm(mpw_bell_word *bell)
{
    /* relaxed: a ringer that still sees 1 writes once for nothing. */
    atomic_store_explicit(&bell->sleeping, 0, memory_order_relaxed);
}

/* Must the pipe be written? To be asked after the ring's release store. */
static inline bool mpw_bell_pending(mpw_bell_word *bell)
{
    /* seq_cst: pairs with the fence in mpw_bell_arm; our publication comes before the look at the word. */
    atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(&bell->sleeping, memory_order_relaxed) != 0 &&
           atomic_exchange_explicit(&bell->sleeping, 0, memory_order_relaxed) != 0;
}

/* The same after the release of bytes rather than a publication: a sleeper that waits for records alone is left asleep,
 * or every pop would wake the producer for nothing. The argument is the same with `wants_room` beside `sleeping`: the owner
 * stores both before its fence. */
static inline bool mpw_bell_room_pending(mpw_bell_word *bell)
{
    atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(&bell->wants_room, memory_order_relaxed) != 0 &&
           atomic_exchange_explicit(&bell->sleeping, 0, memory_order_relaxed) != 0;
}

static inline void mpw_bell_want_room(mpw_bell_word *bell, bool wanted)
{
    /* relaxed: it becomes binding with the fence of the mpw_bell_arm that follows. */
    atomic_store_explicit(&bell->wants_room, wanted, memory_order_relaxed);
}

/* Write the pipe. 0, or an errno. EAGAIN means that it is full. */
static inline int mpw_bell_write(int fd)
{
    while (write(fd, "", 1) != 1) {
        if (errno == EINTR)
            continue;
        return errno == EAGAIN ? 0 : errno;
    }
    return 0;
}

/* Take out what was written: all of it, but for a peer that writes without being asked. 0, or an errno. */
static inline int mpw_bell_drain(int fd)
{
    char bytes[4096];
    return read(fd, bytes, sizeof bytes) < 0 && errno != EAGAIN && errno != EINTR ? errno : 0;
}

/* What a sleeper looks at: copies of its own counters, and the peer's shared ones. */
typedef struct {
    const _Atomic uint64_t *tail; /* of the inbound ring, or NULL */
    uint64_t popped;
    const _Atomic uint64_t *head; /* of the outbound ring, or NULL */
    uint64_t pushed;
    uint64_t fill_max; /* room for the wanted record when the fill is at most this */
    uint64_t capacity;
} mpw_watch;

static inline bool mpw_watch_ready(const mpw_watch *watch)
{
    if (watch->tail && atomic_load_explicit(watch->tail, memory_order_acquire) != watch->popped)
        return true;
    if (!watch->head)
        return false;
    /* An impossible fill counts as ready: either the peer lies, and the push that follows reports it; or another thread has
     * pushed since `pushed` was copied, and the consumer is past it. */
    uint64_t fill = watch->pushed - atomic_load_explicit(watch->head, memory_order_acquire);
    return fill <= watch->fill_max || fill > watch->capacity;
}

static inline void mpw_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* waits longer than "yield", which most cores treat as a nop */
#endif
}

/* How long the waits of one side last that spin, by which it is known whether that is worth it. Those that do not spin
 * say nothing of it: they last as long as it takes to be woken, too. */
typedef struct {
    uint64_t usual_ns; /* moving mean; 0 before the first */
    uint32_t waits;    /* without a spin, since one */
} mpw_habit;

enum { MPW_HABIT_PROBE = 16 };

/* For how long to spin now, of `spin_ns` at most: not at all where waits usually outlast that by half, for it takes the
 * core from those who are waited for. Each MPW_HABIT_PROBEth wait finds out whether that is still so. */
static inline uint64_t mpw_habit_spin(mpw_habit *habit, uint64_t spin_ns)
{
    if (habit->usual_ns <= spin_ns + spin_ns / 2 || ++habit->waits >= MPW_HABIT_PROBE) {
        habit->waits = 0;
        return spin_ns;
    }
    return 0;
}

/* A wait that has spun for `spin_ns` at most has lasted so long. One counts for twice the spin at most, so that no single
 * long one makes a habit; and one that was worth it is followed by another spin at once. */
static inline void mpw_habit_learn(mpw_habit *habit, uint64_t spin_ns, uint64_t waited_ns)
{
    uint64_t counted = waited_ns < 2 * spin_ns ? waited_ns : 2 * spin_ns;
    habit->usual_ns = (3 * habit->usual_ns + counted) / 4;
    if (waited_ns <= spin_ns)
        habit->waits = MPW_HABIT_PROBE;
}

/* Whether a longer spin than usual saves more than it costs. Who sleeps is woken some time after what he waits for is there,
 * and leaves a core idle, on which others are then woken as late: what that takes is some microseconds on one machine and a
 * hundred on another, so it is learned. It pays where most waits that spin for long are over in MPW_PAYS_PERCENT of the time
 * that others last.
 *
 * How long a wait lasts depends on what those before it have left the cores in, so each kind is tried for some in a row: the
 * spins after MPW_SPINS_AFTER waits without, or twice as many for each time that they have failed; and where they pay the
 * others, to know their time, so rarely that it costs nothing. */
typedef struct {
    uint64_t other_ns; /* moving mean of how long waits last that do not spin for long; 0 before the first */
    uint32_t waits;    /* since the last trial */
    uint32_t trial;    /* waits that are left of it */
    uint32_t failures; /* trials of spins in a row that have failed, up to a bound */
    int32_t score;     /* of the spins: a good one counts 1, another one MPW_BAD */
    bool spins;        /* they pay */
} mpw_patience;

enum {
    MPW_PAYS_PERCENT = 60,
    MPW_TRIAL = 12,
    MPW_BAD = -3,
    MPW_SCORE_MAX = 12,
    MPW_SPINS_AFTER = 32,
    MPW_OTHERS_AFTER = 4096,
    MPW_FAILURES_MAX = 7
};

/* Spin for long, now? */
static inline bool mpw_patience_spins(mpw_patience *patience)
{
    uint32_t every = patience->spins ? MPW_OTHERS_AFTER : (uint32_t)MPW_SPINS_AFTER << patience->failures;
    if (!patience->trial && ++patience->waits >= every) {
        patience->waits = 0;
        patience->trial = MPW_TRIAL;
        if (!patience->spins)
            patience->score = 0;
    }
    return patience->spins != (patience->trial > 0);
}

/* A wait has lasted so long, with the kind of spin that was said. It counts for the longest spin at most: no single one shall
 * make the mean. */
static inline void mpw_patience_learn(mpw_patience *patience, uint64_t longest_ns, bool spun, uint64_t waited_ns)
{
    uint64_t counted = waited_ns < longest_ns ? waited_ns : longest_ns;
    if (!spun) {
        patience->other_ns = patience->other_ns ? (3 * patience->other_ns + counted) / 4 : counted;
        patience->trial -= patience->spins && patience->trial;
        return;
    }
    bool good = 100 * waited_ns <= MPW_PAYS_PERCENT * patience->other_ns; /* which is the longest spin at most */
    patience->score += good ? 1 : MPW_BAD;
    if (patience->score > MPW_SCORE_MAX)
        patience->score = MPW_SCORE_MAX;
    if (patience->spins) {
        patience->spins = patience->score >= 0;
        return;
    }
    if (patience->score < 2 * MPW_BAD)
        patience->trial = 1; /* what is waited for takes its time, and no wake-up */
    if (--patience->trial)
        return;
    patience->spins = patience->score > 0;
    patience->failures += patience->failures < MPW_FAILURES_MAX;
    if (patience->spins)
        patience->failures = 0;
}

/* Is a ring ready within so long, and before the deadline (UINT64_MAX: none)? */
static inline bool mpw_bell_spin(const mpw_watch *watch, uint64_t deadline_ns, uint64_t spin_ns)
{
    uint64_t until = mpw_now_ns() + spin_ns;
    if (until > deadline_ns)
        until = deadline_ns;
    do {
        for (int i = 0; i < 16; i++) {
            mpw_relax();
            if (mpw_watch_ready(watch))
                return true;
        }
    } while (mpw_now_ns() < until);
    return false;
}

/* Is a ring ready (bit 1), or `also_fd` readable (bit 2), now? The word and the pipe are left as they are: another thread of
 * this side may sleep, whose wake-up would be lost by a word that is cleared, or a byte that is taken out. */
static inline int mpw_bell_look(const mpw_watch *watch, int also_fd)
{
    struct pollfd also = {.fd = also_fd, .events = POLLIN};
    return (mpw_watch_ready(watch) ? 1 : 0) | (poll(&also, 1, 0) > 0 ? 2 : 0);
}

/* Spin, then sleep, until a ring is ready (bit 1), the pipe is readable (bit 1) or `also_fd` is readable (bit 2).
 * 0 at the deadline (UINT64_MAX: none), -1 with errno. */
static inline int mpw_bell_wait(mpw_bell_word *bell, int fd, const mpw_watch *watch, int also_fd, uint64_t deadline_ns,
                                uint64_t spin_ns)
{
    if (mpw_watch_ready(watch) || (spin_ns && mpw_bell_spin(watch, deadline_ns, spin_ns)))
        return 1;
    if (watch->head)
        mpw_bell_want_room(bell, true);
    mpw_bell_arm(bell);
    if (mpw_watch_ready(watch)) {
        mpw_bell_disarm(bell);
        if (watch->head)
            mpw_bell_want_room(bell, false);
        return 1;
    }
    struct pollfd fds[2] = {{.fd = fd, .events = POLLIN}, {.fd = also_fd, .events = POLLIN}}; /* a negative one is skipped */
    struct timespec left, *timeout = NULL;
    if (deadline_ns != UINT64_MAX) {
        uint64_t now = mpw_now_ns(), rest = deadline_ns > now ? deadline_ns - now : 0;
        left = (struct timespec){(time_t)(rest / 1000000000u), (long)(rest % 1000000000u)};
        timeout = &left;
    }
    int found = ppoll(fds, 2, timeout, NULL);
    int error = errno;
    mpw_bell_disarm(bell);
    if (watch->head)
        mpw_bell_want_room(bell, false);
    if (found < 0) {
        errno = error;
        return -1;
    }
    if (fds[0].revents & (POLLNVAL | POLLERR)) {
        errno = EBADF;
        return -1;
    }
    if (fds[0].revents && mpw_bell_drain(fd) != 0)
        return -1;
    return (fds[0].revents ? 1 : 0) | (fds[1].revents ? 2 : 0);
}

#endif
