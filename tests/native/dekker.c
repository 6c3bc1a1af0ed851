/* dekker ROUNDS SEED [room]: one side publishes while the other goes to sleep, as close together as two processes get.
 * With "room" the sleeper says that it wants room, and is rung as a producer is.
 *
 * The two must never miss each other: a sleeper that saw no record, and a ringer that saw no sleeper. Nobody really sleeps
 * here, so that a round takes well under a microsecond, and each is judged at once. The sleeper waits a little longer after
 * a round in which it was first, and less after one in which it was not: so the two go on meeting in the middle. */
#include "driver.h"

enum { CAPACITY = 256 };

/* Round numbers, each on its own line. */
typedef struct {
    _Alignas(64) _Atomic uint64_t begun;
    _Alignas(64) _Atomic uint64_t answered; /* round << 1 | the ringer saw the sleeper */
} rounds_page;

static uint64_t await(_Atomic uint64_t *word, uint64_t round, unsigned shift)
{
    for (uint64_t turns = 1;; turns++) {
        uint64_t value = atomic_load_explicit(word, memory_order_acquire);
        if (value >> shift == round)
            return value;
        if (turns % 1000 == 0)
            sched_yield();
    }
}

static void pause_for(uint64_t turns)
{
    for (; turns; turns--)
        __asm__ volatile("" ::: "memory");
}

int main(int argc, char **argv)
{
    uint64_t rounds = argument(argc, argv, 1), seed = argument(argc, argv, 2), missed[2] = {0}, pause = 0;
    bool room = argc > 3;
    channel *shared = make_channel(CAPACITY);
    rounds_page *page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    mpw_ring ring;
    mpw_ring_attach(&ring, &shared->ctl, shared->data, CAPACITY);
    if (page == MAP_FAILED)
        fail("mmap", 0);
    pid_t pid = fork_child();
    rng r = {pid ? seed : ~seed};
    for (uint64_t round = 1; round <= rounds; round++) {
        if (pid == 0) {
            await(&page->begun, round, 0);
            pause_for(below(&r, 16));
            if (mpw_ring_push(&ring, (mpw_record_header){.a = round}, "") != MPW_OK)
                fail("push", round);
            uint64_t saw = room ? mpw_bell_room_pending(&shared->consumer) : mpw_bell_pending(&shared->consumer);
            atomic_store_explicit(&page->answered, round << 1 | saw, memory_order_release);
            continue;
        }
        mpw_record record;
        mpw_watch watch = {.tail = &shared->ctl.tail, .popped = ring.own};
        atomic_store_explicit(&page->begun, round, memory_order_release);
        pause_for(pause + below(&r, 16));
        if (room)
            mpw_bell_want_room(&shared->consumer, true);
        mpw_bell_arm(&shared->consumer);
        bool ready = mpw_watch_ready(&watch);
        bool rung = await(&page->answered, round, 1) & 1;
        if (!ready && !rung)
            fail("a lost wake-up: neither saw the other", round);
        missed[ready]++;
        pause = ready ? pause - (pause ? 8 : 0) : (pause + 8) % 16384;
        mpw_bell_disarm(&shared->consumer);
        mpw_bell_want_room(&shared->consumer, false);
        if (mpw_ring_next(&ring, &record) != MPW_OK || record.header.a != round)
            fail("pop", round);
        mpw_ring_release(&ring);
    }
    if (pid == 0)
        _exit(0);
    wait_for_child(pid);
    printf("the sleeper saw the record %" PRIu64 " times, and not %" PRIu64 " times\n", missed[1], missed[0]);
    return 0;
}
