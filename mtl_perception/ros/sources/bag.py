"""Recordings: rosbag2 in mcap or sqlite3, compressed or not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rclpy.serialization import deserialize_message
from rosbags.interfaces import Qos, QosDurability, QosReliability
from rosbags.rosbag2 import Reader

from mtl_perception.recordings import TopicChoice, find_cameras, published_by_node
from mtl_perception.ros.sources.base import (
    COMPRESSED_IMAGE,
    GROUND_TRUTH,
    IMAGE,
    RecordedMessage,
    SourceError,
    Topic,
    infos_first,
    leave_out,
)

SUFFIXES = ('.mcap', '.db3')
DIAGNOSTICS = 'diagnostic_msgs/msg/DiagnosticArray'
_MEASUREMENTS = frozenset({'16UC1', '32FC1', '32FC2', '32FC3'})


def is_bag(path: Path) -> bool:
    """Say whether `path` is a rosbag2 recording: its folder or one of its storage files."""
    if path.is_dir():
        return (path / 'metadata.yaml').is_file() or any(
            child.suffix in SUFFIXES for child in path.iterdir()
        )
    return path.suffix in SUFFIXES


@dataclass
class BagSource:
    """A rosbag2 recording (mcap or sqlite3, compressed or not), its bytes as they are.

    Of several cameras those come first that `mtl-perception evaluate` takes. What a perception
    node published is left out, so that it is not taken for what one publishes now.

    Args:
        path: folder or storage file.
        chosen: play only these topics, whoever published them; empty: all.
        all_topics: play what a perception node published, too.
        images: the cameras that matter; empty: found by type and name.

    Raises:
        SourceError: the recording can't be read, lacks a chosen topic or holds no camera picture
            that can be played.
    """

    path: Path
    chosen: Collection[str] = ()
    all_topics: bool = False
    images: Sequence[str] = ()
    topics: tuple[Topic, ...] = field(init=False, default=())
    cameras: tuple[str, ...] = field(init=False, default=())
    left_out: dict[str, str] = field(init=False, default_factory=dict)
    start_ns: int = field(init=False, default=0)
    duration_ns: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.path.suffix == '.bag':
            raise SourceError(
                f'{self.path} is a ROS 1 bag: convert it with '
                f'`rosbags-convert --src {self.path} --dst {self.path.with_suffix("")}`'
            )
        with self._open() as reader:
            self.start_ns = reader.start_time
            self.duration_ns = max(0, reader.duration - 1)
            topics: dict[str, Topic] = {}
            connections = [connection for connection in reader.connections if connection.msgcount]
            found = {connection.topic: connection.msgtype for connection in connections}
            own = _published_by_node(found)
            self.left_out |= leave_out(found, self.chosen)
            if not self.chosen and not self.all_topics:
                reason = 'published by a perception node, played with --all-topics'
                self.left_out |= dict.fromkeys(sorted(own), reason)
            for connection in connections:
                if connection.topic in self.left_out:
                    continue
                qos = connection.ext.offered_qos_profiles
                topic = Topic(
                    name=connection.topic,
                    type=connection.msgtype,
                    reliable=_reliable(qos),
                    latched=any(one.durability == QosDurability.TRANSIENT_LOCAL for one in qos),
                )
                try:
                    _ = topic.message_class
                except ImportError as error:
                    self.left_out[topic.name] = f'{topic.type} is not installed ({error})'
                    continue
                topics.setdefault(topic.name, topic)
            self.topics = tuple(topics.values())
        pictures = self._find_pictures()
        self.cameras = tuple(name for name in pictures if name not in own) or pictures
        if not self.cameras:
            left_out = ', '.join(f'{name} ({why})' for name, why in self.left_out.items())
            raise SourceError(
                f'{self.path} holds no camera pictures (sensor_msgs Image or CompressedImage): '
                f'its topics are {", ".join(sorted(topics)) or "nothing"}'
                + (f'; left out are {left_out}' if left_out else '')
            )

    def messages(self, start_ns: int = 0) -> Iterator[RecordedMessage]:
        """Yield the messages not older than `start_ns`; see Source."""
        with self._open() as reader:
            # What was latched before holds from the start.
            latched = {topic.name for topic in self.topics if topic.latched}
            if latched and start_ns > self.start_ns:
                for message in self._read(reader, latched, stop_ns=start_ns):
                    yield replace(message, time_ns=start_ns)
            yield from infos_first(self._read(reader, {t.name for t in self.topics}, start_ns))

    def _read(
        self, reader: Reader, names: set[str], start_ns: int = 0, stop_ns: int = 0
    ) -> Iterator[RecordedMessage]:
        topics = {topic.name: topic for topic in self.topics}
        connections = [
            connection
            for connection in reader.connections
            if connection.topic in names and connection.msgtype == topics[connection.topic].type
        ]
        messages = reader.messages(connections, start=start_ns or None, stop=stop_ns or None)
        for connection, time_ns, data in messages:
            yield RecordedMessage(time_ns, topics[connection.topic], bytes(data))

    @contextmanager
    def _open(self) -> Iterator[Reader]:
        """Open the recording; turn every failure of the reader into one sentence."""
        try:
            with Reader(_storage(self.path)) as reader:
                yield reader
        except SourceError:
            raise
        # The reader passes on whatever its databases and decompressors raise.
        except Exception as error:
            raise SourceError(
                f'{self.path} can not be read ({str(error).rstrip(".")}): record it again, or '
                'repair it with `ros2 bag reindex` (sqlite3) or `mcap recover` (mcap)'
            ) from error

    def _find_pictures(self) -> tuple[str, ...]:
        """Return the image topics whose first message is a camera picture, evaluation's first."""
        undecided = {
            topic.name
            for topic in self.topics
            if topic.type in (IMAGE, COMPRESSED_IMAGE) and not topic.name.startswith(GROUND_TRUTH)
        }
        pictures = set()
        with self._open() as reader:
            while undecided:
                message = next(self._read(reader, undecided), None)
                if message is None:
                    break
                undecided.discard(message.topic.name)
                if _is_picture(message):
                    pictures.add(message.topic.name)
        played = {topic.name: topic.type for topic in self.topics}
        evaluated, _ = find_cameras(played, TopicChoice(image=tuple(self.images)))
        names = dict.fromkeys([*(camera.image for camera in evaluated), *played])
        return tuple(name for name in names if name in pictures)


def _storage(path: Path) -> Path:
    """Return what the reader opens: a folder without metadata.yaml stands for its only file."""
    if not path.exists():
        raise SourceError(f'{path} does not exist: give a recording or a folder of pictures')
    if path.is_file() or (path / 'metadata.yaml').is_file():
        return path
    files = sorted(child for child in path.iterdir() if child.suffix in SUFFIXES)
    if len(files) == 1:
        return files[0]
    raise SourceError(
        f'{path} holds {len(files)} storage files and no metadata.yaml: name one of the files, '
        'or rebuild metadata.yaml with `ros2 bag reindex`'
    )


def _reliable(profiles: list[Qos]) -> bool:
    """Offer what was offered when it was recorded; reliable where that is not known."""
    return not profiles or any(one.reliability != QosReliability.BEST_EFFORT for one in profiles)


def _published_by_node(found: Mapping[str, str]) -> set[str]:
    """Return which topics (name -> type) are a perception node's, its diagnostics among them."""
    own = published_by_node(found)
    return own | {name for name, kind in found.items() if own and kind == DIAGNOSTICS}


def _is_picture(message: RecordedMessage) -> bool:
    content = deserialize_message(message.data, message.topic.message_class)
    if message.topic.type != COMPRESSED_IMAGE:
        return content.encoding not in _MEASUREMENTS
    # 'bgr8; jpeg compressed bgr8' of image_transport, or only 'jpeg'.
    measured = content.format.partition(';')[0].strip() in _MEASUREMENTS
    depth = 'compressedDepth' in content.format or message.topic.name.endswith('/compressedDepth')
    return not measured and not depth
