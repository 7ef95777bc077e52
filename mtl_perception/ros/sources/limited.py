"""Only the beginning of a source."""

from __future__ import annotations

from collections.abc import Iterator

from mtl_perception.ros.sources.base import RecordedMessage, Source, SourceError


class LimitedSource:
    """A source up to so many pictures of its first camera, with all that lies between them.

    Args:
        source: the whole.
        pictures: how many to play.
        start_s: where playing starts, seconds after the source's beginning.

    Raises:
        SourceError: fewer than one picture is asked for.
    """

    def __init__(self, source: Source, pictures: int, start_s: float = 0.0) -> None:
        if pictures < 1:
            raise SourceError(f'a limit of {pictures} pictures leaves nothing: give 1 or more')
        self._source = source
        self._pictures = pictures
        self.topics, self.cameras = source.topics, source.cameras
        self.left_out = source.left_out
        self.start_ns = source.start_ns
        played = self.messages(self.start_ns + round(start_s * 1e9))
        last_ns = max((message.time_ns for message in played), default=self.start_ns)
        self.duration_ns = last_ns - self.start_ns

    def messages(self, start_ns: int = 0) -> Iterator[RecordedMessage]:
        """Yield the messages not older than `start_ns`; see Source."""
        left = self._pictures
        for message in self._source.messages(start_ns):
            if message.topic.name == self.cameras[0]:
                if left == 0:
                    return
                left -= 1
            yield message
