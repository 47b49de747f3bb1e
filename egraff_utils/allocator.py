"""Where does the memory of large arrays come from? A heap that keeps what was freed, instead of new pages.

The C library of Linux takes every block above 32 MB, and often smaller ones, from the kernel and gives it
back when it is freed. Each evaluation of a large system then pays for the same pages again: the kernel must
find and clear them. Kept, they cost nothing the second time.
"""

import ctypes
import functools
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of options of mallopt, from malloc.h
LARGEST = 2**30
"""Bytes; larger blocks still go back to the kernel when they are freed."""


@functools.cache
def keep_freed_memory():
    """Whether this process now keeps freed memory for its next allocations; numbers do not depend on it.

    The peak of the memory does not grow; only, less of it is given back before the process ends. Nothing is
    changed where the environment sets ``MALLOC_...`` variables, or where the C library is not glibc.
    """
    set_option = _function("mallopt")
    if set_option is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    return bool(set_option(MMAP_THRESHOLD, LARGEST) and set_option(TRIM_THRESHOLD, -1))


def release():
    """Give freed memory back to the kernel now, so that what remains is in use."""
    if trim := _function("malloc_trim"):
        trim(0)


def _function(name):
    """Of the C library, or ``None`` where it has none of this name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
