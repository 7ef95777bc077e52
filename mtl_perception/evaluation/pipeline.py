"""Decoding, inference and scoring side by side, frames in order, nothing dropped."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np

from mtl_perception.encodings import EncodingError
from mtl_perception.frames import Prediction
from mtl_perception.orientation import turn_frame, turn_prediction
from mtl_perception.perceiver import Perceiver
from mtl_perception.recordings import RecordedFrame

Item = TypeVar('Item')

_END = object()
_WAIT_S = 0.1


class Background:
    """Runs an iterable in a thread of its own, `depth` items ahead; an error comes out here."""

    def __init__(self, items: Iterable[Item], depth: int = 4) -> None:
        self._queue: queue.Queue[object] = queue.Queue(depth)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True)
        self._thread.start()

    def _run(self, items: Iterable[Item]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as error:  # handed over to the thread that iterates
            self._error = error
        self._put(_END)

    def _put(self, item: object) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_WAIT_S)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Item]:
        try:
            while (item := self._queue.get()) is not _END:
                yield item  # type: ignore[misc]
            if self._error is not None:
                raise self._error
        finally:
            self._stop.set()
            self._thread.join()


def predict_all(
    frames: Iterable[RecordedFrame],
    perceiver: Perceiver,
    refused: Callable[[RecordedFrame, EncodingError], None],
    rotate: int = 0,
) -> Iterator[tuple[RecordedFrame, Prediction]]:
    """Yield each frame with its prediction, in the camera's orientation, whose arrays are its own.

    Args:
        frames: decoded one after the other in a background thread.
        perceiver: used by one more thread.
        refused: called for a picture that the perceiver can't take.
        rotate: clockwise turn in degrees that makes the pictures upright for the network.
    """

    def predictions() -> Iterator[tuple[RecordedFrame, Prediction]]:
        for frame in Background(frames):
            try:
                prediction = perceiver.perceive(turn_frame(frame.frame, rotate))
            except EncodingError as error:
                refused(frame, error)
                continue
            yield frame, _owned(turn_prediction(prediction, -rotate))

    yield from Background(predictions())


def _owned(prediction: Prediction) -> Prediction:
    """Return a copy that outlives the perceiver's next call; boxes are no views anyway."""
    arrays = {
        name: np.array(getattr(prediction, name))
        for name in ('label', 'confidence', 'depth', 'normal', 'class_scores')
        if getattr(prediction, name) is not None
    }
    return replace(prediction, **arrays)
