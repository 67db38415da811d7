"""How much memory there is, and the C library's allocator, told to keep what it will need again."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import sys
from pathlib import Path

LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container, as it sees itself (cgroup v2)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def physical_bytes() -> int:
    """This machine's memory, or the container's; what a stream claims beyond it is a lie or cannot be helped."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 36
    with contextlib.suppress(OSError, ValueError):  # where there is no control group, or no limit ("max")
        return min(machine, int(LIMIT.read_text()))
    return machine


def reset_peak() -> None:
    """Let the peak begin anew, where the system can (Linux), so that each job of a multirun has its own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """The largest resident set of this process since `reset_peak`, in MiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


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
