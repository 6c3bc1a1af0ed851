/* stream RECORDS CAPACITY SEED [threads]: records of random size through a ring, with sleeping when it is full or empty.
 * Two processes over a memfd, or two threads (for ThreadSanitizer). */
#include "driver.h"

static channel *shared;
static int consumer_fd, producer_fd;
static uint64_t records, capacity, seed;

static void produce(void)
{
    static uint8_t payload[PAYLOAD_MAX + 8];
    mpw_ring ring;
    mpw_ring_attach(&ring, &shared->ctl, shared->data, capacity);
    uint64_t size_max = mpw_ring_max_payload(capacity) < 512 ? mpw_ring_max_payload(capacity) : 512;
    rng r = {~seed};
    for (uint64_t i = 0; i < records; i++) {
        mpw_record_header header = make_record(i, seed, size_max, payload);
        push_or_sleep(&ring, header, payload, &shared->producer, producer_fd, below(&r, 2) * 2000);
        ring_the_bell(&shared->consumer, consumer_fd);
    }
}

static void consume(void)
{
    mpw_ring ring;
    mpw_ring_attach(&ring, &shared->ctl, shared->data, capacity);
    rng r = {seed};
    for (uint64_t i = 0; i < records;) {
        mpw_record record = pop_or_sleep(&ring, &shared->consumer, consumer_fd, below(&r, 2) * 2000, i);
        uint64_t limit = 1 + below(&r, 32);
        do
            check_record(&record, i++);
        while (--limit && mpw_ring_next(&ring, &record) == MPW_OK);
        mpw_ring_release(&ring);
        ring_the_bell_for_room(&shared->producer, producer_fd);
    }
    if (mpw_ring_readable(&ring) || mpw_ring_fill(&ring) != 0)
        fail("more than was sent", records);
}

static void *produce_thread(void *unused)
{
    produce();
    return unused;
}

int main(int argc, char **argv)
{
    records = argument(argc, argv, 1);
    capacity = argument(argc, argv, 2);
    seed = argument(argc, argv, 3);
    shared = make_channel(capacity);
    consumer_fd = make_pipe();
    producer_fd = make_pipe();
    if (argc > 4) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, produce_thread, NULL) != 0)
            fail("pthread_create", 0);
        consume();
        pthread_join(thread, NULL);
        return 0;
    }
    pid_t pid = fork_child();
    if (pid == 0) {
        produce();
        _exit(0);
    }
    consume();
    wait_for_child(pid);
    return 0;
}
