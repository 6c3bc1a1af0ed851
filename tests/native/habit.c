/* habit: a side spins where that is worth it, and goes without where its waits last too long for that. */
#include "driver.h"

enum { SPIN = 1000 };

static mpw_habit habit;

/* Some waits, which last so long if they spin: how many of them do. */
static int spins(int times, uint64_t spun_ns)
{
    int count = 0;
    for (int i = 0; i < times; i++) {
        bool spun = mpw_habit_spin(&habit, SPIN) != 0;
        count += spun;
        if (spun)
            mpw_habit_learn(&habit, SPIN, spun_ns);
    }
    return count;
}

static void expect(const char *what, int found, int least, int most)
{
    if (found < least || found > most)
        fail(what, (uint64_t)found);
}

int main(void)
{
    expect("shorter than the spin", spins(100, 900), 100, 100);
    expect("half as long again: the spin may just not have been enough", spins(100, 1500), 100, 100);
    spins(10, 1600);
    expect("too long for it, but for one in 16", spins(1600, 1600), 100, 100);
    expect("short ones again: the next that tries finds out", spins(100, 100), 84, 100);
    spins(1, 3600u * SPIN);
    expect("one pause of any length", spins(100, 100), 100, 100);
    spins(1000, 3600u * SPIN);
    expect("after many of them", spins(100, 800), 80, 100);
    if (mpw_habit_spin(&(mpw_habit){0, 0}, 0) != 0)
        fail("no spin at all", 0);
    return 0;
}
