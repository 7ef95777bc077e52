"""Bags as recordings: pictures matched with the camera_info and truths of their stamp."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtl_perception.calibration import Calibration, CalibrationError, is_named_rectified
from mtl_perception.encodings import EncodingError, picture_size
from mtl_perception.frames import CameraFrame
from mtl_perception.recordings._base import (
    BaseRecording,
    RecordedFrame,
    RecordingError,
    TrueBoxes,
    Truth,
)
from mtl_perception.recordings._rectified import rectify_boxes, rectify_truth
from mtl_perception.recordings._storage import Bag, BagError, BagMessage
from mtl_perception.recordings._topics import (
    COMPRESSED,
    IMAGE,
    TF_TYPES,
    CameraTopics,
    TopicChoice,
    find_cameras,
)
from mtl_perception.recordings._transforms import Transforms
from mtl_perception.recordings._truths import (
    read_attributes,
    read_boxes,
    read_pixels,
    read_truth,
)
from mtl_perception.rectification import Rectifier

_MOST_WAITING = 30
_MOST_TRUTHS = 90
_WAIT_NS = 1_000_000_000


@dataclass
class _Camera:
    """One camera's topics, and which of its messages wait to be matched."""

    topics: CameraTopics
    waiting: deque[tuple[int, BagMessage]] = field(default_factory=deque)
    known: dict[str, dict[int, BagMessage]] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    info: Any = None
    rectifier: Rectifier = field(default_factory=Rectifier)
    last_stamp: int | None = None
    seen: Counter[str] = field(default_factory=Counter)


class BagRecording(BaseRecording):
    """A bag of any kind, its topics found by type and name unless given.

    Every camera of the bag is read, each with its own camera_info and truth.
    """

    def __init__(
        self, path: Path, choice: TopicChoice, tolerance_s: float, rectify: bool = False
    ) -> None:
        super().__init__(path, path.name)
        self._choice = choice
        self._rectify = rectify
        self._tolerance_ns = round(tolerance_s * 1e9)
        self._tf = Transforms()
        with Bag(path) as bag:
            found = dict(bag.topics)
            self._counts = dict(bag.counts)
            problems = list(bag.problems)
        self._tf_topics = [topic for topic, kind in found.items() if kind in TF_TYPES]
        self._tf_moves = any(
            self._counts[topic] and not _is_static(topic) for topic in self._tf_topics
        )
        cameras, remarks = find_cameras(found, choice)
        self.remarks += remarks
        if not cameras:
            there = ', '.join(f'{topic} ({kind})' for topic, kind in sorted(found.items()))
            raise RecordingError(
                f'{path} has no camera pictures: expected a topic of {IMAGE} or {COMPRESSED}; '
                f'there are {there or "none"}' + ''.join(f'; {text}' for text in problems)
            )
        self._cameras = [_Camera(topics) for topics in cameras]
        for topics in cameras:
            suffix = f' of {topics.image}' if len(cameras) > 1 else ''
            self.topics[f'image{suffix}'] = topics.image
            if topics.info:
                self.topics[f'camera_info{suffix}'] = topics.info
            for role, topic in topics.truths.items():
                self.topics[f'{role}{suffix}'] = topic
                self.sources[role] = topics.source(role)
        self._name_derived_normals()

    def __len__(self) -> int:
        return sum(self._counts.get(camera.topics.image, 0) for camera in self._cameras)

    def frames(self) -> Iterator[RecordedFrame]:
        """Yield the frames in recorded order, each with the truths of its stamp."""
        wanted: dict[str, list[tuple[_Camera, str]]] = defaultdict(list)
        for camera in self._cameras:
            wanted[camera.topics.image].append((camera, 'image'))
            if camera.topics.info:
                wanted[camera.topics.info].append((camera, 'info'))
            for role, topic in camera.topics.truths.items():
                wanted[topic].append((camera, role))
                camera.known[role] = {}
        with Bag(self.path) as bag:
            for message in bag.messages({*wanted, *self._tf_topics}):
                if message.type in TF_TYPES:
                    self._take_transforms(bag, message)
                for camera, role in wanted.get(message.topic, ()):
                    self._take(bag, camera, role, message)
                for camera in self._cameras:
                    yield from self._ready(bag, camera, message.time_ns)
            for camera in self._cameras:
                yield from self._ready(bag, camera, None)
            for problem in bag.problems:
                self._remark(problem)
        self._name_what_was_missing()

    def _take_transforms(self, bag: Bag, message: BagMessage) -> None:
        try:
            self._tf.add(bag.decode(message), static=_is_static(message.topic))
        except BagError:
            self.skipped[f'{message.topic}: messages that cannot be read'] += 1

    def _take(self, bag: Bag, camera: _Camera, role: str, message: BagMessage) -> None:
        camera.seen[role] += 1
        if role == 'info':
            try:
                camera.info = bag.decode(message)
            except BagError:
                self.skipped[f'{message.topic}: messages that cannot be read'] += 1
            return
        stamp = bag.stamp_ns(message)
        if role != 'image':
            truths = camera.known[role]
            truths.pop(stamp, None)  # so that a stamp that comes again is the newest
            truths[stamp] = message
            camera.newest[role] = stamp
            if len(truths) > _MOST_TRUTHS:
                truths.pop(next(iter(truths)))
            return
        if camera.last_stamp is not None and stamp < camera.last_stamp:
            self.skipped[f'{message.topic}: stamps that ran backwards (frames were kept)'] += 1
        camera.last_stamp = stamp
        camera.waiting.append((stamp, message))

    def _ready(self, bag: Bag, camera: _Camera, now_ns: int | None) -> Iterator[RecordedFrame]:
        """Yield waiting pictures for which nothing better can come."""
        while camera.waiting:
            stamp, message = camera.waiting[0]
            waited = now_ns is None or now_ns - message.time_ns > _WAIT_NS
            if not waited and len(camera.waiting) <= _MOST_WAITING:
                complete = camera.info is not None or camera.topics.info is None
                for role, truths in camera.known.items():
                    passed = camera.newest.get(role, -1) > stamp + self._tolerance_ns
                    complete &= stamp in truths or passed
                if self._tf_moves:
                    complete &= self._tf.reaches(stamp)
                if not complete:
                    return
            camera.waiting.popleft()
            frame = self._frame(bag, camera, message, stamp)
            if frame is not None:
                yield frame

    def _frame(
        self, bag: Bag, camera: _Camera, message: BagMessage, stamp: int
    ) -> RecordedFrame | None:
        try:
            decoded = bag.decode(message)
            pixels, encoding = read_pixels(decoded, message.type)
            height, width = picture_size(pixels, encoding)
        except (BagError, EncodingError) as error:
            self._skip(message.topic, 'pictures that cannot be decoded', error)
            return None
        frame_id = str(decoded.header.frame_id)
        truth: dict[str, Truth] = {}
        boxes: TrueBoxes | None = None
        attributes: dict[str, str | tuple[str, ...]] = {}
        used = [message]
        for role, topic in camera.topics.truths.items():
            found = self._match(camera.known[role], stamp)
            if found is None:
                self.skipped[f'{topic}: pictures without a message of their time'] += 1
                continue
            try:
                content = bag.decode(found)
                if role == 'boxes':
                    boxes = read_boxes(content)
                elif role == 'attributes':
                    attributes = read_attributes(content)
                elif self._is_of_view(camera.topics, role, content, frame_id):
                    truth[role] = read_truth(role, content, found.type)
                else:
                    continue
            except (BagError, EncodingError) as error:
                self._skip(found.topic, 'messages that cannot be used', error)
                continue
            if role in truth and not truth[role].fits(height, width):
                shape = 'x'.join(map(str, truth.pop(role).size[::-1]))
                self.skipped[
                    f'{found.topic}: {shape} shows another view than {width}x{height}'
                ] += 1
                continue
            used.append(found)
        frame = CameraFrame(pixels, encoding, None, stamp, frame_id)
        calibration = self._calibration(camera, width, height)
        if calibration is not None:
            rectified = is_named_rectified(camera.topics.image)
            frame = replace(
                frame, intrinsics=calibration.rectified if rectified else calibration.raw
            )
            if self._rectify and calibration.is_distorted and not rectified:
                try:
                    frame, truth, boxes = self._rectified(camera, calibration, frame, truth, boxes)
                except (CalibrationError, EncodingError) as error:
                    self._skip(message.topic, 'pictures that cannot be rectified', error)
                    return None
                calibration, used = None, []  # which are of what the lens shows
        return RecordedFrame(
            id=str(stamp),
            camera=camera.topics.image,
            frame=frame,
            truth=truth,
            boxes=boxes,
            attributes=attributes,
            pose=self._tf.pose(frame_id, stamp),
            calibration=calibration,
            time_ns=message.time_ns,
            messages=tuple(used) if bag.is_ros2 else (),
        )

    def _is_of_view(self, topics: CameraTopics, role: str, content: Any, frame_id: str) -> bool:
        """Tell whether a truth's pixels are those of the picture; say so where it is doubtful."""
        topic, its_frame = topics.truths[role], str(content.header.frame_id)
        if not frame_id or its_frame in ('', frame_id):
            return True
        if getattr(self._choice, role) or topics.is_registered(role):
            self._remark(f'{topic} is in {its_frame}, not in {frame_id} of {topics.image}')
            return True
        self.skipped[f'{topic}: in {its_frame}, not in {frame_id}'] += 1
        self._remark(
            f'{topic} shows the view of {its_frame}, not of {frame_id}: record depth that is '
            f'aligned with {topics.image}, or give the topic to use it all the same'
        )
        return False

    def _skip(self, topic: str, what: str, error: Exception) -> None:
        self.skipped[f'{topic}: {what}'] += 1
        self._remark(f'{topic}: {error}')

    def _match(self, truths: dict[int, BagMessage], stamp: int) -> BagMessage | None:
        if stamp in truths:
            return truths[stamp]
        nearest = min(truths, key=lambda other: abs(other - stamp), default=None)
        if nearest is None or abs(nearest - stamp) > self._tolerance_ns:
            return None
        return truths[nearest]

    def _calibration(self, camera: _Camera, width: int, height: int) -> Calibration | None:
        """Return what the last camera_info says, if it belongs to pictures of this size."""
        info, topics = camera.info, camera.topics
        if info is None:
            return None
        try:
            calibration = Calibration.from_message(info)
        except CalibrationError as error:
            self._remark(f'{topics.info}: {error}')
            return None
        rectified = is_named_rectified(topics.image)
        if calibration.is_distorted and not rectified and not self._rectify:
            self._remark(
                f'{topics.image} is distorted and is evaluated as it is: rectify to evaluate what '
                'the rectified camera sees'
            )
        given = calibration.rectified if rectified else calibration.raw
        if (given.width, given.height) != (width, height):
            self._remark(
                f'{topics.info} is for {given.width}x{given.height} but pictures are '
                f'{width}x{height}: depth is not calibrated'
            )
            return None
        return calibration

    def _rectified(
        self,
        camera: _Camera,
        calibration: Calibration,
        frame: CameraFrame,
        truth: dict[str, Truth],
        boxes: TrueBoxes | None,
    ) -> tuple[CameraFrame, dict[str, Truth], TrueBoxes | None]:
        """Return what the rectified camera sees, with what is true of it."""
        frame = camera.rectifier.rectify(frame, calibration)
        self._remark(f'{camera.topics.image} and its truths were rectified')
        frame = replace(frame, pixels=frame.pixels.copy())  # frames outlive the next one
        lens = camera.rectifier.lens(calibration)
        truth = {role: rectify_truth(lens, role, one, frame.valid) for role, one in truth.items()}
        if boxes is not None:
            boxes, unseen = rectify_boxes(lens, boxes)
            if unseen:
                topic = camera.topics.truths['boxes']
                self.skipped[f'{topic}: boxes beyond the rectified picture'] += unseen
        return frame, truth, boxes

    def _name_what_was_missing(self) -> None:
        for camera in self._cameras:
            for role, topic in (('info', camera.topics.info), *camera.topics.truths.items()):
                if topic and not camera.seen[role]:
                    self._remark(f'{topic} has no messages')


def _is_static(tf_topic: str) -> bool:
    return tf_topic.endswith('static')
