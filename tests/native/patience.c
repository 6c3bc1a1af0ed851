/* patience: a side spins for long where that makes its waits much shorter, and nowhere else. */
#include "driver.h"

enum { LONGEST = 500 };

static mpw_patience patience;

/* Some waits, which last so long if they spin and else, but for each `outlier`th of them (0: none): how many spin. */
static int spins(int times, uint64_t spun_ns, uint64_t other_ns, int outlier)
{
    int count = 0;
    for (int i = 1; i <= times; i++) {
        bool spun = mpw_patience_spins(&patience);
        count += spun;
        uint64_t lasted = outlier && i % outlier == 0 ? 100000 : spun ? spun_ns : other_ns;
        mpw_patience_learn(&patience, LONGEST, spun, lasted);
    }
    return count;
}

static void expect(const char *what, int found, int least, int most)
{
    if (found < least || found > most)
        fail(what, (uint64_t)found);
}

static void anew(void)
{
    patience = (mpw_patience){0};
}

int main(void)
{
    expect("not before there is something to compare with", spins(31, 50, 200, 0), 0, 0);
    expect("then they are tried", spins(12, 50, 200, 0), 12, 12);
    expect("and kept, but for a look at the others", spins(100000, 50, 200, 0), 99000, 99900);
    expect("if some waits are long, too", spins(100000, 50, 200, 20), 95000, 99900);
    expect("not for waits that last", spins(100, 100000, 100200, 0), 1, 12);
    expect("which are asked ever more rarely", spins(100000, 100000, 100200, 0), 1, 200);
    expect("short ones again", spins(10000, 50, 200, 0), 5000, 9990);
    expect("where sleeping has become cheap they end", spins(2 * 4096 + 100, 50, 60, 0), 1, 2 * 4096);
    expect("and stay so", spins(100000, 50, 60, 0), 1, 600);
    anew();
    expect("where it always was", spins(100000, 50, 60, 0), 1, 600);
    anew();
    expect("three fifths of the time are enough", spins(10000, 60, 100, 0), 9000, 9990);
    anew();
    expect("and more are not", spins(10000, 61, 100, 0), 1, 200);
    anew();
    expect("nor is what the longest spin does not see the end of", spins(10000, LONGEST, 5000, 0), 1, 100);
    return 0;
}
