/* fuzz SECONDS SEED: rings full of nonsense, read and written under AddressSanitizer.
 *
 * The arrays are heap blocks of the exact size, so that one byte too far is seen. Whatever the bytes are, each step is
 * OK, empty, full or corrupt; a batch between two looks at `tail` holds no more records than fit the ring. */
#include "driver.h"

static mpw_ring_ctl *ctl;
static uint8_t *data;
static uint64_t capacity;
static uint64_t met[5]; /* how often a case ended so: to see that the fuzzer reaches every ending */
static atomic_bool mutate;

static uint64_t touch(const mpw_record *record)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < record->header.size; i++)
        sum += record->payload[i];
    return sum;
}

static mpw_status read_all(mpw_ring *ring, uint64_t records_max)
{
    mpw_record record;
    mpw_status status = MPW_OK;
    for (uint64_t count = 0; count < records_max && status == MPW_OK; count++) {
        (void)mpw_ring_readable(ring);
        if (mpw_ring_fill(ring) > capacity)
            fail("a fill above the capacity", count);
        status = mpw_ring_next(ring, &record);
        if (status == MPW_OK) {
            __asm__ volatile("" ::"r"(touch(&record)));
            if (record.payload < data || record.payload + record.header.size > data + capacity)
                fail("a payload outside the array", count);
        }
        if ((ring->own & (MPW_RECORD_ALIGN - 1)) != 0)
            fail("an unaligned position", count);
        if (below(&(rng){ring->own}, 2))
            mpw_ring_release(ring);
    }
    return status;
}

static uint64_t odd_number(rng *r)
{
    static const uint64_t odd[] = {0, 1, 7, 8, 31, 32, 40, UINT32_MAX, UINT32_MAX - 1, INT32_MAX, UINT64_MAX, 1ull << 63};
    switch (below(r, 4)) {
    case 0:
        return odd[below(r, sizeof odd / sizeof *odd)];
    case 1:
        return capacity + below(r, 65) - 32;
    case 2:
        return below(r, 2 * capacity);
    default:
        return next(r);
    }
}

static void fill_at_random(rng *r)
{
    for (uint64_t i = 0; i < capacity; i++)
        data[i] = (uint8_t)(below(r, 3) ? next(r) : (below(r, 2) ? 0 : 0xff));
    /* Plausible sizes here and there, or else almost every case would end at its first header. */
    for (uint64_t i = below(r, 8); i; i--) {
        uint32_t size = (uint32_t)odd_number(r);
        memcpy(data + (below(r, capacity / 8) * 8), &size, sizeof size);
    }
}

/* A producer that is honest up to its present position. */
static mpw_ring honest_stream(rng *r, mpw_ring *consumer, uint64_t *starts, unsigned *count)
{
    static uint8_t payload[PAYLOAD_MAX + 8];
    mpw_ring producer;
    mpw_ring_attach(&producer, ctl, data, capacity);
    *count = 0;
    for (uint64_t i = 0, turns = below(r, 40); i < turns; i++) {
        mpw_record_header header = make_record(i, r->state, mpw_ring_max_payload(capacity), payload);
        uint64_t before = producer.own;
        mpw_status status = mpw_ring_push(&producer, header, payload);
        if (status == MPW_FULL) {
            if (i + 4 > turns)
                break; /* leave a full ring to be spoiled */
            if (read_all(consumer, capacity) != MPW_EMPTY)
                fail("an honest ring is not empty in the end", i);
            mpw_ring_release(consumer);
            *count = 0;
        } else if (*count < 64) {
            starts[(*count)++] = before & (capacity - 1);
        }
    }
    return producer;
}

static void spoil(rng *r, const uint64_t *starts, unsigned count, const mpw_ring *producer)
{
    for (uint64_t i = below(r, 6); i; i--) {
        uint64_t at = count && below(r, 3) ? starts[below(r, count)] : below(r, capacity / 8) * 8;
        uint32_t size = (uint32_t)odd_number(r);
        switch (below(r, 4)) {
        case 0:
            memcpy(data + at, &size, sizeof size);
            break;
        case 1:
            data[below(r, capacity)] ^= (uint8_t)(1u << below(r, 8));
            break;
        case 2:
            size = MPW_WRAP_MARK;
            memcpy(data + at, &size, sizeof size);
            break;
        default:
            atomic_store(&ctl->tail, producer->own + (below(r, 2) ? 8 * below(r, capacity / 8) : odd_number(r)));
        }
    }
}

static void reader_case(rng *r)
{
    mpw_ring consumer;
    uint64_t starts[64];
    unsigned count;
    mpw_ring_attach(&consumer, ctl, data, capacity);
    mpw_ring producer = honest_stream(r, &consumer, starts, &count);
    if (below(r, 3) == 0) {
        fill_at_random(r);
        atomic_store(&ctl->tail, producer.own + 8 * below(r, capacity / 8 + 2));
    } else {
        spoil(r, starts, count, &producer);
    }
    mpw_status status = read_all(&consumer, capacity / sizeof(mpw_record_header) + 1);
    if (status == MPW_OK)
        fail("more records than the ring has room for", r->state);
    met[status == MPW_CORRUPT ? 0 : 1]++;
}

static void writer_case(rng *r)
{
    static uint8_t payload[PAYLOAD_MAX + 8];
    mpw_ring producer;
    mpw_ring_attach(&producer, ctl, data, capacity);
    for (uint64_t i = 0; i < 40; i++) {
        mpw_record_header header = make_record(i, r->state, capacity, payload);
        uint64_t own = producer.own, fill = own - producer.seen;
        mpw_status status = mpw_ring_push(&producer, header, payload);
        if (status == MPW_OK && producer.own - producer.seen > capacity)
            fail("pushed more than the ring holds", fill);
        if ((status == MPW_TOO_LARGE) != (header.size > mpw_ring_max_payload(capacity)))
            fail("the bound on a payload", header.size);
        if (status != MPW_OK && producer.own != own)
            fail("a push that failed has moved the position", own);
        met[status == MPW_OK ? 2 : status == MPW_FULL ? 3 : 4]++;
        if (status == MPW_CORRUPT)
            return;
        if (below(r, 3) == 0)
            atomic_store(&ctl->head, below(r, 2) ? producer.own - 8 * below(r, capacity / 8) : odd_number(r));
    }
}

/* The peer that writes while we read. */
static void *mutator(void *seed)
{
    rng r = {*(uint64_t *)seed};
    bool flip = below(&r, 2); /* one size between two looks at it; else anything anywhere */
    while (flip && atomic_load_explicit(&mutate, memory_order_relaxed)) {
        static const uint32_t sizes[] = {8, INT32_MAX, 16, UINT32_MAX, 0, 1u << 20};
        for (int i = 0; i < 6; i++) {
            memcpy(data, &sizes[i], sizeof *sizes);
            __asm__ volatile("" ::: "memory");
        }
        atomic_store_explicit(&ctl->tail, capacity, memory_order_relaxed);
    }
    while (atomic_load_explicit(&mutate, memory_order_relaxed)) {
        uint32_t size = (uint32_t)odd_number(&r);
        if (below(&r, 4))
            size = (uint32_t)below(&r, capacity / 2);
        memcpy(data + below(&r, capacity / 32) * 32, &size, sizeof size);
        uint64_t position = atomic_load_explicit(&ctl->head, memory_order_relaxed);
        atomic_store_explicit(&ctl->tail, position + 8 * below(&r, capacity / 8 + 1), memory_order_release);
        if (below(&r, 64) == 0)
            atomic_store_explicit(&ctl->head, odd_number(&r), memory_order_relaxed);
    }
    return NULL;
}

static void live_case(rng *r)
{
    pthread_t thread;
    uint64_t seed = next(r);
    memset(data, 0, capacity);
    atomic_store(&mutate, true);
    if (pthread_create(&thread, NULL, mutator, &seed) != 0)
        fail("pthread_create", 0);
    static uint8_t payload[PAYLOAD_MAX + 8];
    for (int i = 0; i < 20000; i++) {
        mpw_ring consumer, producer;
        mpw_ring_attach(&consumer, ctl, data, capacity);
        mpw_ring_attach(&producer, ctl, data, capacity);
        read_all(&consumer, 64);
        atomic_store_explicit(&ctl->head, 0, memory_order_relaxed);
        mpw_ring_push(&producer, make_record((uint64_t)i, seed, mpw_ring_max_payload(capacity), payload), payload);
    }
    atomic_store(&mutate, false);
    pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
    uint64_t until = mpw_now_ns() + argument(argc, argv, 1) * 1000000000u, seed = argument(argc, argv, 2), cases = 0;
    for (; mpw_now_ns() < until; cases++) {
        rng r = {mix(seed + cases)};
        capacity = MPW_RING_MIN_CAPACITY << below(&r, 5);
        ctl = aligned_alloc(MPW_CACHE_LINE, sizeof *ctl);
        data = malloc(capacity);
        memset(ctl, 0, sizeof *ctl);
        memset(data, 0, capacity);
        if (cases % 4096 == 4095)
            live_case(&r);
        else if (below(&r, 3))
            reader_case(&r);
        else
            writer_case(&r);
        free(ctl);
        free(data);
    }
    printf("%" PRIu64 " cases: corrupt %" PRIu64 ", drained %" PRIu64 ", pushed %" PRIu64 ", full %" PRIu64
           ", refused %" PRIu64 "\n",
           cases, met[0], met[1], met[2], met[3], met[4]);
    for (int i = 0; i < 5; i++) {
        if (!met[i])
            fail("an ending that the fuzzer never met", (uint64_t)i);
    }
    return 0;
}
