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
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(set_option(MMAP_THRESHOLD, LARGEST) and set_option(TRIM_THRESHOLD, -1))
