/* What the drivers share: the code under test, random numbers, self-checking records, sleeping and failing. */
#ifndef DRIVER_H
#define DRIVER_H

#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bell.h"
#include "claims.h"
#include "ring.h"

#define PAYLOAD_MAX (1u << 16)
#define STALL_NS (20u * 1000000000ull) /* a wake-up that takes longer is lost; STALL_MS in the environment shortens it */

static _Noreturn void fail(const char *what, uint64_t at)
{
    fprintf(stderr, "%s (at %" PRIu64 ")\n", what, at);
    _exit(1);
}

static inline uint64_t mix(uint64_t x) /* splitmix64's output function */
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

typedef struct {
    uint64_t state;
} rng;

static inline uint64_t next(rng *r)
{
    return mix(r->state += 0x9e3779b97f4a7c15u);
}

static inline uint64_t below(rng *r, uint64_t bound)
{
    return next(r) % bound;
}

static inline uint64_t argument(int argc, char **argv, int index)
{
    if (index >= argc)
        fail("missing argument", (uint64_t)index);
    return strtoull(argv[index], NULL, 0);
}

static inline uint64_t checksum(const uint8_t *bytes, size_t size, uint64_t seed)
{
    uint64_t sum = seed ^ size, word;
    for (; size >= 8; bytes += 8, size -= 8) {
        memcpy(&word, bytes, 8);
        sum = (sum ^ word) * 0x9fb21c651e98df25u;
        sum ^= sum >> 29;
    }
    for (word = 0; size; size--)
        word = word << 8 | bytes[size - 1];
    return mix(sum ^ word);
}

/* The record number `sequence` of a stream is known from the number alone. */
static inline mpw_record_header make_record(uint64_t sequence, uint64_t seed, uint64_t size_max, uint8_t *payload)
{
    rng r = {mix(sequence) ^ seed};
    uint64_t size = below(&r, size_max + 1);
    if (below(&r, 4)) /* mostly small, as tasks are */
        size = size < 64 ? size : size % 64;
    for (uint64_t i = 0; i < size; i += 8) {
        uint64_t word = next(&r);
        memcpy(payload + i, &word, 8); /* the buffer has 8 bytes to spare */
    }
    return (mpw_record_header){.size = (uint32_t)size,
                               .kind = (uint16_t)r.state,
                               .flags = (uint16_t)(r.state >> 16),
                               .a = sequence,
                               .b = checksum(payload, size, sequence),
                               .c = ~sequence};
}

static inline void check_record(const mpw_record *record, uint64_t sequence)
{
    if (record->header.a != sequence || record->header.c != ~sequence)
        fail("a record out of order", sequence);
    if (record->header.b != checksum(record->payload, record->header.size, sequence))
        fail("a record with a wrong checksum", sequence);
}

/* Two processes' memory: one ring, and a bell for each side. */
typedef struct {
    mpw_ring_ctl ctl;
    mpw_bell_word consumer, producer;
    uint8_t data[];
} channel;

static inline channel *make_channel(uint64_t capacity)
{
    int fd = memfd_create("ring", MFD_CLOEXEC);
    size_t size = sizeof(channel) + capacity;
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        fail("memfd", (uint64_t)errno);
    channel *made = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (made == MAP_FAILED)
        fail("mmap", (uint64_t)errno);
    close(fd);
    return made;
}

/* A bell's pipe. One description serves both sides here, for neither is hostile. */
static inline int make_pipe(void)
{
    int ends[2];
    char name[32];
    if (pipe2(ends, O_CLOEXEC) < 0)
        fail("pipe2", (uint64_t)errno);
    snprintf(name, sizeof name, "/proc/self/fd/%d", ends[0]);
    int fd = open(name, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        fail("open", (uint64_t)errno);
    close(ends[0]);
    close(ends[1]);
    return fd;
}

static inline void ring_the_bell(mpw_bell_word *word, int fd)
{
    if (mpw_bell_pending(word) && mpw_bell_write(fd) != 0)
        fail("mpw_bell_write", 0);
}

static inline void ring_the_bell_for_room(mpw_bell_word *word, int fd)
{
    if (mpw_bell_room_pending(word) && mpw_bell_write(fd) != 0)
        fail("mpw_bell_write", 0);
}

static inline void sleep_on(mpw_bell_word *word, int fd, const mpw_watch *watch, uint64_t spin_ns, uint64_t at)
{
    const char *stall_ms = getenv("STALL_MS");
    uint64_t stall_ns = stall_ms ? strtoull(stall_ms, NULL, 0) * 1000000u : STALL_NS;
    for (;;) {
        int woken = mpw_bell_wait(word, fd, watch, -1, mpw_now_ns() + stall_ns, spin_ns);
        if (woken > 0)
            return;
        if (woken == 0)
            fail(mpw_watch_ready(watch) ? "a lost wake-up: asleep while the ring was ready" : "a stall", at);
        if (errno != EINTR)
            fail("mpw_bell_wait", (uint64_t)errno);
    }
}

static inline void push_or_sleep(mpw_ring *ring, mpw_record_header header, const void *payload, mpw_bell_word *own,
                                 int own_fd, uint64_t spin_ns)
{
    for (;;) {
        mpw_status status = mpw_ring_push(ring, header, payload);
        if (status == MPW_OK)
            return;
        if (status != MPW_FULL)
            fail("push", (uint64_t)-status);
        mpw_watch watch = {.head = &ring->ctl->head,
                           .pushed = ring->own,
                           .fill_max = ring->capacity - mpw_ring_need(ring, header.size),
                           .capacity = ring->capacity};
        sleep_on(own, own_fd, &watch, spin_ns, header.a);
    }
}

static inline mpw_record pop_or_sleep(mpw_ring *ring, mpw_bell_word *own, int own_fd, uint64_t spin_ns, uint64_t at)
{
    for (;;) {
        mpw_record record;
        mpw_status status = mpw_ring_next(ring, &record);
        if (status == MPW_OK)
            return record;
        if (status != MPW_EMPTY)
            fail("pop", (uint64_t)-status);
        mpw_watch watch = {.tail = &ring->ctl->tail, .popped = ring->own};
        sleep_on(own, own_fd, &watch, spin_ns, at);
    }
}

/* As fork(), but the child does not outlive a parent that failed. */
static inline pid_t fork_child(void)
{
    pid_t pid = fork();
    if (pid < 0)
        fail("fork", (uint64_t)errno);
    if (pid == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return pid;
}

static inline void wait_for_child(pid_t pid)
{
    int status;
    if (waitpid(pid, &status, 0) != pid || status != 0)
        fail("the other process failed", (uint64_t)status);
}

#endif
