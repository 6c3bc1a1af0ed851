/* extents STEPS SEED: blocks are taken and given back at random, beside a map of the pages that says who has each. */
#include "driver.h"
#include "extents.h"

enum { PAGES = 256, KEPT = 512 };

static uint64_t owner[PAGES]; /* the number of the block that has the page, 0 for none */
static mpw_block kept[KEPT];

static uint64_t run_of_free(uint64_t from) /* free pages from here on */
{
    uint64_t end = from;
    while (end < PAGES && !owner[end])
        end++;
    return end - from;
}

static void mark(const mpw_block *block, uint64_t was, uint64_t is)
{
    for (uint64_t page = block->offset / MPW_EXTENT_BYTES; page < (block->offset + block->size) / MPW_EXTENT_BYTES; page++) {
        if (page >= PAGES || owner[page] != was)
            fail("a page has another owner", page);
        owner[page] = is;
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("extents STEPS SEED", 0);
    rng r = {strtoull(argv[2], NULL, 10)};
    uint64_t steps = strtoull(argv[1], NULL, 10), count = 0, last = 0;
    mpw_extents extents;
    if (!mpw_extents_init(&extents, PAGES * MPW_EXTENT_BYTES))
        fail("init", 0);
    for (uint64_t step = 0; step < steps; step++) {
        if (count && below(&r, 2)) {
            uint64_t place = below(&r, count);
            mpw_block block = kept[place];
            kept[place] = kept[--count];
            mark(&block, block.number, 0);
            if (!mpw_extents_give(&extents, block.number) || mpw_extents_give(&extents, block.number))
                fail("a block is given back once", step);
        } else {
            uint64_t size = below(&r, 4 * MPW_EXTENT_BYTES) + (below(&r, 16) ? 0 : below(&r, PAGES * MPW_EXTENT_BYTES));
            uint64_t pages = size ? (size + MPW_EXTENT_BYTES - 1) / MPW_EXTENT_BYTES : 1, page = 0;
            while (page < PAGES && run_of_free(page) < pages)
                page++;
            mpw_block block;
            int taken = mpw_extents_take(&extents, size, &block);
            if (taken != (page < PAGES))
                fail("what fits is taken", step);
            if (taken) {
                if (block.offset != page * MPW_EXTENT_BYTES || block.size != pages * MPW_EXTENT_BYTES || block.number <= last)
                    fail("the first place that fits, by a new number", step);
                last = block.number;
                mark(&block, 0, block.number);
                kept[count++] = block;
            }
        }
        uint64_t taken = 0, largest = 0;
        for (uint64_t page = 0; page < PAGES; page++)
            taken += owner[page] != 0;
        for (uint64_t page = 0; page < PAGES; page += run_of_free(page) + 1)
            largest = run_of_free(page) > largest ? run_of_free(page) : largest;
        if (extents.taken != taken * MPW_EXTENT_BYTES || mpw_extents_largest(&extents) != largest * MPW_EXTENT_BYTES)
            fail("what is taken, and what is left in a row", step);
    }
    while (count)
        mpw_extents_give(&extents, kept[--count].number);
    if (extents.gap_count != 1 || extents.gaps[0].size != PAGES * MPW_EXTENT_BYTES)
        fail("all gaps join", extents.gap_count);
    mpw_extents_free(&extents);
    return 0;
}
