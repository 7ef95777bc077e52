"""The least that a node of its own process can do: what remains is the engine and the middleware.

Pictures are taken as the bytes that arrived and not looked at. The engine runs on a picture that
never changes. Labels and depth are published as bytes made beforehand, into which only the
picture's stamp is copied, on `/least/...`. No node that receives pictures and publishes these
outputs through rclpy can be faster, whatever it is written like.

    python benchmarks/least_node.py --ros-args -p bundle:=pvt_v2_b0
"""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

from mtl_perception.bundle import ModelBundle
from mtl_perception.engines import open_engine

QUEUE = 10
WARM_UP_S = 3.0
TOPICS = {'label': '/least/label', 'depth': '/least/depth'}
_ENCODINGS = {'label': ('mono8', 1), 'depth': ('32FC1', 4)}
# CDR has four bytes that tell the byte order, then the message: a header, whose stamp is first.
_STAMP = slice(4, 12)


class LeastNode(Node):
    """Takes bytes, runs the engine, gives bytes; the newest picture wins."""

    def __init__(self) -> None:
        super().__init__('least')
        bundle = ModelBundle.load(self.declare_parameter('bundle', 'pvt_v2_b0').value)
        engine = self.declare_parameter('engine', 'auto').value
        self.declare_parameter('transport', 'raw')
        self._engine = open_engine(bundle, engine)
        self._names = [name for name in TOPICS if name in bundle.outputs]
        self._picture = self._engine.input_buffer(1, bundle.input_size)
        self._picture[:] = np.random.default_rng(0).integers(0, 256, self._picture.shape, np.uint8)
        # What is compiled in the background for these outputs takes over meanwhile.
        until = time.perf_counter() + WARM_UP_S
        while time.perf_counter() < until:
            self._engine.infer(self._picture, self._names)
        height, width = bundle.input_size
        self._kept = {name: _serialized(*_ENCODINGS[name], height, width) for name in self._names}
        self._outputs = {
            name: self.create_publisher(Image, TOPICS[name], QUEUE) for name in self._names
        }
        self._arrived = threading.Condition()
        self._stamp: bytes | None = None
        threading.Thread(target=self._work, name='perception', daemon=True).start()
        self.create_subscription(Image, 'image', self._take, QUEUE, raw=True)

    def _take(self, message: bytes) -> None:
        with self._arrived:
            self._stamp = message[_STAMP]
            self._arrived.notify()

    def _work(self) -> None:
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._stamp is not None)
                stamp, self._stamp = self._stamp, None
            self._engine.infer(self._picture, self._names)
            for name, message in self._kept.items():
                message[_STAMP] = stamp
                self._outputs[name].publish(bytes(message))


def _serialized(encoding: str, size: int, height: int, width: int) -> bytearray:
    message = Image(encoding=encoding, height=height, width=width, step=width * size)
    message.header.frame_id = 'camera'
    message.data.frombytes(bytes(height * width * size))
    return bytearray(serialize_message(message))


def main() -> None:
    """Run until interrupted."""
    rclpy.init(args=sys.argv)
    node = LeastNode()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
