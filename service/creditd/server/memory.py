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
        At most 64 MiB of memory that is free and not given back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_BLOCK_BYTES)) and bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES))


def leave_out_what_is_loaded() -> None:
    """Take everything that exists out of later searches for garbage.

    A request set by set makes thousands of objects, every few hundred of which start a search; one through all modules
    and schemas takes tens of milliseconds and finds nothing.

    Cost:
        One full search. Of what exists now, cycles that fall out of use later are never freed.
    """
    gc.collect()
    gc.freeze()
