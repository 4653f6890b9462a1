"""Memory that was freed is there for the next arrays, without the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ckv_export.bench.allocator import keep_freed_memory

FAULTS = """
import resource, sys
import numpy as np
from ckv_export.bench.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        arrays = [np.ones(1 << 20, np.uint8) for _ in range(12)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def page_faults(how: str) -> int:
    return int(subprocess.check_output([sys.executable, "-c", FAULTS, how], text=True))


def test_arrays_of_the_next_call_fault_no_page():
    """Twenty rounds of 12 MB, 3000 pages each, after as many to warm up."""
    if not keep_freed_memory():
        pytest.skip("the C library has no mallopt")
    assert page_faults("kept") < 500
    assert page_faults("as it is") > 10_000
