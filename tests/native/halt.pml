/* Halt and step under a weak memory model: does no item begin after the cursor that the halt returned?
 *
 * The child stores its cursor and then reads `halt`; the supervisor stores `halt` and then reads the cursor, and goes by what
 * it read: an item after that one must not begin. Each has one place to store to, and a store buffer for it, so that this
 * is x86 and aarch64 in one. -DNO_STEP_FENCE and -DNO_HALT_FENCE leave out a fence; each must be found out.
 */
#define ITEMS 3

byte cursor, begun, cursor_max;
bit halt, halted;
chan cursor_buffer = [ITEMS] of { byte };
chan halt_buffer = [1] of { bit };

active proctype memory()
{
    byte value;
end:
    do
    :: atomic { nempty(cursor_buffer) -> cursor_buffer?value; cursor = value }
    :: atomic { nempty(halt_buffer) -> halt_buffer?value; halt = 1 }
    od
}

/* mpw_claim_step */
active proctype child()
{
    byte item = 1;
    do
    :: item > ITEMS -> break
    :: else ->
        cursor_buffer!item;
#ifndef NO_STEP_FENCE
        empty(cursor_buffer);
#endif
        if
        :: halt -> break
        :: !halt -> begun = item
        fi;
        item++
    od
}

/* mpw_claim_halt */
active proctype supervisor()
{
    halt_buffer!1;
#ifndef NO_HALT_FENCE
    empty(halt_buffer);
#endif
    cursor_max = cursor;
    halted = 1
}

active proctype judge()
{
end:
    do
    :: atomic { halted && begun > cursor_max -> assert(false) }
    od
}
