"""Publishes recordings and picture folders as a camera would."""

from __future__ import annotations

import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from rosgraph_msgs.msg import Clock

from mtl_perception.ros.sources import RecordedMessage, Source, SourceError, Topic, sibling

TF = 'tf2_msgs/msg/TFMessage'
CLOCK_PERIOD_S = 0.01
# A publisher hears of a match before the subscriber's side is ready, and a subscriber that adapts
# to what is offered may come back in another form.
SETTLE_S = 1.0
# Not everybody who takes pictures takes their camera_info.
INFO_WAIT_S = 3.0
FLUSH_S = 1.0
REMEMBERED_STAMPS = 256
OTHER_CLOCK_NS = 10_000_000_000
# One publisher stands for all that latched a message on its topic.
LATCHED_DEPTH = 100


@dataclass(frozen=True)
class PlayOptions:
    """How to play.

    Attributes:
        rate: 2 plays twice as fast as recorded.
        loop: start again at the end.
        start_s: skip that many seconds of the recording.
        stamp: 'moved' moves all recorded stamps to the present together, so that pictures,
            transforms and odometry keep what lies between them; 'now' gives messages the time at
            which they are published (all that shared one stamp in the recording share one again);
            'bag' leaves the recorded stamps.
        clock: publish the recording's time on /clock, for nodes with use_sim_time.
        remap: recorded topic name -> name to publish under.
        wait_s: wait up to that long for subscribers; 0 starts at once.
        wait_for: recorded topics that must have a subscriber; empty: any one camera topic.
        reliability: 'auto' offers what was offered when it was recorded.
        depth: messages a publisher keeps for slow reliable subscribers.
    """

    rate: float = 1.0
    loop: bool = False
    start_s: float = 0.0
    stamp: Literal['moved', 'now', 'bag'] = 'moved'
    clock: bool = False
    remap: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    wait_for: Sequence[str] = ()
    reliability: Literal['auto', 'reliable', 'best_effort'] = 'auto'
    depth: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.rate < float('inf'):
            raise ValueError(f'rate {self.rate} is no speed: give a positive number')
        if self.start_s < 0:
            raise ValueError(f'start {self.start_s} s lies before the recording: give 0 or more')
        if self.clock and self.stamp != 'bag':
            raise ValueError(
                f"clock publishes the recording's time but stamp {self.stamp!r} replaces it: "
                "use stamp 'bag' with clock"
            )


@dataclass(frozen=True)
class PublishedPicture:
    """One camera picture that went out.

    Attributes:
        topic: name under which it was published.
        time_ns: when it was recorded.
        recorded_stamp_ns: its header stamp in the recording.
        stamp_ns: its header stamp as published.
    """

    topic: str
    time_ns: int
    recorded_stamp_ns: int
    stamp_ns: int


@dataclass
class PlayResult:
    """What was published.

    Attributes:
        messages: of all topics.
        pictures: camera pictures.
        passes: complete passes through the recording.
        duration_s: from the first to the last message, on the monotonic clock.
        latest_ms: how late the latest message went out; large when the machine can't hold `rate`.
        completed: False when stopped before the end.
    """

    messages: int = 0
    pictures: int = 0
    passes: int = 0
    duration_s: float = 0.0
    latest_ms: float = 0.0
    completed: bool = False


class Player:
    """Publishes a source's messages at their times.

    Args:
        node: publishes; need not spin.
        source: what to play.
        options: how to play it.
        on_picture: called as each camera picture goes out, just before the middleware gets it,
            from the thread that plays.
        gate: called before the messages of each new moment; playing waits until it returns.

    Raises:
        SourceError: a topic to remap or to wait for isn't in the source, or `start_s` lies behind
            its end.
    """

    def __init__(
        self,
        node: Node,
        source: Source,
        options: PlayOptions | None = None,
        on_picture: Callable[[PublishedPicture], None] | None = None,
        gate: Callable[[], None] | None = None,
    ) -> None:
        self._gate = gate
        self._node = node
        self._source = source
        self._options = options or PlayOptions()
        self._on_picture = on_picture
        self._check_options()
        self._cameras = frozenset(source.cameras)
        self._stamps = _Stamps()
        self._origin_ns = (0, 0)
        self._restampers = {topic.name: _restamper(topic) for topic in source.topics}
        self._publishers = {topic.name: self._publisher(topic) for topic in source.topics}
        self._clock: Publisher | None = (
            node.create_publisher(Clock, '/clock', 1) if self._options.clock else None
        )

    @property
    def topics(self) -> dict[str, str]:
        """Return published name -> message type."""
        return {self._name(topic.name): topic.type for topic in self._source.topics}

    def close(self) -> None:
        """Withdraw the publishers, after what is under way to reliable subscribers has arrived."""
        deadline = time.monotonic() + FLUSH_S
        for publisher in self._publishers.values():
            remaining_s = max(0.0, deadline - time.monotonic())
            publisher.wait_for_all_acked(Duration(seconds=remaining_s))
        for publisher in [*self._publishers.values(), *([self._clock] if self._clock else [])]:
            self._node.destroy_publisher(publisher)
        self._publishers.clear()
        self._clock = None

    def wait_for_subscribers(self, wait_s: float, stop: threading.Event | None = None) -> None:
        """Wait until all of `wait_for`, or any one camera topic where it is empty, is subscribed.

        Then wait a while for subscribers of the camera_info beside it.

        Raises:
            SourceError: nobody subscribed within `wait_s` seconds.
        """
        stop = stop or threading.Event()
        deadline = time.monotonic() + wait_s
        names, enough = self._options.wait_for, all
        if not names:
            names, enough = self._source.cameras, any
        matched_since = None
        while not stop.is_set():
            now = time.monotonic()
            subscribed = [name for name in names if self._subscribers(name)]
            if not enough(name in subscribed for name in names):
                matched_since = None
                if now > deadline:
                    lonely = ' or '.join(
                        self._name(name) for name in names if name not in subscribed
                    )
                    raise SourceError(
                        f'nobody subscribed to {lonely} within {wait_s:g} s: start the node, or '
                        'compare topic names and ROS_DOMAIN_ID on both sides'
                    )
            else:
                matched_since = matched_since or now
                infos = {sibling(name, 'camera_info') for name in subscribed}
                heard = all(self._subscribers(name) for name in infos & self._publishers.keys())
                if now - matched_since > (SETTLE_S if heard else INFO_WAIT_S):
                    return
            stop.wait(0.02)

    def _subscribers(self, recorded: str) -> int:
        return self._publishers[recorded].get_subscription_count()

    def play(self, stop: threading.Event | None = None) -> PlayResult:
        """Publish everything; return at the end or soon after `stop` is set.

        Raises:
            SourceError: nothing is recorded after the start, or the source is damaged.
        """
        stop = stop or threading.Event()
        result = PlayResult()
        if self._options.wait_s:
            self.wait_for_subscribers(self._options.wait_s, stop)
        start_ns = self._source.start_ns + round(self._options.start_s * 1e9)
        began = pass_began = time.monotonic()
        while not stop.is_set():
            messages, pictures = result.messages, result.pictures
            moment_ns = None
            ahead_ns = round((pass_began - time.monotonic()) * 1e9)
            self._origin_ns = start_ns, time.time_ns() + ahead_ns
            for message in self._source.messages(start_ns):
                due = pass_began + (message.time_ns - start_ns) * 1e-9 / self._options.rate
                self._sleep_until(due, message.time_ns, stop)
                if self._gate is not None and message.time_ns != moment_ns:
                    self._gate()
                    moment_ns = message.time_ns
                if stop.is_set():
                    break
                result.latest_ms = max(result.latest_ms, (time.monotonic() - due) * 1e3)
                self._publish(message, result)
                result.duration_s = time.monotonic() - began
            else:
                if result.messages == messages:
                    raise SourceError(
                        'nothing that can be published is recorded after '
                        f'{self._options.start_s:g} s: start earlier'
                    )
                result.passes += 1
                if not self._options.loop:
                    result.completed = True
                    break
                pass_began += self._pass_s(start_ns, result.pictures - pictures)
        return result

    def _check_options(self) -> None:
        known = {topic.name for topic in self._source.topics}
        for what, names in (
            ('remap', self._options.remap),
            ('wait for', self._options.wait_for),
        ):
            for name in names:
                if name not in known:
                    raise SourceError(
                        f'there is no topic {name} to {what}: this source has '
                        f'{", ".join(sorted(known))}'
                    )
        if self._options.start_s * 1e9 > self._source.duration_ns:
            raise SourceError(
                f'start {self._options.start_s:g} s lies behind the end: there are only '
                f'{self._source.duration_ns * 1e-9:.1f} s'
            )

    def _name(self, recorded: str) -> str:
        return self._options.remap.get(recorded, recorded)

    def _publisher(self, topic: Topic) -> Publisher:
        reliable = self._options.reliability == 'reliable' or (
            self._options.reliability == 'auto' and topic.reliable
        )
        qos = QoSProfile(
            depth=max(self._options.depth, LATCHED_DEPTH if topic.latched else 0),
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=(
                DurabilityPolicy.TRANSIENT_LOCAL if topic.latched else DurabilityPolicy.VOLATILE
            ),
        )
        return self._node.create_publisher(topic.message_class, self._name(topic.name), qos)

    def _pass_s(self, start_ns: int, pictures: int) -> float:
        """Return how long one pass lasts, with one picture's period after its last picture."""
        recorded_s = (self._source.start_ns + self._source.duration_ns - start_ns) * 1e-9
        period_s = recorded_s / (pictures - 1) if pictures > 1 else 1.0
        return (recorded_s + period_s) / self._options.rate

    def _sleep_until(self, due: float, recorded_ns: int, stop: threading.Event) -> None:
        while (remaining := due - time.monotonic()) > 0 and not stop.is_set():
            if self._clock is None:
                stop.wait(remaining)
            else:
                self._publish_clock(recorded_ns - round(remaining * self._options.rate * 1e9))
                stop.wait(min(remaining, CLOCK_PERIOD_S))
        self._publish_clock(recorded_ns)

    def _publish_clock(self, time_ns: int) -> None:
        if self._clock is not None:
            clock = Clock()
            clock.clock.sec, clock.clock.nanosec = divmod(max(0, time_ns), 1_000_000_000)
            self._clock.publish(clock)

    def _publish(self, message: RecordedMessage, result: PlayResult) -> None:
        name, data = message.topic.name, message.data
        if self._options.stamp != 'bag':
            data = self._restampers[name](data, lambda stamp: self._new_stamp(message, stamp))
        if name in self._cameras:
            result.pictures += 1
            if self._on_picture is not None:
                recorded, stamp = read_stamp(message.data), read_stamp(data)
                self._on_picture(
                    PublishedPicture(self._name(name), message.time_ns, recorded, stamp)
                )
        self._publishers[name].publish(data)
        result.messages += 1

    def _new_stamp(self, message: RecordedMessage, stamp_ns: int) -> int:
        recorded_ns, present_ns = self._origin_ns
        # Stamps of another clock than the recorder's tell no place in the recording.
        if self._options.stamp == 'now' or abs(stamp_ns - message.time_ns) > OTHER_CLOCK_NS:
            return self._stamps.new(message.topic.name, stamp_ns)
        return present_ns + round((stamp_ns - recorded_ns) / self._options.rate)


def parse_remaps(rules: Sequence[str]) -> dict[str, str]:
    """Return recorded name -> new name of rules like '/camera/image:=/front/image'.

    Raises:
        SourceError: a rule is something else.
    """
    remap = {}
    for rule in rules:
        old, separator, new = rule.partition(':=')
        if not separator or not all(name.startswith('/') for name in (old, new)):
            raise SourceError(f'{rule} is no remapping: give /recorded/name:=/new/name')
        remap[old] = new
    return remap


class _Stamps:
    """Gives recorded stamps their new ones: the time at which each is first published."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[int, set[str]]] = OrderedDict()

    def new(self, topic: str, recorded_ns: int) -> int:
        """Return the new stamp; messages of several topics with one stamp share it.

        The same stamp a second time on one topic (a loop, a driver that never sets it) is a new
        moment.
        """
        stamp_ns, topics = self._known.get(recorded_ns, (0, {topic}))
        if topic in topics:
            stamp_ns, topics = time.time_ns(), set()
            self._known[recorded_ns] = stamp_ns, topics
            self._known.move_to_end(recorded_ns)
            if len(self._known) > REMEMBERED_STAMPS:
                self._known.popitem(last=False)
        topics.add(topic)
        return stamp_ns


_Restamper = Callable[[bytes, Callable[[int], int]], bytes]


def _restamper(topic: Topic) -> _Restamper:
    """Return the function that replaces the stamps in serialized messages of a topic."""
    if topic.type == TF:
        return _restamp_transforms(topic.message_class)
    fields = topic.message_class.get_fields_and_field_types()
    if next(iter(fields.items()), None) == ('header', 'std_msgs/Header'):
        return _restamp_header
    return lambda data, new_stamp: data


def read_stamp(data: bytes) -> int:
    """Return the header stamp of a serialized message that begins with a header, in ns."""
    sec, nanosec = struct.unpack_from(_stamp_format(data), data, 4)
    return sec * 1_000_000_000 + nanosec


def _stamp_format(data: bytes) -> str:
    # The second byte of the CDR encapsulation tells the byte order; the stamp comes right after
    # the four encapsulation bytes.
    return '<iI' if data[1] & 1 else '>iI'


def _restamp_header(data: bytes, new_stamp: Callable[[int], int]) -> bytes:
    stamp = struct.pack(_stamp_format(data), *divmod(new_stamp(read_stamp(data)), 1_000_000_000))
    view = memoryview(data)
    return b''.join((view[:4], stamp, view[12:]))


def _restamp_transforms(message_class: type) -> _Restamper:
    def restamp(data: bytes, new_stamp: Callable[[int], int]) -> bytes:
        message = deserialize_message(data, message_class)
        stamps = {stamp: new_stamp(stamp) for stamp in map(_nanoseconds, message.transforms)}
        for transform in message.transforms:
            stamp = transform.header.stamp
            stamp.sec, stamp.nanosec = divmod(stamps[_nanoseconds(transform)], 1_000_000_000)
        return serialize_message(message)

    return restamp


def _nanoseconds(transform: object) -> int:
    stamp = transform.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec
