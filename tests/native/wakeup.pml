/* Ring and bell under a weak memory model: is every record seen whole, and is no wake-up lost?
 *
 * A producer publishes RECORDS records through a ring of CAPACITY slots; each side sleeps when it can go no further and
 * is woken by the other. Stores go into store buffers, from which `memory` takes them at any later time:
 *
 *   default  x86 (TSO): one buffer for each process, in order; loads in order.
 *   -DWEAK   a buffer for each process and location, so that stores to different places become visible in any order; a
 *            release store enters its buffer only when all earlier ones are visible; a load that no acquire orders may
 *            be done early, and one that no release orders may be done late.
 *
 * A fence waits until all own buffers are empty. A read-modify-write acts on memory, with the own buffer for that place
 * empty (all of them on x86). A lost wake-up is an end in which a side waits for its pipe for ever: spin reports it as an
 * invalid end state. -DNO_... leaves out one thing; each must be found out:
 *
 *   NO_ARM_FENCE, NO_RING_FENCE    the fences of mpw_bell_arm and of mpw_bell_pending and mpw_bell_room_pending
 *   NO_SECOND_LOOK                 sleep without a look at the ring after arming
 *   LATE_ARM                       look at the ring, then arm
 *   LATE_WANT                      arm and look, then want room
 *   NO_TAIL_RELEASE, NO_TAIL_ACQUIRE, NO_HEAD_RELEASE    (WEAK only: x86 orders these by itself)
 */
#define RECORDS 8
#define CAPACITY 2

#define PRODUCER 0
#define CONSUMER 1

/* Places. The words of the bells: SLEEPING + the side that sleeps; only the producer ever wants room. */
#define TAIL 0
#define HEAD 1
#define SLEEPING 2
#define DATA 4
#define WANTS_ROOM 6
#define PLACES 7

byte place[PLACES];
bit rung[2]; /* is there a byte in the pipe? A sleeper that wakes takes out all there are */

#ifdef WEAK
chan buffer[14] = [3] of { byte, byte }; /* side * PLACES + place */
#define BUFFER(side, at) buffer[(side) * PLACES + (at)]
#define DRAINED(side)                                                                                                   \
    (empty(BUFFER(side, 0)) && empty(BUFFER(side, 1)) && empty(BUFFER(side, 2)) && empty(BUFFER(side, 3)) &&            \
     empty(BUFFER(side, 4)) && empty(BUFFER(side, 5)) && empty(BUFFER(side, 6)))
#define RELEASE(side) DRAINED(side)
#define ALONE(side, at) empty(BUFFER(side, at))
#else
chan buffer[2] = [6] of { byte, byte };
#define BUFFER(side, at) buffer[side]
#define DRAINED(side) empty(buffer[side])
#define RELEASE(side) true
#define ALONE(side, at) empty(buffer[side])
#endif

#define STORE(side, at, value) BUFFER(side, at)!at, value
#define FENCE(side) DRAINED(side)

/* The memory takes a store out of a buffer, at any time. */
active proctype memory()
{
    byte at, value;
end:
    do
#ifdef WEAK
    :: atomic { nempty(buffer[0]) -> buffer[0]?at, value; place[at] = value }
    :: atomic { nempty(buffer[1]) -> buffer[1]?at, value; place[at] = value }
    :: atomic { nempty(buffer[2]) -> buffer[2]?at, value; place[at] = value }
    :: atomic { nempty(buffer[3]) -> buffer[3]?at, value; place[at] = value }
    :: atomic { nempty(buffer[4]) -> buffer[4]?at, value; place[at] = value }
    :: atomic { nempty(buffer[5]) -> buffer[5]?at, value; place[at] = value }
    :: atomic { nempty(buffer[6]) -> buffer[6]?at, value; place[at] = value }
    :: atomic { nempty(buffer[7]) -> buffer[7]?at, value; place[at] = value }
    :: atomic { nempty(buffer[8]) -> buffer[8]?at, value; place[at] = value }
    :: atomic { nempty(buffer[9]) -> buffer[9]?at, value; place[at] = value }
    :: atomic { nempty(buffer[10]) -> buffer[10]?at, value; place[at] = value }
    :: atomic { nempty(buffer[11]) -> buffer[11]?at, value; place[at] = value }
    :: atomic { nempty(buffer[12]) -> buffer[12]?at, value; place[at] = value }
    :: atomic { nempty(buffer[13]) -> buffer[13]?at, value; place[at] = value }
#else
    :: atomic { nempty(buffer[0]) -> buffer[0]?at, value; place[at] = value }
    :: atomic { nempty(buffer[1]) -> buffer[1]?at, value; place[at] = value }
#endif
    od
}

/* mpw_bell_pending or mpw_bell_room_pending, after a look at `word`, and the write to the pipe. */
inline ring_bell(side, sleeper, word)
{
#ifndef NO_RING_FENCE
    FENCE(side);
#endif
    if
    :: place[word] == 0
    :: place[word] != 0 ->
        atomic { /* the exchange */
            ALONE(side, SLEEPING + sleeper);
            woken = place[SLEEPING + sleeper];
            place[SLEEPING + sleeper] = 0
        }
        if
        :: woken -> rung[sleeper] = 1
        :: else
        fi
    fi
}

/* mpw_bell_wait; `ready` looks at the ring. */
inline sleep_on_bell(side, ready)
{
#ifdef LATE_ARM
    if
    :: ready
    :: !(ready) ->
        STORE(side, SLEEPING + side, 1);
        FENCE(side);
        atomic { rung[side] == 1 -> rung[side] = 0 }
        STORE(side, SLEEPING + side, 0)
    fi
#else
    STORE(side, SLEEPING + side, 1);
#ifndef NO_ARM_FENCE
    FENCE(side);
#endif
    if
#ifndef NO_SECOND_LOOK
    :: ready
    :: !(ready) ->
#else
    :: true ->
#endif
#ifdef LATE_WANT
        if
        :: side == PRODUCER -> STORE(side, WANTS_ROOM, 1)
        :: else
        fi;
#endif
        atomic { rung[side] == 1 -> rung[side] = 0 }
    fi;
    STORE(side, SLEEPING + side, 0)
#endif
}

active proctype producer()
{
    byte own, seen;
    bit woken;
    do
    :: own == RECORDS -> break
    :: own < RECORDS && own - seen < CAPACITY ->
        STORE(PRODUCER, DATA + own % CAPACITY, own + 1);
        own++;
#ifndef NO_TAIL_RELEASE
        RELEASE(PRODUCER);
#endif
        STORE(PRODUCER, TAIL, own);
        ring_bell(PRODUCER, CONSUMER, SLEEPING + CONSUMER)
    :: own < RECORDS && own - seen == CAPACITY ->
        seen = place[HEAD];
        if
        :: own - seen < CAPACITY
        :: else ->
#ifndef LATE_WANT
            STORE(PRODUCER, WANTS_ROOM, 1);
#endif
            sleep_on_bell(PRODUCER, place[HEAD] != own - CAPACITY);
            STORE(PRODUCER, WANTS_ROOM, 0)
        fi
    od
}

active proctype consumer()
{
    byte own, seen, data;
    bit woken;
    do
    :: own == RECORDS -> break
    :: own < RECORDS && own < seen ->
        data = place[DATA + own % CAPACITY];
check:
        assert(data == own + 1);
        own++;
#ifndef NO_HEAD_RELEASE
        RELEASE(CONSUMER);
#endif
        STORE(CONSUMER, HEAD, own);
        data = 0;
        ring_bell(CONSUMER, PRODUCER, WANTS_ROOM)
#ifdef NO_HEAD_RELEASE
    :: own < RECORDS && own < seen -> /* the copy is done after the store of the head is visible */
        own++;
        STORE(CONSUMER, HEAD, own);
        data = place[DATA + (own - 1) % CAPACITY];
        assert(data == own);
        data = 0;
        ring_bell(CONSUMER, PRODUCER, WANTS_ROOM)
#endif
#ifdef NO_TAIL_ACQUIRE
    :: own < RECORDS && own == seen -> /* the payload is read before the tail that says it is there */
        data = place[DATA + own % CAPACITY];
        seen = place[TAIL];
        if
        :: own < seen -> goto check
        :: else -> data = 0
        fi
#endif
    :: own < RECORDS && own == seen ->
        seen = place[TAIL];
        if
        :: own < seen
        :: else -> sleep_on_bell(CONSUMER, place[TAIL] != own)
        fi
    od
}
