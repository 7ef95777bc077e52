"""The sending thread: publishes one frame while the worker perceives the next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable

_JOIN_TIMEOUT_S = 10.0


class Sender:
    """Runs jobs in their order, in one thread, at most one for each owner of kept messages.

    An owner's messages are written in place: they must not be touched before its last job is done.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._jobs: deque[tuple[Hashable, Callable[[], None]]] = deque()
        self._busy: set[Hashable] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name='sender', daemon=True)
        self._thread.start()

    def wait_for(self, owner: Hashable) -> None:
        """Wait until nothing of an owner is being sent."""
        with self._condition:
            self._condition.wait_for(lambda: owner not in self._busy)

    def send(self, owner: Hashable, job: Callable[[], None]) -> None:
        """Run a job soon; it handles its own errors.

        Args:
            owner: of the messages that the job publishes.
            job: publishes them.
        """
        with self._condition:
            self._condition.wait_for(lambda: owner not in self._busy)
            self._busy.add(owner)
            self._jobs.append((owner, job))
            self._condition.notify_all()

    def close(self) -> None:
        """Run what was given, then end the thread."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join(_JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            raise RuntimeError(
                f'the middleware has not taken a frame for {_JOIN_TIMEOUT_S:.0f} s: restart the '
                'node'
            )

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                owner, job = self._jobs.popleft()
            try:
                job()
            finally:
                with self._condition:
                    self._busy.discard(owner)
                    self._condition.notify_all()
