"""Is freed memory kept? Blocks of 64 MB cost page faults once, not every time."""

import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from egraff_utils import allocator
print(allocator.keep_freed_memory())
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment):
    call = [sys.executable, "-c", FAULTS]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    kept, first, second = done.stdout.split()
    return kept == "True", int(first), int(second)


def test_a_large_block_is_taken_from_the_kernel_once():
    kept, first, second = faults()
    if not kept:
        pytest.skip("not the C library of Linux")
    pages = 2**26 // resource.getpagesize()
    assert first > pages / 600  # huge pages at most
    assert second < first / 4


def test_a_setting_of_the_environment_stands():
    kept, _, _ = faults(MALLOC_MMAP_THRESHOLD_="1000000")
    assert not kept


def test_what_is_released_is_no_longer_held():
    held = """
import ctypes
import numpy as np
from egraff_utils import allocator
def pages():
    return int(open("/proc/self/statm").read().split()[1])
kept = allocator.keep_freed_memory()
before = pages()
np.ones(2**23)
after = pages()
allocator.release()
print(kept, after - before, pages() - before)
"""
    call = [sys.executable, "-c", held]
    if sys.platform != "linux":
        pytest.skip("not Linux")
    kept, after, released = subprocess.run(
        call, env={}, capture_output=True, text=True, check=True
    ).stdout.split()
    if kept == "False":
        pytest.skip("not the C library of Linux")
    assert int(released) < int(after) / 4
