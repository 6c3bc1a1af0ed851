/* pingpong SECONDS SEED: two processes hand one record back and forth through two rings and sleep in between, for so many
 * seconds of processor time. Each answer is delayed at random, so that it meets the other side before, while and after it
 * goes to sleep; a lost wake-up leaves both asleep. */
#include "driver.h"

enum { CAPACITY = 256 };

static uint64_t processor_ns(void)
{
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

static void side(mpw_ring *in, mpw_ring *out, mpw_bell_word *own, int own_fd, mpw_bell_word *peer, int peer_fd, rng r,
                 uint64_t until_ns)
{
    uint64_t delay_max = 256;
    for (uint64_t round = 0;; round++) {
        uint64_t stop = 0;
        if (round % 1024 == 0) {
            stop = until_ns && processor_ns() > until_ns;
            delay_max = 16u << below(&r, 10); /* the window is narrow, and where it lies depends on the machine */
        }
        for (uint64_t i = below(&r, delay_max); i; i--)
            __asm__ volatile("" ::: "memory");
        /* Only the side with a time limit begins; it ends the run by a record that says so. */
        if (until_ns || round) {
            push_or_sleep(out, (mpw_record_header){.a = round, .b = stop}, "", own, own_fd, 0);
            ring_the_bell(peer, peer_fd);
        }
        if (stop) {
            printf("%" PRIu64 " rounds\n", round);
            return;
        }
        mpw_record record = pop_or_sleep(in, own, own_fd, below(&r, 4) ? 0 : below(&r, 3000), round);
        mpw_ring_release(in);
        if (record.header.b)
            return;
    }
}

int main(int argc, char **argv)
{
    uint64_t seconds = argument(argc, argv, 1), seed = argument(argc, argv, 2);
    channel *there = make_channel(CAPACITY), *back = make_channel(CAPACITY);
    int parent_fd = make_pipe(), child_fd = make_pipe();
    mpw_ring in, out;
    pid_t pid = fork_child();
    if (pid == 0) {
        mpw_ring_attach(&in, &there->ctl, there->data, CAPACITY);
        mpw_ring_attach(&out, &back->ctl, back->data, CAPACITY);
        side(&in, &out, &there->consumer, child_fd, &back->consumer, parent_fd, (rng){~seed}, 0);
        _exit(0);
    }
    mpw_ring_attach(&in, &back->ctl, back->data, CAPACITY);
    mpw_ring_attach(&out, &there->ctl, there->data, CAPACITY);
    side(&in, &out, &back->consumer, parent_fd, &there->consumer, child_fd, (rng){seed}, seconds * 500000000u);
    wait_for_child(pid);
    return 0;
}
