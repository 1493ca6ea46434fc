"""Sizes of chunks of a pool, and places in tables, which are powers of two."""

from __future__ import annotations

from stages.contracts.compiled import in_place


@in_place
def power_of_two(least: int) -> int:
    """Return the smallest power of two that is ``least`` or more."""
    found = 1
    while found < least:
        found *= 2
    return found


@in_place
def size_class(size: int) -> int:
    """Return the exponent of a power of two."""
    found = 0
    while size > 1:
        size //= 2
        found += 1
    return found


@in_place
def hashed(key: int, mask: int) -> int:
    """Return the place where the search for a key begins; mask is one less than the places, a power of two."""
    return (key ^ (key >> 15)) * 40503 & mask
