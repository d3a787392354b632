"""What a serving process does about memory: freed blocks are kept, and what is loaded is not searched for garbage."""

from __future__ import annotations

import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from malloc.h of the GNU C library."""
KEPT_BYTES = 64 << 20
"""Free memory at the end of the heap that is not given back to the system."""
LARGEST_BLOCK_BYTES = 32 << 20
"""Blocks up to this size come from the heap; the GNU C library takes no larger number."""


def keep_freed_memory() -> bool:
    """Keep freed blocks of some megabytes for the next answer, instead of mapping and unmapping each.

    Every page of a fresh mapping costs a fault, which for an answer of half a megabyte is more than its arithmetic.

    Returns:
        Whether the C library takes such advice: the GNU one does, others have their own ways.

    Cost:
        Memory rests about where the largest answers left it: what is free in between is not given back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_BLOCK_BYTES)) and bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES))


def collect_seldom() -> None:
    """Search for garbage seldom, and not among what is loaded.

    A request set by set makes a million objects that live until it is answered. By default every few hundred of them
    start a search, and every quarter more a search through all: most of the time of reading such a request. Objects
    without cycles, all of a request, are freed without any search.

    Cost:
        One full search. Garbage with cycles waits for fifty thousand new objects; of what exists now it is never freed.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
