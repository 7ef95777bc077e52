"""`mtl-perception doctor`: look at graph and machine; say what is wrong and name the fix."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from mtl_perception.bundle import BundleError, ModelBundle
from mtl_perception.calibration import Calibration, CalibrationError, is_named_rectified
from mtl_perception.encodings import picture_size
from mtl_perception.engines import EngineError, open_engine
from mtl_perception.ros import environment, qos
from mtl_perception.ros.conversions import (
    FrameRejected,
    frame_from_compressed,
    frame_from_image,
    to_nanoseconds,
)
from mtl_perception.shared import shared_folder

_IMAGE, _COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
_STATUS = 'mtl_perception/msg/PerceptionStatus'
_DEPTH_ENCODINGS = frozenset({'16UC1', '32FC1', '32FC3'})
_DISCOVERY_S = 2.0
_ROUND_S = 0.5
_SLOW_HZ = 5.0
_OLD_S = 1.0
_LARGEST_PIXELS = 64_000_000
_SHARED_MEMORY_MIB = 64


class Severity(IntEnum):
    """How bad a finding is; the worst one is the exit status of the program."""

    OK = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        severity: how bad it is.
        subject: a topic, 'engine', 'bundle', ...
        text: what was found.
        fix: what to do; empty where all is well.
    """

    severity: Severity
    subject: str
    text: str
    fix: str = ''

    def as_json(self) -> dict[str, str]:
        """Return a dictionary of words."""
        return {
            'severity': self.severity.name.lower(),
            'subject': self.subject,
            'text': self.text,
            'fix': self.fix,
        }


def examine(
    *,
    image: str | None = None,
    camera_info: str | None = None,
    bundle: str = 'pvt_v2_b0',
    engine: str = 'auto',
    gpu_device: int = 0,
    seconds: float = 3.0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """Look at everything the node depends on.

    Args:
        image: the image topic that matters; all of the graph when None.
        camera_info: its calibration topic; the one beside an image topic when None.
        bundle: to load.
        engine: to open with it.
        gpu_device: number of the GPU for TensorRT.
        seconds: how long to listen to the topics.
        on_progress: is told what comes next.
    """
    findings = list(check_middleware())
    on_progress('loading the bundle')
    findings += check_bundle(bundle, engine, gpu_device)
    on_progress(f'listening to the graph for {seconds + _DISCOVERY_S:.0f} s')
    environment.choose_fastdds_profile()  # as the node does, which hears large images with it
    rclpy.init(args=[])
    try:
        node = rclpy.create_node('perception_doctor', start_parameter_services=False)
        with_executor = SingleThreadedExecutor()
        with_executor.add_node(node)
        findings += GraphExamination(node, with_executor, image, camera_info).run(seconds)
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
    return findings


def check_middleware() -> Iterable[Finding]:
    """Check the middleware's settings in this shell, which the node would start with."""
    rmw = os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp')
    if rmw != 'rmw_fastrtps_cpp':
        yield Finding(
            Severity.OK, 'middleware', f'{rmw} (see docs/integration.md for its buffers)'
        )
    else:
        yield _check_fastdds_profile()
    yield _check_shared_memory()


def _check_fastdds_profile() -> Finding:
    chosen = environment.chosen_fastdds_profile()
    if chosen is None:
        variable = environment.fastdds_variable()
        shipped = shared_folder('config') / 'fastdds_network.xml'
        return Finding(
            Severity.WARNING,
            'middleware',
            'Fast DDS has no profile in this shell: best-effort images of 0.9 MB mostly get lost '
            'between processes without one (the node chooses one itself)',
            f'export {variable}={shipped} in the shells of the camera and of RViz',
        )
    variable, profile = chosen
    if not profile.is_file():
        return Finding(
            Severity.ERROR,
            'middleware',
            f'{variable} names {profile}, which does not exist',
            'correct the path, or unset it: the node then chooses a shipped profile',
        )
    return Finding(Severity.OK, 'middleware', f'Fast DDS with {profile}')


def _check_shared_memory() -> Finding:
    try:
        free_mib = shutil.disk_usage('/dev/shm').free >> 20
    except OSError:
        return Finding(
            Severity.WARNING,
            'shared memory',
            'this system has no /dev/shm: images travel over UDP',
            'in a container, start it with --shm-size=256m',
        )
    if free_mib < _SHARED_MEMORY_MIB:
        return Finding(
            Severity.WARNING,
            'shared memory',
            f'/dev/shm has {free_mib} MiB left; every process takes a segment of 32 MiB',
            'in a container, start it with --shm-size=256m or --ipc=host',
        )
    return Finding(Severity.OK, 'shared memory', f'{free_mib} MiB free')


def check_bundle(name: str, engine: str, gpu_device: int = 0) -> Iterable[Finding]:
    """Load the bundle, open the engine and run it once."""
    try:
        bundle = ModelBundle.load(name)
    except BundleError as error:
        yield Finding(Severity.ERROR, 'bundle', str(error), 'give another one with --bundle')
        return
    height, width = bundle.input_size
    yield Finding(
        Severity.OK,
        'bundle',
        f'{bundle.name}: {", ".join(bundle.manifest.tasks)} at {width}x{height}, '
        f'{len(bundle.classes)} classes; {bundle.manifest.training.licence_remark}',
    )
    try:
        opened = open_engine(bundle, engine, gpu_device=gpu_device)
        picture = opened.input_buffer(1, bundle.input_size)
        opened.infer(picture)
        began = time.perf_counter()
        opened.infer(picture)
        took_ms = (time.perf_counter() - began) * 1e3
        words = f'{opened.name} on {opened.device} ({opened.precision}): {took_ms:.0f} ms a frame'
        opened.close()
    except EngineError as error:
        yield Finding(Severity.ERROR, 'engine', str(error), 'try --engine onnxruntime')
        return
    yield Finding(Severity.OK, 'engine', words)
    yield _check_gpu(words)


def _check_gpu(engine: str) -> Finding:
    devices = sorted(Path('/dev').glob('nvidia[0-9]*'))
    if engine.startswith('tensorrt'):
        return Finding(Severity.OK, 'GPU', 'TensorRT runs on it')
    if devices or Path('/etc/nv_tegra_release').exists():
        return Finding(
            Severity.WARNING,
            'GPU',
            'there is an NVIDIA GPU but the engine does not use it',
            'install TensorRT as docs/tensorrt.md says, then `mtl-perception engine check`',
        )
    return Finding(Severity.OK, 'GPU', 'none: the CPU computes')


@dataclass
class _Heard:
    """What arrived on one image topic; `size` is (width, height) of a picture that was read."""

    kind: str
    times: list[float] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    last: Any = None
    size: tuple[int, int] | None = None
    info: CameraInfo | None = None


class GraphExamination:
    """Listens to the image topics of the graph and judges them."""

    def __init__(
        self,
        node: Node,
        executor: SingleThreadedExecutor,
        image: str | None,
        camera_info: str | None = None,
    ) -> None:
        """Prepare to listen with `node`, which `executor` spins; to `image` alone if given."""
        self._node = node
        self._executor = executor
        self._image = image
        self._camera_info = camera_info
        self._heard: dict[str, _Heard] = {}
        self._clock: list[Clock] = []
        self._listens_to_clock = False

    def run(self, seconds: float) -> list[Finding]:
        """Listen, then return what was found."""
        until = time.monotonic() + _DISCOVERY_S + seconds
        self._spin(_DISCOVERY_S)
        types: dict[str, list[str]] = {}
        topics: dict[str, str] = {}
        ours: set[str] = set()
        # A busy machine may show some topics late.
        while time.monotonic() < until or not types:
            types = dict(self._node.get_topic_names_and_types())
            ours = self._perception_nodes(types)
            topics = self._image_topics(types, ours)
            self._listen_to_new(types, topics)
            self._spin(_ROUND_S)
        findings = [self._check_clock(types)]
        if not topics:
            findings.append(self._no_topics(types))
        for topic in sorted(self._heard):
            findings += self._judge(topic, self._heard[topic], seconds)
        findings.append(self._check_node(ours, topics))
        return findings

    def _spin(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._executor.spin_once(timeout_sec=0.05)

    def _perception_nodes(self, types: dict[str, list[str]]) -> set[str]:
        return {
            _full_name(info)
            for topic, kinds in types.items()
            if _STATUS in kinds
            for info in self._node.get_publishers_info_by_topic(topic)
        }

    def _image_topics(self, types: dict[str, list[str]], ours: set[str]) -> dict[str, str]:
        found = {}
        for topic, kinds in types.items():
            kind = next((k for k in kinds if k in (_IMAGE, _COMPRESSED)), None)
            if kind is None or (self._image is not None and topic != self._image):
                continue
            base, _, transport = topic.rpartition('/')
            other = transport != 'compressed' and _IMAGE in types.get(base, ())
            if self._image is None and (other or transport == 'compressedDepth'):
                continue  # image_transport offers a picture in ways that the node does not take
            publishers = self._node.get_publishers_info_by_topic(topic)
            if publishers and not any(_full_name(info) in ours for info in publishers):
                found[topic] = kind
        return found

    def _listen_to_new(self, types: dict[str, list[str]], topics: dict[str, str]) -> None:
        for topic, kind in topics.items():
            if topic not in self._heard:
                self._listen(topic, kind)
        if '/clock' in types and not self._listens_to_clock:
            self._listens_to_clock = True
            self._node.create_subscription(Clock, '/clock', self._clock.append, 10)

    def _listen(self, topic: str, kind: str) -> None:
        heard = self._heard[topic] = _Heard(kind)
        offers = self._node.get_publishers_info_by_topic(topic)

        def on_image(message: Image | CompressedImage) -> None:
            heard.times.append(time.monotonic())
            now_ns = self._node.get_clock().now().nanoseconds
            heard.ages_s.append((now_ns - to_nanoseconds(message.header.stamp)) / 1e9)
            heard.last = message

        def on_info(message: CameraInfo) -> None:
            heard.info = message

        self._node.create_subscription(
            Image if kind == _IMAGE else CompressedImage,
            topic,
            on_image,
            qos.profile(qos.input_reliability('auto', offers), 5),
        )
        info_topic = self._info_topic(topic)
        infos = self._node.get_publishers_info_by_topic(info_topic)
        latched = bool(infos) and all(
            i.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for i in infos
        )
        self._node.create_subscription(
            CameraInfo,
            info_topic,
            on_info,
            QoSProfile(
                depth=1,
                reliability=ReliabilityPolicy.RELIABLE
                if latched
                else qos.input_reliability('auto', infos),
                durability=DurabilityPolicy.TRANSIENT_LOCAL
                if latched
                else DurabilityPolicy.VOLATILE,
            ),
        )

    def _check_clock(self, types: dict[str, list[str]]) -> Finding:
        if '/clock' not in types:
            return Finding(Severity.OK, 'clock', 'the system clock rules (nobody sends /clock)')
        if not self._clock:
            return Finding(
                Severity.ERROR,
                'clock',
                '/clock exists but no time arrives: nodes with use_sim_time stand still',
                'start the simulator or `mtl-perception play --clock`, or do without use_sim_time',
            )
        return Finding(
            Severity.OK, 'clock', 'simulated time runs: start the node with use_sim_time:=true'
        )

    def _no_topics(self, types: dict[str, list[str]]) -> Finding:
        if self._image is not None:
            there = ', '.join(
                sorted(t for t, k in types.items() if {_IMAGE, _COMPRESSED} & set(k))
            )
            return Finding(
                Severity.ERROR,
                self._image,
                f'nobody publishes images there; image topics: {there or "none"}',
                'start the camera, or give one of these with --image',
            )
        return Finding(
            Severity.ERROR,
            'images',
            'no camera publishes images in this ROS domain '
            f'({os.environ.get("ROS_DOMAIN_ID", "0")})',
            'start the camera; check ROS_DOMAIN_ID and ROS_AUTOMATIC_DISCOVERY_RANGE in both '
            'shells',
        )

    def _judge(self, topic: str, heard: _Heard, seconds: float) -> Iterable[Finding]:
        offers = self._node.get_publishers_info_by_topic(topic)
        names = ', '.join(sorted({_full_name(info) for info in offers})) or 'nobody any more'
        if not heard.times:
            yield Finding(
                Severity.ERROR,
                topic,
                f'published by {names}, but nothing arrived in {seconds:.0f} s',
                'check that the camera runs, and the Fast DDS profile of its process',
            )
            return
        yield self._judge_frame(topic, heard)
        rate = (len(heard.times) - 1) / max(heard.times[-1] - heard.times[0], 1e-6)
        reliabilities = sorted({i.qos_profile.reliability.name.lower() for i in offers})
        slow = len(heard.times) < 2 or rate < _SLOW_HZ
        yield Finding(
            Severity.WARNING if slow else Severity.OK,
            topic,
            f'{rate if len(heard.times) > 1 else 0:.1f} Hz from {names} '
            f'({", ".join(reliabilities)})',
            "raise the camera's rate, or its exposure is too long; best-effort images also get "
            'lost without a Fast DDS profile'
            if slow
            else '',
        )
        age = sorted(heard.ages_s)[len(heard.ages_s) // 2]
        if abs(age) > _OLD_S and not self._clock:
            yield Finding(
                Severity.WARNING,
                topic,
                f'stamps are {abs(age):.1f} s {"old" if age > 0 else "in the future"}',
                'synchronise the clocks (chrony), or use_sim_time with recordings',
            )
        yield self._judge_calibration(topic, heard)

    def _judge_frame(self, topic: str, heard: _Heard) -> Finding:
        message = heard.last
        try:
            if heard.kind == _COMPRESSED:
                if 'compressedDepth' in message.format:
                    return Finding(
                        Severity.OK, topic, f'{message.format}: measurements, no camera picture'
                    )
                frame = frame_from_compressed(message, _LARGEST_PIXELS)
            else:
                if message.encoding in _DEPTH_ENCODINGS:
                    return Finding(
                        Severity.OK, topic, f'{message.encoding}: measurements, no camera picture'
                    )
                frame = frame_from_image(message, _LARGEST_PIXELS)
        except FrameRejected as rejection:
            return Finding(
                Severity.ERROR,
                topic,
                str(rejection),
                'set the camera driver to rgb8 or bgr8, or use transport:=compressed',
            )
        height, width = picture_size(frame.pixels, frame.encoding)
        heard.size = (width, height)
        how = 'transport:=compressed' if heard.kind == _COMPRESSED else 'transport:=raw'
        base = topic.removesuffix('/compressed')
        return Finding(
            Severity.OK,
            topic,
            f'{width}x{height} {frame.encoding}; use image:={base} {how}',
        )

    def _info_topic(self, topic: str) -> str:
        beside = topic.removesuffix('/compressed').rpartition('/')[0] + '/camera_info'
        return self._camera_info or beside

    def _judge_calibration(self, topic: str, heard: _Heard) -> Finding:
        info_topic = self._info_topic(topic)
        message = heard.last
        if getattr(message, 'encoding', '') in _DEPTH_ENCODINGS:
            return Finding(Severity.OK, info_topic, 'not needed')
        if heard.info is None:
            return Finding(
                Severity.WARNING,
                info_topic,
                'nothing arrives there, so depth is not metric',
                'publish it, name another topic (camera_info:=, here --camera-info), or set '
                'focal_length_px',
            )
        try:
            calibration = Calibration.from_message(heard.info)
        except CalibrationError as error:
            return Finding(
                Severity.WARNING, info_topic, str(error), 'calibrate with camera_calibration'
            )
        raw = calibration.raw
        problems = []
        if calibration.frame_id != message.header.frame_id:
            problems.append(
                f'frame {calibration.frame_id!r} but images {message.header.frame_id!r}'
            )
        if heard.size is not None and heard.size != (raw.width, raw.height):
            width, height = heard.size
            problems.append(f'{raw.width}x{raw.height} but images {width}x{height}')
        if problems:
            return Finding(
                Severity.WARNING,
                info_topic,
                'does not belong to the images: ' + '; '.join(problems),
                'publish the calibration of the delivered size and the same frame_id',
            )
        if calibration.is_distorted and not is_named_rectified(topic):
            return Finding(
                Severity.WARNING,
                info_topic,
                f'fx {raw.fx:.1f}, and the lens distorts ({calibration.model})',
                'set the parameter rectify to true, or use a rectified image topic',
            )
        return Finding(Severity.OK, info_topic, f'fx {raw.fx:.1f} px, cx {raw.cx:.1f}')

    def _check_node(self, ours: set[str], topics: dict[str, str]) -> Finding:
        if not ours:
            return Finding(Severity.OK, 'node', 'no perception node runs yet')
        listening = {
            topic
            for topic in topics
            for info in self._node.get_subscriptions_info_by_topic(topic)
            if _full_name(info) in ours
        }
        names = ', '.join(sorted(ours))
        if topics and not listening:
            return Finding(
                Severity.ERROR,
                'node',
                f'{names} runs but listens to none of {", ".join(sorted(topics))}',
                'start it with image:=TOPIC, and transport:=compressed for .../compressed',
            )
        return Finding(
            Severity.OK, 'node', f'{names} runs and listens to {", ".join(sorted(listening))}'
        )


def _full_name(info: Any) -> str:
    return f'{info.node_namespace.rstrip("/")}/{info.node_name}'


def worst(findings: Sequence[Finding]) -> Severity:
    """Return the worst severity."""
    return max((finding.severity for finding in findings), default=Severity.OK)
