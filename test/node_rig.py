"""The node under test and a client beside it, joined by real DDS in a domain of their own."""

from __future__ import annotations

import array
import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Log
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from mtl_perception.bundle import ModelBundle
from mtl_perception.engines import open_engine
from mtl_perception.frames import CameraFrame, Intrinsics, Prediction
from mtl_perception.msg import PerceptionStatus
from mtl_perception.perceiver import Perceiver
from mtl_perception.ros.node import PerceptionNode

FRAME = 'camera_optical_frame'
WIDTH, HEIGHT = 128, 96
FOCAL_LENGTH = 100.0
TIMEOUT_S = 60.0  # a machine shared with other work takes its time


class Rig:
    """A running node, a client node that publishes and subscribes, and what arrived there.

    Attributes:
        node: under test.
        client: the other side.
        received: messages by full topic name.
    """

    def __init__(self, node: PerceptionNode, client: Node) -> None:
        self.node = node
        self.client = client
        self.received: dict[str, list[Any]] = {}
        self._publishers: dict[str, Any] = {}
        self._services: dict[str, Any] = {}
        for camera in node.cameras:
            name = f'{camera.name}/' if camera.name else ''
            self.collect(f'/perception/{name}status', PerceptionStatus)
        self.collect('/diagnostics', DiagnosticArray)

    def collect(self, topic: str, kind: type, *, latched: bool = False) -> list[Any]:
        """Subscribe; return the list that the messages are appended to.

        Both sides have found each other then, unless the node offers less than is asked for here:
        what it publishes from now on arrives.
        """
        messages = self.received.setdefault(topic, [])
        profile = QoSProfile(
            depth=200,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        self.client.create_subscription(kind, topic, messages.append, profile)
        self.wait(lambda: self.client.count_publishers(topic) > 0, f'a publisher of {topic}')
        for publisher in self.node.publishers:
            reliability = publisher.qos_profile.reliability
            if publisher.topic_name == topic and reliability == ReliabilityPolicy.RELIABLE:
                self.wait(publisher.get_subscription_count, f'reader of {topic}')
        return messages

    def log(self) -> list[Log]:
        """Return a list of what the nodes log, kept log entries included.

        The client has a publisher of the same topic, so finding one says nothing of the node's:
        what it said before the two met must come too.
        """
        return self.collect('/rosout', Log, latched=True)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Return what `condition` returns once it is true; fail after a bounded time."""
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            result = condition()
            if result:
                return result
            time.sleep(0.01)
        raise AssertionError(f'no {what} within {TIMEOUT_S:.0f} s')

    def publisher(self, topic: str, kind: type, *, reliable: bool = True) -> Any:
        """Return a publisher that the node has found."""
        if topic not in self._publishers:
            policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
            publisher = self.client.create_publisher(
                kind, topic, QoSProfile(depth=10, reliability=policy)
            )
            self._publishers[topic] = publisher
            self.settle(topic, reliable=reliable)
            self.wait(lambda: publisher.get_subscription_count() > 0, f'reader of {topic}')
        return self._publishers[topic]

    def settle(self, topic: str, *, reliable: bool = True) -> None:
        """Wait until the node's subscription asks for what is offered."""
        wanted = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT

        def settled() -> bool:
            readers = self.client.get_subscriptions_info_by_topic(topic)
            return len(readers) == 1 and readers[0].qos_profile.reliability == wanted

        self.wait(settled, f'{wanted.name} reader of {topic}')

    def send(
        self, message: Image | CompressedImage, topic: str = '/image', *, stamp_s: float = 0.0
    ) -> Time:
        """Publish an image, stamped now unless told otherwise; return the stamp."""
        publisher = self.publisher(topic, type(message))
        message.header.stamp = self.stamp(stamp_s)
        publisher.publish(message)
        return message.header.stamp

    def stamp(self, seconds: float = 0.0) -> Time:
        """Return a stamp: `seconds`, or now."""
        if seconds:
            return Time(sec=int(seconds), nanosec=round(seconds % 1 * 1e9))
        return self.client.get_clock().now().to_msg()

    def calibrate(self, message: CameraInfo, topic: str = '/camera_info') -> None:
        """Publish a calibration and wait until the node has taken it."""
        publisher = self.publisher(topic, CameraInfo)
        camera = next(c for c in self.node.cameras if c.topics.camera_info == topic)
        before = camera.calibration_messages
        publisher.publish(message)
        self.wait(lambda: camera.calibration_messages > before, f'calibration from {topic}')

    def deliver(self, message: Image, topic: str = '/image', **options: Any) -> Time:
        """Publish an image and wait until the node has received it; return the stamp.

        Of images sent at once, the node would process the newest only.
        """
        self.publisher(topic, type(message))
        camera = next(c for c in self.node.cameras if c.topics.image == topic)
        before = camera.counter.snapshot().received
        stamp = self.send(message, topic, **options)
        self.wait(lambda: camera.counter.snapshot().received > before, f'arrival from {topic}')
        return stamp

    def wait_for(self, topic: str, stamp: Time) -> Any:
        """Return the message of a topic with this stamp."""

        def find() -> Any:
            messages = self.received[topic]
            return next((m for m in messages if m.header.stamp == stamp), None)

        return self.wait(find, f'message of {topic} with stamp {stamp.sec}.{stamp.nanosec:09d}')

    def perceive(self, message: Image | CompressedImage, **options: Any) -> PerceptionStatus:
        """Publish an image and return the status of its predictions."""
        return self.wait_for('/perception/status', self.send(message, **options))

    def dropped(self, camera: int = 0) -> dict[str, int]:
        """Return the frames of a camera that were dropped, by reason."""
        return dict(self.node.cameras[camera].counter.snapshot().dropped)

    def diagnosis(self, name: str = 'perception: camera', *, having: str = '') -> DiagnosticStatus:
        """Return a fresh status of /diagnostics by name, whose message contains `having`."""
        before = len(self.received['/diagnostics'])

        def find() -> DiagnosticStatus | None:
            for message in self.received['/diagnostics'][before:]:
                for status in message.status:
                    if status.name == name and having in status.message:
                        return status
            return None

        return self.wait(find, f'diagnostic status {name!r} with {having!r}')

    def call(self, kind: type, name: str, request: Any) -> Any:
        """Call a service of the node."""
        future = self._service(kind, name).call_async(request)
        self.wait(future.done, f'answer of {name}')
        return future.result()

    def _service(self, kind: type, name: str) -> Any:
        """Return the kept client of a service that the node offers."""
        if name not in self._services:
            self._services[name] = self.client.create_client(kind, f'/perception/{name}')
        client = self._services[name]
        self.wait(client.service_is_ready, f'service {name}')
        return client

    def call_while(self, action: Callable[[], Any], kind: type, name: str, request: Any) -> Any:
        """Call a service and repeat `action` ten times a second until it answers."""
        future = self._service(kind, name).call_async(request)

        def answered() -> bool:
            action()
            time.sleep(0.1)
            return future.done()

        self.wait(answered, f'answer of {name}')
        return future.result()

    def set(self, **values: Any) -> list[str]:
        """Set parameters over ROS; return why each one was refused ('' where it was not)."""
        parameters: list[ParameterMessage] = [
            Parameter(name.replace('__', '.'), value=value).to_parameter_msg()
            for name, value in values.items()
        ]
        answer = self.call(
            SetParameters, 'set_parameters', SetParameters.Request(parameters=parameters)
        )
        return ['' if result.successful else result.reason for result in answer.results]

    def transition(self, number: int) -> bool:
        """Ask for a lifecycle transition over ROS; tell whether it succeeded."""
        request = ChangeState.Request()
        request.transition.id = number
        return self.call(ChangeState, 'change_state', request).success


@contextlib.contextmanager
def running_node(
    parameters: Mapping[str, Any], *, start: bool = True, arguments: list[str] | None = None
) -> Iterator[Rig]:
    """Run the node and a client, each with participant and executor of its own."""
    # rcl keeps the publishers of /rosout by the nodes' names: a node of an earlier test that is
    # only collected once this one runs would take this one's publisher with it.
    gc.collect()
    contexts = [rclpy.Context(), rclpy.Context()]
    for context in contexts:
        rclpy.init(context=context, domain_id=int(os.environ['ROS_DOMAIN_ID']))
    node = PerceptionNode(
        parameters=parameters, context=contexts[0], cli_args=arguments, use_global_arguments=False
    )
    client = rclpy.create_node('client', context=contexts[1], use_global_arguments=False)
    executors = [SingleThreadedExecutor(context=context) for context in contexts]
    threads = []
    for executor, member in zip(executors, (node, client), strict=True):
        executor.add_node(member)
        threads.append(threading.Thread(target=executor.spin, daemon=True))
    try:
        if start:
            assert node.start()
        for thread in threads:
            thread.start()
        yield Rig(node, client) if start else IdleRig(node, client)
    finally:
        for executor, thread in zip(executors, threads, strict=True):
            executor.shutdown()
            thread.join(TIMEOUT_S)
        node.destroy_node()
        client.destroy_node()
        for context in contexts:
            context.try_shutdown()


def node_of(bundle: ModelBundle, /, **parameters: Any) -> contextlib.AbstractContextManager[Rig]:
    """Run a node with a bundle on ONNX Runtime, whose float32 results are the same everywhere.

    Args:
        bundle: to run.
        parameters: of the node, with '__' for '.'; and `start` and `arguments` of `running_node`.
    """
    options = {name: parameters.pop(name) for name in ('start', 'arguments') if name in parameters}
    values = {'bundle': str(bundle.path), 'engine': 'onnxruntime', **parameters}
    return running_node({k.replace('__', '.'): v for k, v in values.items()}, **options)


def predict(
    bundle: ModelBundle,
    pixels: np.ndarray,
    encoding: str = 'rgb8',
    intrinsics: Intrinsics | None = None,
) -> Prediction:
    """Return what the perceiver says of a picture without ROS."""
    height, width = pixels.shape[:2]
    camera = intrinsics or Intrinsics(
        width, height, FOCAL_LENGTH, FOCAL_LENGTH, (width - 1) / 2, (height - 1) / 2
    )
    perceiver = Perceiver(open_engine(bundle, 'onnxruntime'), bundle)
    return perceiver.perceive(CameraFrame(pixels, encoding, camera))


class IdleRig(Rig):
    """A node that was not started: it has no outputs yet."""

    def __init__(self, node: PerceptionNode, client: Node) -> None:
        self.node = node
        self.client = client
        self.received = {}
        self._publishers = {}
        self._services = {}
        self.collect('/diagnostics', DiagnosticArray)


def textured(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Return a picture of smooth coloured shapes, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = [
        127 + 120 * np.sin(u / width * a + b) * np.cos(v / height * c)
        for a, b, c in rng.uniform(2, 9, (3, 3))
    ]
    return np.stack(planes, axis=-1).astype(np.uint8)


def image_message(pixels: np.ndarray, encoding: str = 'rgb8', frame_id: str = FRAME) -> Image:
    """Return an Image of an array [H, W] or [H, W, C]."""
    pixels = np.ascontiguousarray(pixels)
    message = Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        step=pixels.strides[0],
        data=array.array('B', pixels.tobytes()),
    )
    message.header.frame_id = frame_id
    return message


def camera_info(
    height: int = HEIGHT,
    width: int = WIDTH,
    focal_length: float = FOCAL_LENGTH,
    frame_id: str = FRAME,
    **fields: Any,
) -> CameraInfo:
    """Return the calibration of a camera whose axis meets the middle of the picture."""
    fx, cx, cy = focal_length, (width - 1) / 2, (height - 1) / 2
    message = CameraInfo(height=height, width=width, distortion_model='plumb_bob')
    message.header.frame_id = frame_id
    message.k = [fx, 0.0, cx, 0.0, fx, cy, 0.0, 0.0, 1.0]
    message.p = [fx, 0.0, cx, 0.0, 0.0, fx, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.d = [0.0] * 5
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def pixels_of(message: Image) -> np.ndarray:
    """Return an output's array [H, W] or [H, W, C]."""
    dtype, channels = {
        'mono8': (np.uint8, 1),
        'rgb8': (np.uint8, 3),
        '16UC1': (np.uint16, 1),
        '32FC1': (np.float32, 1),
        '32FC3': (np.float32, 3),
    }[message.encoding]
    assert message.step == message.width * channels * np.dtype(dtype).itemsize
    values = np.frombuffer(message.data, dtype)
    shape = (message.height, message.width, channels)
    return values.reshape(shape[: 2 if channels == 1 else 3])
