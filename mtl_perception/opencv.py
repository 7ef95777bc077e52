"""OpenCV's own messages, kept back where ours say more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import cv2


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep OpenCV from printing its warnings, of codecs that it lacks or devices that fail."""
    logging = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(before)
