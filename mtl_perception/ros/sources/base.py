"""What everything that can be played has in common: a stream of serialized messages."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
GROUND_TRUTH = '/ground_truth/'


class SourceError(ValueError):
    """Something that can't be played; the message is one sentence for the user."""


@dataclass(frozen=True)
class Topic:
    """One topic of a source.

    Attributes:
        name: absolute name.
        type: 'package/msg/Name'.
        reliable: offered reliability.
        latched: True for transient-local durability (late subscribers get the last message).
    """

    name: str
    type: str
    reliable: bool = True
    latched: bool = False

    @property
    def message_class(self) -> type:
        """Return the Python class of the messages.

        Raises:
            ImportError: the package of the type isn't installed.
        """
        package, _, name = self.type.split('/')
        try:
            return getattr(importlib.import_module(f'{package}.msg'), name)
        except AttributeError:
            raise ImportError(f'{package} has no message {name}') from None


@dataclass(frozen=True)
class RecordedMessage:
    """One serialized (CDR) message and when it was recorded, in nanoseconds."""

    time_ns: int
    topic: Topic
    data: bytes


class Source(Protocol):
    """A finite stream of messages that can be read more than once.

    Attributes:
        topics: that can be published here.
        cameras: names of the topics with camera pictures (no ground truth among them), the one
            that matters most first.
        left_out: topic name -> why its messages aren't played.
        start_ns: time of the first message.
        duration_ns: from the first to the last message.
    """

    topics: tuple[Topic, ...]
    cameras: tuple[str, ...]
    left_out: dict[str, str]
    start_ns: int
    duration_ns: int

    def messages(self, start_ns: int = 0) -> Iterator[RecordedMessage]:
        """Yield the messages not older than `start_ns`, sorted by time.

        Of messages with one time, camera_info comes first, so that no picture arrives
        uncalibrated.
        """
        ...


def sibling(topic: str, name: str) -> str:
    """Return the topic `name` beside `topic`, as image_transport's users expect it.

    A compressed topic counts as the image topic it belongs to: the camera_info of
    /camera/image/compressed is /camera/camera_info.
    """
    base = topic.removesuffix('/compressed')
    return base.rsplit('/', 1)[0] + '/' + name


def camera_topic(source: Source, image: str = '', transport: str = '') -> tuple[str, str]:
    """Return where a node finds a source's pictures: the image topic, and 'raw' or 'compressed'.

    Args:
        source: to be played.
        image: topic without '/compressed'; empty: that of the first camera.
        transport: 'raw' or 'compressed'; empty: whichever comes first.

    Raises:
        SourceError: the source has no such camera pictures.
    """
    found = []
    for name in source.cameras:
        base = name.removesuffix('/compressed')
        found.append((base, 'raw' if name == base else 'compressed'))
    for topic, kind in found:
        if image in ('', topic) and transport in ('', kind):
            return topic, kind
    wanted = ' '.join(filter(None, (transport, 'camera pictures', image and f'on {image}')))
    raise SourceError(
        f'there are no {wanted}: this source has '
        + ', '.join(f'{topic} ({kind})' for topic, kind in found)
    )


def leave_out(found: Collection[str], chosen: Collection[str]) -> dict[str, str]:
    """Return the topics that were found but not chosen, with that reason.

    Args:
        found: all names of the source.
        chosen: names to play; empty: all.

    Raises:
        SourceError: a topic was chosen that was not found.
    """
    for name in chosen:
        if name not in found:
            raise SourceError(
                f'there is no topic {name} to play: this source has {", ".join(sorted(found))}'
            )
    return {name: 'not among --topics' for name in found if chosen and name not in chosen}


def infos_first(messages: Iterator[RecordedMessage]) -> Iterator[RecordedMessage]:
    """Within one time, put camera_info before everything else; keep the order otherwise."""
    together: list[RecordedMessage] = []
    for message in messages:
        if together and message.time_ns != together[0].time_ns:
            yield from sorted(together, key=lambda one: one.topic.type != CAMERA_INFO)
            together.clear()
        together.append(message)
    yield from sorted(together, key=lambda one: one.topic.type != CAMERA_INFO)
