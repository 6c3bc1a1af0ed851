/* claims_race ROUNDS SEED: a child claims while the supervisor revokes, slot by slot; exactly one of the two wins.
 *
 * The child works through records in order, late: after a revoke the supervisor offers the slot again at once, so the child
 * finds records of generations that are gone. Its claims must fail, and spoil nothing. A claimed chunk that is halted begins
 * no item after the cursor that the halt returned. */
#include "driver.h"

enum { SLOTS = 4, RECORDS = 64, ITEMS = 8, NOBODY = 0, CHILD = 1, SUPERVISOR = 2 };

static struct {
    mpw_claims page;
    mpw_slot slots[SLOTS];
} memory;
static uint64_t rounds;
static uint64_t *records; /* the ring of records: generation << 2 | slot */
static _Atomic uint64_t pushed, popped, finished[SLOTS];
static uint64_t begun[SLOTS]; /* the last item that the child began; published by `finished` */
static uint8_t *claimed_by_child; /* by generation; plain bytes, published by `popped` */

static void pause_for(uint64_t turns)
{
    for (; turns; turns--)
        __asm__ volatile("" ::: "memory");
}

static void wait_a_little(uint64_t *turns)
{
    if (++*turns % 1000 == 0)
        sched_yield(); /* the other may have no core to run on */
}

static void *child(void *argument)
{
    rng r = {*(uint64_t *)argument};
    uint64_t turns = 0;
    for (uint64_t i = 0;; i++) {
        while (atomic_load_explicit(&pushed, memory_order_acquire) == i)
            wait_a_little(&turns);
        uint64_t record = records[i % RECORDS], generation = record >> 2, slot = record & 3;
        if (!generation)
            return NULL;
        pause_for(below(&r, 16));
        if (mpw_claim_take(&memory.slots[slot], generation, generation)) {
            if (claimed_by_child[generation]++)
                fail("claimed twice", generation);
            begun[slot] = 0;
            for (uint64_t item = 1; item <= ITEMS; item++) {
                if (!mpw_claim_step(&memory.slots[slot], generation, item, generation + item))
                    break;
                begun[slot] = item;
                pause_for(below(&r, 128));
            }
            atomic_store_explicit(&finished[slot], generation, memory_order_release);
        }
        atomic_store_explicit(&popped, i + 1, memory_order_release);
    }
}

int main(int argc, char **argv)
{
    rounds = argument(argc, argv, 1);
    uint64_t seed = argument(argc, argv, 2), pause = 0, turns = 0, offered[SLOTS] = {0}, won[3] = {0};
    rng r = {seed};
    uint8_t *revoked = calloc(rounds + 1, 1);
    claimed_by_child = calloc(rounds + 1, 1);
    records = calloc(RECORDS, sizeof *records);
    pthread_t thread;
    uint64_t child_seed = ~seed;
    if (!revoked || !claimed_by_child || !records || pthread_create(&thread, NULL, child, &child_seed) != 0)
        fail("set-up", 0);
    for (uint64_t generation = 1; generation <= rounds; generation++) {
        uint64_t i = below(&r, SLOTS);
        mpw_slot *slot = &memory.slots[i];
        if (offered[i]) {
            pause_for(pause + below(&r, 16));
            revoked[offered[i]] = mpw_claim_revoke(slot, offered[i]);
            if (revoked[offered[i]] && mpw_claim_revoke(slot, offered[i]))
                fail("revoked twice", offered[i]);
            /* Longer after a win and shorter after a loss, so that the two go on meeting in the middle. */
            pause = revoked[offered[i]] ? (pause + 8) % 16384 : pause - (pause ? 8 : 0);
            if (!revoked[offered[i]]) {
                /* The child has it: its start time is there to read, and the slot is not reused before it is done. */
                uint64_t word = atomic_load_explicit(&slot->word, memory_order_acquire);
                uint64_t cursor = atomic_load_explicit(&slot->cursor, memory_order_acquire);
                uint64_t started = atomic_load_explicit(&slot->started_ns, memory_order_relaxed);
                if (word != mpw_claim_word(offered[i], MPW_CLAIMED))
                    fail("neither revoked nor claimed", offered[i]);
                if (started < offered[i] + cursor)
                    fail("a cursor newer than its start time", offered[i]);
                pause_for(below(&r, 512));
                uint64_t cursor_max = below(&r, 2) ? mpw_claim_halt(slot, offered[i]) : ITEMS;
                while (atomic_load_explicit(&finished[i], memory_order_acquire) != offered[i])
                    wait_a_little(&turns);
                if (begun[i] > cursor_max)
                    fail("an item began after the halt", offered[i]);
            }
        }
        offered[i] = generation;
        mpw_claim_offer(slot, generation);
        uint64_t at = atomic_load_explicit(&pushed, memory_order_relaxed);
        while (at - atomic_load_explicit(&popped, memory_order_acquire) == RECORDS)
            wait_a_little(&turns);
        records[at % RECORDS] = generation << 2 | i;
        atomic_store_explicit(&pushed, at + 1, memory_order_release);
    }
    uint64_t at = atomic_load_explicit(&pushed, memory_order_relaxed);
    while (at - atomic_load_explicit(&popped, memory_order_acquire) == RECORDS)
        wait_a_little(&turns);
    records[at % RECORDS] = 0;
    atomic_store_explicit(&pushed, at + 1, memory_order_release);
    pthread_join(thread, NULL);
    for (uint64_t generation = 1; generation <= rounds; generation++) {
        if (claimed_by_child[generation] + revoked[generation] != 1)
            fail("not exactly one winner", generation);
        won[claimed_by_child[generation] ? CHILD : SUPERVISOR]++;
    }
    printf("the child won %" PRIu64 ", the supervisor %" PRIu64 "\n", won[CHILD], won[SUPERVISOR]);
    return won[CHILD] && won[SUPERVISOR] ? 0 : 1;
}
