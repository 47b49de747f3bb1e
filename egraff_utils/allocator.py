"""Where does the memory of large arrays come from? From a heap that reuses freed memory, not from new pages.

The C library of Linux takes every block above 32 MB, and often smaller ones, from the kernel and returns it
when it is freed. Every evaluation of a large system then pays for the same pages again, as the kernel must
find and clear them. If they are kept, they cost nothing the second time.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of options of mallopt, from malloc.h
LARGEST = 2**30
"""Largest block that is kept, bytes; larger ones still return to the kernel when they are freed."""


@functools.cache
def keep_freed_memory() -> bool:
    """Make this process keep freed memory for later allocations; returns whether it does so now.

    Results do not depend on it. The peak memory does not grow, but less memory is returned before the process
    ends. Nothing is changed if the environment sets ``MALLOC_...`` variables or the C library is not glibc.
    """
    set_option = _function("mallopt")
    if set_option is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    return bool(set_option(MMAP_THRESHOLD, LARGEST) and set_option(TRIM_THRESHOLD, -1))


def release() -> None:
    """Return freed memory to the kernel now, so that only memory in use remains."""
    if trim := _function("malloc_trim"):
        trim(0)


def _function(name: str) -> Callable[..., Any] | None:
    """Function of the C library with this name, or ``None`` if there is none."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
