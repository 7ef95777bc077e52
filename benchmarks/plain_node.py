"""A node as most are written, to compare with.

A subscription callback converts the picture, runs the network (eager torch, or ONNX Runtime as it
comes), converts the results and fills new messages; the queues hold ten messages. It publishes
labels, depth and normals on `/plain/...` and says nothing about what it drops.

    python benchmarks/plain_node.py --ros-args -p runtime:=torch -p bundle:=pvt_v2_b0
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import cv2
import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image

from mtl_perception.bundle import ModelBundle

QUEUE = 10
Infer = Callable[[np.ndarray], dict[str, np.ndarray]]


def torch_network(bundle: ModelBundle) -> Infer:
    """Return the bundle's network in eager torch; its weights are random, its work the same."""
    import torch

    from mtl_training.bundle_weights import trained_network
    from mtl_training.networks import build_network
    from mtl_training.run_state import network_config

    settings, tasks = trained_network(bundle)
    config = network_config(settings.model_copy(update={'pretrained': False}), tasks)
    network = build_network(config).eval()
    height, width = bundle.input_size

    @torch.no_grad()
    def infer(rgb: np.ndarray) -> dict[str, np.ndarray]:
        rgb = cv2.resize(rgb, (width, height))
        outputs = network(torch.from_numpy(rgb).permute(2, 0, 1)[None].float())
        results = {}
        if 'segmentation' in outputs:
            probability = outputs['segmentation'].softmax(1)
            results['label'] = probability.argmax(1)[0].byte().numpy()
        if 'depth' in outputs:
            results['depth'] = outputs['depth'][0, 0].numpy()
        if 'normals' in outputs:
            results['normal'] = outputs['normals'][0].permute(1, 2, 0).contiguous().numpy()
        return results

    return infer


def onnxruntime_network(bundle: ModelBundle) -> Infer:
    """Return the bundle's graph in an ONNX Runtime session with default options."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(bundle.model_path), providers=['CPUExecutionProvider']
    )
    names = [output.name for output in session.get_outputs()]
    height, width = bundle.input_size

    def infer(rgb: np.ndarray) -> dict[str, np.ndarray]:
        rgb = cv2.resize(rgb, (width, height))
        results = session.run(None, {'image': rgb[None]})
        return {name: result[0] for name, result in zip(names, results, strict=True)}

    return infer


RUNTIMES: dict[str, Callable[[ModelBundle], Infer]] = {
    'torch': torch_network,
    'onnxruntime': onnxruntime_network,
}
ENCODINGS = {'label': 'mono8', 'depth': '32FC1', 'normal': '32FC3'}
TOPICS = {'label': '/plain/label', 'depth': '/plain/depth', 'normal': '/plain/normal'}


class PlainNode(Node):
    """Everything happens in the subscription's callback."""

    def __init__(self) -> None:
        super().__init__('plain')
        bundle = ModelBundle.load(self.declare_parameter('bundle', 'pvt_v2_b0').value)
        runtime = self.declare_parameter('runtime', 'torch').value
        self.declare_parameter('transport', 'raw')
        self._infer = RUNTIMES[runtime](bundle)
        height, width = bundle.input_size
        self._infer(np.zeros((height, width, 3), np.uint8))
        self._outputs = {
            name: self.create_publisher(Image, topic, QUEUE) for name, topic in TOPICS.items()
        }
        self.create_subscription(Image, 'image', self._perceive, QUEUE)

    def _perceive(self, message: Image) -> None:
        pixels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
        # As cv_bridge's imgmsg_to_cv2(message, 'bgr8') does it, and what follows it as a rule.
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if message.encoding == 'rgb8' else pixels
        for name, result in self._infer(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)).items():
            if name in self._outputs:
                self._outputs[name].publish(self._message(result, ENCODINGS[name], message))

    @staticmethod
    def _message(array: np.ndarray, encoding: str, source: Image) -> Image:
        message = Image(header=source.header, encoding=encoding)
        message.height, message.width = array.shape[:2]
        message.step = array.strides[0]
        # As cv_bridge does it.
        message.data.frombytes(array.tobytes())
        return message


def main() -> None:
    """Run until interrupted."""
    rclpy.init(args=sys.argv)
    node = PlainNode()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
