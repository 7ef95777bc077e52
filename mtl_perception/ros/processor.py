"""A frame's way: read, perceive, fill, send; every frame is accounted for."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from std_msgs.msg import Header

from mtl_perception.bundle import ModelBundle
from mtl_perception.calibration import Calibration, CalibrationError
from mtl_perception.class_filter import ClassFilter
from mtl_perception.encodings import picture_size
from mtl_perception.frames import CameraFrame, Prediction
from mtl_perception.msg import PerceptionStatus
from mtl_perception.orientation import turn_frame, turn_prediction
from mtl_perception.perceiver import Perceiver
from mtl_perception.rectification import Lens, Rectifier
from mtl_perception.ros import qos
from mtl_perception.ros.camera import Arrival, Camera
from mtl_perception.ros.conversions import FrameRejected, Reason, to_nanoseconds
from mtl_perception.ros.label_info import LabelInfoOutput
from mtl_perception.ros.labels import LabelSpace
from mtl_perception.ros.outputs import Filled, ImageOutputs, Perceived
from mtl_perception.ros.parameters import Settings
from mtl_perception.ros.poses import TransformSource
from mtl_perception.ros.references import ReferenceProblem
from mtl_perception.ros.saving import SavedFrame, SavingError, describe_things, save
from mtl_perception.ros.scenes import SceneOutputs
from mtl_perception.ros.sender import Sender
from mtl_perception.ros.statistics import ProcessLoad
from mtl_perception.ros.things import ThingOutputs
from mtl_perception.ros.worker import Batch


@dataclass(frozen=True)
class SaveRequest:
    """Asks for one frame to be saved.

    Attributes:
        folder: to write to.
        answer: is called in the worker's thread with the picture's path, or with why not.
    """

    folder: Path
    answer: Callable[[Path | SavingError], None]


class Channel:
    """A camera with the publishers of its predictions.

    Attributes:
        camera: the input.
        images: its image topics.
        scenes: its topics that are computed from depth.
        things: its topics with boxes and classes.
        classes: what its last pictures say of its classes.
        label_info: its ~/segmentation/label_info.
        rectifier: its distortion maps.
        save_request: asks for its next frame to be saved.
    """

    def __init__(
        self,
        node: Node,
        camera: Camera,
        bundle: ModelBundle,
        transforms: TransformSource,
        profile: QoSProfile,
    ) -> None:
        """Create the publishers.

        Args:
            node: that publishes.
            camera: whose predictions they carry.
            bundle: that computes them.
            transforms: says where the camera is.
            profile: that is offered.
        """
        prefix = f'~/{camera.name}/' if camera.name else '~/'
        names = [spec.name for spec in bundle.classes]
        self.camera = camera
        self._bundle = bundle
        self.images = ImageOutputs(node, prefix, bundle, profile)
        self.scenes = SceneOutputs(
            node, camera, prefix, bundle.outputs, names, transforms, profile
        )
        self.things = ThingOutputs(node, camera, prefix, bundle, profile)
        self.classes = ClassFilter(bundle.attributes)
        self.label_info = LabelInfoOutput(node, prefix)
        self.rectifier = Rectifier()
        self.save_request: SaveRequest | None = None
        self._node = node
        self._status = PerceptionStatus(camera=camera.name)
        self._publisher: Publisher = node.create_publisher(
            PerceptionStatus,
            prefix + 'status',
            profile,
            event_callbacks=qos.no_publisher_events(),
        )

    def close(self) -> None:
        """Destroy the publishers."""
        self.images.close()
        self.scenes.close()
        self.things.close()
        self.label_info.close()
        self._node.destroy_publisher(self._publisher)

    @property
    def topics(self) -> list[str]:
        """Return the full names of all output topics."""
        return [
            *self.images.topics,
            *self.scenes.topics,
            *self.things.topics,
            self._publisher.topic_name,
        ]

    def wanted(self, enabled: Collection[str]) -> set[str]:
        """Return the topics to publish now."""
        outputs = (self.images, self.scenes, self.things)
        return set().union(*(output.wanted(enabled) for output in outputs))

    def needed(self, wanted: Collection[str], settings: Settings) -> set[str]:
        """Return the network's outputs that these topics and a request to save need."""
        if self.save_request is not None:
            return set(self._bundle.outputs)
        return (
            self.images.needed(wanted, settings)
            | self.scenes.needed(wanted, settings)
            | self.things.needed(wanted)
        )

    @property
    def status(self) -> PerceptionStatus:
        """Return the kept message of ~/status."""
        return self._status

    def publish_status(self) -> None:
        """Publish the kept message of ~/status."""
        self._publisher.publish(self._status)


@dataclass
class _Pending:
    """A frame on its way.

    Attributes:
        channel: of its camera.
        arrival: its message.
        header: of the message.
        frame: what the predictions belong to, in the camera's own orientation.
        upright: the same, turned for the network.
        calibration: of the input; None when unknown.
        rectified: whether `frame` has no distortion left.
        lens: that `frame` was rectified with; None where it came so or is not.
        degrees: clockwise turn that made `upright` of `frame`.
        wanted: topics to publish.
        durations_ms: of the stages so far.
        batch_size: frames that share the inference.
    """

    channel: Channel
    arrival: Arrival
    header: Header
    frame: CameraFrame
    upright: CameraFrame
    calibration: Calibration | None
    rectified: bool
    lens: Lens | None
    degrees: int
    wanted: set[str]
    durations_ms: dict[str, float]
    batch_size: int = 1


class Processor:
    """Takes batches of newest frames to their end.

    The worker's thread reads, perceives and fills the messages; a thread of its own sends them
    while the worker is at the next batch.
    """

    def __init__(
        self,
        node: Node,
        perceiver: Perceiver,
        channels: Sequence[Channel],
        settings: Callable[[], Settings],
        labels: Callable[[], LabelSpace],
    ) -> None:
        """Tie the perceiver to the channels.

        Args:
            node: for its clock and log.
            perceiver: to run.
            channels: of all cameras.
            settings: the node's settings, looked up for each batch.
            labels: the label space, looked up for each batch.
        """
        self._node = node
        self._perceiver = perceiver
        self._channels = {channel.camera: channel for channel in channels}
        self._settings = settings
        self._labels = labels
        self._load = ProcessLoad()
        self._sender = Sender()
        for channel in channels:
            channel.status.bundle = perceiver.bundle.name

    def process(self, batch: Batch) -> None:
        """Perceive a batch and have it sent; every frame of it ends published or dropped."""
        started_ns = time.monotonic_ns()
        settings = self._settings()
        pending = []
        for camera, arrival in batch:
            queue_ms = (started_ns - arrival.monotonic_ns) / 1e6
            try:
                pending.append(self._prepare(self._channels[camera], arrival, queue_ms, settings))
            except FrameRejected as rejection:
                camera.reject(rejection.reason, str(rejection))
            except Exception as error:
                self._fail(camera, 'bad_data', error)
        for frame, prediction in self._perceive(pending, settings):
            try:
                self._hand_over(frame, prediction, settings)
            except Exception as error:
                self._fail(frame.channel.camera, 'publishing_failed', error)

    def expect(self) -> None:
        """Have the engine prepare for those who listen now. May be called from any thread."""
        settings = self._settings()
        needed: set[str] = set()
        for channel in self._channels.values():
            needed |= channel.needed(channel.wanted(settings.outputs), settings)
        self._perceiver.expect(needed)

    def close(self) -> None:
        """Send what is ready. Call it when no batch is processed any more."""
        self._sender.close()

    def _prepare(
        self, channel: Channel, arrival: Arrival, queue_ms: float, settings: Settings
    ) -> _Pending:
        """Read, calibrate, rectify and turn one frame.

        Raises:
            FrameRejected: why it is dropped.
        """
        camera, header = channel.camera, arrival.message.header
        began = time.perf_counter()
        self._check_age(to_nanoseconds(header.stamp), settings.max_age)
        frame = camera.read(arrival)
        height, width = picture_size(frame.pixels, frame.encoding)
        calibration = camera.calibration_for(frame.frame_id, height, width)
        rectified, lens = False, None
        if calibration is not None:
            rectified = camera.is_rectified(calibration)
            if camera.settings.rectify and not rectified and calibration.is_distorted:
                try:
                    frame, rectified = channel.rectifier.rectify(frame, calibration), True
                    lens = channel.rectifier.lens(calibration)
                except CalibrationError as error:
                    raise FrameRejected('bad_data', str(error)) from error
            else:
                intrinsics = calibration.rectified if rectified else calibration.raw
                frame = replace(frame, intrinsics=intrinsics)
        decoded = time.perf_counter()
        degrees = camera.settings.rotate  # which may change while the frame is on its way
        upright = turn_frame(frame, degrees)
        camera.accept()
        return _Pending(
            channel=channel,
            arrival=arrival,
            header=header,
            frame=frame,
            upright=upright,
            calibration=calibration,
            rectified=rectified,
            lens=lens,
            degrees=degrees,
            wanted=channel.wanted(settings.outputs),
            durations_ms={
                'queue': queue_ms,
                'decode': (decoded - began) * 1e3,
                'resize': (time.perf_counter() - decoded) * 1e3,
            },
        )

    def _check_age(self, stamp_ns: int, max_age: float) -> None:
        if max_age <= 0:
            return
        age = (self._node.get_clock().now().nanoseconds - stamp_ns) / 1e9
        if age > max_age:
            raise FrameRejected(
                'too_old', f'its stamp is {age:.2f} s old but max_age allows {max_age} s'
            )

    def _perceive(
        self, pending: list[_Pending], settings: Settings
    ) -> Iterator[tuple[_Pending, Prediction]]:
        """Run the network on all frames at once, or one by one where one of them fails.

        A prediction is valid until the next one is asked for: the arrays are the engine's.
        """
        if not pending:
            return
        needed = set().union(*(f.channel.needed(f.wanted, settings) for f in pending))
        for frame in pending:
            frame.batch_size = len(pending)
        try:
            predictions = self._perceiver.perceive_batch(
                [frame.upright for frame in pending], needed
            )
        except Exception as error:
            if len(pending) == 1:
                self._fail(pending[0].channel.camera, 'engine_failed', error)
                return
            for frame in pending:
                yield from self._perceive([frame], settings)
        else:
            yield from zip(pending, predictions, strict=True)

    def _hand_over(self, frame: _Pending, prediction: Prediction, settings: Settings) -> None:
        """Fill a frame's messages and give them to the sender."""
        channel, durations = frame.channel, frame.durations_ms
        began = time.perf_counter()
        timings = prediction.timings_ms
        upright, prediction = prediction, turn_prediction(prediction, -frame.degrees)
        turned = time.perf_counter()
        durations['resize'] += timings.get('prepare', 0.0)
        durations['infer'] = timings.get('infer', 0.0)
        durations['post'] = timings.get('post', 0.0) + (turned - began) * 1e3
        self._sender.wait_for(channel)
        # Another engine may have taken over since the last frame.
        engine, status = self._perceiver.engine, channel.status
        status.engine, status.device = engine.name, engine.device
        status.precision = engine.precision
        # Before all that may fail: a saved frame is what a bug report needs then.
        if channel.save_request is not None and not _lacks(prediction, self._perceiver):
            self._save(frame, upright)
        scenes = channel.scenes.fill(
            frame.header,
            frame.upright,
            upright,
            frame.degrees,
            frame.wanted,
            settings,
            frame.lens,
        )
        perceived = Perceived(
            frame.header,
            frame.frame,
            frame.calibration,
            frame.rectified,
            _remember(channel.classes, prediction, frame.header, settings),
            channel.scenes.applied_scale,
            channel.scenes.map_scale,
        )
        filled = channel.images.fill(perceived, frame.wanted, self._labels(), settings)
        filled += scenes
        filled += channel.things.fill(perceived, frame.wanted, settings)
        size = prediction.size or (0, 0)
        calibrated = prediction.depth_calibrated
        self._sender.send(channel, lambda: self._send(frame, filled, turned, size, calibrated))

    def _send(
        self,
        frame: _Pending,
        filled: Filled,
        began: float,
        size: tuple[int, int],
        calibrated: bool,
    ) -> None:
        """Publish one frame's messages and its status. Runs in the sender's thread."""
        camera, durations = frame.channel.camera, frame.durations_ms
        try:
            for publisher, message in filled:
                publisher.publish(message)
        except Exception as error:
            self._fail(camera, 'publishing_failed', error)
            return
        durations['publish'] = (time.perf_counter() - began) * 1e3
        stamp_ns = to_nanoseconds(frame.header.stamp)
        if stamp_ns:
            durations['latency'] = (self._node.get_clock().now().nanoseconds - stamp_ns) / 1e6
        camera.durations.add(durations)
        now_ns = time.monotonic_ns()
        camera.note_published(now_ns)
        try:
            self._publish_status(frame, size, calibrated, now_ns)
        except Exception as error:
            if self._node.context.ok():
                camera.warn('status', f'{camera.label}: no status: {error}')

    def _publish_status(
        self, frame: _Pending, size: tuple[int, int], calibrated: bool, now_ns: int
    ) -> None:
        camera, status, durations = frame.channel.camera, frame.channel.status, frame.durations_ms
        status.header = frame.header
        status.health = int(camera.health(now_ns)[0])
        status.depth_calibrated = calibrated
        status.batch_size = frame.batch_size
        status.input_height, status.input_width = picture_size(
            frame.frame.pixels, frame.frame.encoding
        )
        status.output_height, status.output_width = size
        status.queue_ms = durations['queue']
        status.decode_ms = durations['decode']
        status.resize_ms = durations['resize']
        status.infer_ms = durations['infer']
        status.post_ms = durations['post']
        status.publish_ms = durations['publish']
        status.latency_ms = durations.get('latency', math.nan)
        status.rate = camera.published_rate.hertz(now_ns)
        counts = camera.counter.snapshot()
        status.received, status.published = counts.received, counts.published
        status.drop_reasons = list(counts.dropped)
        status.dropped = list(counts.dropped.values())
        status.cpu_cores = self._load.cpu_cores()
        status.memory_mib = self._load.memory_mib()
        frame.channel.publish_status()

    def _save(self, frame: _Pending, prediction: Prediction) -> None:
        """Write a frame that was asked for, upright, and answer the request."""
        request, frame.channel.save_request = frame.channel.save_request, None
        if request is None:  # given up in the meantime
            return
        engine, bundle = self._perceiver.engine, self._perceiver.bundle
        height, width = picture_size(frame.upright.pixels, frame.upright.encoding)
        intrinsics = frame.upright.intrinsics
        if intrinsics is None:
            spec, size = bundle.manifest.depth, prediction.size
            focal = spec.focal_length_px * width / size[1] if spec and size else float(width)
            intrinsics = Calibration.from_focal_length(focal, height, width).raw
        notes = {
            'frame_id': frame.frame.frame_id,
            'encoding': frame.frame.encoding,
            'calibrated': prediction.depth_calibrated,
            'rectified': frame.rectified,
            'rotate': frame.degrees,
            'bundle': bundle.name,
            'bundle_sha256': bundle.model_sha256,
            'engine': f'{engine.name} {engine.precision} on {engine.device}',
            'durations_ms': {stage: round(ms, 3) for stage, ms in frame.durations_ms.items()},
        }
        things = describe_things(
            bundle, prediction, (height, width), self._settings().detection_threshold
        )
        try:
            sensed = frame.channel.scenes.sensed_depth(
                frame.header, (height, width), frame.degrees, frame.lens
            )
            if sensed is not None or prediction.depth is not None:
                notes['depth'] = 'predicted' if sensed is None else 'depth camera'
            camera = frame.channel.camera.name
            saved = SavedFrame(
                frame.upright, prediction, intrinsics, notes, things, sensed, camera
            )
            path = save(request.folder, saved)
        except ReferenceProblem as problem:
            request.answer(SavingError(f'nothing is saved without the depth camera: {problem}'))
        except SavingError as error:
            request.answer(error)
        else:
            request.answer(path)

    def _fail(self, camera: Camera, reason: Reason, error: Exception) -> None:
        """Count a frame that an unexpected error ended; the node goes on with the next one."""
        if not self._node.context.ok():  # ROS was shut down between taking and publishing
            camera.counter.drop('deactivated')
            return
        camera.reject(reason, f'{reason}: {type(error).__name__}: {error}')
        self._node.get_logger().debug(''.join(traceback.format_exception(error)))


def _remember(
    classes: ClassFilter, prediction: Prediction, header: Header, settings: Settings
) -> Prediction:
    """Return the prediction with what the last pictures together say of its classes.

    A picture without a stamp has no age and stands alone.
    """
    stamp_ns = to_nanoseconds(header.stamp)
    if prediction.class_scores is None or not stamp_ns:
        return prediction
    together = classes.update(
        prediction.class_scores, stamp_ns / 1e9, settings.classification_memory
    )
    return replace(prediction, class_scores=together)


def _lacks(prediction: Prediction, perceiver: Perceiver) -> bool:
    """Tell whether a prediction was made before all outputs were asked for."""
    return any(getattr(prediction, name) is None for name in perceiver.bundle.outputs)
