"""How this process runs on a CPU: worth 10 to 20% of a training step's time, and far more on a busy machine.

Training allocates and frees the same large blocks at every step. By default the C library hands such blocks
back to the operating system, which must clear and map them anew; and the threads of a parallel loop that are
done spin on their core while the others work, which on a core shared with another process turns a slice of
that process's time into a standstill. benchmarks/tuning.py measures both.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "10000",  # about 0.01 ms, and then sleep
    "THP_MEM_ALLOC_ENABLE": "1",  # large tensors on 2 MB pages
}


def tune_process() -> None:
    """Tune this process; before torch is imported, since it reads the environment then.

    What the user has set in the environment stays. Only Linux has these; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
