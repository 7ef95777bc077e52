"""How this process' memory allocator treats blocks of image size."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD = 32 << 20  # the largest that every glibc takes
_TRIM_THRESHOLD = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of image size instead of returning them to the system.

    Every image otherwise costs a page fault for each of its pages, which doubles the node's
    latency and the time that scoring takes.
    """
    try:
        libc = ctypes.CDLL('libc.so.6')
    except OSError:  # another C library has another allocator and no such setting
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
