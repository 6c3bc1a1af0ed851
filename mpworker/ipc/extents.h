/* Extents: which parts of an arena are taken.
 *
 * Address-ordered first fit: what is lowest in the arena is used first, so that its memory is warm, and the gaps that are
 * left lie together at its end. (Wilson, Johnstone, Neely and Boles, "Dynamic Storage Allocation: A Survey and Critical
 * Review", 1995, find it among the least fragmenting.) Sizes are whole pages: a block is mapped by itself.
 *
 * A block is known by a number that never repeats. So to give one back twice is to give it back once, whoever has got it
 * since; and each operation is one call, in whose middle no signal handler runs and no thread: the client takes no lock.
 *
 * Nothing here knows of Python, nor of the memory itself.
 */
#ifndef MPW_EXTENTS_H
#define MPW_EXTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MPW_EXTENT_BYTES 4096 /* of which each block has a whole number */

typedef struct {
    uint64_t offset, size;
} mpw_gap;

typedef struct {
    uint64_t number, offset, size;
} mpw_block;

typedef struct {
    uint64_t taken;  /* bytes */
    uint64_t number; /* the last one given out */
    mpw_gap *gaps;   /* by their offset; no two touch */
    size_t gap_count, gap_room;
    mpw_block *blocks; /* by their number */
    size_t block_count, block_room;
} mpw_extents;

/* Room for one more, `size` bytes each; false if there is no memory. */
static inline bool mpw_extents_grow(void **array, size_t *room, size_t needed, size_t size)
{
    if (needed <= *room)
        return true;
    size_t more = *room ? *room * 2 : 16;
    while (more < needed)
        more *= 2;
    void *grown = realloc(*array, more * size);
    if (!grown)
        return false;
    *array = grown;
    *room = more;
    return true;
}

static inline bool mpw_extents_init(mpw_extents *extents, uint64_t capacity)
{
    *extents = (mpw_extents){0};
    if (!mpw_extents_grow((void **)&extents->gaps, &extents->gap_room, 1, sizeof(mpw_gap)))
        return false;
    extents->gaps[0] = (mpw_gap){0, capacity / MPW_EXTENT_BYTES * MPW_EXTENT_BYTES};
    extents->gap_count = extents->gaps[0].size > 0;
    return true;
}

static inline void mpw_extents_free(mpw_extents *extents)
{
    free(extents->gaps);
    free(extents->blocks);
}

static inline uint64_t mpw_extents_largest(const mpw_extents *extents)
{
    uint64_t largest = 0;
    for (size_t i = 0; i < extents->gap_count; i++)
        largest = extents->gaps[i].size > largest ? extents->gaps[i].size : largest;
    return largest;
}

/* A block of at least `size` bytes. Returns 1, 0 if no gap is large enough, -1 if there is no memory to note it. */
static inline int mpw_extents_take(mpw_extents *extents, uint64_t size, mpw_block *block)
{
    uint64_t pages = size / MPW_EXTENT_BYTES + (size % MPW_EXTENT_BYTES != 0);
    size = (pages ? pages : 1) * MPW_EXTENT_BYTES;
    size_t at = 0;
    while (at < extents->gap_count && extents->gaps[at].size < size)
        at++;
    if (at == extents->gap_count)
        return 0;
    /* Also for the gap that each block may become: there is at most one more of these than there are blocks, and so
     * nothing can be in the way when one is given back. */
    if (!mpw_extents_grow((void **)&extents->blocks, &extents->block_room, extents->block_count + 1, sizeof(mpw_block)) ||
        !mpw_extents_grow((void **)&extents->gaps, &extents->gap_room, extents->block_count + 3, sizeof(mpw_gap)))
        return -1;
    mpw_gap *gap = &extents->gaps[at];
    *block = (mpw_block){++extents->number, gap->offset, size};
    extents->blocks[extents->block_count++] = *block;
    gap->offset += size;
    gap->size -= size;
    if (!gap->size) {
        extents->gap_count--;
        memmove(gap, gap + 1, (extents->gap_count - at) * sizeof *gap);
    }
    extents->taken += size;
    return 1;
}

/* Where among the blocks the one with this number is; the count of them if it is none of these. */
static inline size_t mpw_extents_find(const mpw_extents *extents, uint64_t number)
{
    size_t low = 0, high = extents->block_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (extents->blocks[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low < extents->block_count && extents->blocks[low].number == number ? low : extents->block_count;
}

/* Give a block back; false if it is not taken. */
static inline bool mpw_extents_give(mpw_extents *extents, uint64_t number)
{
    size_t found = mpw_extents_find(extents, number);
    if (found == extents->block_count)
        return false;
    mpw_block block = extents->blocks[found];
    extents->block_count--;
    memmove(&extents->blocks[found], &extents->blocks[found + 1], (extents->block_count - found) * sizeof block);
    extents->taken -= block.size;
    size_t low = 0, high = extents->gap_count; /* the first gap behind it */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (extents->gaps[middle].offset < block.offset)
            low = middle + 1;
        else
            high = middle;
    }
    mpw_gap *next = &extents->gaps[low];
    bool joins_next = low < extents->gap_count && block.offset + block.size == next->offset;
    bool joins_last = low > 0 && next[-1].offset + next[-1].size == block.offset;
    if (joins_last && joins_next) {
        next[-1].size += block.size + next->size;
        extents->gap_count--;
        memmove(next, next + 1, (extents->gap_count - low) * sizeof *next);
    } else if (joins_last) {
        next[-1].size += block.size;
    } else if (joins_next) {
        next->offset = block.offset;
        next->size += block.size;
    } else {
        memmove(next + 1, next, (extents->gap_count - low) * sizeof *next);
        *next = (mpw_gap){block.offset, block.size};
        extents->gap_count++;
    }
    return true;
}

#endif
