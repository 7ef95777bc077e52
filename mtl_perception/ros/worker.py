"""The worker thread: takes the newest frames of all cameras, several in one batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from mtl_perception.ros.camera import Arrival, Camera

Batch = list[tuple[Camera, Arrival]]

_JOIN_TIMEOUT_S = 30.0


class Worker:
    """Runs `process` on batches of newest frames, one batch at a time, in one thread.

    With several cameras, a frame waits for those of other cameras only while these are due within
    the deadline; a camera that is dead or slow delays nobody.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        process: Callable[[Batch], None],
        deadline_s: Callable[[], float],
    ) -> None:
        """Prepare the thread.

        Args:
            cameras: whose frames it takes.
            process: is called in the thread; it accounts for every frame of the batch.
            deadline_s: how long a frame may wait for others, looked up for each batch.
        """
        self._cameras = cameras
        self._process = process
        self._deadline_s = deadline_s
        self._condition = threading.Condition()
        self._running = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._running = True
        self._thread = threading.Thread(target=self._run, name='perception', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the batch that it is at."""
        with self._condition:
            self._running = False
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(_JOIN_TIMEOUT_S)
            if self._thread.is_alive():
                raise RuntimeError(
                    f'the inference has not returned for {_JOIN_TIMEOUT_S:.0f} s: restart the node'
                )
            self._thread = None

    def wake(self) -> None:
        """Say that a frame waits."""
        with self._condition:
            self._condition.notify_all()

    def _run(self) -> None:
        while True:
            batch = self._next_batch()
            if batch is None:
                return
            self._process(batch)

    def _next_batch(self) -> Batch | None:
        """Wait for frames; None when the worker is to end."""
        with self._condition:
            self._condition.wait_for(
                lambda: not self._running or any(camera.is_waiting for camera in self._cameras)
            )
            if not self._running:
                return None
            if len(self._cameras) > 1:
                self._wait_for_others()
        taken = ((camera, camera.take()) for camera in self._cameras)
        return [(camera, arrival) for camera, arrival in taken if arrival is not None]

    def _wait_for_others(self) -> None:
        deadline_ns = int(self._deadline_s() * 1e9)
        until_ns = time.monotonic_ns() + deadline_ns
        while self._running:
            now_ns = time.monotonic_ns()
            awaited = [
                camera.awaited_until(now_ns, deadline_ns)
                for camera in self._cameras
                if not camera.is_waiting
            ]
            latest_ns = max((until for until in awaited if until is not None), default=now_ns)
            wait_ns = min(latest_ns, until_ns) - now_ns
            if wait_ns <= 0:
                return
            self._condition.wait(wait_ns / 1e9)
