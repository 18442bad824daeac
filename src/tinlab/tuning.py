"""How this process keeps its memory on a CPU: worth up to a tenth of a training step's time.

Training allocates and frees the same large blocks at every step. By default the C library hands such blocks
back to the operating system, which must clear and map them anew. benchmarks/tuning.py measures what keeping
them brings.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def tune_process() -> None:
    """Tune this process; before torch is imported, since it reads the environment then.

    What the user has set in the environment stays. Only Linux has these settings; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large tensors on 2 MB pages
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
