/* The ring: one producer, one consumer, variable-length records in shared memory.
 *
 * Theory of operation
 * -------------------
 * A ring is a control block of two cache lines and a byte array whose size is a power of two. `tail` counts the bytes
 * ever published by the producer, `head` the bytes ever released by the consumer; both run freely in 64 bits and never
 * wrap in practice (at 10 GB/s that takes 58 years), so `tail - head` is the fill, and full and empty cannot be mixed up.
 *
 *      head                 tail
 *       v                    v
 *   ....[ record ][ record  ]..............[wrap]   (a record never straddles the end: a marker skips the rest)
 *
 * A record is a 32-byte little-endian header and a payload, padded to 8 bytes. It becomes visible only by the release
 * store of `tail`, after it is whole: a producer killed anywhere before that store leaves nothing to see.
 *
 * Trust
 * -----
 * The peer may be dying or hostile, and it can write anything into the shared bytes at any moment. So each side keeps its
 * own counter in private memory and never reads it back; a counter read from the peer is accepted only if the fill it
 * implies is possible; the part of a header that is checked is fetched once and never read again. Whatever the bytes say,
 * no access leaves the array, and each step consumes at least one record's header, so no loop is endless. The payload is
 * copied out by the caller; a peer that changes it meanwhile spoils only its own data.
 *
 * Lines
 * -----
 * What a record costs beyond its bytes is the way of its cache lines from core to core, there and back. Each end knows
 * where it will go on, and orders the lines before it needs them.
 *
 * This header needs neither Python nor Linux, so that sanitizers and fuzzers link it alone.
 */
#ifndef MPW_RING_H
#define MPW_RING_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MPW_CACHE_LINE 64
#define MPW_RECORD_ALIGN 8u
#define MPW_RING_MIN_CAPACITY 256u
#define MPW_RING_MAX_CAPACITY (1u << 30)
#define MPW_EXPECTED_BYTES 2048u /* that either end has on their way ahead of need: two records of 1 KiB */
#define MPW_WRAP_MARK UINT32_MAX /* in place of a payload size: the rest of the array is skipped */

/* A line is about to be written: have it here, and nowhere else. An order, and no access: it may be of any address. */
static inline void mpw_prefetch_to_write(const void *at)
{
#if defined(__x86_64__)
    /* What the compiler makes of __builtin_prefetch without -mprfchw brings a line that the other core has still. On a
     * processor that does not know this one it does nothing. */
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)at));
#else
    __builtin_prefetch(at, 1);
#endif
}

/* In shared memory. Each counter sits on its own cache line, so that a store by one side does not take the line that the
 * other side is writing. */
typedef struct {
    alignas(MPW_CACHE_LINE) _Atomic uint64_t tail;
    alignas(MPW_CACHE_LINE) _Atomic uint64_t head;
} mpw_ring_ctl;

_Static_assert(sizeof(mpw_ring_ctl) == 2 * MPW_CACHE_LINE, "two cache lines");
_Static_assert(offsetof(mpw_ring_ctl, head) == MPW_CACHE_LINE, "counters on separate lines");
_Static_assert(sizeof(_Atomic uint64_t) == 8 && ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics are plain and lock-free");

/* In shared memory, before each payload. */
typedef struct {
    uint32_t size; /* payload bytes, without padding, or MPW_WRAP_MARK */
    uint16_t kind;
    uint16_t flags;
    uint64_t a, b, c;
} mpw_record_header;

_Static_assert(sizeof(mpw_record_header) == 32, "the header is 32 bytes on every platform");
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "records are little-endian; this machine is not"
#endif

/* In private memory: one for each end. `own` is this side's counter, `seen` the last value read from the peer's: the
 * peer's cache line is touched only when the cached value does not answer the question. */
typedef struct {
    mpw_ring_ctl *ctl;
    uint8_t *data;
    uint64_t capacity;
    uint64_t own;
    uint64_t seen;
} mpw_ring;

typedef enum { MPW_OK = 0, MPW_FULL = 1, MPW_EMPTY = 2, MPW_CORRUPT = -1, MPW_TOO_LARGE = -2 } mpw_status;

/* A popped record: the header by value, the payload in place (valid until mpw_ring_release). */
typedef struct {
    mpw_record_header header;
    const uint8_t *payload;
} mpw_record;

static inline bool mpw_ring_capacity_ok(uint64_t capacity)
{
    return capacity >= MPW_RING_MIN_CAPACITY && capacity <= MPW_RING_MAX_CAPACITY && (capacity & (capacity - 1)) == 0;
}

static inline uint64_t mpw_record_bytes(uint64_t payload)
{
    return sizeof(mpw_record_header) + ((payload + MPW_RECORD_ALIGN - 1) & ~(uint64_t)(MPW_RECORD_ALIGN - 1));
}

/* The largest payload a ring takes. Half the capacity, so that a record fits whatever the position of the wrap: at worst
 * it wastes almost its own length at the end of the array. */
static inline uint64_t mpw_ring_max_payload(uint64_t capacity)
{
    return capacity / 2 - sizeof(mpw_record_header);
}

static inline void mpw_ring_attach(mpw_ring *ring, void *ctl, void *data, uint64_t capacity)
{
    ring->ctl = ctl;
    ring->data = data;
    ring->capacity = capacity;
    ring->own = 0; /* both ends attach before the first record: a channel is made for exactly one pair */
    ring->seen = 0;
}

/* Producer: what is the room as last seen, refreshed from the consumer when `need` does not fit? */
static inline mpw_status mpw_ring_room(mpw_ring *ring, uint64_t need)
{
    if (ring->capacity - (ring->own - ring->seen) >= need)
        return MPW_OK;
    /* acquire: pairs with the release store of `head` in mpw_ring_release; the consumer's copies out of the bytes that we
     * are about to overwrite happen before our stores to them. */
    uint64_t head = atomic_load_explicit(&ring->ctl->head, memory_order_acquire);
    if (ring->own - head > ring->capacity)
        return MPW_CORRUPT;
    ring->seen = head;
    return ring->capacity - (ring->own - head) >= need ? MPW_OK : MPW_FULL;
}

/* Bytes that must be free for a payload of this size at the present position (the record, and the skipped rest of the
 * array if it does not fit before the end). */
static inline uint64_t mpw_ring_need(const mpw_ring *ring, uint64_t payload)
{
    uint64_t total = mpw_record_bytes(payload);
    uint64_t to_end = ring->capacity - (ring->own & (ring->capacity - 1));
    return total <= to_end ? total : total + to_end;
}

/* Producer: where the payload of the next record goes, or why not. Its header is written; what is written there is seen by
 * nobody before mpw_ring_publish. Never blocks. */
static inline mpw_status mpw_ring_begin(mpw_ring *ring, mpw_record_header header, uint8_t **payload)
{
    if (header.size > mpw_ring_max_payload(ring->capacity))
        return MPW_TOO_LARGE;
    mpw_status room = mpw_ring_room(ring, mpw_ring_need(ring, header.size));
    if (room != MPW_OK)
        return room;
    uint64_t at = ring->own & (ring->capacity - 1);
    uint64_t to_end = ring->capacity - at;
    if (mpw_record_bytes(header.size) > to_end) {
        uint32_t mark = MPW_WRAP_MARK; /* positions are multiples of 8, so there is room for it */
        memcpy(ring->data + at, &mark, sizeof mark);
        ring->own += to_end;
        at = 0;
    }
    memcpy(ring->data + at, &header, sizeof header);
    *payload = ring->data + at + sizeof header;
    return MPW_OK;
}

/* Producer: have the lines on their way here that the next record will be written to, if it is like the one before. The
 * consumer has them since it read there, and stores that wait for them hold up what follows. */
static inline void mpw_ring_expect_room(const mpw_ring *ring, uint64_t total)
{
    if (total > MPW_EXPECTED_BYTES || ring->capacity - (ring->own - ring->seen) < total)
        return; /* it is a copy that is long by itself, or they are the consumer's still */
    for (uint64_t at = 0; at < total; at += MPW_CACHE_LINE)
        mpw_prefetch_to_write(ring->data + ((ring->own + at) & (ring->capacity - 1)));
}

/* Producer: the record that was begun, of so many bytes, is whole. */
static inline void mpw_ring_publish(mpw_ring *ring, uint64_t payload)
{
    ring->own += mpw_record_bytes(payload);
    /* release: pairs with the acquire load of `tail` in mpw_ring_next; header, payload and marker are whole before the
     * record can be seen. The one store by which a record comes to exist. */
    atomic_store_explicit(&ring->ctl->tail, ring->own, memory_order_release);
    mpw_ring_expect_room(ring, mpw_record_bytes(payload));
}

/* Producer: publish one record, or say why not. Never blocks. */
static inline mpw_status mpw_ring_push(mpw_ring *ring, mpw_record_header header, const void *payload)
{
    uint8_t *at;
    mpw_status status = mpw_ring_begin(ring, header, &at);
    if (status != MPW_OK)
        return status;
    if (header.size)
        memcpy(at, payload, header.size);
    mpw_ring_publish(ring, header.size);
    return MPW_OK;
}

/* Consumer: is there a record? Used to decide whether to sleep; a corrupt counter counts as "yes", so that the pop that
 * follows reports it. */
static inline bool mpw_ring_readable(const mpw_ring *ring)
{
    return ring->seen != ring->own || atomic_load_explicit(&ring->ctl->tail, memory_order_acquire) != ring->own;
}

/* The size, kind and flags of a header, fetched once. An atomic load, since a compiler may take a plain one twice: it did,
 * and compared one value but used the other, which a hostile peer had changed in between. */
static inline uint64_t mpw_first_word(const uint8_t *at)
{
    typedef uint64_t __attribute__((may_alias)) word;
    return __atomic_load_n((const word *)(const void *)at, __ATOMIC_RELAXED);
}

/* Consumer: have the bytes on their way here that come so far behind those of this record: as many as it has, so that each
 * is asked for once. */
static inline void mpw_ring_expect(const mpw_ring *ring, uint64_t total, uint64_t fill)
{
    if (total > MPW_EXPECTED_BYTES)
        return; /* the processor itself sees where a copy of so many goes on */
    uint64_t stop = MPW_EXPECTED_BYTES + total < fill ? MPW_EXPECTED_BYTES + total : fill;
    for (uint64_t at = MPW_EXPECTED_BYTES; at < stop; at += MPW_CACHE_LINE)
        __builtin_prefetch(ring->data + ((ring->own + at) & (ring->capacity - 1)), 0);
}

/* Consumer: look at the next record and step over it. The bytes stay ours until mpw_ring_release. */
static inline mpw_status mpw_ring_next(mpw_ring *ring, mpw_record *out)
{
    for (;;) {
        if (ring->seen == ring->own) {
            /* acquire: pairs with the release store of `tail` in mpw_ring_publish. */
            uint64_t tail = atomic_load_explicit(&ring->ctl->tail, memory_order_acquire);
            if (tail == ring->own)
                return MPW_EMPTY;
            if (tail - ring->own > ring->capacity)
                return MPW_CORRUPT;
            ring->seen = tail;
        }
        uint64_t fill = ring->seen - ring->own;
        uint64_t at = ring->own & (ring->capacity - 1);
        uint64_t to_end = ring->capacity - at;
        uint64_t word = mpw_first_word(ring->data + at); /* at is a multiple of 8 below capacity: in bounds */
        uint64_t size = (uint32_t)word;
        if (size == MPW_WRAP_MARK) {
            /* A marker is only ever written mid-array and is followed by its record in the same publication. So there are
             * no two in a row, and this loop turns once more at most. */
            if (at == 0 || to_end >= fill)
                return MPW_CORRUPT;
            ring->own += to_end;
            continue;
        }
        if (size > mpw_ring_max_payload(ring->capacity))
            return MPW_CORRUPT;
        uint64_t total = mpw_record_bytes(size);
        if (total > fill || total > to_end)
            return MPW_CORRUPT;
        memcpy(&out->header, ring->data + at, sizeof out->header);
        memcpy(&out->header, &word, sizeof word); /* the size that was checked, whatever the shared bytes say by now */
        out->payload = ring->data + at + sizeof(mpw_record_header);
        mpw_ring_expect(ring, total, fill);
        ring->own += total;
        return MPW_OK;
    }
}

/* Either end: bytes in the ring. One of the counters is this end's own, so the difference is right, unless the peer lies. */
static inline uint64_t mpw_ring_fill(const mpw_ring *ring)
{
    uint64_t tail = atomic_load_explicit(&ring->ctl->tail, memory_order_relaxed);
    uint64_t fill = tail - atomic_load_explicit(&ring->ctl->head, memory_order_relaxed);
    return fill < ring->capacity ? fill : ring->capacity;
}

/* Consumer: give back all bytes stepped over, once for a whole batch. */
static inline void mpw_ring_release(mpw_ring *ring)
{
    /* release: pairs with the acquire load of `head` in mpw_ring_room; our copies out of the bytes are done before the
     * producer may overwrite them. */
    atomic_store_explicit(&ring->ctl->head, ring->own, memory_order_release);
}

#endif
