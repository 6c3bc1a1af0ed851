/* habit: a side spins where that is worth it, and goes without where its waits last too long for that. */
#include "driver.h"

enum { SPIN = 1000 };

static mpw_habit habit;

static void wait_for(uint64_t ns, uint64_t spins, int times)
{
    for (int i = 0; i < times; i++) {
        uint64_t spin = mpw_habit_spin(&habit, SPIN);
        if (spin != spins)
            fail("the spin", spin);
        mpw_habit_learn(&habit, SPIN, ns);
    }
}

static uint64_t spins_of(uint64_t ns, int times) /* how many of these waits spin */
{
    uint64_t count = 0;
    for (int i = 0; i < times; i++) {
        count += mpw_habit_spin(&habit, SPIN) != 0;
        mpw_habit_learn(&habit, SPIN, ns);
    }
    return count;
}

int main(void)
{
    wait_for(900, SPIN, 100);   /* shorter than the spin */
    wait_for(1500, SPIN, 100);  /* half as long again: the spin may just not have been enough */
    spins_of(1600, 16);         /* it takes a few to be the habit */
    if (spins_of(1600, 1600) != 100)
        fail("of 16 longer waits one spins", 0);
    if (spins_of(100, 32) < 16) /* the first that spins finds out */
        fail("short waits again", 0);
    spins_of(3600u * SPIN, 3); /* a pause of any length */
    if (spins_of(100, 100) < 80)
        fail("a few short waits after a long one", 0);
    if (mpw_habit_spin(&(mpw_habit){0, 0}, 0) != 0)
        fail("no spin at all", 0);
    return 0;
}
