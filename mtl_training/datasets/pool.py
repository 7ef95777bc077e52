"""The same work on every frame, in this process or in several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import cv2

T = TypeVar('T')
Work = Callable[[int], T]
# Fewer frames than this are done before a process has started.
FEW = 32


def work_on_frames(work: Work[T], count: int, processes: int) -> Iterator[T]:
    """Yield `work(0)`, `work(1)`, ... `work(count - 1)` in order.

    Args:
        work: a picklable callable, such as a functools.partial of a module's function; each
            process gets one copy.
        count: of frames.
        processes: workers; 0 works in this process, and so do few frames.
    """
    if processes == 0 or count < FEW:
        for index in range(count):
            yield work(index)
        return
    # OpenCV's threads do not survive a fork: its first call in the child would wait forever.
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(
        processes, context, initializer=_start_worker, initargs=(work,)
    ) as pool:
        yield from pool.map(_work, range(count), chunksize=4)


_given: Work[Any]


def _start_worker(work: Work[Any]) -> None:
    global _given
    cv2.setNumThreads(1)
    _given = work


def _work(index: int) -> Any:
    return _given(index)
