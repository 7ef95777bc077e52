"""Puts a node's outputs together by stamp and accounts for every picture."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image

from mtl_perception.encodings import view_image
from mtl_perception.ros import qos
from mtl_perception.ros.conversions import to_nanoseconds
from mtl_perception.ros.diagnostics import camera_counts
from mtl_perception.ros.player import PublishedPicture, read_stamp
from mtl_perception.ros.program import Program
from mtl_perception.ros.receiver import LeftToReceiver, Receiver
from mtl_perception.ros.statistics import FrameCounts

# Outputs wait that many pictures for their siblings before they count as incomplete.
PENDING = 100
EVERYTHING = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=PENDING, reliability=ReliabilityPolicy.RELIABLE
)


@dataclass(frozen=True)
class LiveFrame:
    """Everything that the node published for one picture.

    Attributes:
        recorded: the picture as it was played; its `recorded_stamp_ns` finds it in the recording.
        arrays: 'label' uint8 [H, W], 'depth' float32 [H, W] metres, 'normal' float32 [H, W, 3].
        frame_id: of the outputs.
        latency_ms: from the picture's stamp to the publication of the last output.
    """

    recorded: PublishedPicture
    arrays: dict[str, np.ndarray]
    frame_id: str
    latency_ms: float


@dataclass
class LiveResult:
    """What became of the pictures.

    Attributes:
        frames_in: pictures played.
        frames_out: pictures of which all outputs arrived.
        dropped: reason -> pictures; with frames_out they add up to frames_in. 'not_received' never
            reached the node, 'unfinished' did not come out in time at the end, 'incomplete' lost
            an output on its way back; a node without status leaves everything 'unknown'.
        duration_s: from the first picture's outputs to the last one's.
        latencies_ms: of every picture that came out, in order: from its stamp to the publication
            of its last output as the middleware stamps it, or to the end of publishing as the
            node's status tells it, whichever is later.
        infer_ms: time in the engine, of every status that arrived.
        overhead_ms: latency without the time in the engine, of pictures that came out.
        decode_ms: what of it was decompression and conversion, of the same pictures.
        bundle: name of the model bundle.
        engine: as the node names it.
        precision: of the inference.
        device: that the engine runs on.
        rate: asked speed of the replay.
        memory_mib: the node's largest resident memory.
        cpu_cores: mean number of cores that the node kept busy.
    """

    rate: float
    bundle: str = ''
    frames_in: int = 0
    frames_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    duration_s: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    infer_ms: list[float] = field(default_factory=list)
    overhead_ms: list[float] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)
    engine: str = ''
    precision: str = ''
    device: str = ''
    memory_mib: float = 0.0
    cpu_cores: float = 0.0

    @property
    def fps(self) -> float:
        """Return pictures that came out per second; 0 for fewer than two."""
        return (self.frames_out - 1) / self.duration_s if self.duration_s > 0 else 0.0

    def summary(self) -> dict[str, Any]:
        """Return the figures as they go into JSON; null where nothing came out."""
        return {
            'frames_in': self.frames_in,
            'frames_out': self.frames_out,
            'dropped': sum(self.dropped.values()),
            'dropped_by_reason': self.dropped,
            'fps': round(self.fps, 2),
            'latency_ms': percentiles(self.latencies_ms),
            'overhead_ms': percentiles(self.overhead_ms),
            'infer_ms': percentiles(self.infer_ms),
            'engine': self.engine,
            'precision': self.precision,
            'device': self.device,
            'bundle': self.bundle,
            'rate': self.rate,
            'memory_mib': round(self.memory_mib, 1),
            'cpu_cores': round(self.cpu_cores, 2),
        }


def percentiles(values: list[float]) -> dict[str, float | None]:
    """Return the 50th, 95th and 99th percentile as {'p50': ..., ...}; None without values."""
    ranks = (50, 95, 99)
    if not values:
        return {f'p{rank}': None for rank in ranks}
    found = np.percentile(values, ranks)
    return {f'p{rank}': round(float(v), 3) for rank, v in zip(ranks, found, strict=True)}


@dataclass
class _Pending:
    """Outputs of one picture that have arrived so far."""

    arrays: dict[str, Any] = field(default_factory=dict)
    published_ns: int = 0


class _Cost(NamedTuple):
    """What one picture cost the node."""

    latency_ms: float
    infer_ms: float
    decode_ms: float
    memory_mib: float
    cpu_cores: float


class Collector:
    """Puts the node's outputs together by stamp, in a thread of its own."""

    def __init__(
        self,
        context: rclpy.Context,
        program: Program,
        on_frame: Callable[[LiveFrame], None] | None,
    ) -> None:
        self._on_frame = on_frame
        self._topics = program.outputs
        self._has_status = program.status is not None
        self._lock = threading.Lock()
        self._played: dict[int, PublishedPicture] = {}
        self._pending: OrderedDict[int, _Pending] = OrderedDict()
        self._latencies: dict[int, float] = {}
        self._statuses: dict[int, _Cost] = {}
        self._last_status: Any = None
        self._counts = FrameCounts()
        self._ended = 0.0
        self._began = 0.0
        self._heard = 0.0
        self._node = rclpy.create_node(
            'collector', context=context, start_parameter_services=False
        )
        # A consumer that costs little: what it takes is missing to the node on a small machine.
        self._group = LeftToReceiver()
        self._callbacks: dict[Subscription, Callable[[Any, dict], None]] = {}
        # Where nobody asks for the pictures themselves, their stamps are read without unpacking.
        for key, topic in self._topics.items():
            if on_frame is None:
                self._subscribe(Image, topic, self._stamp_callback(key), raw=True)
            else:
                self._subscribe(Image, topic, self._output_callback(key))
        if program.status is not None:
            from mtl_perception.msg import PerceptionStatus

            self._subscribe(PerceptionStatus, program.status, self._take_status)
            # Frames that are dropped after the last published one reach no status.
            self._subscribe(DiagnosticArray, '/diagnostics', self._take_diagnostics)
        self._receiver = Receiver(self._node, lambda: self._callbacks, self._receive)

    def __enter__(self) -> Collector:
        self._receiver.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.stop()
        self._node.destroy_node()

    def _receive(self, subscription: Subscription) -> None:
        take = subscription.handle.take_message
        while (taken := take(subscription.msg_type, subscription.raw)) is not None:
            self._callbacks[subscription](*taken)

    def _subscribe(
        self, kind: type, topic: str, callback: Callable[[Any, dict], None], *, raw: bool = False
    ) -> None:
        subscription = self._node.create_subscription(
            kind,
            topic,
            callback,
            EVERYTHING,
            callback_group=self._group,
            event_callbacks=qos.no_events(),
            raw=raw,
        )
        self._callbacks[subscription] = callback

    def expect(self, picture: PublishedPicture) -> None:
        """Take note of a picture that was just played."""
        with self._lock:
            self._played[picture.stamp_ns] = picture

    @property
    def under_way(self) -> int:
        """Return how many pictures have a fate that is not known yet."""
        with self._lock:
            known = len(self._latencies) + sum(self._counts.dropped.values())
            # A picture is out when its outputs and its status are.
            late = max(0, len(self._latencies) - len(self._statuses)) if self._has_status else 0
            return max(0, len(self._played) - known + late)

    def wait(self, quiet_s: float, allowed: int = 0) -> None:
        """Wait until at most `allowed` pictures are under way, or nothing came for `quiet_s`."""
        began = time.monotonic()
        while self.under_way > allowed and time.monotonic() - max(began, self._heard) < quiet_s:
            time.sleep(0.002)

    def _stamp_callback(self, key: str) -> Callable[[bytes, dict], None]:
        def take(data: bytes, info: dict) -> None:
            stamp = read_stamp(data)
            with self._lock:
                self._add(stamp, key, None, info)

        return take

    def _output_callback(self, key: str) -> Callable[[Image, dict], None]:
        def take(image: Image, info: dict) -> None:
            stamp = to_nanoseconds(image.header.stamp)
            array = view_image(image.data, image.height, image.width, image.encoding, image.step)
            with self._lock:
                done = self._add(stamp, key, array, info)
            if done is not None and self._on_frame is not None:
                picture, latency_ms = self._played[stamp], self._latencies[stamp]
                frame_id = image.header.frame_id
                self._on_frame(LiveFrame(picture, done.arrays, frame_id, latency_ms))

        return take

    def _add(self, stamp: int, key: str, array: np.ndarray | None, info: dict) -> _Pending | None:
        """Take note of an output; return all of a played picture's once they have arrived."""
        pending = self._pending.setdefault(stamp, _Pending())
        pending.arrays[key] = array
        # The publisher's own time stamp, made by the middleware when it was handed over.
        pending.published_ns = max(pending.published_ns, info['source_timestamp'])
        done = None
        if pending.arrays.keys() == self._topics.keys():
            done = self._finish(stamp, self._pending.pop(stamp))
        while len(self._pending) > PENDING:
            self._pending.popitem(last=False)
        return done

    def _finish(self, stamp: int, done: _Pending) -> _Pending | None:
        if stamp not in self._played:
            return None
        self._latencies[stamp] = (done.published_ns - stamp) * 1e-6
        self._ended = self._heard = time.monotonic()
        self._began = self._began or self._ended
        return done

    def _take_status(self, status: Any, _: dict) -> None:
        with self._lock:
            cost = _Cost(
                status.latency_ms,
                status.infer_ms,
                status.decode_ms,
                status.memory_mib,
                status.cpu_cores,
            )
            self._heard = time.monotonic()
            self._statuses[to_nanoseconds(status.header.stamp)] = cost
            self._last_status = status
            dropped = zip(status.drop_reasons, map(int, status.dropped), strict=True)
            self._take_counts(
                FrameCounts(int(status.received), int(status.published), dict(dropped))
            )

    def _take_diagnostics(self, message: DiagnosticArray, _: dict) -> None:
        for status in message.status:
            counts = camera_counts(status)
            if counts is not None:
                with self._lock:
                    self._take_counts(counts)

    def _take_counts(self, counts: FrameCounts) -> None:
        """Keep the newest counts: they only grow, and come on two topics."""
        own = self._counts
        if (counts.received, -counts.under_way) >= (own.received, -own.under_way):
            self._counts = counts

    def result(self, rate: float) -> LiveResult:
        """Return the account of everything that was played."""
        with self._lock:
            result = LiveResult(rate=rate, frames_in=len(self._played))
            result.frames_out = len(self._latencies)
            result.duration_s = self._ended - self._began
            costs = list(self._statuses.values())
            both = [stamp for stamp in self._statuses if stamp in self._latencies]
            latencies = self._latencies | {
                stamp: max(self._latencies[stamp], self._statuses[stamp].latency_ms)
                for stamp in both
            }
            result.latencies_ms = list(latencies.values())
            result.infer_ms = [cost.infer_ms for cost in costs]
            result.overhead_ms = [
                latencies[stamp] - self._statuses[stamp].infer_ms for stamp in both
            ]
            result.decode_ms = [self._statuses[stamp].decode_ms for stamp in both]
            last, counts = self._last_status, self._counts
            if last is not None:
                result.engine, result.precision = last.engine, last.precision
                result.device = last.device
                result.memory_mib = max(cost.memory_mib for cost in costs)
                result.cpu_cores = float(np.mean([cost.cpu_cores for cost in costs]))
            if counts.received:
                result.dropped = {reason: n for reason, n in counts.dropped.items() if n}
                result.dropped |= lost_elsewhere(result, counts.received, counts.published)
            elif lost := result.frames_in - result.frames_out:
                result.dropped = {'unknown': lost}
        return result


def lost_elsewhere(result: LiveResult, received: int, published: int) -> dict[str, int]:
    """Return what is missing beside the node's own counts, by the place where it was lost."""
    counted = sum(result.dropped.values())
    incomplete = max(0, published - result.frames_out)
    unfinished = max(0, received - published - counted)
    rest = result.frames_in - result.frames_out - counted - incomplete - unfinished
    lost = {'incomplete': incomplete, 'unfinished': unfinished, 'not_received': rest}
    return {reason: count for reason, count in lost.items() if count > 0}
