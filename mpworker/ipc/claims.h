/* Claims: who may run a task, decided by one compare-and-swap.
 *
 * The supervisor offers tasks to a child ahead of time, so that the child never waits for the next one. Each offer has a
 * slot in a page shared by the two. The slot's word is (generation << 2 | state):
 *
 *     FREE -> OFFERED -> CLAIMED          the child, just before it runs the task
 *                    \-> REVOKED          the supervisor, to cancel the task or to give it to another child
 *
 * Exactly one of the two succeeds, since both start from the same (generation, OFFERED). A slot's generation never
 * repeats: a record of a revoked offer that the child still finds in its ring cannot claim the next offer in that slot.
 * Generations begin at 1, since 0 stands for "none" in a fresh page, and stay below 2^62, to fit the word.
 * When a child has died, its page says which task it was running (CLAIMED) and which it had not begun (OFFERED).
 *
 * Who reads the page when the supervisor is dead as well knows no task by its slot. So the supervisor notes, behind the page
 * and where no child looks, what it offers in each: an entry for each slot. One whose generation is not that of the slot's
 * word says nothing of it: the supervisor has died between the two.
 *
 * A child maps its own page only. It can spoil that page, so the supervisor compares and never computes addresses from
 * it; a word that is neither OFFERED nor REVOKED at the expected generation counts as claimed.
 */
#ifndef MPW_CLAIMS_H
#define MPW_CLAIMS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define MPW_GENERATION_MAX (UINT64_MAX >> 2)

enum { MPW_FREE = 0, MPW_OFFERED = 1, MPW_CLAIMED = 2, MPW_REVOKED = 3 };

typedef struct {
    _Atomic uint64_t word;       /* generation << 2 | state */
    _Atomic uint64_t started_ns; /* CLOCK_MONOTONIC at the claim, or at the present item of a chunk */
    _Atomic uint64_t cursor;     /* the item of a chunk that runs now; 0 for a single task */
    _Atomic uint64_t halt;       /* the generation that must end: before its next item, or by an interrupt */
} mpw_slot;

/* The page: the child's heartbeat on a line of its own, then the slots. */
typedef struct {
    _Alignas(64) _Atomic uint64_t beat_ns; /* CLOCK_MONOTONIC of the last beat */
    uint64_t reserved[7];
    mpw_slot slots[];
} mpw_claims;

_Static_assert(sizeof(mpw_slot) == 32, "two slots a cache line");
_Static_assert(sizeof(mpw_claims) == 64, "the slots begin on the second line");

/* What was offered in a slot last. */
typedef struct {
    _Atomic uint64_t generation;
    _Atomic uint64_t task;
    _Atomic uint64_t range; /* items of a chunk: start | stop << 32; 0 for a single task */
} mpw_entry;

_Static_assert(sizeof(mpw_entry) == 24, "three words");

static inline uint64_t mpw_claim_word(uint64_t generation, unsigned state)
{
    return generation << 2 | state;
}

/* Supervisor: note what it is about to offer. Nobody reads it before this process is dead, and so all stores that it has
 * done can be seen; the fences keep them in this order for the compiler, and the generation is right only between the last
 * one here and the next note. */
static inline void mpw_claim_note(mpw_entry *entry, uint64_t generation, uint64_t task, uint64_t range)
{
    atomic_store_explicit(&entry->generation, 0, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
    atomic_store_explicit(&entry->task, task, memory_order_relaxed);
    atomic_store_explicit(&entry->range, range, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
    atomic_store_explicit(&entry->generation, generation, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
}

/* Supervisor: offer. The slot is its own until the store: the child acts on a slot only after it read a record. */
static inline void mpw_claim_offer(mpw_slot *slot, uint64_t generation)
{
    atomic_store_explicit(&slot->started_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->cursor, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->halt, 0, memory_order_relaxed);
    /* release: whoever acquires this word sees the fields above as reset. (The child also learns of the offer through the
     * ring's release store, which comes later.) */
    atomic_store_explicit(&slot->word, mpw_claim_word(generation, MPW_OFFERED), memory_order_release);
}

static inline bool mpw_claim_move(mpw_slot *slot, uint64_t generation, unsigned state)
{
    uint64_t expected = mpw_claim_word(generation, MPW_OFFERED);
    /* acq_rel: the winner sees what the offer's release store published, and the loser (who reads the word with acquire)
     * sees what the winner wrote before. */
    return atomic_compare_exchange_strong_explicit(&slot->word, &expected, mpw_claim_word(generation, state),
                                                   memory_order_acq_rel, memory_order_acquire);
}

/* Child: claim. The start time is stored first, so that whoever reads CLAIMED reads the time too. When the offer is revoked
 * between the look and the exchange, the time may land in the slot's next offer: it means nothing before CLAIMED. */
static inline bool mpw_claim_take(mpw_slot *slot, uint64_t generation, uint64_t now_ns)
{
    if (atomic_load_explicit(&slot->word, memory_order_relaxed) != mpw_claim_word(generation, MPW_OFFERED))
        return false;
    atomic_store_explicit(&slot->started_ns, now_ns, memory_order_relaxed);
    return mpw_claim_move(slot, generation, MPW_CLAIMED);
}

static inline bool mpw_claim_revoke(mpw_slot *slot, uint64_t generation)
{
    return mpw_claim_move(slot, generation, MPW_REVOKED);
}

/* Child: begin an item of a chunk; false when the supervisor asked to end the chunk before it.
 *
 * Dekker again, so that the supervisor's "item k is late, interrupt it" can never hit item k + 1: the child stores the
 * cursor and then reads `halt`, the supervisor stores `halt` and then reads the cursor. If the supervisor still reads k,
 * the child's next step sees the halt; if it reads k + 1, item k ended in time and nothing is interrupted. */
static inline bool mpw_claim_step(mpw_slot *slot, uint64_t generation, uint64_t cursor, uint64_t now_ns)
{
    atomic_store_explicit(&slot->started_ns, now_ns, memory_order_relaxed);
    /* release: pairs with the acquire load in the supervisor's peek; a cursor is never newer than its start time. */
    atomic_store_explicit(&slot->cursor, cursor, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the fence in mpw_claim_halt */
    return atomic_load_explicit(&slot->halt, memory_order_relaxed) != generation;
}

/* Supervisor: no further item of this chunk (0 takes it back). The cursor as it is after that took effect. */
static inline uint64_t mpw_claim_halt(mpw_slot *slot, uint64_t generation)
{
    atomic_store_explicit(&slot->halt, generation, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the fence in mpw_claim_step */
    return atomic_load_explicit(&slot->cursor, memory_order_acquire);
}

#endif
