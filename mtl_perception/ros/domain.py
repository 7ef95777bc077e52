"""A ROS domain of one's own, so that a replay neither disturbs nor hears a running robot."""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Higher numbers would claim ports that Linux hands out to other programs.
DOMAINS = range(99, 0, -1)


class NoFreeDomainError(RuntimeError):
    """Every domain is taken by another replay or test of this machine."""


@contextlib.contextmanager
def private_domain() -> Iterator[int]:
    """Reserve a ROS_DOMAIN_ID among the replays and tests of this machine.

    A lock file per domain is held while the context lasts, and is freed with the process.

    Raises:
        NoFreeDomainError: there is none.
    """
    folder = Path(tempfile.gettempdir()) / 'mtl_perception_domains'
    folder.mkdir(mode=0o777, exist_ok=True)
    for domain in DOMAINS:
        with contextlib.ExitStack() as held:
            try:
                lock = held.enter_context((folder / str(domain)).open('w'))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # held by another process, or another user's file
                continue
            yield domain
            return
    raise NoFreeDomainError(
        f'the ROS domains {DOMAINS[-1]} to {DOMAINS[0]} are all taken: end another replay first'
    )
