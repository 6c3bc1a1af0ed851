/* kill KILLS SEED: a writer is killed while it pushes; what it left are whole records in order, and then nothing. */
#include "driver.h"

static _Noreturn void write_for_ever(channel *shared, uint64_t capacity, uint64_t seed)
{
    static uint8_t payload[PAYLOAD_MAX + 8];
    mpw_ring ring;
    mpw_ring_attach(&ring, &shared->ctl, shared->data, capacity);
    for (uint64_t i = 0;; i++) {
        mpw_record_header header = make_record(i, seed, mpw_ring_max_payload(capacity), payload);
        mpw_status status;
        while ((status = mpw_ring_push(&ring, header, payload)) == MPW_FULL)
            sched_yield();
        if (status != MPW_OK)
            fail("push", i);
    }
}

int main(int argc, char **argv)
{
    uint64_t kills = argument(argc, argv, 1), whole = 0;
    rng r = {argument(argc, argv, 2)};
    for (uint64_t k = 0; k < kills; k++) {
        uint64_t capacity = MPW_RING_MIN_CAPACITY << below(&r, 9), seed = next(&r);
        channel *shared = make_channel(capacity);
        pid_t pid = fork_child();
        if (pid == 0)
            write_for_ever(shared, capacity, seed);
        mpw_ring ring;
        mpw_ring_attach(&ring, &shared->ctl, shared->data, capacity);
        /* Records are taken until the kill, so that the writer is busy and not waiting for room when it comes. */
        uint64_t sequence = 0, kill_at = below(&r, 300);
        for (mpw_status status = MPW_OK;;) {
            mpw_record record;
            status = mpw_ring_next(&ring, &record);
            if (status == MPW_OK) {
                check_record(&record, sequence++);
                mpw_ring_release(&ring);
            } else if (status == MPW_CORRUPT) {
                fail("corrupt", sequence);
            } else if (pid == 0) {
                break; /* dead, and the ring is drained */
            } else {
                sched_yield();
            }
            if (pid && sequence >= kill_at) {
                for (uint64_t i = below(&r, 3000); i; i--)
                    __asm__ volatile("" ::: "memory");
                kill(pid, SIGKILL);
                if (waitpid(pid, NULL, 0) != pid)
                    fail("waitpid", k);
                pid = 0;
            }
        }
        if (mpw_ring_fill(&ring) != 0)
            fail("bytes are left over", sequence);
        whole += sequence;
        munmap(shared, sizeof *shared + capacity);
    }
    printf("%" PRIu64 " whole records\n", whole);
    return 0;
}
