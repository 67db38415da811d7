"""How much memory there is, and the C library's allocator, told to keep what it will need again."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def physical_bytes() -> int:
    """This machine's memory; what a stream claims beyond it is a lie or cannot be helped."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 36


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MiB, in all up to 512 MiB, instead of giving them back at once.

    Every layer of a network allocates its output and frees its input. By default glibc maps such blocks anew each
    time, and the kernel clears every page: half the time of evaluating a small network on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library, such as musl
    mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
    mallopt(M_TRIM_THRESHOLD, 512 * 2**20)
