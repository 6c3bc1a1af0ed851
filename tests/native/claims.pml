/* The claim protocol under a weak memory model: does exactly one side win each offer, whatever records are stale?
 *
 * The supervisor offers OFFERS tasks one after the other in the same slot, each under its own generation. It pushes a
 * record for each, and revokes at any time; after a revoke it offers again at once, while the record of the old offer is
 * still in the ring. The child takes records in order, as late as it likes. Stores go through store buffers (see
 * wakeup.pml); the exchanges act on memory. -D leaves one thing out; each must be found out:
 *
 *   ANY_GENERATION   the exchange compares the state alone
 *   NO_EXCHANGE      the child looks, then stores
 *   LATE_OFFER       the record is pushed before the word is stored
 *   NO_RELEASE       the record may be visible before the word
 *   LATE_TIME        the start time is stored after the exchange
 */
#define OFFERS 4

#define OFFERED 1
#define CLAIMED 2
#define REVOKED 3

byte generation, state;    /* the word */
byte started;              /* the start time: the generation that stored it */
byte tail;                 /* records 1..tail are in the ring */
byte finished;             /* the last generation whose result the child has sent */
byte ran[OFFERS + 1];      /* how often each was claimed */
bit taken_back[OFFERS + 1];

/* Two places have a buffer: the word and the tail. */
chan word_buffer = [2] of { byte };
chan tail_buffer = [2] of { byte };
chan time_buffer = [2] of { byte };

active proctype memory()
{
    byte value;
end:
    do
    :: atomic { nempty(word_buffer) -> word_buffer?value; generation = value; state = OFFERED; value = 0 }
    :: atomic { nempty(tail_buffer) -> tail_buffer?value; tail = value; value = 0 }
    :: atomic { nempty(time_buffer) -> time_buffer?value; started = value; value = 0 }
    od
}

active proctype supervisor()
{
    byte g = 1;
    do
    :: g > OFFERS -> break
    :: else ->
#ifdef LATE_OFFER
        tail_buffer!g;
        empty(tail_buffer);
        word_buffer!g;
#else
        word_buffer!g; /* mpw_claim_offer */
#ifndef NO_RELEASE
        empty(word_buffer); /* the release store of the ring's tail */
#endif
        tail_buffer!g;
#endif
        if
        :: true -> /* mpw_claim_revoke */
            atomic {
                empty(word_buffer);
                if
                :: generation == g && state == OFFERED -> state = REVOKED; taken_back[g] = 1
                :: else
                fi
            }
        :: true
        fi;
        if
        :: taken_back[g]
        :: else ->
            /* It runs, or will: the slot is free when the result is here. */
            finished == g ->
            assert(state == CLAIMED && generation == g)
        fi;
        g++
    od;
    /* Every record is seen in the end; nothing was run that was taken back, and all else was run once. */
    finished == OFFERS || taken_back[OFFERS];
}

active proctype child()
{
    byte r = 1;
    bit won;
    do
    :: r > OFFERS -> break
    :: r <= OFFERS && r <= tail ->
        /* mpw_claim_take */
        won = 0;
        if
#ifdef ANY_GENERATION
        :: state != OFFERED
        :: state == OFFERED ->
#else
        :: !(generation == r && state == OFFERED)
        :: generation == r && state == OFFERED ->
#endif
#ifndef LATE_TIME
            time_buffer!r;
            empty(time_buffer); /* the exchange is a release */
#endif
#ifdef NO_EXCHANGE
            generation = r;
            state = CLAIMED;
            won = 1
#else
            atomic {
                if
#ifdef ANY_GENERATION
                :: state == OFFERED -> state = CLAIMED; won = 1
#else
                :: generation == r && state == OFFERED -> state = CLAIMED; won = 1
#endif
                :: else
                fi
            }
#endif
        fi;
        if
        :: won ->
            ran[r]++;
            assert(ran[r] == 1 && !taken_back[r]);
#ifdef LATE_TIME
            time_buffer!r;
#endif
            finished = r
        :: else ->
            assert(taken_back[r]) /* a claim fails only if the offer was taken back */
        fi;
        r++
    od
}

/* Whoever reads CLAIMED reads the time too. */
active proctype observer()
{
    byte g;
end:
    do
    :: atomic { state == CLAIMED && generation > g -> g = generation; assert(started == g) }
    od
}
